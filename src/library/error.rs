//! What can go wrong with the library, by what the caller does next.

use super::NameError;
use crate::{common::Digest, lora::LoraError};
use std::path::{Path, PathBuf};

/// An error of the library.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The file system refused: mend the folder, its rights or its space.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another process holds the index: try again.
    #[error("the library's index {path} is in use by another process; try again")]
    Busy {
        /// The index.
        path: PathBuf,
    },
    /// The index cannot be read or written.
    #[error("the library's index {path}: {source}")]
    Index {
        /// The index.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The index is damaged: everything in it can be made again.
    #[error(
        "the library's index {path} is damaged ({source}); `socius skills verify --rebuild` makes it again from the objects"
    )]
    DamagedIndex {
        /// The index.
        path: PathBuf,
        /// How that shows.
        source: rusqlite::Error,
    },
    /// What is stored is not what was published: quarantine the generation, route elsewhere.
    #[error(
        "{what} at {path} is damaged ({why}); do not use generation {generation}: route to another, or publish it again"
    )]
    Damaged {
        /// Which of the generation's objects.
        what: String,
        /// Where it lies.
        path: PathBuf,
        /// How that shows.
        why: String,
        /// The generation that needs it.
        generation: Digest,
    },
    /// The skill belongs to another base: route elsewhere.
    #[error("skill {skill} belongs to {expected}, but {found} is loaded; load {expected}, or choose another skill")]
    ForeignBase {
        /// The skill.
        skill: String,
        /// Name and digests of its base.
        expected: String,
        /// Name and digests of the base at hand.
        found: String,
    },
    /// There is no such skill or generation.
    #[error("{what}; `socius skills list` shows what there is")]
    NotFound {
        /// What was looked for, and where.
        what: String,
    },
    /// More than one generation fits.
    #[error("{prefix} fits {count} generations of {name}; give more digits")]
    Ambiguous {
        /// The skill.
        name: String,
        /// The digits given.
        prefix: String,
        /// How many fit.
        count: usize,
    },
    /// The name cannot be a skill's.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A newer program wrote this.
    #[error("{what} is of format {found}, and this program reads up to {supported}; use a newer socius")]
    Newer {
        /// The index or an object.
        what: String,
        /// Its format.
        found: u32,
        /// The newest format known here.
        supported: u32,
    },
    /// What was to be published is not whole.
    #[error("cannot publish: {what}")]
    Candidate {
        /// What is wrong with it.
        what: String,
    },
    /// A name cannot move as asked.
    #[error("{name} cannot be moved: {what}")]
    Unmovable {
        /// The skill.
        name: String,
        /// Why, and what would be right.
        what: String,
    },
    /// A file is no archive of skills, or not a whole one.
    #[error("{path} is no archive of skills that can be read: {what}")]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The archive's history of a name is another one than the library's.
    #[error(
        "{name} is another skill here: its history and the archive's differ after move {common}; import it with --name"
    )]
    Diverged {
        /// The skill.
        name: String,
        /// Number of moves that both have.
        common: usize,
    },
    /// The adapter does not fit the base, or its file is malformed.
    #[error(transparent)]
    Lora(#[from] LoraError),
}

impl LibraryError {
    /// For `map_err` on file operations.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
