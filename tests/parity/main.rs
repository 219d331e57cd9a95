//! The whole program against the programs that own its formats, by the traces that `tests/peers` recorded from them.

mod adapters;
#[path = "../common/mod.rs"]
mod common;
mod peer;
mod smollm2;
mod training;
