//! Trains a small model in all its weights on sequences whose second half repeats the first, and says how fast:
//! `cargo run --release --example from_scratch -- [hidden] [layers] [context] [steps] [attention]`.

use candle_core::Device;
use socius::common::peak_bytes;
use socius::train::{AdamW, Job, Learner, PassLimits, TrainRow, forward_backward, loss, optim_step};
use socius_models::{Dtype, InitialSource, Layout, Model, Spec};
use std::time::Instant;

/// Tokens of a step.
const BATCH_TOKENS: usize = 8192;
const VOCAB: u32 = 512;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default| words.get(i).map_or(Ok(default), |word| word.parse::<usize>());
    let (hidden, layers, context, steps) = (number(0, 64)?, number(1, 2)?, number(2, 128)?, number(3, 100)?);
    let small = Spec::small(VOCAB as usize, hidden, layers, (hidden / 32).max(1));
    let spec = Spec { intermediate: if words.len() > 4 { 0 } else { small.intermediate }, ..small };
    let initial = InitialSource { spec: spec.clone(), seed: 1 };
    let model = Model::load(spec.clone(), &initial, &Device::Cpu, Dtype::F32)?;
    let layout = Layout::whole(&spec);
    let theta = layout.read(&spec, &initial)?;
    let mut learner = Learner::new(layout, theta, 1, 0.0);
    let limits =
        PassLimits { tokens_per_pass: BATCH_TOKENS.max(context), share_prompts: false, ..PassLimits::default() };
    let rows = (BATCH_TOKENS / context).max(1);
    println!("{} weights, {rows} rows of {context} tokens a step", spec.parameters());
    // Products with weights: there once, back twice. Pairs of attention: 4 operations a head's width there, 10 back.
    let embedding = if spec.tied_head { 0 } else { spec.vocab * spec.hidden };
    let matrices = spec.parameters() - embedding;
    let pairs = (context * (context + 1) / 2 * rows) as f64;
    let flop = 6.0 * (rows * context * matrices) as f64 + 14.0 * pairs * (spec.layers * spec.q_dim()) as f64;
    let mut best = f64::INFINITY;
    for step in 0..steps {
        let batch: Vec<TrainRow> = (0..rows).map(|row| repeated(context, (step * rows + row) as u64)).collect();
        let started = Instant::now();
        let stats =
            forward_backward(&model, &mut [Job { learner: &mut learner, rows: &batch, loss: &loss::nll }], limits)?;
        optim_step(&mut learner, &AdamW { lr: 3e-3, ..AdamW::default() })?;
        let seconds = started.elapsed().as_secs_f64();
        best = best.min(seconds);
        if step % 10 == 0 || step + 1 == steps {
            let tokens = (rows * context) as f64;
            println!("step {step}: loss {:.3}, {:.0} tokens/s", stats[0].loss, tokens / seconds);
        }
    }
    let tokens = (rows * context) as f64;
    println!("best step: {:.0} tokens/s, {:.1} GFLOP/s (analytic)", tokens / best, flop / best / 1e9);
    println!("peak memory {} MiB", peak_bytes().unwrap_or(0) >> 20);
    Ok(())
}

/// Random tokens, then the same again; only these have a loss.
fn repeated(context: usize, seed: u64) -> TrainRow {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % VOCAB
    };
    let first: Vec<u32> = (0..context / 2).map(|_| draw()).collect();
    // A last token is predicted and not read, so the row has as many as are read and one more.
    let completion = first.iter().chain(&first[..1]).copied().collect();
    TrainRow::answer(first, completion)
}
