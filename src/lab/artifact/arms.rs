//! How each arm learns: the same optimiser, rank and rate for all, until the calls and operations that it may take are spent. Never judges.

use super::{Arm, Config, Point, judge::Judge};
use crate::{
    agent::{Base, BaseChoice, Place, Play, forward_flops, play, reveal, training_flops},
    common::{Phase, Report, Seed},
    envs::{self, Environment, Item, Query, Split},
    episode::{Episode, Turn},
    lab::{Cost, Desk, LabError, Meter, Purpose},
    lora::{ActiveAdapter, LoraConfig, init},
    train::{
        AdamW, Decay, Job, Label, Learner, Loss, Schedule, TrainRow, forward_backward, leave_one_out, loss, optim_step,
        score,
    },
};
use serde::{Deserialize, Serialize};
use socius_models::{DeviceChoice, Dtype, Projection};
use std::{
    fs,
    ops::{AddAssign, Range},
    path::PathBuf,
    sync::Arc,
};

/// Reward from which a trace is a success.
const SUCCESS: f32 = 0.999;
/// Steps over which the rate rises.
const WARMUP: f64 = 3.0;
/// Answers of a supervised step, whoever gave them: steps teach, and larger ones would leave fewer for the same operations.
pub(super) const BATCH: usize = 8;

/// What a subagent leaves for those who learn from it.
#[derive(Serialize, Deserialize)]
struct Legacy {
    episodes: Vec<Episode>,
    theta: Vec<f32>,
    spent: Spent,
}

/// What learning has taken so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Spent {
    calls: u64,
    cost: Cost,
    /// Of these, what sampling took.
    sampled: Cost,
}

/// What learning may take; the first that is spent ends it.
#[derive(Clone, Copy)]
struct Allowance {
    calls: Option<u64>,
    flops: Option<f64>,
}

/// An arm at work.
struct Work<'a> {
    config: &'a Config,
    point: &'a Point,
    base: &'a Base,
    envs: Vec<Box<dyn Environment>>,
    learner: Learner,
    spent: Spent,
    step: usize,
    /// Revealed answers that were learned from.
    revealed: usize,
    /// Everything that was shown and sampled.
    episodes: Vec<Episode>,
}

/// What a step learns from.
struct Lesson {
    rows: Vec<TrainRow>,
    loss: &'static Loss<'static>,
    reward: Option<f64>,
}

pub(super) fn measure(config: &Config, point: &Point, desk: &mut Desk<'_>) -> Result<(), LabError> {
    let choice = BaseChoice { model: config.model.clone(), device: DeviceChoice::Cpu, dtype: Dtype::Bf16 };
    let base = Base::open(&choice, &desk.home, desk.report)?;
    let judge = Judge::new(config, &base)?;
    if point.arm == Arm::Base {
        return judge.finally(point, None, Cost::default(), 0, desk);
    }
    let legacies = match point.arm {
        Arm::Subagent | Arm::Base => Vec::new(),
        _ => config.environments.iter().map(|env| read(desk, point.seed, env)).collect::<Result<Vec<_>, _>>()?,
    };
    let mut work = Work::new(config, point, &base)?;
    if matches!(point.arm, Arm::Traces | Arm::Successes) {
        // Traces had to be sampled by somebody.
        for Legacy { spent, .. } in &legacies {
            work.spent += Spent { calls: spent.calls, cost: spent.sampled.clone(), sampled: spent.sampled.clone() };
        }
    }
    let calls = match point.arm {
        Arm::Subagent | Arm::Base => {
            Some((config.revealed_answers + config.steps * config.items * config.samples as usize) as u64)
        }
        // Whoever learns from traces has made all its calls.
        Arm::Traces | Arm::Successes => None,
        Arm::Distillation | Arm::Joint => Some(legacies.iter().map(|legacy| legacy.spent.calls).sum()),
    };
    let flops = (!legacies.is_empty()).then(|| legacies.iter().map(|legacy| legacy.spent.cost.total_flops()).sum());
    let allowance = Allowance { calls, flops };
    work.learn(&allowance, &legacies, &judge, desk)?;
    if point.arm == Arm::Subagent {
        work.leave(desk)?;
    }
    if point.arm == Arm::Distillation {
        // Teachers had to be made by somebody: beside what its own learning may take.
        legacies.into_iter().for_each(|legacy| work.spent += legacy.spent);
    }
    judge.finally(point, Some(&work.active()), work.spent.cost.clone(), work.spent.calls, desk)
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.cost += other.cost;
        self.sampled += other.sampled;
    }
}

impl<'a> Work<'a> {
    fn new(config: &'a Config, point: &'a Point, base: &'a Base) -> Result<Self, LabError> {
        let names = point.env.as_ref().map_or(&config.environments[..], std::slice::from_ref);
        let found = names.iter().map(|name| envs::find(name)).collect::<Result<Vec<_>, _>>();
        let envs = found.map_err(|error| LabError::Cell(error.to_string()))?;
        let lora = LoraConfig::uniform(config.rank, 2.0 * config.rank as f64, &Projection::ALL);
        let layout = lora.layout(base.spec()).map_err(|error| LabError::Config(error.to_string()))?;
        let theta = init(&layout, Seed::new(point.seed).purpose("lora"));
        let learner = Learner::new(layout, theta, point.seed, 0.0);
        Ok(Self {
            config,
            point,
            base,
            envs,
            learner,
            spent: Spent::default(),
            step: 0,
            revealed: 0,
            episodes: Vec::new(),
        })
    }

    fn active(&self) -> Arc<ActiveAdapter> {
        let (layout, theta) = (self.learner.layout().clone(), self.learner.theta().to_vec());
        Arc::new(ActiveAdapter::new(format!("{}-{}", self.point.arm.name(), self.step), layout, theta))
    }

    /// The share of the allowance that is spent, of whatever is spent most.
    fn share(&self, allowance: &Allowance) -> f64 {
        let calls = allowance.calls.map(|calls| self.spent.calls as f64 / calls as f64);
        let flops = allowance.flops.map(|flops| self.spent.cost.total_flops() / flops);
        [calls, flops].into_iter().flatten().fold(0.0, f64::max)
    }

    /// Learns until the allowance is spent; is looked at along the way.
    fn learn(
        &mut self,
        allowance: &Allowance,
        legacies: &[Legacy],
        judge: &Judge<'_>,
        desk: &mut Desk<'_>,
    ) -> Result<(), LabError> {
        let teachers: Vec<Arc<ActiveAdapter>> = legacies
            .iter()
            .zip(&self.config.environments)
            .map(|(legacy, env)| {
                Arc::new(ActiveAdapter::new(env.clone(), self.learner.layout().clone(), legacy.theta.clone()))
            })
            .collect();
        let traces: Vec<&Episode> = legacies.iter().flat_map(|legacy| &legacy.episodes).collect();
        let mut looks = 0;
        // What sampling the traces took is spent before anything is learned.
        let begun = self.share(allowance);
        loop {
            let share = (self.share(allowance) - begun) / (1.0 - begun);
            if share >= 1.0 {
                return Ok(());
            }
            let due = (looks + 1) as f64 / (self.config.checkpoints + 1) as f64;
            if share >= due {
                looks += 1;
                judge.look(self.point, share, &self.active(), desk)?;
                continue;
            }
            let meter = Meter::begin();
            let lesson = match self.point.arm {
                Arm::Distillation | Arm::Joint | Arm::Subagent if self.revealed < self.revealed_max() => {
                    self.learn_revealed()?
                }
                Arm::Traces => self.learn_traces(&traces, |_| true)?,
                Arm::Successes => self.learn_traces(&traces, |episode| episode.reward >= SUCCESS)?,
                Arm::Distillation => self.learn_teachers(&teachers, desk.report)?,
                Arm::Joint | Arm::Subagent | Arm::Base => self.learn_reward(desk.report)?,
            };
            let reward = lesson.reward.map_or_else(String::new, |reward| format!("reward {reward:.2}"));
            self.take(lesson, share)?;
            self.spent.cost += meter.taken();
            desk.step((share * 100.0) as u64, 100, reward)?;
        }
    }

    /// A step along the gradient of what a lesson says; the rate rises over three steps and falls to 0 with what is left of the
    /// allowance once learning begins.
    fn take(&mut self, lesson: Lesson, share: f64) -> Result<(), LabError> {
        let rise = ((self.step + 1) as f64 / WARMUP).min(1.0);
        self.step += 1;
        if lesson.rows.is_empty() {
            return Ok(());
        }
        let mut jobs = [Job { learner: &mut self.learner, rows: &lesson.rows, loss: lesson.loss }];
        let stats = forward_backward(&self.base.model, &mut jobs, self.base.limits)?.remove(0);
        let schedule = Schedule { warmup: 0, decay: Decay::Constant };
        let lr = self.config.lr * rise * (1.0 - share);
        optim_step(&mut self.learner, &AdamW { lr, schedule, ..AdamW::default() })?;
        let (tokens, scored) = (stats.tokens as u64, stats.loss_tokens as u64);
        let flops = training_flops(self.base.spec(), self.learner.theta().len(), tokens, scored);
        self.spent.cost += Cost::of(Purpose::Trained, tokens, flops);
        Ok(())
    }

    /// The items of `places`: whoever learns all environments takes them in turn.
    fn items(&self, purpose: &str, places: Range<usize>) -> Result<Vec<(usize, Item)>, LabError> {
        let draw = |place: usize| {
            let (env, index) = (place % self.envs.len(), place / self.envs.len());
            let seed = Seed::new(self.point.seed).purpose(purpose);
            let item = envs::item(&*self.envs[env], &Query::new(Split::Train, 1), seed, index as u64);
            Ok((env, item.map_err(|error| LabError::Cell(error.to_string()))?))
        };
        places.map(draw).collect()
    }

    fn revealed_max(&self) -> usize {
        self.config.revealed_answers * self.envs.len()
    }

    /// The next revealed answers.
    fn learn_revealed(&mut self) -> Result<Lesson, LabError> {
        let until = self.revealed_max().min(self.revealed + BATCH);
        let items = self.items("artifact revealed items", self.revealed..until)?;
        let shown = items.iter().map(|(env, item)| reveal(self.base, &*self.envs[*env], item));
        let shown = shown.collect::<Result<Vec<_>, _>>()?;
        self.spent.calls += shown.len() as u64;
        self.revealed = until;
        let rows = shown.iter().flat_map(answers).collect();
        self.episodes.extend(shown);
        Ok(Lesson { rows, loss: &loss::nll, reward: None })
    }

    /// Samples of this step's items, with the environment that each group is of.
    fn sample(&mut self, report: &mut dyn Report) -> Result<Vec<(usize, Vec<Episode>)>, LabError> {
        let first = self.step * self.config.items;
        let items = self.items("artifact items", first..first + self.config.items)?;
        let adapter = Some(self.active());
        let envs: Vec<usize> = items.iter().map(|(env, _)| *env).collect();
        let places: Vec<Place<'_>> =
            items.iter().map(|(env, item)| Place { env: &*self.envs[*env], item, adapter: adapter.clone() }).collect();
        let rollouts = Play {
            places: &places,
            samples: self.config.samples,
            temperature: self.config.temperature,
            seed: Seed::new(self.point.seed).purpose("rollouts").index(self.step as u64),
            phase: Phase::Rollouts,
        };
        let meter = Meter::begin();
        let groups = play(self.base, &rollouts, report)?;
        let turns = || groups.iter().flatten().flat_map(|episode| &episode.turns);
        let drawn: u64 = turns().map(|turn| turn.action.len() as u64).sum();
        // A group reads its prompt once.
        let read: u64 =
            groups.iter().filter_map(|group| group.first()?.turns.first()).map(|t| t.prompt.len() as u64).sum();
        self.spent.calls += groups.iter().map(|group| group.len() as u64).sum::<u64>();
        let flops = forward_flops(self.base.spec(), self.learner.theta().len(), read, drawn);
        // Time and counts of the whole step are measured around it.
        self.spent.cost += Cost::of(Purpose::Decode, read + drawn, flops);
        self.spent.sampled += meter.cost(Purpose::Decode, read + drawn, flops);
        Ok(envs.into_iter().zip(groups).collect())
    }

    /// REINFORCE with a leave-one-out baseline on one's own samples.
    fn learn_reward(&mut self, report: &mut dyn Report) -> Result<Lesson, LabError> {
        let groups = self.sample(report)?;
        let mut rows = Vec::new();
        let (mut total, mut count) = (0.0, 0);
        for (_, group) in &groups {
            let rewards: Vec<f32> = group.iter().map(|episode| episode.reward).collect();
            total += rewards.iter().map(|&reward| f64::from(reward)).sum::<f64>();
            count += rewards.len();
            let told = group.iter().zip(leave_one_out(&rewards)).filter(|(_, advantage)| *advantage != 0.0);
            rows.extend(told.flat_map(|(episode, advantage)| {
                let row = move |turn: &Turn| {
                    TrainRow::sample(turn.prompt.clone(), turn.action.clone(), &turn.logprobs, advantage)
                };
                episode.turns.iter().map(row).collect::<Vec<_>>()
            }));
        }
        if self.point.arm == Arm::Subagent {
            self.episodes.extend(groups.into_iter().flat_map(|(_, group)| group));
        }
        Ok(Lesson { rows, loss: &loss::policy_gradient, reward: Some(total / f64::from(count.max(1) as u32)) })
    }

    /// One's own samples, each token worth what the teacher of its environment finds it more probable: the gradient of −KL(learner ‖ teacher).
    fn learn_teachers(&mut self, teachers: &[Arc<ActiveAdapter>], report: &mut dyn Report) -> Result<Lesson, LabError> {
        let groups = self.sample(report)?;
        let (mut rows, mut total, mut count) = (Vec::new(), 0.0, 0);
        for (env, group) in &groups {
            let turns: Vec<&Turn> =
                group.iter().flat_map(|episode| &episode.turns).filter(|turn| !turn.action.is_empty()).collect();
            let sequences: Vec<(&[u32], &[u32])> =
                turns.iter().map(|turn| (&turn.prompt[..], &turn.action[..])).collect();
            let known = score(&self.base.model, Some(teachers[*env].adapter()), &sequences, self.base.limits)?;
            for (turn, teacher) in turns.iter().zip(known) {
                let labels = turn.logprobs.iter().zip(&teacher).map(|(&own, &teacher)| Label {
                    weight: 1.0,
                    advantage: teacher - own,
                    sampled: Some(own),
                    ..Label::default()
                });
                rows.push(TrainRow {
                    labels: labels.collect(),
                    prompt: turn.prompt.clone(),
                    completion: turn.action.clone(),
                });
            }
            total += group.iter().map(|episode| f64::from(episode.reward)).sum::<f64>();
            count += group.len();
            let drawn: u64 = turns.iter().map(|turn| turn.action.len() as u64).sum();
            let read = turns.first().map_or(0, |turn| turn.prompt.len() as u64);
            let flops = forward_flops(self.base.spec(), self.learner.theta().len(), read, drawn);
            self.spent.cost += Cost::of(Purpose::Teacher, read + drawn, flops);
        }
        Ok(Lesson { rows, loss: &loss::policy_gradient, reward: Some(total / f64::from(count.max(1) as u32)) })
    }

    /// The next traces, in shuffled passes.
    fn learn_traces(&mut self, traces: &[&Episode], wanted: impl Fn(&Episode) -> bool) -> Result<Lesson, LabError> {
        let traces: Vec<&&Episode> = traces.iter().filter(|episode| wanted(episode)).collect();
        if traces.is_empty() {
            return Err(LabError::Cell("no trace is a success, so there is nothing to learn from".to_owned()));
        }
        let rows = |place: usize| {
            let count = self.step * BATCH + place;
            let (pass, at) = (count / traces.len(), count % traces.len());
            let mut order: Vec<usize> = (0..traces.len()).collect();
            Seed::new(self.point.seed).purpose("traces").index(pass as u64).rng().shuffle(&mut order);
            answers(traces[order[at]])
        };
        Ok(Lesson { rows: (0..BATCH).flat_map(rows).collect(), loss: &loss::nll, reward: None })
    }

    /// Puts down what others learn from.
    fn leave(&self, desk: &Desk<'_>) -> Result<(), LabError> {
        let legacy =
            Legacy { episodes: self.episodes.clone(), theta: self.learner.theta().to_vec(), spent: self.spent.clone() };
        let path = path(desk, self.point.seed, self.point.env.as_deref().unwrap_or_default());
        let bytes = serde_json::to_vec(&legacy).expect("a legacy is plain data");
        crate::common::write_atomic(&path, &bytes).map_err(|error| LabError::File { path, what: error.to_string() })
    }
}

/// What was said in each turn, to be said again.
fn answers(episode: &Episode) -> Vec<TrainRow> {
    episode.turns.iter().map(|turn| TrainRow::answer(turn.prompt.clone(), turn.action.clone())).collect()
}

fn path(desk: &Desk<'_>, seed: u64, env: &str) -> PathBuf {
    desk.shared.join(format!("{env}-{seed}.json"))
}

fn read(desk: &Desk<'_>, seed: u64, env: &str) -> Result<Legacy, LabError> {
    let path = path(desk, seed, env);
    let fault = |what: String| LabError::File { path: path.clone(), what };
    let bytes = fs::read(&path).map_err(|error| fault(format!("what the subagent left is not there ({error})")))?;
    serde_json::from_slice(&bytes).map_err(|error| fault(error.to_string()))
}
