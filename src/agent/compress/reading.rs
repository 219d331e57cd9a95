//! Answering questions about documents: with them in context, or without, as the base or under an adapter. What is in context is read once and
//! its keys and values are kept for all questions about it. The base is shown some answered questions first, for it would otherwise not know what
//! is asked of it; a skill has learned that. Never trains.

use crate::{
    agent::{AgentError, Base, measure::Grades},
    common::{Message, Phase, Progress, Report, Unit},
    engine::{Engine, EventKind, Limits, Request, Sampling},
    envs::{Documents, Environment, Item, Outcome, informed},
    lora::ActiveAdapter,
    train::score,
};
use serde::{Deserialize, Serialize};
use socius_models::{Batch, KvSequence, Row};
use std::{ops::ControlFlow, sync::Arc, time::Instant};

/// Raised when the same question to the same reader may be answered otherwise than before.
pub(super) const VERSION: &str = "reading 2";
/// Share of the context that documents may fill; questions and answers need the rest.
const FILLED: f64 = 0.75;
/// Answered questions, of the training split, that the base is shown before its own.
const EXAMPLES: usize = 6;
/// Tokens of one pass over what is in context.
const PIECE: usize = 512;
/// Questions whose answers are scored in one pass.
const SCORED_AT_ONCE: usize = 16;

/// Who answers.
#[derive(Clone, Copy)]
pub(super) enum Reader<'a> {
    /// The base, with the documents in context: all of them, or the run of passages around the question's own that fits.
    Documents,
    /// The base, with the question's own passage in context.
    Passage,
    /// Nothing in context: the base, or a skill.
    Alone(Option<&'a Arc<ActiveAdapter>>),
}

impl Reader<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Documents => "documents in context",
            Self::Passage => "passage in context",
            Self::Alone(None) => "neither",
            Self::Alone(Some(_)) => "skill",
        }
    }
}

/// How somebody answered a list of questions, in its order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Whether each whole reply was right.
    pub strict: Vec<bool>,
    /// Whether each first complete answer was.
    pub lenient: Vec<bool>,
    /// Logprob of each right answer in nats, all its tokens together.
    pub logprobs: Vec<f64>,
    /// Tokens of each right answer.
    pub tokens: Vec<usize>,
    /// Tokens of what was in context; of several windows, all together.
    pub context_tokens: usize,
    /// Seconds that reading it took.
    pub context_seconds: f64,
    /// Tokens of all questions.
    pub question_tokens: usize,
    /// Seconds that scoring all right answers took, the reading aside.
    pub seconds: f64,
}

impl Reading {
    pub(super) fn grades(&self) -> Grades {
        Grades { strict: self.strict.clone(), lenient: self.lenient.clone() }
    }

    /// Mean logprob of right answers in nats a token.
    pub(super) fn nats(&self) -> f64 {
        self.logprobs.iter().sum::<f64>() / self.tokens.iter().sum::<usize>().max(1) as f64
    }
}

/// A question in tokens.
struct Asked<'a> {
    place: usize,
    item: &'a Item,
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

/// Questions that have the same text and examples in context.
struct Window {
    text: Option<(String, String)>,
    examples: Vec<Item>,
    places: Vec<usize>,
}

/// Tokens of all passages.
pub(super) fn tokens(base: &Base, env: &Documents) -> Result<Vec<u32>, AgentError> {
    let all = env.passages().iter().map(|passage| base.plain_ids(&passage.text));
    Ok(all.collect::<Result<Vec<_>, AgentError>>()?.concat())
}

/// One greedy answer to each item, and how probable the right one was.
pub(super) fn read(
    base: &Base,
    env: &Documents,
    items: &[Item],
    reader: Reader<'_>,
    report: &mut dyn Report,
) -> Result<Reading, AgentError> {
    let n = items.len();
    let mut reading = Reading {
        strict: vec![false; n],
        lenient: vec![false; n],
        logprobs: vec![0.0; n],
        tokens: vec![0; n],
        ..Reading::default()
    };
    let adapter = if let Reader::Alone(adapter) = reader { adapter } else { None };
    let mut done = 0;
    for window in windows(base, env, items, reader)? {
        let asked = window.asked(base, env, items)?;
        match &window.text {
            None => alone(base, adapter, &asked, &mut reading)?,
            Some(_) => continued(base, &asked, &mut reading)?,
        }
        let progress = |more: usize| Progress {
            phase: Phase::Evaluation,
            label: reader.name(),
            done: (done + more) as u64,
            total: Some(n as u64),
            unit: Unit::Items,
            detail: "",
        };
        answer(base, env, (&asked, adapter), &mut reading, &mut |more| {
            report.progress(progress(more));
            report.cancelled()
        })?;
        done += asked.len();
    }
    Ok(reading)
}

/// What is in context for whom.
fn windows(base: &Base, env: &Documents, items: &[Item], reader: Reader<'_>) -> Result<Vec<Window>, AgentError> {
    let passages = env.passages();
    let room = match reader {
        Reader::Alone(skill) => {
            let examples = if skill.is_none() { env.examples(0..passages.len(), EXAMPLES) } else { Vec::new() };
            return Ok(vec![Window { text: None, examples, places: (0..items.len()).collect() }]);
        }
        Reader::Passage => 0,
        Reader::Documents => (base.spec().context_max as f64 * FILLED) as usize,
    };
    let mut runs: Vec<(std::ops::Range<usize>, usize)> = Vec::new();
    for (i, passage) in passages.iter().enumerate() {
        let tokens = base.plain_ids(&passage.text)?.len();
        match runs.last_mut() {
            Some((run, held)) if *held + tokens <= room => (run.end, *held) = (i + 1, *held + tokens),
            _ => runs.push((i..i + 1, tokens)),
        }
    }
    let window = |(run, _): (std::ops::Range<usize>, usize)| {
        let mut titles: Vec<&str> = passages[run.clone()].iter().map(|passage| passage.title.as_str()).collect();
        titles.dedup();
        let texts: Vec<&str> = passages[run.clone()].iter().map(|passage| passage.text.as_str()).collect();
        let about = |place: &usize| env.passage_of(&items[*place]).is_some_and(|passage| run.contains(&passage));
        let places = (0..items.len()).filter(about).collect();
        Window { text: Some((titles.join(", "), texts.join(" "))), examples: env.examples(run, EXAMPLES), places }
    };
    Ok(runs.into_iter().map(window).filter(|window| !window.places.is_empty()).collect())
}

impl Window {
    fn asked<'a>(&self, base: &Base, env: &Documents, items: &'a [Item]) -> Result<Vec<Asked<'a>>, AgentError> {
        let mut shown = Vec::new();
        for example in &self.examples {
            let session = env.start(example)?;
            shown.extend_from_slice(session.observe());
            shown.push(Message::assistant(session.teacher().unwrap_or_default()));
        }
        let ask = |&place: &usize| {
            let item = &items[place];
            let session = env.start(item)?;
            let mut messages = [&shown, session.observe()].concat();
            if let Some((title, text)) = &self.text {
                messages[0] = informed(title, text, &messages[0].content);
            }
            let prompt = base.prompt_ids(&messages)?;
            let answer = base.plain_ids(&session.teacher().unwrap_or_default())?;
            Ok(Asked { place, item, prompt, answer })
        };
        self.places.iter().map(ask).collect()
    }
}

impl Reading {
    fn scored(&mut self, asked: &Asked<'_>, logprob: f64) {
        self.logprobs[asked.place] = logprob;
        self.tokens[asked.place] = asked.answer.len();
    }
}

/// Scores right answers with nothing in context.
fn alone(
    base: &Base,
    adapter: Option<&Arc<ActiveAdapter>>,
    asked: &[Asked<'_>],
    reading: &mut Reading,
) -> Result<(), AgentError> {
    let begun = Instant::now();
    let sequences: Vec<(&[u32], &[u32])> = asked.iter().map(|a| (&a.prompt[..], &a.answer[..])).collect();
    let view = adapter.map(|adapter| adapter.adapter());
    for (asked, logprobs) in asked.iter().zip(score(&base.model, view, &sequences, base.limits)?) {
        reading.scored(asked, logprobs.iter().map(|&logprob| f64::from(logprob)).sum());
        reading.question_tokens += asked.prompt.len();
    }
    reading.seconds += begun.elapsed().as_secs_f64();
    Ok(())
}

/// Scores right answers as continuations of what all prompts begin with, which is read once.
fn continued(base: &Base, asked: &[Asked<'_>], reading: &mut Reading) -> Result<(), AgentError> {
    let begun = Instant::now();
    let common = beginning(asked);
    let mut context = base.model.sequence();
    for (i, piece) in asked[0].prompt[..common].chunks(PIECE).enumerate() {
        let batch = Batch::new([Row { position: i * PIECE, ..Row::new(piece) }]);
        base.model.forward(&batch, &[], &mut [&mut context], &[])?;
    }
    let context = Arc::new(context);
    reading.context_tokens += common;
    reading.context_seconds += begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    for asked in asked.chunks(SCORED_AT_ONCE) {
        let texts: Vec<Vec<u32>> =
            asked.iter().map(|a| [&a.prompt[common..], &a.answer[..a.answer.len() - 1]].concat()).collect();
        let batch = Batch::new(texts.iter().map(|text| Row { position: common, ..Row::new(text) }));
        let mut own: Vec<KvSequence> = asked.iter().map(|_| base.model.fork(&context, common)).collect();
        let spans = batch.spans().iter().zip(asked);
        let wanted: Vec<usize> =
            spans.flat_map(|(span, a)| span.tokens.end - a.answer.len()..span.tokens.end).collect();
        let logits = base.model.forward(&batch, &[], &mut own.iter_mut().collect::<Vec<_>>(), &wanted)?;
        let mut rows = logits.chunks_exact(base.spec().vocab);
        for asked in asked {
            let logprob = asked.answer.iter().zip(&mut rows).map(|(&token, logits)| log_softmax(logits, token)).sum();
            reading.scored(asked, logprob);
            reading.question_tokens += asked.prompt.len() - common;
        }
    }
    reading.seconds += begun.elapsed().as_secs_f64();
    Ok(())
}

/// Tokens that all prompts begin with, leaving at least one to each.
fn beginning(asked: &[Asked<'_>]) -> usize {
    let first = &asked[0].prompt;
    let common = |a: &Asked<'_>| a.prompt.iter().zip(first).take_while(|(x, y)| x == y).count().min(a.prompt.len() - 1);
    asked.iter().map(common).min().unwrap_or(0)
}

fn log_softmax(logits: &[f32], token: u32) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    f64::from(logits[token as usize]) - max - sum.ln()
}

/// Answers greedily, and grades. The first question goes by itself, so that the others may continue what it has read.
fn answer(
    base: &Base,
    env: &Documents,
    (asked, adapter): (&[Asked<'_>], Option<&Arc<ActiveAdapter>>),
    reading: &mut Reading,
    told: &mut dyn FnMut(usize) -> bool,
) -> Result<(), AgentError> {
    let longest = asked.iter().map(|a| a.prompt.len()).max().unwrap_or(0);
    let limits = Limits { prefix_tokens_max: 2 * longest, ..Limits::default() };
    let mut engine = Engine::new(base.model.clone(), limits);
    let max_tokens = env.info().level(1)?.reply_tokens_max;
    let mut done = 0;
    for batch in [&asked[..1], &asked[1..]] {
        let request = |a: &Asked<'_>| {
            let sampling = Sampling::greedy(max_tokens, base.text.stop_ids.clone());
            Request::new(a.prompt.clone(), sampling).under(adapter.cloned())
        };
        let run = engine.run_all(batch.iter().map(request).collect(), &mut |event| {
            done += usize::from(matches!(event.kind, EventKind::Finished(_)));
            if told(done) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let completions = run.ok_or(AgentError::Cancelled)?;
        for (asked, completion) in batch.iter().zip(completions.into_iter().flatten()) {
            if let Outcome::Done(grade) = env.start(asked.item)?.act(&base.reply(&completion.tokens))? {
                (reading.strict[asked.place], reading.lenient[asked.place]) = (grade.strict, grade.lenient);
            }
        }
    }
    Ok(())
}
