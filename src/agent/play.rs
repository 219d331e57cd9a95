//! Acting: items become episodes under one adapter, single- and multi-turn, many at once. Never trains and never judges beyond
//! what the environment says.

use super::{AgentError, Base};
use crate::{
    common::{Phase, Progress, Report, Seed, Unit},
    engine::{Completion, Engine, EventKind, Limits, Request, Sampling},
    envs::{Environment, Grade, Item, Outcome, Session},
    episode::{Episode, Turn},
    lora::ActiveAdapter,
};
use std::sync::Arc;

/// What is to be played.
#[derive(Clone)]
pub struct Play<'a> {
    /// The questions.
    pub items: &'a [Item],
    /// Attempts at each.
    pub samples: u64,
    /// 0 is greedy.
    pub temperature: f32,
    /// Of all draws.
    pub seed: Seed,
    /// Who acts; none is the base.
    pub adapter: Option<Arc<ActiveAdapter>>,
    /// What the progress is called.
    pub phase: Phase,
}

impl<'a> Play<'a> {
    /// One greedy attempt at each item.
    pub fn greedy(items: &'a [Item], adapter: Option<Arc<ActiveAdapter>>) -> Self {
        Self { items, samples: 1, temperature: 0.0, seed: Seed::new(0), adapter, phase: Phase::Evaluation }
    }
}

/// An attempt under way.
struct Attempt {
    item: usize,
    sample: u64,
    session: Box<dyn Session>,
    turns: Vec<Turn>,
    grade: Option<Grade>,
}

/// Plays every item `samples` times; the episodes of each item, in order of items and samples.
///
/// An episode that is still open after the level's last turn is graded as a failure.
pub fn play(
    base: &Base,
    env: &dyn Environment,
    play: &Play<'_>,
    report: &mut dyn Report,
) -> Result<Vec<Vec<Episode>>, AgentError> {
    let mut attempts = begin(env, play)?;
    let turns_max = play.items.iter().map(|item| env.info().level(item.level).map(|level| level.turns_max));
    let turns_max = turns_max.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or(0);
    for round in 0..turns_max {
        let mut open: Vec<&mut Attempt> = attempts.iter_mut().filter(|attempt| attempt.grade.is_none()).collect();
        if open.is_empty() {
            break;
        }
        let requests = requests(base, env, play, &open, round)?;
        let completions = run(base, env, play, requests, report)?;
        for (attempt, completion) in open.iter_mut().zip(completions) {
            attempt.take(base, completion)?;
        }
    }
    Ok(gather(env, play, attempts))
}

fn begin(env: &dyn Environment, play: &Play<'_>) -> Result<Vec<Attempt>, AgentError> {
    let places = (0..play.items.len()).flat_map(|item| (0..play.samples).map(move |sample| (item, sample)));
    let attempt = |(item, sample)| {
        let session = env.start(&play.items[item])?;
        Ok(Attempt { item, sample, session, turns: Vec::new(), grade: None })
    };
    places.map(attempt).collect()
}

/// One request a run of neighbouring attempts that see the same conversation: they share its prefill.
fn requests(
    base: &Base,
    env: &dyn Environment,
    play: &Play<'_>,
    open: &[&mut Attempt],
    round: usize,
) -> Result<Vec<Request>, AgentError> {
    let mut requests: Vec<Request> = Vec::new();
    let mut last: Option<(usize, u64)> = None;
    for attempt in open {
        let shares = round == 0 && last.is_some_and(|(item, next)| (item, next) == (attempt.item, attempt.sample));
        last = Some((attempt.item, attempt.sample + 1));
        if let (true, Some(request)) = (shares, requests.last_mut()) {
            request.samples.end += 1;
            continue;
        }
        let level = env.info().level(play.items[attempt.item].level)?;
        let sampling = Sampling {
            temperature: play.temperature,
            seed: play.seed.index(attempt.item as u64).index(round as u64),
            max_tokens: level.reply_tokens_max,
            stop_ids: base.text.stop_ids.clone(),
            ..Sampling::default()
        };
        let prompt = base.prompt_ids(attempt.session.observe())?;
        let mut request = Request::new(prompt, sampling).under(play.adapter.clone());
        request.samples = attempt.sample..attempt.sample + 1;
        requests.push(request);
    }
    Ok(requests)
}

/// Runs `requests`; their completions in order, each with its prompt.
fn run(
    base: &Base,
    env: &dyn Environment,
    play: &Play<'_>,
    requests: Vec<Request>,
    report: &mut dyn Report,
) -> Result<Vec<(Vec<u32>, Completion)>, AgentError> {
    let prompts: Vec<Vec<u32>> = requests.iter().map(|request| request.prompt.clone()).collect();
    let total = requests.iter().map(|request| request.samples.end - request.samples.start).sum::<u64>();
    let mut engine = Engine::new(base.model.clone(), Limits::default());
    let mut done = 0;
    let label = &env.info().name;
    let groups = engine.run_all(requests, &mut |event| {
        if matches!(event.kind, EventKind::Finished(_)) {
            done += 1;
            let progress =
                Progress { phase: play.phase, label, done, total: Some(total), unit: Unit::Items, detail: "" };
            report.progress(progress);
        }
        if report.cancelled() { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    })?;
    let groups = groups.ok_or(AgentError::Cancelled)?;
    let with_prompt = |(prompt, group): (Vec<u32>, Vec<Completion>)| {
        group.into_iter().map(move |completion| (prompt.clone(), completion)).collect::<Vec<_>>()
    };
    Ok(prompts.into_iter().zip(groups).flat_map(with_prompt).collect())
}

impl Attempt {
    fn take(&mut self, base: &Base, (prompt, completion): (Vec<u32>, Completion)) -> Result<(), AgentError> {
        let reply = base.reply(&completion.tokens);
        if let Outcome::Done(grade) = self.session.act(&reply)? {
            self.grade = Some(grade);
        }
        let Completion { tokens, logprobs, generation, .. } = completion;
        self.turns.push(Turn { prompt, action: tokens, logprobs, generation });
        Ok(())
    }
}

fn gather(env: &dyn Environment, play: &Play<'_>, attempts: Vec<Attempt>) -> Vec<Vec<Episode>> {
    let mut episodes: Vec<Vec<Episode>> = play.items.iter().map(|_| Vec::new()).collect();
    for Attempt { item, turns, grade, .. } in attempts {
        let question = &play.items[item];
        let unfinished = Grade { reward: 0.0, strict: false, lenient: false, feedback: None };
        let Grade { reward, strict, lenient, feedback } = grade.unwrap_or(unfinished);
        episodes[item].push(Episode {
            env: env.info().name.clone(),
            item: question.id.to_string(),
            wording: question.wording,
            turns,
            reward,
            strict,
            lenient,
            feedback,
        });
    }
    episodes
}
