//! Continuous batching: token ids in, tokens and logprobs out; never sees text, files or rewards.
//!
//! Each [`Engine::step`] is one forward pass over rows of many requests: one token for every sample that decodes, and chunks of
//! the prompts that are being read, up to a limit of tokens a step. Rows join and leave at every step. A row's numbers do not
//! depend on the rows beside it ([`Model`] promises that) and its draws depend on (seed, sample, token) alone, so a request
//! gives the same tokens by itself or among others.

mod prefix;
mod request;
mod sampler;
mod step;
#[cfg(test)]
mod tests;

pub use request::{Completion, Constraint, Event, EventKind, FinishReason, Request, RequestId};
pub use sampler::Sampling;

use prefix::Prefixes;
use socius_models::{Batch, KvSequence, Model, ModelError, Row, Spec};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

/// What the engine may hold at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Samples that decode together.
    pub rows_max: usize,
    /// Tokens of one forward pass; above `rows_max`, so that prompts move on while samples decode.
    pub tokens_per_step: usize,
    /// Tokens whose keys and values are kept, over all requests. A request enters once its longest possible outcome fits.
    pub cache_tokens_max: usize,
    /// Of those, tokens that are kept after their request has ended, because another may begin alike. 0 keeps none.
    pub prefix_tokens_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // SmolLM2-135M caches 30 layers × 2 × 192 × 2 B = 23 KB a token in bf16: at most 1.5 GB.
        Self { rows_max: 64, tokens_per_step: 512, cache_tokens_max: 65_536, prefix_tokens_max: 0 }
    }
}

impl Limits {
    /// Whether `request` can run at all on a model of this kind.
    pub fn check(&self, request: &Request, spec: &Spec) -> Result<(), EngineError> {
        if let Some((field, right)) = request.sampling.fault(spec.vocab) {
            return Err(fault(format!("sampling setting {field} is out of range"), right.into()));
        }
        if request.width() == 0 {
            return Err(fault("the request asks for no sample".into(), "ask for at least one".into()));
        }
        check_tokens(&request.prompt, spec)?;
        let (prompt, context) = (request.before() + request.prompt.len(), spec.context_max);
        if prompt >= context {
            return Err(EngineError::Context { prompt, context });
        }
        let needs = [
            (request.width(), "samples", self.rows_max),
            (size(request, spec), "cached tokens", self.cache_tokens_max),
        ];
        match needs.into_iter().find(|(needed, _, limit)| needed > limit) {
            Some((needed, unit, limit)) => Err(EngineError::Capacity { needed, unit, limit }),
            None => Ok(()),
        }
    }
}

/// Why a request cannot run, or a step failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The request itself is wrong; nothing else is affected.
    #[error("{what}: {right}")]
    Request {
        /// What was wrong.
        what: String,
        /// What would be right.
        right: String,
    },
    /// The prompt leaves no room for a token.
    #[error("the prompt has {prompt} tokens, and the context holds {context}: one more must fit")]
    Context {
        /// Tokens of the prompt, and positions of its adapter's trained prefix.
        prompt: usize,
        /// Tokens that the model can attend to.
        context: usize,
    },
    /// The request is larger than the engine can ever hold.
    #[error("the request may need {needed} {unit}, and the engine holds {limit}: ask for fewer samples or tokens")]
    Capacity {
        /// What it needs.
        needed: usize,
        /// Of what.
        unit: &'static str,
        /// What there is.
        limit: usize,
    },
    /// The pass failed. Everything that was in flight is dropped, for its cache may be half-written.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A sample that decodes: its cache holds the prompt and all drawn tokens but the last.
struct Sample {
    index: u64,
    tokens: Vec<u32>,
    cache: KvSequence,
    /// Locked by the one draw of each step.
    constraint: Option<Mutex<Box<dyn Constraint>>>,
}

enum Phase {
    /// The prompt is being read into the cache.
    Prefill(KvSequence),
    /// Samples that have not ended, each continuing the prompt's cache.
    Decode(Vec<Sample>),
}

struct Running {
    id: RequestId,
    request: Request,
    phase: Phase,
}

/// Requests in flight over one shared base.
pub struct Engine {
    model: Arc<Model>,
    limits: Limits,
    submitted: u64,
    waiting: VecDeque<(RequestId, Request)>,
    running: Vec<Running>,
    prefixes: Prefixes,
    /// Tokens of prompts that did not have to be read.
    reused: u64,
    /// Tokens that were read so that prompts could share them.
    ahead: u64,
}

impl Engine {
    /// An idle engine.
    ///
    /// # Panics
    /// Unless `tokens_per_step > rows_max > 0`.
    pub fn new(model: Arc<Model>, limits: Limits) -> Self {
        assert!(limits.tokens_per_step > limits.rows_max && limits.rows_max > 0, "{limits:?} would starve prompts");
        Self {
            model,
            limits,
            submitted: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefixes: Prefixes::default(),
            reused: 0,
            ahead: 0,
        }
    }

    /// The base.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Puts `request` in line. It starts in order of submission, at a step where it fits.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        self.check(&request)?;
        let id = RequestId(self.submitted);
        self.submitted += 1;
        self.waiting.push_back((id, request));
        Ok(id)
    }

    /// Forgets a request and frees what it holds; false if it was not in flight.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let before = self.in_flight();
        self.waiting.retain(|(waiting, _)| *waiting != id);
        self.running.retain(|running| running.id != id);
        self.in_flight() < before
    }

    /// Forgets one sample of a request, as a stop string above does; false if it was not decoding.
    pub fn cancel_sample(&mut self, id: RequestId, sample: u64) -> bool {
        let Some(running) = self.running.iter_mut().find(|running| running.id == id) else { return false };
        let Phase::Decode(samples) = &mut running.phase else { return false };
        let before = samples.len();
        samples.retain(|s| s.index != sample);
        let (found, ended) = (samples.len() < before, samples.is_empty());
        if ended {
            self.cancel(id);
        }
        found
    }

    /// Forgets everything that is in flight.
    fn clear(&mut self) {
        self.waiting.clear();
        self.running.clear();
    }

    /// Requests that wait or run.
    pub fn in_flight(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Samples that decode, or will once their prompts are read.
    pub fn rows(&self) -> usize {
        self.running.iter().map(Running::rows).sum()
    }

    /// Tokens of prompts that did not have to be read, since the beginning.
    pub fn reused_tokens(&self) -> u64 {
        self.reused.saturating_sub(self.ahead)
    }

    /// Tokens that the requests running now may come to hold in caches.
    pub fn reserved_tokens(&self) -> usize {
        let shared = prefix::held(self.running.iter().filter_map(Running::shared));
        shared + self.running.iter().map(|running| self.growth(running)).sum::<usize>()
    }

    /// Tokens that are held or reserved, with what `newcomer` continues.
    fn held_tokens(&self, newcomer: Option<&KvSequence>) -> usize {
        let newcomer = newcomer.into_iter().flat_map(KvSequence::ancestors);
        let running = self.running.iter().filter_map(Running::shared);
        let shared = prefix::held(running.chain(self.prefixes.sequences()).chain(newcomer));
        shared + self.running.iter().map(|running| self.growth(running)).sum::<usize>()
    }

    /// Keeps what a sample has cached, for prompts that begin like it.
    fn keep(&mut self, id: RequestId, sample: u64) {
        if self.limits.prefix_tokens_max == 0 {
            return;
        }
        let Some(Running { request, phase: Phase::Decode(samples), .. }) =
            self.running.iter_mut().find(|running| running.id == id)
        else {
            return;
        };
        let Some(at) = samples.iter().position(|s| s.index == sample) else { return };
        let Sample { tokens, cache, .. } = samples.remove(at);
        let cached = request.prompt.iter().chain(&tokens).copied().take(cache.len() - request.before()).collect();
        if cache.own() > 0 {
            self.prefixes.insert(step::generation(request), cached, Arc::new(cache));
        }
        if samples.is_empty() {
            self.cancel(id);
        }
    }

    /// One forward pass; the events of what it drew, by request and sample. Nothing in flight gives no events.
    pub fn step(&mut self) -> Result<Vec<Event>, EngineError> {
        let drawn = self.admit().and_then(|()| self.advance());
        if drawn.is_err() {
            self.clear();
        }
        let drawn = drawn?;
        Ok(self.record(drawn))
    }

    /// Runs `requests` to their ends: for each in order, its samples in order. `on_event` sees every token as it is drawn, and may
    /// break off: then all is cancelled and nothing returned.
    ///
    /// # Panics
    /// If other requests are in flight.
    pub fn run_all(
        &mut self,
        requests: Vec<Request>,
        on_event: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Vec<Completion>>>, EngineError> {
        assert_eq!(self.in_flight(), 0, "run_all has the engine to itself");
        requests.iter().try_for_each(|request| self.check(request))?;
        self.read_beginnings(&requests)?;
        let mut completions: Vec<Vec<Completion>> = requests.iter().map(unfinished).collect();
        let mut places = HashMap::new();
        for (place, request) in requests.into_iter().enumerate() {
            places.insert(self.submit(request)?, place);
        }
        while self.in_flight() > 0 {
            for event in self.step()? {
                if on_event(&event).is_break() {
                    self.clear();
                    return Ok(None);
                }
                let group = &mut completions[places[&event.request]];
                let completion = group.iter_mut().find(|c| c.sample == event.sample).expect("a sample of its request");
                match event.kind {
                    EventKind::Token { token, logprob, .. } => {
                        completion.tokens.push(token);
                        completion.logprobs.push(logprob);
                    }
                    EventKind::Finished(reason) => completion.finish_reason = reason,
                }
            }
        }
        Ok(Some(completions))
    }

    /// Reads what prompts of a generation begin with in common, so that those that enter together share it too: what all begin with
    /// first, then what some go on with.
    fn read_beginnings(&mut self, requests: &[Request]) -> Result<(), EngineError> {
        if self.limits.prefix_tokens_max == 0 {
            return Ok(());
        }
        let mut generations: BTreeMap<Option<&str>, Vec<&Request>> = BTreeMap::new();
        requests.iter().for_each(|request| generations.entry(step::generation(request)).or_default().push(request));
        let mut groups: Vec<Alike> = generations.into_values().map(|requests| Alike { requests, read: 0 }).collect();
        while !groups.is_empty() {
            for group in &mut groups {
                let Some(beginning) = group.worth_reading() else { continue };
                group.read = beginning.len();
                self.ahead += beginning.len() as u64;
                let reading = Sampling { max_tokens: 1, ..Sampling::default() };
                let adapter = group.requests[0].adapter.clone();
                self.submit(Request::new(beginning.to_vec(), reading).under(adapter))?;
            }
            while self.in_flight() > 0 {
                self.step()?;
            }
            groups = groups.iter().flat_map(Alike::parts).collect();
        }
        Ok(())
    }

    /// Mean residual stream after `layer` layers of the base over each prompt: one `[hidden]` a prompt. The tokens that a prompt
    /// begins with in common with `preamble` are seen but not counted (the last token always is), and those of a step are
    /// computed once.
    pub fn pooled(&self, preamble: &[u32], prompts: &[&[u32]], layer: usize) -> Result<Vec<Vec<f32>>, EngineError> {
        prompts.iter().try_for_each(|prompt| check_tokens(prompt, self.model.spec()))?;
        let layers = self.model.spec().layers;
        if layer > layers {
            return Err(fault(format!("layer {layer} does not exist"), format!("the base has {layers}")));
        }
        let mut states = Vec::with_capacity(prompts.len());
        let mut rest = prompts;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(fitting(rest, self.limits.tokens_per_step));
            let (mut batch, mut preambles) = (Batch::default(), BTreeMap::new());
            let rows: Vec<usize> =
                now.iter().map(|prompt| push(&mut batch, &mut preambles, preamble, prompt)).collect();
            let mut means = self.model.pooled(&batch, layer)?;
            states.extend(rows.into_iter().map(|row| std::mem::take(&mut means[row])));
            rest = later;
        }
        Ok(states)
    }

    fn check(&self, request: &Request) -> Result<(), EngineError> {
        self.limits.check(request, self.model.spec())
    }

    fn tokens_max(&self, request: &Request) -> usize {
        tokens_max(request, self.model.spec())
    }

    /// Tokens that `running` may come to cache beside what it shares.
    fn growth(&self, running: &Running) -> usize {
        let prompt = match &running.phase {
            Phase::Prefill(cache) => running.request.before() + running.request.prompt.len() - cache.shared(),
            Phase::Decode(_) => 0,
        };
        prompt + running.rows() * self.tokens_max(&running.request)
    }
}

impl Running {
    fn rows(&self) -> usize {
        match &self.phase {
            Phase::Prefill(_) => self.request.width(),
            Phase::Decode(samples) => samples.len(),
        }
    }

    /// The last sequence that its own ones continue.
    fn shared(&self) -> Option<&Arc<KvSequence>> {
        match &self.phase {
            Phase::Prefill(cache) => cache.ancestors().next(),
            Phase::Decode(samples) => samples.first()?.cache.ancestors().next(),
        }
    }
}

/// Tokens that a sample of `request` may draw.
fn tokens_max(request: &Request, spec: &Spec) -> usize {
    request.sampling.max_tokens.min(spec.context_max - request.before() - request.prompt.len())
}

/// Requests of one generation whose prompts begin alike.
struct Alike<'r> {
    requests: Vec<&'r Request>,
    /// Tokens of that beginning that have been read.
    read: usize,
}

impl<'r> Alike<'r> {
    /// Tokens that all prompts begin with.
    fn beginning(&self) -> &'r [u32] {
        let first = &self.requests[0].prompt;
        let shared = self.requests.iter().map(|request| prefix::common(first, &request.prompt)).min();
        &first[..shared.unwrap_or(0)]
    }

    /// What they begin with, if to read it once saves more than the pass costs.
    fn worth_reading(&self) -> Option<&'r [u32]> {
        let beginning = self.beginning();
        let saved = (beginning.len() - self.read) * (self.requests.len() - 1);
        (beginning.len() >= prefix::TOKENS_MIN && saved >= prefix::TOKENS_MIN).then_some(beginning)
    }

    /// Those of them that go on alike.
    fn parts(&self) -> impl Iterator<Item = Self> + use<'r> {
        let shared = self.beginning().len();
        let mut parts: BTreeMap<u32, Vec<&'r Request>> = BTreeMap::new();
        for &request in &self.requests {
            if let Some(&next) = request.prompt.get(shared) {
                parts.entry(next).or_default().push(request);
            }
        }
        let read = self.read;
        let parts = parts.into_values().filter(|requests| requests.len() > 1);
        parts.map(move |requests| Self { requests, read })
    }
}

/// Tokens that `request` may come to cache, a trained prefix included.
fn size(request: &Request, spec: &Spec) -> usize {
    request.before() + request.prompt.len() + request.width().saturating_mul(tokens_max(request, spec))
}

fn check_tokens(tokens: &[u32], spec: &Spec) -> Result<(), EngineError> {
    if tokens.is_empty() {
        return Err(fault("the prompt is empty".into(), "it needs at least one token".into()));
    }
    match tokens.iter().find(|&&token| token as usize >= spec.vocab) {
        Some(token) => Err(fault(format!("token id {token} does not exist"), format!("ids end at {}", spec.vocab - 1))),
        None => Ok(()),
    }
}

fn fault(what: String, right: String) -> EngineError {
    EngineError::Request { what, right }
}

/// Empty completions of every sample of `request`.
fn unfinished(request: &Request) -> Vec<Completion> {
    let generation = request.adapter.as_ref().map(|adapter| adapter.generation.clone());
    let completion = |sample| Completion {
        sample,
        tokens: Vec::new(),
        logprobs: Vec::new(),
        finish_reason: FinishReason::Length,
        generation: generation.clone(),
    };
    request.samples.clone().map(completion).collect()
}

/// Adds `prompt` to `batch` as a continuation of what it has in common with `preamble`, and returns its row. `preambles` are the
/// rows of beginnings that stand in the batch, by their length.
fn push(batch: &mut Batch, preambles: &mut BTreeMap<usize, usize>, preamble: &[u32], prompt: &[u32]) -> usize {
    let common = preamble.iter().zip(&prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
    let (beginning, own) = prompt.split_at(common);
    let prefix = (common > 0).then(|| *preambles.entry(common).or_insert_with(|| batch.push(Row::new(beginning))));
    batch.push(Row { position: common, prefix, ..Row::new(own) })
}

/// How many of `prompts`, at least one, hold no more than `tokens` together.
fn fitting(prompts: &[&[u32]], tokens: usize) -> usize {
    let mut total = 0;
    let fits = |prompt: &&&[u32]| {
        total += prompt.len();
        total <= tokens
    };
    prompts.iter().take_while(fits).count().max(1)
}
