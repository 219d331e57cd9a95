//! One writer at a time, across processes. The lock dies with its process.

use super::error::{At, SourceError};
use crate::common::Report;
use std::{
    fs::{File, OpenOptions, TryLockError},
    path::Path,
    thread,
    time::Duration,
};

/// Held until dropped.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock at `path` (a file of its own, which stays), saying so once.
    pub(super) fn take(path: &Path, report: &mut dyn Report) -> Result<Self, SourceError> {
        let file = OpenOptions::new().create(true).append(true).open(path).at(path)?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(error)) => return Err(error).at(path),
                Err(TryLockError::WouldBlock) if report.cancelled() => return Err(SourceError::Cancelled),
                Err(TryLockError::WouldBlock) => {
                    if !told {
                        report.note("another process is fetching the same model; waiting for it");
                        told = true;
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
}
