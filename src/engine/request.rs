//! What goes into the engine and what comes out, as plain values; knows neither the model's weights nor how a step is made up.

use super::Sampling;
use crate::lora::ActiveAdapter;
use std::{fmt, ops::Range, sync::Arc};

/// What the tokens of a sample must add up to: a grammar, and how far a sample is in it.
pub trait Constraint: fmt::Debug + Send + Sync {
    /// The same, for another sample.
    fn fork(&self) -> Box<dyn Constraint>;

    /// Sets the logits of tokens that may not come next to −∞; false if the constraint itself fails.
    fn mask(&mut self, logits: &mut [f32]) -> bool;

    /// `token`, which the mask allowed, came next.
    fn accept(&mut self, token: u32);
}

/// Continue a prompt, once or several times.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids of the whole context.
    pub prompt: Vec<u32>,
    /// Adapter to run under; none for the base.
    pub adapter: Option<Arc<ActiveAdapter>>,
    /// How tokens are drawn, and when to stop.
    pub sampling: Sampling,
    /// Indices of the samples. They share one prefill, and each draws from (seed, index, token), so that `0..8` gives the same
    /// tokens as eight requests for `0..1`, `1..2`, ….
    pub samples: Range<u64>,
    /// What every sample must follow.
    pub constraint: Option<Arc<dyn Constraint>>,
}

impl Request {
    /// One sample under the base.
    pub fn new(prompt: Vec<u32>, sampling: Sampling) -> Self {
        Self { prompt, adapter: None, sampling, samples: 0..1, constraint: None }
    }

    /// The same request under `adapter`.
    pub fn under(self, adapter: Option<Arc<ActiveAdapter>>) -> Self {
        Self { adapter, ..self }
    }

    /// The same request, `n` times.
    pub fn times(self, n: u64) -> Self {
        Self { samples: 0..n, ..self }
    }

    /// Positions before the prompt: those of the adapter's trained prefix.
    pub(super) fn before(&self) -> usize {
        self.adapter.as_ref().map_or(0, |adapter| adapter.layout.positions())
    }

    pub(super) fn width(&self) -> usize {
        self.samples.end.saturating_sub(self.samples.start) as usize
    }
}

/// Names a submitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

/// Why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// It drew a stop id, which is its last token.
    Stop,
    /// It reached `max_tokens` or the end of the context.
    Length,
    /// The model gave a logit that is not finite, so no token could be drawn (a diverged adapter).
    Diverged,
}

/// What a step did to one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whose.
    pub request: RequestId,
    /// Index of the sample.
    pub sample: u64,
    /// What happened.
    pub kind: EventKind,
}

/// See [`Event`].
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// A token was drawn.
    Token {
        /// Its id.
        token: u32,
        /// Its logprob in nats under the model's own distribution: temperature 1, no truncation, no penalty.
        logprob: f32,
        /// The most probable tokens there, with their logprobs, as many as [`Sampling::top_logprobs`] asks for.
        top: Vec<(u32, f32)>,
    },
    /// The sample ended; nothing follows.
    Finished(FinishReason),
}

/// A finished sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Index of the sample.
    pub sample: u64,
    /// Drawn token ids, the stop id included.
    pub tokens: Vec<u32>,
    /// Logprob of each, as in [`EventKind::Token`].
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Generation of the adapter that drew it; none for the base.
    pub generation: Option<String>,
}
