//! The header of a safetensors file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius_fuzz::{read_checkpoint, sharded_with};

const SHARD: &str = "model-00004-of-00004.safetensors";

fuzz_target!(|header: &[u8]| {
    let golden = include_bytes!("../../models/golden/checkpoints/sharded-bf16/model-00004-of-00004.safetensors");
    let (length, rest) = golden.split_first_chunk().expect("a golden file is whole");
    let data = &rest[u64::from_le_bytes(*length) as usize..];
    let file = [&(header.len() as u64).to_le_bytes(), header, data].concat();
    read_checkpoint(sharded_with(SHARD, &file));
    // Whatever stands where the length belongs.
    read_checkpoint(sharded_with(SHARD, header));
});
