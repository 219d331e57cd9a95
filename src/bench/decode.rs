//! Reading a prompt and decoding a batch through the engine, under adapters or none. Never trains.

use super::{BenchError, random_tokens};
use crate::{
    common::Seed,
    engine::{Engine, Event, EventKind, Limits, Request, Sampling},
    lora::{ActiveAdapter, LoraConfig, init},
};
use socius_models::{Model, Projection, Spec};
use std::{fs, sync::Arc, time::Instant};

/// Reading one prompt, up to the first token drawn after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefill {
    /// Tokens of the prompt.
    pub length: usize,
}

impl Prefill {
    /// Seconds that it takes.
    ///
    /// # Errors
    /// If the prompt does not fit the context.
    pub fn run(self, model: &Arc<Model>) -> Result<f64, BenchError> {
        let mut engine = Engine::new(model.clone(), Limits::default());
        let prompt = random_tokens(0, self.length, model.spec().vocab);
        let start = Instant::now();
        engine.submit(Request::new(prompt, Sampling::greedy(1, Vec::new())))?;
        while drawn(&engine.step()?) == 0 {}
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Decoding a batch of rows, each after a prompt of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decode {
    /// Rows.
    pub batch: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens drawn for each row.
    pub tokens: usize,
    /// Adapters that the rows run under, in turn; 0 is the base.
    pub adapters: usize,
    /// Their rank; they are on every linear.
    pub rank: usize,
}

impl Decode {
    /// As many adapters as the work names, each in memory of its own.
    ///
    /// # Errors
    /// If the rank is out of range.
    pub fn adapters(&self, spec: &Spec) -> Result<Vec<Arc<ActiveAdapter>>, BenchError> {
        let layout = LoraConfig::uniform(self.rank, 2.0 * self.rank as f64, &Projection::ALL).layout(spec)?;
        let mut theta = init(&layout, Seed::new(0));
        let mut rng = Seed::new(0).purpose("bench.B").rng();
        for site in layout.sites() {
            site.factors_mut(&mut theta).1.fill_with(|| (0.02 * rng.uniform() - 0.01) as f32);
        }
        let adapter = |i| Arc::new(ActiveAdapter::new(format!("bench-{i}"), layout.clone(), theta.clone()));
        Ok((0..self.adapters).map(adapter).collect())
    }

    /// From the last prompt's end to `tokens` more tokens of every row.
    ///
    /// # Errors
    /// If the rows do not fit the context.
    pub fn run(&self, model: &Arc<Model>, adapters: &[Arc<ActiveAdapter>]) -> Result<Decoded, BenchError> {
        let mut decoding = Decoding::start(model, self, adapters)?;
        let (start, before) = (Instant::now(), page_faults());
        (0..self.tokens).try_for_each(|_| decoding.step())?;
        let seconds = start.elapsed().as_secs_f64();
        let page_faults = page_faults().zip(before).map(|(after, before)| after - before);
        Ok(Decoded { seconds, page_faults })
    }
}

/// What decoding took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoded {
    /// Seconds of all steps.
    pub seconds: f64,
    /// Pages that the system had to find for this process meanwhile, where it says so: memory that steps did not find warm.
    pub page_faults: Option<u64>,
}

/// Minor faults of this process so far (`proc_pid_stat(5)`, field 10).
fn page_faults() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in parentheses, which may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

/// A batch whose prompts have been read.
pub struct Decoding {
    engine: Engine,
    batch: usize,
}

impl Decoding {
    /// Reads the prompts; row `i` runs under `adapters[i % adapters.len()]`.
    ///
    /// # Errors
    /// If the rows do not fit the context.
    pub fn start(model: &Arc<Model>, work: &Decode, adapters: &[Arc<ActiveAdapter>]) -> Result<Self, BenchError> {
        let Decode { batch, prompt, tokens, .. } = *work;
        let tokens_per_step = Limits::default().tokens_per_step.max(2 * batch);
        // Rows whose prompts are read early decode while the others are read, one token a step.
        let early = (batch * prompt).div_ceil(tokens_per_step - batch) + 1;
        let (length, context) = (prompt + early + tokens, model.spec().context_max);
        if length > context {
            let what = format!("{prompt} tokens of prompt and {tokens} more (with {early} while prompts are read)");
            return Err(BenchError::Work { what, right: format!("the context holds {context}") });
        }
        let limits = Limits { rows_max: batch, tokens_per_step, cache_tokens_max: batch * length, ..Limits::default() };
        let mut engine = Engine::new(model.clone(), limits);
        for row in 0..batch {
            let tokens_max = Sampling::greedy(early + tokens, Vec::new());
            let request = Request::new(random_tokens(row, prompt, model.spec().vocab), tokens_max);
            let adapter = (!adapters.is_empty()).then(|| adapters[row % adapters.len()].clone());
            engine.submit(request.under(adapter))?;
        }
        while drawn(&engine.step()?) < batch {}
        Ok(Self { engine, batch })
    }

    /// One token for every row.
    ///
    /// # Errors
    /// What the engine says; a row that has come to its end.
    pub fn step(&mut self) -> Result<(), BenchError> {
        let found = drawn(&self.engine.step()?);
        if found == self.batch {
            return Ok(());
        }
        let what = format!("{found} of {} rows drew a token", self.batch);
        Err(BenchError::Work { what, right: "every row draws one, up to the tokens asked for".into() })
    }
}

fn drawn(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event.kind, EventKind::Token { .. })).count()
}
