//! Digests, seeds, atomic files, the data folder, progress: what every module above needs and none owns.

mod digest;
mod file;
mod home;
mod journal;
mod memory;
mod message;
mod progress;
mod seed;

pub use digest::{Digest, DigestError};
pub use file::{sync_dir, write_atomic};
pub use home::{Home, HomeError};
pub use journal::{Journal, JournalError};
pub use memory::peak_bytes;
pub use message::{Message, Role};
pub use progress::{Phase, Progress, Report, Silent, Unit};
pub use seed::{Rng, Seed};
