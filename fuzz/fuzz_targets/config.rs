//! A folder's `config.json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius_fuzz::{read_checkpoint, sharded_with};

fuzz_target!(|data: &[u8]| read_checkpoint(sharded_with("config.json", data)));
