//! The `socius` binary.

fn main() {}
