//! Self-study: with a passage in context the model writes questions about it and answers them; its answers and the distributions that they
//! were drawn from are what a learner without the passage is to match. Never trains.
//!
//! After Cartridges (arXiv 2506.06266), with a seed prompt for each kind of question.

use crate::{
    agent::{AgentError, Base, Taught},
    common::{Digest, Journal, Phase, Progress, Report, Seed, Unit},
    engine::{Completion, Engine, EventKind, FinishReason, Limits, Request, RequestId, Sampling},
    envs::{Documents, Passage, informed},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    time::Instant,
};

/// Raised when the same passage would give other notes than before.
const VERSION: &str = "notes 2";
/// What the model is asked to write.
const SEEDS: [&str; 6] = [
    "Write one short question that this text answers.",
    "Write one question about a detail of this text, such as a number, a name or a condition.",
    "Write one question about what a term means that this text uses.",
    "Write one question that begins with “What happens if” and that this text answers.",
    "Write one question that begins with “Who” or “When” and that this text answers.",
    "Write one request to explain a part of this text in plain words.",
];
const QUESTION_TOKENS_MAX: usize = 48;
/// Answers that are longer are taken as far as this: their distributions are as good, but how they end is not learned.
const ANSWER_TOKENS_MAX: usize = 48;
/// The most probable tokens that are kept of a distribution.
const TOP: usize = 20;
/// Tokens of a passage's beginning that are read once for all of its questions.
const PREFIX_TOKENS_MAX: usize = 4_096;

/// A question of the model's own, and how it answers with the passage in context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) passage: usize,
    pub(super) question: String,
    pub(super) answer: String,
    pub(super) taught: Taught,
    /// Of the whole answer.
    pub(super) logprob: f64,
}

/// The notes of a passage, and what they took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct PassageNotes {
    notes: Vec<Note>,
    read_tokens: u64,
    sampled_tokens: u64,
    seconds: f64,
}

/// All notes, and what they took.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) all: Vec<Note>,
    pub(super) read_tokens: u64,
    pub(super) sampled_tokens: u64,
    pub(super) seconds: f64,
}

/// Notes about every passage, each unless `kept` has it.
pub(super) fn study(
    base: &Base,
    env: &Documents,
    seed: Seed,
    mut kept: Option<&mut Journal<PassageNotes>>,
    report: &mut dyn Report,
) -> Result<Notes, AgentError> {
    let mut found = Notes::default();
    let total = env.passages().len() as u64;
    for (i, passage) in env.passages().iter().enumerate() {
        let key = key(base, passage, seed);
        let known = kept.as_ref().and_then(|kept| kept.get(&key)).cloned();
        let PassageNotes { notes, read_tokens, sampled_tokens, seconds } = match known {
            Some(known) => known,
            None => {
                let (phase, label, unit) = (Phase::Rollouts, "questions of its own", Unit::Items);
                report.progress(Progress { phase, label, done: i as u64, total: Some(total), unit, detail: "" });
                let notes = take_notes(base, passage, seed, report)?;
                if let Some(kept) = &mut kept {
                    kept.insert(key, notes.clone())?;
                }
                notes
            }
        };
        found.all.extend(notes.into_iter().map(|note| Note { passage: i, ..note }));
        found.read_tokens += read_tokens;
        found.sampled_tokens += sampled_tokens;
        found.seconds += seconds;
    }
    Ok(found)
}

fn key(base: &Base, passage: &Passage, seed: Seed) -> Digest {
    Digest::of_parts([
        VERSION.as_bytes(),
        base.id.digest.bytes(),
        base.id.tokenizer.bytes(),
        format!("{:?}", base.dtype).as_bytes(),
        &seed.key().to_le_bytes(),
        passage.title.as_bytes(),
        passage.text.as_bytes(),
    ])
}

/// A completion, and at each of its tokens the most probable ones with their logprobs.
type Answer = (Completion, Vec<Vec<(u32, f32)>>);

fn take_notes(base: &Base, passage: &Passage, seed: Seed, report: &mut dyn Report) -> Result<PassageNotes, AgentError> {
    let begun = Instant::now();
    let limits = Limits { prefix_tokens_max: PREFIX_TOKENS_MAX, ..Limits::default() };
    let mut engine = Engine::new(base.model.clone(), limits);
    let ask = |text: &str, sampling: Sampling| -> Result<Request, AgentError> {
        let prompt = base.prompt_ids(&[informed(&passage.title, &passage.text, text)])?;
        Ok(Request::new(prompt, Sampling { stop_ids: base.text.stop_ids.clone(), ..sampling }))
    };
    let seed = seed.purpose("notes");
    let write = |(i, text): (u64, &&str)| {
        let sampling =
            Sampling { temperature: 0.7, seed: seed.index(i), max_tokens: QUESTION_TOKENS_MAX, ..Sampling::default() };
        ask(text, sampling)
    };
    let requests = (0..).zip(&SEEDS).map(write).collect::<Result<Vec<_>, _>>()?;
    let mut read: u64 = requests.iter().map(|request| request.prompt.len() as u64).sum();
    let written = answers(&mut engine, requests, report)?;
    let questions: BTreeSet<String> =
        written.iter().filter_map(|(said, _)| question(&base.reply(&said.tokens))).collect();
    let greedy = Sampling { top_logprobs: TOP, ..Sampling::greedy(ANSWER_TOKENS_MAX, Vec::new()) };
    let requests = questions.iter().map(|text| ask(text, greedy.clone())).collect::<Result<Vec<_>, _>>()?;
    read += requests.iter().map(|request| request.prompt.len() as u64).sum::<u64>();
    let answered = answers(&mut engine, requests, report)?;
    let sampled = written.iter().chain(&answered).map(|(said, _)| said.tokens.len() as u64).sum();
    let note = |(question, (said, top)): (String, Answer)| {
        let said_something = said.finish_reason != FinishReason::Diverged && said.tokens.len() > 1;
        said_something.then(|| Note {
            passage: 0,
            question,
            answer: base.reply(&said.tokens),
            logprob: said.logprobs.iter().map(|&logprob| f64::from(logprob)).sum(),
            taught: Taught { teacher: top.iter().map(|top| probabilities(top)).collect(), answer: said.tokens },
        })
    };
    Ok(PassageNotes {
        notes: questions.into_iter().zip(answered).filter_map(note).collect(),
        read_tokens: read - engine.reused_tokens(),
        sampled_tokens: sampled,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// What becomes of `requests`, the first by itself so that the others may continue what it has read.
fn answers(
    engine: &mut Engine,
    mut requests: Vec<Request>,
    report: &mut dyn Report,
) -> Result<Vec<Answer>, AgentError> {
    let mut found = Vec::new();
    let rest = requests.split_off(requests.len().min(1));
    for batch in [requests, rest] {
        let mut tops: BTreeMap<RequestId, Vec<Vec<(u32, f32)>>> = BTreeMap::new();
        let run = engine.run_all(batch, &mut |event| {
            let own = tops.entry(event.request).or_default();
            if let EventKind::Token { top, .. } = &event.kind {
                own.push(top.clone());
            }
            if report.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let completions = run.ok_or(AgentError::Cancelled)?.into_iter().flatten();
        // Ids rise in the order of requests.
        found.extend(completions.zip(tops.into_values()));
    }
    Ok(found)
}

/// The question in what the model wrote: its first line that is one, up to its mark, without marks around it.
fn question(reply: &str) -> Option<String> {
    let clean = |line: &str| {
        let line = line.trim().trim_start_matches(|c: char| c.is_ascii_digit() || ".)-*# ".contains(c));
        let line = line.split_inclusive('?').next().unwrap_or_default();
        line.trim_matches(|c: char| "\"“”'* ".contains(c)).to_owned()
    };
    let asks = |line: &String| line.split_whitespace().count() > 3 && line.ends_with(['?', '.']);
    reply.lines().map(clean).find(asks)
}

/// Probabilities of the most probable tokens, as if there were no others.
fn probabilities(top: &[(u32, f32)]) -> Vec<(u32, f32)> {
    let sum: f64 = top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
    top.iter().map(|&(token, logprob)| (token, (f64::from(logprob).exp() / sum).min(1.0) as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_the_first_line_that_is_one() {
        for (reply, expected) in [
            ("What does the licence grant?", Some("What does the licence grant?")),
            ("Here it is:\n\n1. \"Who may sue whom, and when?\"\n2. Why?", Some("Who may sue whom, and when?")),
            ("**Explain the second clause in plain words.**", Some("Explain the second clause in plain words.")),
            ("How long is a term of office? It is long, and", Some("How long is a term of office?")),
            ("Why?", None),
            ("", None),
        ] {
            assert_eq!(question(reply).as_deref(), expected, "{reply:?}");
        }
    }

    #[test]
    fn kept_probabilities_sum_to_one() {
        let kept = probabilities(&[(3, -0.7), (5, -1.5), (9, -4.0)]);
        assert!((kept.iter().map(|(_, p)| p).sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(kept[0].1 > kept[1].1 && kept[1].1 > kept[2].1);
    }
}
