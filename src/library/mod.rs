//! The skill library: immutable generations under names, with what is known about each. Never sees a running model or a prompt.
//!
//! ```text
//! library/
//!   objects/ab/cdef…   files named by the SHA-256 of their bytes, written once: manifests, adapters, episodes, features
//!   index.sqlite       which generation a name stands for, and which it had before
//!   tmp/               files being written; publishing.lock is held meanwhile
//! ```
//!
//! A generation appears in one step: its objects are made durable first (temporary file, fsync, rename, fsync of the folder),
//! then one SQLite transaction takes the next number of the name's history, stores the manifest that carries it, and commits.
//! Whatever a crash leaves before the commit is objects that nothing refers to. Objects are checked against their names whenever
//! they are read, so damage is an error, never a wrong answer.

mod cache;
mod episodes;
mod error;
mod features;
mod index;
mod name;
mod objects;
mod publish;
mod record;
mod store;
mod transfer;

#[cfg(test)]
mod testing;

pub use cache::AdapterCache;
pub use error::LibraryError;
pub use features::RoutingFeatures;
pub use name::{NameError, SkillName, SkillRef, Which};
pub use publish::Candidate;
pub use record::{
    BaseId, BlobRef, Blobs, Comparison, Cost, EnvId, FORMAT, GateDecision, Generation, ItemsUsed, Manifest, Provenance,
    Removal, RoutingRef, Score, SkillSummary,
};
pub use store::{Catalogue, CatalogueEntry, Library, Listing};
pub use transfer::{Export, Import};
