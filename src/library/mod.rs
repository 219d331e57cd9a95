//! The skill library: immutable generations under names, with what is known about each. Never sees a running model or a prompt.
//!
//! ```text
//! library/
//!   objects/ab/cdef…   files named by the SHA-256 of their bytes, written once: manifests, adapters, episodes, features, moves, evidence
//!   index.sqlite       what the objects say, arranged for questions; made again from them by `skills verify --rebuild`
//!   moving             the records that the last writer was about to store
//!   tmp/               files being written; publishing.lock is held meanwhile
//!   quarantine/        what was found damaged
//! ```
//!
//! A generation appears in one step: its objects are made durable first (temporary file, fsync, rename, fsync of the folder), its
//! manifest and the move of its name last, then one SQLite transaction commits. A kill before the commit leaves objects that nothing
//! refers to. Names move by records, one after another, so a name's history is never rewritten. Objects are checked against their
//! names whenever they are read, so damage is an error, never a wrong answer; what is damaged is put aside and routed around.

mod archive;
mod cache;
mod commit;
mod episodes;
mod error;
mod features;
mod index;
mod journal;
mod kill;
mod name;
mod objects;
mod publish;
mod reach;
mod record;
mod search;
mod store;
mod transfer;
mod verify;

#[cfg(test)]
mod testing;

pub use archive::ArchiveImport;
pub use cache::AdapterCache;
pub use episodes::episodes_digest;
pub use error::LibraryError;
pub use features::RoutingFeatures;
pub use journal::{Evidence, Finding, Move, MoveKind, Target};
pub use name::{NameError, SkillName, SkillRef, Which};
pub use publish::Candidate;
pub use reach::Collected;
pub use record::{
    BaseId, BlobRef, Blobs, Comparison, Cost, EnvId, FORMAT, GateDecision, Generation, ItemsUsed, Manifest, Provenance,
    RoutingRef, Score, SkillSummary,
};
pub use search::Found;
pub use store::{History, Library, Skills};
pub use transfer::{Export, Import};
pub use verify::{Damage, Verification};
