//! Tokens a second of a training step and of decode, on random weights of SmolLM2-135M's shape:
//! `cargo run --release -p socius-models --example throughput`. With the path of a checkpoint: decode of one row of it, its
//! weights in bf16 and as they are quantised.

use candle_core::Device;
use socius_models::{
    Adapter, Batch, Checkpoint, Dtype, HeadGradient, Layout, Model, Projection, RandomSource, Row, Spec, Target,
    TargetTokens, random_values,
};
use std::time::Instant;

const LEARNERS: usize = 32;
const RANK: usize = 16;

fn main() {
    match std::env::args().nth(1) {
        Some(path) => checkpoint(&path),
        None => random(),
    }
}

fn checkpoint(path: &str) {
    let checkpoint = Checkpoint::open(path).expect("a checkpoint");
    for dtype in [Dtype::Bf16, Dtype::Quantised] {
        println!("{dtype:?}");
        let model = Model::load(checkpoint.spec.clone(), &checkpoint, &Device::Cpu, dtype).expect("its weights load");
        for (rows, context) in [(1, 1), (1, 128), (1, 512), (32, 128)] {
            decode(&model, &[], rows, context);
        }
    }
}

fn random() {
    let spec = Spec {
        vocab: 49_152,
        hidden: 576,
        intermediate: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        rope_theta: 100_000.0,
        context_max: 8192,
        ..Spec::tiny()
    };
    let source = RandomSource { spec: spec.clone(), seed: 1 };
    let start = Instant::now();
    let model = Model::load(spec.clone(), &source, &Device::Cpu, Dtype::Bf16).expect("a random model loads");
    println!("loaded in {:.1} s; {} threads", start.elapsed().as_secs_f64(), rayon::current_num_threads());
    let layout = Layout::uniform(&spec, &Projection::ALL, RANK, 2.0);
    let thetas: Vec<Vec<f32>> =
        (0..LEARNERS as u64).map(|i| random_values("theta", &[layout.len() / 576, 576], i)).collect();
    let adapters: Vec<Adapter<'_>> = thetas.iter().map(|theta| Adapter::new(&layout, theta)).collect();
    for (learners, rows, len) in [(1, 8, 64), (1, 16, 32), (8, 8, 64), (1, 2, 512)] {
        train(&model, &adapters[..learners], rows, len);
    }
    for (rows, context) in [(32, 64), (32, 256), (1, 64)] {
        decode(&model, &[], rows, context);
        decode(&model, &adapters, rows, context);
    }
}

fn tokens(seed: u64, len: usize) -> Vec<u32> {
    random_values("tokens", &[len], seed).iter().map(|x| ((x - 0.9) * 245_000.0) as u32).collect()
}

/// Steps over `rows` rows of `len` tokens, learners in turn, half of the tokens scored.
fn train(model: &Model, adapters: &[Adapter<'_>], rows: usize, len: usize) {
    let texts: Vec<_> = (0..rows as u64).map(|row| tokens(row, len)).collect();
    let batch = Batch::new(texts.iter().enumerate().map(|(i, t)| Row::new(t).under(Some(i * adapters.len() / rows))));
    let scored = (0..rows * len).filter(|i| i % len >= len / 2 && i % len < len - 1);
    let target = |position| Target { position, tokens: TargetTokens::Token(batch.tokens()[position + 1]) };
    let targets: Vec<Target> = scored.map(target).collect();
    let coefficients = vec![1.0 / targets.len() as f32; targets.len()];
    let mut gradients: Vec<Vec<f32>> = adapters.iter().map(|a| vec![0.0; a.layout.len()]).collect();
    let mut best = [f64::INFINITY; 3];
    for _ in 0..4 {
        let mut into: Vec<&mut [f32]> = gradients.iter_mut().map(Vec::as_mut_slice).collect();
        let start = Instant::now();
        let mut recording = model.record(&batch, adapters).expect("records");
        let forward = start.elapsed().as_secs_f64();
        recording.scores(&targets).expect("scores");
        let scored = start.elapsed().as_secs_f64();
        let gradient = HeadGradient { logprobs: &coefficients, entropies: None };
        recording.backward(&targets, gradient, &mut into).expect("backward");
        let all = start.elapsed().as_secs_f64();
        if all < best.iter().sum() {
            best = [forward, scored - forward, all - scored];
        }
    }
    let total: f64 = best.iter().sum();
    println!(
        "train {} learners, {rows} x {len}: {:.0} tokens/s (forward {:.0} ms, scores {:.0} ms, backward {:.0} ms)",
        adapters.len(),
        (rows * len) as f64 / total,
        best[0] * 1e3,
        best[1] * 1e3,
        best[2] * 1e3
    );
}

/// Steps of one token for every row, each under an adapter of its own (or none), after a prompt of `context`.
fn decode(model: &Model, adapters: &[Adapter<'_>], rows: usize, context: usize) {
    let adapter = |row: usize| (!adapters.is_empty()).then(|| row % adapters.len());
    let prompts: Vec<_> = (0..rows as u64).map(|row| tokens(row, context)).collect();
    let mut sequences: Vec<_> = (0..rows).map(|_| model.sequence()).collect();
    let mut views: Vec<_> = sequences.iter_mut().collect();
    let batch = Batch::new(prompts.iter().enumerate().map(|(row, prompt)| Row::new(prompt).under(adapter(row))));
    let start = Instant::now();
    model.forward(&batch, adapters, &mut views, &[]).expect("prefill");
    let prefill = start.elapsed().as_secs_f64();
    let wanted: Vec<usize> = (0..rows).collect();
    let mut best = f64::INFINITY;
    for step in 0..24 {
        let next = [step as u32];
        let row = |row| Row { position: context + step, ..Row::new(&next).under(adapter(row)) };
        let batch = Batch::new((0..rows).map(row));
        let start = Instant::now();
        model.forward(&batch, adapters, &mut views, &wanted).expect("decode");
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!(
        "decode {rows} rows after {context}, {} adapters: {:.0} tokens/s ({:.1} ms a step; prefill {:.0} tokens/s)",
        adapters.len(),
        rows as f64 / best,
        best * 1e3,
        (rows * context) as f64 / prefill
    );
}
