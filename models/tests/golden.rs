//! Tiny random checkpoints against logits recorded from transformers; never needs a download.
//!
//! `tests/peers/record_llama.py` and `record_checkpoints.py` wrote the traces; weights are made from a seed on both sides, or lie
//! in checkpoints of a few kilobytes that transformers and the `gguf` package wrote.

use candle_core::Device;
use serde::Deserialize;
use socius_models::{
    Activation, Batch, Checkpoint, Dtype, Model, ModelError, RandomSource, RopeScaling, Row, Spec, TensorSource,
    random_values,
};
use std::{collections::BTreeMap, path::PathBuf};

/// The bound on the largest difference of a logit.
const LOGIT_DIFFERENCE_MAX: f32 = 2e-4;

#[derive(Deserialize)]
struct Trace {
    config: Config,
    seed: u64,
    weights: BTreeMap<String, [f32; 4]>,
    sequences: Vec<Sequence>,
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Config {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    rope_scaling: Option<Scaling>,
    tie_word_embeddings: bool,
    max_position_embeddings: usize,
}

#[derive(Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
enum Scaling {
    Linear { factor: f64 },
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: f64 },
}

impl Config {
    fn spec(&self) -> Spec {
        Spec {
            family: self.model_type.clone(),
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta,
            rope_scaling: match self.rope_scaling {
                None => RopeScaling::None,
                Some(Scaling::Linear { factor }) => RopeScaling::Linear { factor },
                Some(Scaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings,
                }) => RopeScaling::Llama3 {
                    factor,
                    low_frequency: low_freq_factor,
                    high_frequency: high_freq_factor,
                    original_context: original_max_position_embeddings,
                },
            },
            activation: Activation::Silu,
            tied_head: self.tie_word_embeddings,
            context_max: self.max_position_embeddings,
        }
    }
}

/// What `checkpoints.json` holds: one sequence through each of the files in `checkpoints`.
#[derive(Deserialize)]
struct Stored {
    tokens: Vec<u32>,
    positions: Vec<usize>,
    checkpoints: Vec<StoredCheckpoint>,
}

#[derive(Deserialize)]
struct StoredCheckpoint {
    path: String,
    logits: Vec<Vec<f32>>,
}

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Every `golden/llama-*.json`, by name.
fn traces() -> Vec<(String, Trace)> {
    let mut paths: Vec<_> = std::fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let traces: Vec<_> = paths
        .iter()
        .filter_map(|path| Some((path, path.file_name()?.to_str()?.strip_prefix("llama-")?.strip_suffix(".json")?)))
        .map(|(path, name)| (name.to_owned(), serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()))
        .collect();
    assert!(traces.len() >= 8, "the traces are part of the repository");
    traces
}

type Load = fn(Spec, &dyn TensorSource, &Device, Dtype) -> Result<Model, ModelError>;

/// Largest difference between `model`'s logits and the trace's.
fn difference(model: &Model, sequence: &Sequence) -> f32 {
    let batch = Batch::new([Row::new(&sequence.tokens)]);
    let logits = model.forward(&batch, &[], &mut [&mut model.sequence()], &sequence.positions).unwrap();
    let expected = sequence.logits.concat();
    assert_eq!(logits.len(), expected.len());
    logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn check(load: Load) {
    for (name, trace) in traces() {
        let spec = trace.config.spec();
        let source = RandomSource { spec: spec.clone(), seed: trace.seed };
        let model = load(spec, &source, &Device::Cpu, Dtype::F32).unwrap();
        for sequence in &trace.sequences {
            let worst = difference(&model, sequence);
            println!("{name}, {} tokens: {worst:.1e}", sequence.tokens.len());
            assert!(worst <= LOGIT_DIFFERENCE_MAX, "{name}, {} tokens: {worst:e}", sequence.tokens.len());
        }
    }
}

#[test]
fn the_random_weights_are_those_that_the_traces_were_recorded_with() {
    for (name, trace) in traces() {
        let spec = trace.config.spec();
        for (tensor, expected) in &trace.weights {
            let shape = match tensor.as_str() {
                "model.embed_tokens.weight" => vec![spec.vocab, spec.hidden],
                "model.layers.1.mlp.down_proj.weight" => vec![spec.hidden, spec.intermediate],
                _ => vec![spec.hidden],
            };
            let values = random_values(tensor, &shape, trace.seed);
            assert_eq!(values[values.len() - 4..], *expected, "{name}: {tensor}");
        }
    }
}

#[test]
fn the_reference_gives_the_logits_of_transformers() {
    check(Model::load_reference);
}

#[test]
fn the_cpu_form_gives_the_logits_of_transformers() {
    check(Model::load);
}

#[test]
fn checkpoints_that_their_owners_wrote_give_the_logits_of_transformers() {
    let stored: Stored = serde_json::from_slice(&std::fs::read(golden().join("checkpoints.json")).unwrap()).unwrap();
    for StoredCheckpoint { path, logits } in stored.checkpoints {
        let checkpoint = Checkpoint::open(golden().join("checkpoints").join(&path)).unwrap();
        let model = Model::load(checkpoint.spec.clone(), &checkpoint, &Device::Cpu, Dtype::F32).unwrap();
        let (tokens, positions) = (stored.tokens.clone(), stored.positions.clone());
        let worst = difference(&model, &Sequence { tokens, positions, logits });
        println!("{path}: {worst:.1e}");
        assert!(worst <= LOGIT_DIFFERENCE_MAX, "{path}: {worst:e}");
    }
}
