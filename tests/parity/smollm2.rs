//! The real SmolLM2-135M-Instruct against transformers in f32: greedy answers, logprobs of text, and training. Fetches the model.

use crate::{
    common::default_model,
    peer::{difference, trace},
    training::Run,
};
use candle_core::Device;
use serde::Deserialize;
use socius::{common::Message, text::Text};
use socius_models::{Batch, Checkpoint, Dtype, KvSequence, Model, Row};
use std::{path::Path, sync::OnceLock};

/// Largest difference of a recorded logprob in f32, in nats.
const LOGPROB_DIFFERENCE_MAX: f32 = 2e-3;
/// The bound on the mean KL of the bf16 path, in nats.
const BF16_KL_MAX: f64 = 1e-3;
/// Twice what was measured for the form that keeps weights quantised and rounds activations to int8.
const QUANTISED_KL_MAX: f64 = 1e-2;

#[derive(Deserialize)]
struct Trace {
    gguf_sha256: String,
    answers: Vec<Answer>,
    texts: Vec<TokenisedText>,
    text: String,
    windows: Vec<Window>,
}

#[derive(Deserialize)]
struct Answer {
    prompt: String,
    tokens: Vec<u32>,
    greedy: Vec<u32>,
}

/// A text and its token ids.
#[derive(Deserialize)]
struct TokenisedText {
    text: String,
    tokens: Vec<u32>,
}

/// A piece of text: all but its last token are read from position 0, all but its first are scored.
#[derive(Deserialize)]
struct Window {
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    top_every: usize,
    top_tokens: Vec<Vec<usize>>,
    top_logprobs: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct TrainingTrace {
    gguf_sha256: String,
    #[serde(flatten)]
    run: Run,
}

/// The default model, of which the traces are.
fn open(sha256: &str) -> Checkpoint {
    let local = default_model();
    assert_eq!(local.digest.to_string(), sha256, "the traces are of another file");
    Checkpoint::open(&local.path).unwrap()
}

fn load(sha256: &str, dtype: Dtype) -> Model {
    let checkpoint = open(sha256);
    Model::load(checkpoint.spec.clone(), &checkpoint, &Device::Cpu, dtype).unwrap()
}

/// The f32 form, shared by the tests of this process.
fn exact(sha256: &str) -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(sha256, Dtype::F32))
}

/// log p(next token) after each token of `tokens`, one row a position.
fn distributions(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let wanted: Vec<usize> = (0..tokens.len()).collect();
    let logits = model.forward(&Batch::new([Row::new(tokens)]), &[], &mut [&mut model.sequence()], &wanted).unwrap();
    logits.chunks(model.spec().vocab).map(log_softmax).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let normaliser = f64::from(max) + sum.ln();
    logits.iter().map(|&logit| (f64::from(logit) - normaliser) as f32).collect()
}

/// KL(p ‖ q) in nats from logprobs.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    p.iter().zip(q).map(|(&p, &q)| f64::from(p).exp() * (f64::from(p) - f64::from(q))).sum()
}

impl Window {
    /// Largest difference of any recorded logprob.
    fn difference(&self, ours: &[Vec<f32>]) -> f32 {
        let chosen: Vec<f32> = ours.iter().zip(&self.tokens[1..]).map(|(row, &token)| row[token as usize]).collect();
        let top: Vec<f32> = (ours.iter().step_by(self.top_every).zip(&self.top_tokens))
            .flat_map(|(row, tokens)| tokens.iter().map(|&token| row[token]))
            .collect();
        difference(&chosen, &self.logprobs).max(difference(&top, &self.top_logprobs.concat()))
    }
}

#[test]
fn texts_and_conversations_have_the_token_ids_of_transformers() {
    let trace: Trace = trace("smollm2.json");
    let text = Text::open(&open(&trace.gguf_sha256)).unwrap();
    for Answer { prompt, tokens, .. } in &trace.answers {
        assert_eq!(&text.prompt_ids(&[Message::user(prompt)]).unwrap(), tokens, "{prompt}");
    }
    for TokenisedText { text: given, tokens } in &trace.texts {
        assert_eq!(&text.raw_ids(given).unwrap(), tokens, "{given:?}");
    }
    let file = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&trace.text)).unwrap();
    let ids = text.raw_ids(&file).unwrap();
    for (window, start) in trace.windows.iter().zip((0..).step_by(500)) {
        assert_eq!(ids[start..start + 501], window.tokens);
    }
}

#[test]
fn text_has_the_logprobs_of_transformers_and_every_form_of_the_weights_stays_near_them() {
    let trace: Trace = trace("smollm2.json");
    let exact = exact(&trace.gguf_sha256);
    let read = |window: &Window| window.tokens[..window.tokens.len() - 1].to_vec();
    let expected: Vec<_> = trace.windows.iter().map(|window| distributions(exact, &read(window))).collect();
    let differences = trace.windows.iter().zip(&expected).map(|(window, p)| window.difference(p));
    let worst = differences.fold(0.0, f32::max);
    println!("f32: {worst:.1e} nats at most");
    assert!(worst <= LOGPROB_DIFFERENCE_MAX, "f32: {worst:e}");
    for (dtype, mean_max) in [(Dtype::Bf16, BF16_KL_MAX), (Dtype::Quantised, QUANTISED_KL_MAX)] {
        let model = load(&trace.gguf_sha256, dtype);
        let mut divergences = Vec::new();
        for (window, p) in trace.windows.iter().zip(&expected) {
            let q = distributions(&model, &read(window));
            divergences.extend(p.iter().zip(&q).map(|(p, q)| divergence(p, q)));
        }
        let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
        let largest = divergences.iter().copied().fold(0.0, f64::max);
        println!("{dtype:?}: KL {mean:.2e} mean, {largest:.1e} at most");
        assert_eq!(divergences.len(), 2000);
        assert!(mean <= mean_max, "{dtype:?}: {mean:e}");
    }
}

#[test]
fn greedy_answers_are_those_of_transformers() {
    let trace: Trace = trace("smollm2.json");
    let model = exact(&trace.gguf_sha256);
    let mut sequences: Vec<KvSequence> = trace.answers.iter().map(|_| model.sequence()).collect();
    let mut unread: Vec<Vec<u32>> = trace.answers.iter().map(|answer| answer.tokens.clone()).collect();
    let mut answers = vec![Vec::new(); unread.len()];
    for _ in 0..64 {
        for (row, token) in step(model, &unread, &mut sequences).into_iter().enumerate() {
            answers[row].push(token);
            unread[row] = vec![token];
        }
    }
    for (answer, found) in trace.answers.iter().zip(&answers) {
        assert_eq!(found, &answer.greedy);
    }
}

/// The likeliest token after each row.
fn step(model: &Model, unread: &[Vec<u32>], sequences: &mut [KvSequence]) -> Vec<u32> {
    let rows = unread.iter().zip(sequences.iter());
    let batch = Batch::new(rows.map(|(tokens, cached)| Row { position: cached.len(), ..Row::new(tokens) }));
    let last: Vec<usize> = batch.spans().iter().map(|span| span.tokens.end - 1).collect();
    let logits = model.forward(&batch, &[], &mut sequences.iter_mut().collect::<Vec<_>>(), &last).unwrap();
    let likeliest = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
    logits.chunks(model.spec().vocab).map(likeliest).collect()
}

#[test]
fn it_trains_as_it_does_in_peft() {
    let trace: TrainingTrace = trace("training-smollm2.json");
    trace.run.check(exact(&trace.gguf_sha256));
}
