//! The index of a folder's shards.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius_fuzz::{read_checkpoint, sharded_with};

fuzz_target!(|data: &[u8]| read_checkpoint(sharded_with("model.safetensors.index.json", data)));
