//! What can go wrong between text and tokens.

use socius_models::ModelError;
use std::path::PathBuf;

/// An error of reading a tokenizer or a template, or of using one.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A tokenizer's file or metadata is malformed or of a kind that is not supported.
    #[error("{origin}: {what}")]
    Tokenizer {
        /// The file, or the metadata key.
        origin: String,
        /// What is wrong, and what is expected.
        what: String,
    },
    /// A metadata key of a checkpoint has the wrong type.
    #[error(transparent)]
    Metadata(#[from] ModelError),
    /// The model was not made for conversations.
    #[error("this model has no chat template; use --raw to give it text as it is")]
    NoTemplate,
    /// The chat template cannot be compiled.
    #[error("the chat template is malformed: {0}")]
    BadTemplate(String),
    /// The chat template refuses these messages, or fails on them.
    #[error("the chat template cannot write this conversation: {0}")]
    Render(String),
    /// A grammar, schema or regular expression cannot be followed.
    #[error("{0}")]
    Grammar(String),
    /// The tokenizer has no token for some text.
    #[error("cannot tokenize: {0}")]
    Encode(String),
}

impl TextError {
    pub(super) fn tokenizer(origin: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Tokenizer { origin: origin.into(), what: what.into() }
    }
}
