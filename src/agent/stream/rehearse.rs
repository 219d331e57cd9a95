//! Baselines that train one adapter on many tasks: in turn, with or without replay of earlier ones, or all at once. Never gated and
//! never routed.

use super::{
    cost::{Spent, training},
    desk::{Desk, Life},
    outlook::Outlook,
    spec::Baseline,
};
use crate::{
    agent::{
        AgentError, Method, Point, Recipe,
        method::Source,
        run::{Run, Settings},
    },
    common::{Digest, Phase, Progress, Report, Seed, Unit},
    lora::{ActiveAdapter, Base, LoraConfig, LoraWeights, PeftFiles, init},
    train::{Job, Learner, PassLimits, TrainRow, forward_backward, loss, optim_step},
};
use std::{path::PathBuf, sync::Arc, time::Instant};

/// Items of earlier tasks in every batch of eight.
const REPLAYED: usize = 2;
const BATCH: usize = 8;
const CHECKPOINT_SECONDS: f64 = 15.0;

/// One training of a baseline.
pub(super) struct Rehearsal<'t> {
    pub(super) baseline: Baseline,
    pub(super) seed: u64,
    /// What has been learned when it is over, in order; the last is what is learned now, unless all are at once.
    pub(super) tasks: &'t [usize],
}

impl Rehearsal<'_> {
    fn key(&self, desk: &Desk<'_>) -> Digest {
        let tasks: Vec<_> = self.tasks.iter().map(|&task| desk.identity(task)).collect();
        // With a single task they are one and the same.
        let baseline = if self.tasks.len() == 1 { Baseline::Sequential } else { self.baseline };
        desk.key("rehearsal", &serde_json::json!([baseline, self.seed, tasks]))
    }

    fn last(&self) -> usize {
        *self.tasks.last().expect("a rehearsal has a task")
    }

    fn steps(&self, desk: &Desk<'_>) -> usize {
        let of = |task: usize| desk.tasks[task].task.steps.unwrap_or(Method::Sft.defaults().steps);
        match self.baseline {
            Baseline::Joint => self.tasks.iter().map(|&task| of(task)).sum(),
            _ => of(self.last()),
        }
    }

    /// Where the adapter that it ends with lies.
    fn folder(&self, desk: &Desk<'_>) -> PathBuf {
        desk.home.root().join("trained").join(self.key(desk).short())
    }

    /// Whose item stands at `place` of step `step`, and at which place of that task's own stream of items.
    fn draw(&self, desk: &Desk<'_>, step: usize, place: usize) -> (usize, usize) {
        let earlier = &self.tasks[..self.tasks.len() - 1];
        let fresh = BATCH - REPLAYED;
        match self.baseline {
            Baseline::Joint => {
                let n = step * BATCH + place;
                (self.tasks[n % self.tasks.len()], n / self.tasks.len())
            }
            Baseline::Replay if !earlier.is_empty() && place < fresh => (self.last(), step * fresh + place),
            Baseline::Replay if !earlier.is_empty() => {
                // Earlier tasks in turn, each from the beginning of what it was trained on.
                let n = step * REPLAYED + place - fresh;
                let task = earlier[n % earlier.len()];
                let seen = desk.tasks[task].task.steps.unwrap_or(Method::Sft.defaults().steps) * fresh;
                (task, n / earlier.len() % seen)
            }
            _ => (self.last(), step * BATCH + place),
        }
    }

    fn rows(&self, desk: &Desk<'_>, step: usize) -> Result<Vec<TrainRow>, AgentError> {
        let mut rows = Vec::new();
        for place in 0..BATCH {
            let (task, index) = self.draw(desk, step, place);
            let opened = &desk.tasks[task];
            let (base, level, seed) = (desk.base(), opened.task.level, Seed::new(self.seed));
            let source = Source { base, env: &*opened.env, level, seed, kl: 0.0, course: None };
            rows.extend(source.answers(&source.train_item(index)?)?);
        }
        Ok(rows)
    }

    /// One adapter has one rank: the first task's.
    fn config(&self, desk: &Desk<'_>) -> LoraConfig {
        let rank = desk.tasks[self.tasks[0]].task.rank;
        Recipe { rank, alpha: 2.0 * rank as f64, ..Recipe::default() }.lora()
    }

    /// The run in which it is trained, resumed if there is one.
    fn run(&self, desk: &Desk<'_>) -> Result<Run, AgentError> {
        let (base, task) = (desk.base(), &desk.tasks[self.last()].task);
        let recipe = task.recipe(self.seed, desk.stream.items);
        let before = match self.baseline {
            Baseline::Joint => None,
            _ if self.tasks.len() == 1 => None,
            _ => Some(Self { tasks: &self.tasks[..self.tasks.len() - 1], ..*self }),
        };
        let layout = self.config(desk).layout(base.spec())?;
        let theta = match before {
            Some(before) => before.load(desk)?.theta,
            None => init(&layout, Seed::new(self.seed).purpose("lora")),
        };
        let name = format!("{}-{}", self.baseline, self.key(desk).short());
        let settings = Settings {
            env: self.tasks.iter().map(|&task| desk.tasks[task].task.name.as_str()).collect::<Vec<_>>().join(", "),
            env_version: self.key(desk).to_string(),
            base: base.id.digest.to_string(),
            dtype: format!("{:?}", base.dtype),
            parent: None,
            recipe,
        };
        let newborn = || Ok(Learner::new(layout, theta, self.seed, 0.0));
        Run::open(desk.home.runs().join(&name), &name, &settings, base.spec(), newborn)
    }

    /// Trains it, unless that is known.
    pub(super) fn train(
        &self,
        desk: &Desk<'_>,
        outlook: &mut Outlook,
        report: &mut dyn Report,
    ) -> Result<Life, AgentError> {
        match self.known(desk) {
            Some(life) => Ok(life),
            None => outlook.time(&self.baseline.to_string(), || self.train_now(desk, report)),
        }
    }

    pub(super) fn known(&self, desk: &Desk<'_>) -> Option<Life> {
        desk.known_life(&self.key(desk))
    }

    fn train_now(&self, desk: &Desk<'_>, report: &mut dyn Report) -> Result<Life, AgentError> {
        let mut run = self.run(desk)?;
        self.take_steps(desk, &mut run, report)?;
        let lora = self.save(desk, &run.learner)?;
        let spec = desk.base().spec();
        let progress = &run.progress;
        let flops = training(spec, lora.theta.len(), progress.trained_tokens, progress.scored_tokens);
        let spent =
            Spent { trained_tokens: progress.trained_tokens, flops, seconds: progress.seconds, ..Spent::default() };
        let life = Life {
            task: desk.tasks[self.last()].task.name.clone(),
            seed: self.seed,
            parent: None,
            generation: None,
            adapter: Some(ActiveAdapter::new(String::new(), lora.layout, lora.theta).digest()),
            learner: self.baseline.to_string(),
            gate: String::new(),
            steps: progress.step,
            curve: progress.curve.clone(),
            spent,
        };
        desk.lives.borrow_mut().insert(self.key(desk), life.clone())?;
        run.finish()?;
        Ok(life)
    }

    fn take_steps(&self, desk: &Desk<'_>, run: &mut Run, report: &mut dyn Report) -> Result<(), AgentError> {
        let steps = self.steps(desk);
        let recipe = desk.tasks[self.last()].task.recipe(self.seed, desk.stream.items);
        let optimiser = recipe.optimiser(Method::Sft, steps);
        let label = format!("{} on {}", self.baseline, desk.tasks[self.last()].task.name);
        let (mut begun, mut cancelled) = (Instant::now(), false);
        while run.progress.step < steps && !cancelled {
            let rows = self.rows(desk, run.progress.step)?;
            let jobs = &mut [Job { learner: &mut run.learner, rows: &rows, loss: &loss::nll }];
            let stats = forward_backward(&desk.base().model, jobs, PassLimits::default())?[0];
            optim_step(&mut run.learner, &optimiser)?;
            let progress = &mut run.progress;
            progress.curve.push(Point { step: progress.step, loss: stats.loss, reward: None });
            progress.trained_tokens += stats.tokens as u64;
            progress.scored_tokens += stats.loss_tokens as u64;
            progress.step += 1;
            let (done, total) = (progress.step as u64, Some(steps as u64));
            let detail = &format!("loss {:.3}", stats.loss);
            report.progress(Progress { phase: Phase::Training, label: &label, done, total, unit: Unit::Steps, detail });
            cancelled = report.cancelled();
            if cancelled || done as usize == steps || begun.elapsed().as_secs_f64() > CHECKPOINT_SECONDS {
                run.progress.seconds += begun.elapsed().as_secs_f64();
                begun = Instant::now();
                run.checkpoint()?;
            }
        }
        if cancelled && run.progress.step < steps { Err(AgentError::Cancelled) } else { Ok(()) }
    }

    /// Puts the adapter where [`Rehearsal::load`] finds it.
    fn save(&self, desk: &Desk<'_>, learner: &Learner) -> Result<LoraWeights, AgentError> {
        let base = desk.base();
        let lora = LoraWeights::new(self.config(desk), base.spec(), learner.theta().to_vec())?;
        let names = Base { spec: base.spec(), name: &base.id.name, aliases: &base.aliases };
        PeftFiles::new(&lora, names).write(&self.folder(desk))?;
        Ok(lora)
    }

    fn load(&self, desk: &Desk<'_>) -> Result<LoraWeights, AgentError> {
        let base = desk.base();
        let names = Base { spec: base.spec(), name: &base.id.name, aliases: &base.aliases };
        Ok(PeftFiles::read(&self.folder(desk))?.parse(names)?)
    }

    /// The adapter that it ended with.
    pub(super) fn adapter(&self, desk: &Desk<'_>) -> Result<Arc<ActiveAdapter>, AgentError> {
        let LoraWeights { layout, theta, .. } = self.load(desk)?;
        let name = format!("{}:{}", self.baseline, self.key(desk).short());
        Ok(Arc::new(ActiveAdapter::new(name, layout, theta)))
    }
}
