//! What can go wrong between a checkpoint and a logit.

use std::path::PathBuf;

/// An error of loading or running a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what its format says: truncated, malformed, of an unknown type.
    #[error("{path}: {what}")]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// The checkpoint lacks a tensor.
    #[error("tensor {name} is missing; {expected} was expected")]
    MissingTensor {
        /// The tensor's name in the checkpoint.
        name: String,
        /// Shape in words.
        expected: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor {name} has shape {found:?}, expected {expected:?} from the configuration")]
    Shape {
        /// The tensor's name in the checkpoint.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// A configuration key is missing, of the wrong type or of an unsupported value.
    #[error("configuration key {key}: {what}")]
    Config {
        /// The key.
        key: String,
        /// What is wrong, and what is supported.
        what: String,
    },
    /// A CUDA device was asked for by name and cannot be used.
    #[error(
        "cannot use cuda:{ordinal}: {why}; choose --device cpu, or --device auto to take a GPU only where there is one"
    )]
    NoCuda {
        /// The device's number.
        ordinal: usize,
        /// What is missing.
        why: String,
    },
    /// The device or the tensor library failed.
    #[error("device: {0}")]
    Device(#[from] candle_core::Error),
}
