//! A checkpoint in GGUF: metadata, tensors, tokenizer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius_fuzz::{file, padded, read_checkpoint};

fuzz_target!(|data: &[u8]| {
    read_checkpoint(&file("model.gguf", &padded(data)));
});
