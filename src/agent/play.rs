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

/// Tokens kept because prompts may begin with them: some beginnings of each adapter's.
const PREFIX_TOKENS_MAX: usize = 4096;

/// A question, and who answers it.
#[derive(Clone)]
pub struct Place<'a> {
    /// What it is a question of.
    pub env: &'a dyn Environment,
    /// The question.
    pub item: &'a Item,
    /// Who acts; none is the base.
    pub adapter: Option<Arc<ActiveAdapter>>,
}

impl<'a> Place<'a> {
    /// All of `items`, answered by one.
    pub fn all(env: &'a dyn Environment, items: &'a [Item], adapter: Option<&Arc<ActiveAdapter>>) -> Vec<Self> {
        items.iter().map(|item| Self { env, item, adapter: adapter.cloned() }).collect()
    }
}

/// What is to be played. Places under different adapters share the engine's batches.
pub struct Play<'a> {
    /// The questions and who answers them.
    pub places: &'a [Place<'a>],
    /// Attempts at each.
    pub samples: u64,
    /// 0 is greedy.
    pub temperature: f32,
    /// Of all draws.
    pub seed: Seed,
    /// What the progress is called.
    pub phase: Phase,
}

impl<'a> Play<'a> {
    /// One greedy attempt at each place.
    pub fn greedy(places: &'a [Place<'a>]) -> Self {
        Self { places, samples: 1, temperature: 0.0, seed: Seed::new(0), phase: Phase::Evaluation }
    }
}

/// An attempt under way.
struct Attempt {
    place: usize,
    sample: u64,
    turns_max: usize,
    session: Box<dyn Session>,
    turns: Vec<Turn>,
    grade: Option<Grade>,
}

/// Plays every place `samples` times; the episodes of each place, in order of places and samples.
///
/// An episode that is still open after its level's last turn is graded as a failure.
pub fn play(base: &Base, play: &Play<'_>, report: &mut dyn Report) -> Result<Vec<Vec<Episode>>, AgentError> {
    let mut attempts = begin(play)?;
    for round in 0.. {
        let goes_on = |attempt: &&mut Attempt| attempt.grade.is_none() && round < attempt.turns_max;
        let mut open: Vec<&mut Attempt> = attempts.iter_mut().filter(goes_on).collect();
        if open.is_empty() {
            break;
        }
        let requests = requests(base, play, &open, round)?;
        let completions = run(base, play, requests, report)?;
        for (attempt, completion) in open.iter_mut().zip(completions) {
            attempt.take(base, completion)?;
        }
    }
    Ok(gather(play, attempts))
}

/// The episode in which the environment's teacher acts. Nobody sampled its tokens: they have no logprobs.
///
/// # Errors
/// If the environment does not reveal answers.
pub fn reveal(base: &Base, env: &dyn Environment, item: &Item) -> Result<Episode, AgentError> {
    let places = [Place { env, item, adapter: None }];
    let play = Play::greedy(&places);
    let mut attempt = begin(&play)?.remove(0);
    while attempt.grade.is_none() && attempt.turns.len() < attempt.turns_max {
        let session = &mut attempt.session;
        let reply = session.teacher().ok_or_else(|| AgentError::NoAnswers { env: env.info().name.clone() })?;
        let prompt = base.prompt_ids(session.observe())?;
        if let Outcome::Done(grade) = session.act(&reply)? {
            attempt.grade = Some(grade);
        }
        let action = base.reply_ids(&reply)?;
        attempt.turns.push(Turn { prompt, action, logprobs: Vec::new(), generation: None });
    }
    Ok(gather(&play, vec![attempt]).concat().remove(0))
}

fn begin(play: &Play<'_>) -> Result<Vec<Attempt>, AgentError> {
    let attempts = (0..play.places.len()).flat_map(|place| (0..play.samples).map(move |sample| (place, sample)));
    let attempt = |(place, sample)| {
        let Place { env, item, .. } = &play.places[place];
        let turns_max = env.info().level(item.level)?.turns_max;
        Ok(Attempt { place, sample, turns_max, session: env.start(item)?, turns: Vec::new(), grade: None })
    };
    attempts.map(attempt).collect()
}

/// One request a run of neighbouring attempts that see the same conversation: they share its prefill.
fn requests(base: &Base, play: &Play<'_>, open: &[&mut Attempt], round: usize) -> Result<Vec<Request>, AgentError> {
    let mut requests: Vec<Request> = Vec::new();
    let mut last: Option<(usize, u64)> = None;
    for attempt in open {
        let shares = round == 0 && last.is_some_and(|last| last == (attempt.place, attempt.sample));
        last = Some((attempt.place, attempt.sample + 1));
        if let (true, Some(request)) = (shares, requests.last_mut()) {
            request.samples.end += 1;
            continue;
        }
        let Place { env, item, adapter } = &play.places[attempt.place];
        let level = env.info().level(item.level)?;
        let sampling = Sampling {
            temperature: play.temperature,
            seed: play.seed.index(attempt.place as u64).index(round as u64),
            max_tokens: level.reply_tokens_max,
            stop_ids: base.text.stop_ids.clone(),
            ..Sampling::default()
        };
        let prompt = base.prompt_ids(attempt.session.observe())?;
        let mut request = Request::new(prompt, sampling).under(adapter.clone());
        request.samples = attempt.sample..attempt.sample + 1;
        requests.push(request);
    }
    Ok(requests)
}

/// Runs `requests`; their completions in order, each with its prompt.
fn run(
    base: &Base,
    play: &Play<'_>,
    requests: Vec<Request>,
    report: &mut dyn Report,
) -> Result<Vec<(Vec<u32>, Completion)>, AgentError> {
    let prompts: Vec<Vec<u32>> = requests.iter().map(|request| request.prompt.clone()).collect();
    let total = requests.iter().map(|request| request.samples.end - request.samples.start).sum::<u64>();
    let limits = Limits { prefix_tokens_max: PREFIX_TOKENS_MAX, ..Limits::default() };
    let mut engine = Engine::new(base.model.clone(), limits);
    let mut done = 0;
    let label = play.places.first().map_or("nothing", |place| &place.env.info().name);
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

fn gather(play: &Play<'_>, attempts: Vec<Attempt>) -> Vec<Vec<Episode>> {
    let mut episodes: Vec<Vec<Episode>> = play.places.iter().map(|_| Vec::new()).collect();
    for Attempt { place, turns, grade, .. } in attempts {
        let Place { env, item, .. } = &play.places[place];
        let unfinished = Grade { reward: 0.0, strict: false, lenient: false, feedback: None };
        let Grade { reward, strict, lenient, feedback } = grade.unwrap_or(unfinished);
        episodes[place].push(Episode {
            env: env.info().name.clone(),
            item: item.id.to_string(),
            wording: item.wording,
            turns,
            reward,
            strict,
            lenient,
            feedback,
        });
    }
    episodes
}
