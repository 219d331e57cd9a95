//! Adapters that peft trained and wrote, read here: the same logprobs under each.

use crate::peer::{TinyConfig, difference, golden, tiny_model, trace};
use serde::Deserialize;
use socius::lora::{Base, LoraWeights, PeftFiles, from_gguf};
use socius_models::{Adapter, Batch, Model, Row, Target, TargetTokens};

/// The bound on the difference of a logprob in f32.
const LOGPROB_DIFFERENCE_MAX: f32 = 1e-3;

#[derive(Deserialize)]
struct Trace {
    config: TinyConfig,
    model_seed: u64,
    base: String,
    tokens: Vec<u32>,
    base_logprobs: Vec<f32>,
    adapters: Vec<Recorded>,
}

#[derive(Deserialize)]
struct Recorded {
    name: String,
    path: String,
    logprobs: Vec<f32>,
}

impl Trace {
    /// Logprobs of every token after the first.
    fn score(&self, model: &Model, lora: Option<&LoraWeights>) -> Vec<f32> {
        let adapters: Vec<_> = lora.iter().map(|l| Adapter::new(&l.layout, &l.theta)).collect();
        let position = lora.map_or(0, |lora| lora.layout.positions());
        let batch = Batch::new([Row { position, ..Row::new(&self.tokens).under(lora.map(|_| 0)) }]);
        let target = |(position, &token)| Target { position, tokens: TargetTokens::Token(token) };
        let targets: Vec<Target> = self.tokens[1..].iter().enumerate().map(target).collect();
        model.score(&batch, &adapters, &targets).unwrap().logprobs
    }

    fn read(&self, path: &str, model: &Model) -> LoraWeights {
        let base = Base { spec: model.spec(), name: &self.base, aliases: &[] };
        let path = golden("adapters").join(path);
        match path.is_dir() {
            true => PeftFiles::read(&path).unwrap().parse(base).unwrap(),
            false => from_gguf(&path, base).unwrap(),
        }
    }
}

#[test]
fn adapters_from_peft_score_as_they_do_in_peft() {
    let trace: Trace = trace("adapters.json");
    let model = tiny_model(&trace.config, trace.model_seed);
    let worst = difference(&trace.score(&model, None), &trace.base_logprobs);
    assert!(worst <= LOGPROB_DIFFERENCE_MAX, "base: {worst:e}");
    for Recorded { name, path, logprobs } in &trace.adapters {
        let worst = difference(&trace.score(&model, Some(&trace.read(path, &model))), logprobs);
        println!("{name}: {worst:.1e}");
        assert!(worst <= LOGPROB_DIFFERENCE_MAX, "{name}: {worst:e}");
    }
}

#[test]
fn an_adapter_written_again_is_the_same_adapter() {
    let trace: Trace = trace("adapters.json");
    let model = tiny_model(&trace.config, trace.model_seed);
    let base = Base { spec: model.spec(), name: &trace.base, aliases: &[] };
    for Recorded { name, path, .. } in trace.adapters.iter().filter(|adapter| !adapter.path.ends_with(".gguf")) {
        let lora = trace.read(path, &model);
        let folder = tempfile::tempdir().unwrap();
        PeftFiles::new(&lora, base).write(folder.path()).unwrap();
        let again = PeftFiles::read(folder.path()).unwrap().parse(base).unwrap();
        assert_eq!((&again.layout, &again.theta), (&lora.layout, &lora.theta), "{name}");
    }
}
