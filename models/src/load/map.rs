//! A file as bytes in memory, by mapping; knows no format.

use crate::ModelError;
use memmap2::Mmap;
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// A file mapped read-only.
#[derive(Debug)]
pub(crate) struct Mapped {
    path: PathBuf,
    bytes: Mmap,
}

impl Mapped {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is private and read-only, and checkpoint files are written once under another name and then renamed,
        // so nothing here changes the bytes while they are borrowed. Another program that shortens the file in the meantime makes
        // the next access fault (SIGBUS), as it does for every reader of mapped weights.
        #[allow(unsafe_code, reason = "weights larger than memory need a mapping, and no safe one exists")]
        let bytes = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn error(&self, what: impl Into<String>) -> ModelError {
        ModelError::Format { path: self.path.clone(), what: what.into() }
    }
}
