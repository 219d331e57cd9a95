//! Reading traces, and the tiny model that they speak of. Knows no test.

use candle_core::Device;
use serde::{Deserialize, de::DeserializeOwned};
use socius_models::{Dtype, Model, RandomSource, Spec};
use std::path::PathBuf;

/// A file of `models/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/golden").join(name)
}

/// A recorded trace.
pub(crate) fn trace<T: DeserializeOwned>(name: &str) -> T {
    let path = golden(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The part of a recorded configuration by which it is known for [`Spec::tiny`].
#[derive(Deserialize)]
pub(crate) struct TinyConfig {
    hidden_size: usize,
    vocab_size: usize,
    num_hidden_layers: usize,
}

/// The tiny checkpoint of `seed`, in f32 on the CPU.
pub(crate) fn tiny_model(config: &TinyConfig, seed: u64) -> Model {
    let spec = Spec::tiny();
    let sizes = (spec.hidden, spec.vocab, spec.layers);
    assert_eq!(sizes, (config.hidden_size, config.vocab_size, config.num_hidden_layers), "recorded on another model");
    Model::load(spec.clone(), &RandomSource { spec, seed }, &Device::Cpu, Dtype::F32).unwrap()
}

/// Largest difference between two lists of equal length.
pub(crate) fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
