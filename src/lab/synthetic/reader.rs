//! The base as the arms use it: reads contexts, answers questions after them or under adapters, and counts what that takes. Never knows which
//! answers are right.

use super::{
    circuit::{Circuit, Sizes},
    symbols::BEGIN,
    work::{Stretch, forward, forward_under},
};
use crate::{common::Seed, lab::LabError};
use candle_core::Device;
use socius_models::{Adapter, Batch, Dtype, KvSequence, Model, Row, Spec};
use std::sync::Arc;

/// Tokens of one forward pass.
const PASS_TOKENS: usize = 4096;

/// The written-down base, ready to run.
pub struct Reader {
    model: Model,
}

/// Rows of logits, one a question, and the operations that they took.
pub struct Answered {
    /// `[questions][vocab]`.
    pub logits: Vec<Vec<f32>>,
    /// Counted from the architecture.
    pub flops: f64,
    /// Tokens that were read.
    pub tokens: u64,
}

impl Answered {
    /// The most probable symbol of each.
    pub fn best(&self) -> Vec<u32> {
        self.logits.iter().map(|row| best(row)).collect()
    }
}

/// The most probable symbol; of equals, the first.
pub fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

impl Reader {
    /// The base of `seed`.
    ///
    /// # Errors
    /// If it cannot be made ready.
    pub fn new(sizes: Sizes, seed: Seed) -> Result<Self, LabError> {
        let circuit = Circuit::new(sizes, seed);
        let model = Model::load(circuit.spec().clone(), &circuit, &Device::Cpu, Dtype::F32)?;
        Ok(Self { model })
    }

    /// The architecture.
    pub fn spec(&self) -> &Spec {
        self.model.spec()
    }

    /// What trains and runs.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Reads every context: its keys and values, and the operations of all together.
    ///
    /// # Errors
    /// If a pass fails.
    pub fn read(&self, contexts: &[Vec<u32>]) -> Result<(Vec<Arc<KvSequence>>, f64), LabError> {
        let mut read: Vec<KvSequence> = contexts.iter().map(|_| self.model.sequence()).collect();
        let mut flops = 0.0;
        let mut first = 0;
        while first < contexts.len() {
            let end = pass_end(first, contexts.iter().map(Vec::len));
            let batch = Batch::new(contexts[first..end].iter().map(|tokens| Row::new(tokens)));
            let mut sequences: Vec<&mut KvSequence> = read[first..end].iter_mut().collect();
            self.model.forward(&batch, &[], &mut sequences, &[])?;
            let stretch = |tokens: &Vec<u32>| Stretch { cached: 0, tokens: tokens.len(), scored: 0 };
            flops += contexts[first..end].iter().map(|tokens| forward(self.spec(), stretch(tokens))).sum::<f64>();
            first = end;
        }
        Ok((read.into_iter().map(Arc::new).collect(), flops))
    }

    /// The answer after each context and the tokens that follow it, of which the last asks.
    ///
    /// # Errors
    /// If a pass fails.
    pub fn ask(&self, asked: &[(&Arc<KvSequence>, Vec<u32>)]) -> Result<Answered, LabError> {
        let mut answered = Answered { logits: Vec::new(), flops: 0.0, tokens: 0 };
        let mut first = 0;
        while first < asked.len() {
            let end = pass_end(first, asked.iter().map(|(_, tokens)| tokens.len()));
            let part = &asked[first..end];
            let mut forks: Vec<KvSequence> = part.iter().map(|(read, _)| self.model.fork(read, read.len())).collect();
            let row = |(read, tokens): &'_ (&Arc<KvSequence>, Vec<u32>)| Stretch {
                cached: read.len(),
                tokens: tokens.len(),
                scored: 1,
            };
            let stretches: Vec<Stretch> = part.iter().map(row).collect();
            let batch = Batch::new(part.iter().map(|(read, tokens)| Row { position: read.len(), ..Row::new(tokens) }));
            let mut sequences: Vec<&mut KvSequence> = forks.iter_mut().collect();
            let wanted: Vec<usize> = batch.spans().iter().map(|span| span.tokens.end - 1).collect();
            let logits = self.model.forward(&batch, &[], &mut sequences, &wanted)?;
            let flops = stretches.iter().map(|stretch| forward(self.spec(), *stretch));
            answered.take(&logits, self.spec().vocab, flops);
            answered.tokens += batch.tokens().len() as u64;
            first = end;
        }
        Ok(answered)
    }
}

/// Answers questions without any context under `model` and adapters over it. A question comes after the beginning, or after its adapter's
/// trained prefix, which has one.
///
/// # Errors
/// If a pass fails.
pub fn recall(
    model: &Model,
    questions: &[(Option<usize>, [u32; 3])],
    adapters: &[Adapter<'_>],
) -> Result<Answered, LabError> {
    let mut answered = Answered { logits: Vec::new(), flops: 0.0, tokens: 0 };
    // A pass runs under one learner of all weights, or under any number of adapters.
    let whole = adapters.iter().any(|adapter| adapter.layout.is_whole());
    let parts = questions.chunk_by(|a, b| !whole || a.0 == b.0).flat_map(|part| part.chunks(PASS_TOKENS / 4));
    let begun = adapters.iter().map(|adapter| Ok(Arc::new(model.begin(*adapter)?)));
    let begun: Vec<Arc<KvSequence>> = begun.collect::<Result<_, LabError>>()?;
    let prefix = |adapter: Option<usize>| adapter.map_or(0, |i| adapters[i].layout.positions());
    for questions in parts {
        let rows: Vec<Vec<u32>> = questions
            .iter()
            .map(|(adapter, asked)| [if prefix(*adapter) == 0 { &[BEGIN][..] } else { &[] }, asked].concat())
            .collect();
        let first = if whole { questions[0].0.unwrap_or(0) } else { 0 };
        let under = &adapters[first..if whole { first + 1 } else { adapters.len() }];
        let batch = Batch::new(rows.iter().zip(questions).map(|(row, (adapter, _))| Row {
            position: prefix(*adapter),
            ..Row::new(row).under(adapter.map(|i| i - first))
        }));
        let fork = |(adapter, _): &(Option<usize>, _)| match adapter {
            Some(i) => model.fork(&begun[*i], prefix(*adapter)),
            None => model.sequence(),
        };
        let mut forks: Vec<KvSequence> = questions.iter().map(fork).collect();
        let mut sequences: Vec<&mut KvSequence> = forks.iter_mut().collect();
        let wanted: Vec<usize> = batch.spans().iter().map(|span| span.tokens.end - 1).collect();
        let logits = model.forward(&batch, under, &mut sequences, &wanted)?;
        let took = |(row, (adapter, _)): (&Vec<u32>, &(Option<usize>, _))| {
            let stretch = Stretch { cached: prefix(*adapter), tokens: row.len(), scored: 1 };
            match adapter {
                Some(i) => forward_under(model.spec(), adapters[*i].layout, stretch),
                None => forward(model.spec(), stretch),
            }
        };
        answered.take(&logits, model.spec().vocab, rows.iter().zip(questions).map(took));
        answered.tokens += batch.tokens().len() as u64;
    }
    Ok(answered)
}

impl Answered {
    fn take(&mut self, logits: &[f32], vocab: usize, flops: impl Iterator<Item = f64>) {
        self.logits.extend(logits.chunks_exact(vocab).map(<[f32]>::to_vec));
        self.flops += flops.sum::<f64>();
    }
}

/// Where a pass that begins with sequence `first` ends: at least one sequence, at most [`PASS_TOKENS`] tokens.
fn pass_end(first: usize, lengths: impl Iterator<Item = usize>) -> usize {
    let mut held = 0;
    let fits = lengths.skip(first).take_while(|length| {
        held += length;
        held <= PASS_TOKENS
    });
    first + fits.count().max(1)
}
