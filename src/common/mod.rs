//! Digests, seeds and atomic files: what every module above needs and none owns.

mod digest;
mod file;
mod seed;

pub use digest::{Digest, DigestError};
pub use file::{sync_dir, write_atomic};
pub use seed::{Rng, Seed};
