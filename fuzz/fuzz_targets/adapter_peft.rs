//! A PEFT directory: its configuration and its tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius::lora::PeftFiles;
use socius_fuzz::base;
use socius_models::Spec;

fuzz_target!(|files: (&[u8], &[u8])| {
    let plain = include_bytes!("../../models/golden/adapters/plain/adapter_model.safetensors");
    let config = include_bytes!("../../models/golden/adapters/plain/adapter_config.json");
    for (config, weights) in [(files.0, files.1), (files.0, plain), (config, files.1)] {
        let _ = PeftFiles { config: config.to_vec(), weights: weights.to_vec() }.parse(base(&Spec::tiny()));
    }
});
