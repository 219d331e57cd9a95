//! What one step does: admit, lay out rows, run them, draw, record. Knows nothing of what happens between steps.

use super::{
    Engine, EngineError, Event, EventKind, FinishReason, Phase, Request, Running, Sample,
    sampler::{self, Draw},
    size,
};
use crate::lora::ActiveAdapter;
use rayon::prelude::*;
use socius_models::{Batch, KvSequence, Row};
use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

/// A row of the pass and the cache that it extends.
struct Lane<'r> {
    /// Index of the running request, and of its sample unless this is its prompt.
    whose: (usize, Option<usize>),
    tokens: &'r [u32],
    cache: &'r mut KvSequence,
    /// Index in the pass's adapter list.
    adapter: Option<usize>,
    /// Whether the logits after the last token are needed.
    wanted: bool,
}

/// What one sample drew, by the indices of its request and of itself; no draw where the logits were not finite.
pub(super) struct Drawn {
    running: usize,
    sample: usize,
    draw: Option<Draw>,
}

impl Engine {
    /// Lets waiting requests in, in their order, while the next one fits. What is only kept because a prompt may begin like it
    /// makes room.
    ///
    /// # Errors
    /// If a trained prefix cannot be held.
    pub(super) fn admit(&mut self) -> Result<(), EngineError> {
        while let Some((_, request)) = self.waiting.front() {
            if self.rows() + request.width() > self.limits.rows_max {
                break;
            }
            let before = request.before();
            let cache = match (self.prefixes.longest(generation(request), &request.prompt), &request.adapter) {
                (Some((prefix, len)), _) => self.model.fork(&prefix, before + len),
                (None, Some(adapter)) => self.model.begin(adapter.adapter())?,
                (None, None) => self.model.sequence(),
            };
            let own = size(request, self.model.spec()) - cache.shared();
            let room = self.limits.cache_tokens_max.saturating_sub(own);
            while self.held_tokens(Some(&cache)) > room && self.prefixes.evict() {}
            if self.held_tokens(Some(&cache)) > room {
                break;
            }
            let (id, request) = self.waiting.pop_front().expect("it was in front");
            self.reused += (cache.shared() - before) as u64;
            self.running.push(Running { id, request, phase: Phase::Prefill(cache) });
        }
        Ok(())
    }

    /// The forward pass over everything that runs, and the draws from its logits.
    pub(super) fn advance(&mut self) -> Result<Vec<Drawn>, EngineError> {
        let (active, slots) = active_adapters(&self.running);
        let mut lanes = lanes(&mut self.running, &slots, self.limits.tokens_per_step);
        if lanes.is_empty() {
            return Ok(Vec::new());
        }
        let mut batch = Batch::default();
        let mut wanted = Vec::new();
        let mut sources = Vec::new();
        for lane in &lanes {
            batch.push(Row { position: lane.cache.len(), ..Row::new(lane.tokens).under(lane.adapter) });
            if lane.wanted {
                wanted.push(batch.tokens().len() - 1);
                sources.push(lane.whose);
            }
        }
        let adapters: Vec<_> = active.iter().map(|adapter| adapter.adapter()).collect();
        let mut caches: Vec<_> = lanes.iter_mut().map(|lane| &mut *lane.cache).collect();
        let logits = self.model.forward(&batch, &adapters, &mut caches, &wanted)?;
        let drawn = self.draw(&sources, &logits);
        socius_models::give_back(logits);
        Ok(drawn)
    }

    /// Draws for every source row of `logits`; a prompt that is read to its end becomes samples first.
    fn draw(&mut self, sources: &[(usize, Option<usize>)], logits: &[f32]) -> Vec<Drawn> {
        let mut rows = Vec::new();
        for (&(running, sample), logits) in sources.iter().zip(logits.chunks(self.model.spec().vocab)) {
            match sample {
                Some(sample) => rows.push((running, sample, logits)),
                None => rows.extend((0..self.fan_out(running)).map(|sample| (running, sample, logits))),
            }
        }
        rows.sort_unstable_by_key(|&(running, sample, _)| (running, sample));
        let draw = |(running, sample, logits)| {
            let Running { request, phase, .. } = &self.running[running];
            let Phase::Decode(samples) = phase else { unreachable!("a source row belongs to a sample by now") };
            let Sample { index, tokens, constraint, .. } = &samples[sample];
            let before = sampler::Drawn { prompt: &request.prompt, sampled: tokens, sample: *index };
            let draw = match constraint {
                None => request.sampling.draw(logits, before, None),
                Some(constraint) => {
                    let mut constraint = constraint.lock().unwrap_or_else(PoisonError::into_inner);
                    let draw = request.sampling.draw(logits, before, Some(&mut **constraint));
                    draw.iter().for_each(|draw| constraint.accept(draw.token));
                    draw
                }
            };
            Drawn { running, sample, draw }
        };
        rows.into_par_iter().map(draw).collect()
    }

    /// Turns a request whose prompt has been read into its samples, and says how many there are.
    fn fan_out(&mut self, running: usize) -> usize {
        let Running { request, phase, .. } = &mut self.running[running];
        let Phase::Prefill(cache) = mem::replace(phase, Phase::Decode(Vec::new())) else {
            unreachable!("a prompt is read once")
        };
        let prefix = Arc::new(cache);
        let sample = |index| Sample {
            index,
            tokens: Vec::new(),
            cache: self.model.fork(&prefix, prefix.len()),
            constraint: request.constraint.as_ref().map(|constraint| Mutex::new(constraint.fork())),
        };
        let samples: Vec<_> = request.samples.clone().map(sample).collect();
        let count = samples.len();
        *phase = Phase::Decode(samples);
        self.prefixes.insert(generation(request), request.prompt.clone(), prefix);
        count
    }

    /// Enters the draws into their samples, lets finished ones go, and tells what happened.
    pub(super) fn record(&mut self, drawn: Vec<Drawn>) -> Vec<Event> {
        let mut events = Vec::with_capacity(drawn.len());
        let mut ended = Vec::new();
        for Drawn { running, sample, draw } in drawn {
            let tokens_max = self.tokens_max(&self.running[running].request);
            let Running { id, request, phase } = &mut self.running[running];
            let Phase::Decode(samples) = phase else { unreachable!("only samples draw") };
            let Sample { index, tokens, .. } = &mut samples[sample];
            let event = |kind| Event { request: *id, sample: *index, kind };
            let finish = match &draw {
                None => Some(FinishReason::Diverged),
                Some(draw) if request.sampling.stop_ids.contains(&draw.token) => Some(FinishReason::Stop),
                Some(_) if tokens.len() + 1 == tokens_max => Some(FinishReason::Length),
                Some(_) => None,
            };
            if let Some(Draw { token, logprob, top }) = draw {
                tokens.push(token);
                events.push(event(EventKind::Token { token, logprob, top }));
            }
            if let Some(reason) = finish {
                events.push(event(EventKind::Finished(reason)));
                ended.push((*id, *index, reason));
            }
        }
        for (id, sample, reason) in ended {
            // A conversation goes on from what was said; what diverged is worth nothing.
            if reason != FinishReason::Diverged {
                self.keep(id, sample);
            }
            self.cancel_sample(id, sample);
        }
        self.prefixes.shrink(self.limits.prefix_tokens_max);
        events
    }
}

/// What a prompt's keys and values depend on beside its tokens.
pub(super) fn generation(request: &Request) -> Option<&str> {
    request.adapter.as_ref().map(|adapter| adapter.generation.as_str())
}

/// The distinct adapters of the running requests, and each request's index among them.
fn active_adapters(running: &[Running]) -> (Vec<Arc<ActiveAdapter>>, Vec<Option<usize>>) {
    let mut active: Vec<Arc<ActiveAdapter>> = Vec::new();
    let slot = |running: &Running| {
        let adapter = running.request.adapter.as_ref()?;
        let known = active.iter().position(|other| Arc::ptr_eq(other, adapter));
        Some(known.unwrap_or_else(|| {
            active.push(adapter.clone());
            active.len() - 1
        }))
    };
    let slots = running.iter().map(slot).collect();
    (active, slots)
}

/// A token for every sample that decodes, then chunks of prompts in order of arrival while `tokens` last; rows of one adapter
/// stand together, so that the pass has one segment an adapter.
fn lanes<'r>(running: &'r mut [Running], slots: &[Option<usize>], tokens: usize) -> Vec<Lane<'r>> {
    let decoding = running.iter().map(|r| if let Phase::Decode(samples) = &r.phase { samples.len() } else { 0 });
    let mut left = tokens - decoding.sum::<usize>();
    let mut reading = running.iter().filter(|running| matches!(running.phase, Phase::Prefill(_))).count();
    let mut lanes = Vec::new();
    for (index, (Running { request, phase, .. }, &adapter)) in running.iter_mut().zip(slots).enumerate() {
        match phase {
            Phase::Decode(samples) => {
                lanes.extend(samples.iter_mut().enumerate().map(|(i, Sample { tokens, cache, .. })| {
                    let last = &tokens[tokens.len() - 1..];
                    Lane { whose: (index, Some(i)), tokens: last, cache, adapter, wanted: true }
                }));
            }
            Phase::Prefill(cache) => {
                let rest = &request.prompt[cache.len() - request.before()..];
                reading -= 1;
                // While others wait behind it a long prompt takes half of what is left, so that short ones are soon through.
                let share = if reading > 0 { left.div_ceil(2) } else { left };
                let chunk = &rest[..rest.len().min(share)];
                left -= chunk.len();
                if !chunk.is_empty() {
                    let wanted = chunk.len() == rest.len();
                    lanes.push(Lane { whose: (index, None), tokens: chunk, cache, adapter, wanted });
                }
            }
        }
    }
    lanes.sort_by_key(|lane| lane.adapter);
    lanes
}
