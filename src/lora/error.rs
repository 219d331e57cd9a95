//! What can be wrong with an adapter, by what the caller does next.

use socius_models::ModelError;
use std::path::PathBuf;

/// An error of configuring, reading or writing an adapter.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// The file cannot be read or written.
    #[error("cannot access {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A setting is malformed, out of range or not supported.
    #[error("adapter setting `{key}`: {what}")]
    Config {
        /// Name of the setting, as the file or [`crate::lora::LoraConfig`] spells it.
        key: String,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A tensor is missing, superfluous, of another shape or type, or not finite.
    #[error("adapter tensor {name}: {what}")]
    Tensor {
        /// Name of the tensor in the file.
        name: String,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// The file is not of its format at all.
    #[error("{file}: {what}")]
    Format {
        /// Which file.
        file: String,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// A GGUF file cannot be read, or is malformed.
    #[error(transparent)]
    Gguf(#[from] ModelError),
    /// The adapter was trained on another base: use it there.
    #[error("`{key}` says that the adapter was trained on {found:?}, but the base here is {expected:?}")]
    ForeignBase {
        /// The setting that names the base.
        key: &'static str,
        /// The base that the adapter names.
        found: String,
        /// The base that it was to be used on.
        expected: String,
    },
}

impl LoraError {
    pub(super) fn config(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Config { key: key.into(), what: what.into() }
    }

    pub(super) fn tensor(name: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), what: what.into() }
    }
}
