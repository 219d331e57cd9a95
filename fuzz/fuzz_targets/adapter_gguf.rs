//! A LoRA adapter in GGUF.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius::lora::from_gguf;
use socius_fuzz::{base, file, padded};
use socius_models::Spec;

fuzz_target!(|data: &[u8]| {
    let _ = from_gguf(&file("adapter.gguf", &padded(data)), base(&Spec::tiny()));
});
