//! The arms of a stream, stage by stage: the routed library in every order, and the baselines beside it. Knows neither files nor
//! reports.

use super::{
    desk::{Cell, Desk, Life, Skill},
    directory::Directory,
    outlook::Outlook,
    panel::{Panel, Stage},
    rehearse::Rehearsal,
    spec::Baseline,
};
use crate::{
    agent::AgentError,
    common::Report,
    lora::{ActiveAdapter, LoraWeights, Merge, MergeSettings, Part, merge},
    router::RouteBy,
};
use std::sync::Arc;

/// The routed library's name among arms.
pub(super) const ROUTED: &str = "routed";
/// A merge of eight adapters of rank 16 is exact at this rank; of more, the largest directions are kept.
const MERGED_RANK_MAX: usize = 128;
/// Share of elements that TIES keeps (the paper's default).
const TIES_DENSITY: f64 = 0.2;

/// One arm under one order and seed.
#[derive(Clone, Debug)]
pub struct ArmRun {
    /// `routed` or a baseline.
    pub arm: String,
    /// Which of the stream's orders.
    pub order: usize,
    /// The tasks in that order, as indices.
    pub tasks: Vec<usize>,
    /// The seed.
    pub seed: u64,
    /// `[after][task]`, both in that order; none where nothing was measured.
    pub cells: Vec<Vec<Option<Cell>>>,
    /// What was learned for it, in that order.
    pub lives: Vec<Life>,
}

impl ArmRun {
    fn new(arm: impl ToString, (order, tasks): (usize, &[usize]), seed: u64) -> Self {
        let cells = vec![vec![None; tasks.len()]; tasks.len()];
        Self { arm: arm.to_string(), order, tasks: tasks.to_vec(), seed, cells, lives: Vec::new() }
    }

    fn put(&mut self, after: usize, tasks: &[usize], cells: Vec<Cell>) {
        for (task, cell) in tasks.iter().zip(cells) {
            let place = self.tasks.iter().position(|own| own == task).expect("a task of the order");
            self.cells[after][place] = Some(cell);
        }
    }
}

/// What is measured after the task at `position`: everything up to it, and the next, for forward transfer.
fn seen(tasks: &[usize], position: usize) -> &[usize] {
    &tasks[..(position + 2).min(tasks.len())]
}

impl Desk<'_> {
    /// The untouched base, on every task.
    pub(super) fn base_cells(&self, report: &mut dyn Report) -> Result<Vec<Cell>, AgentError> {
        let stage = Stage { arm: "base", seed: None, after: &[] };
        stage.measure(self, &Panel::Base, &(0..self.tasks.len()).collect::<Vec<_>>(), report)
    }

    /// The routed library: each task births a subagent, and after each the router is asked without being told what task it is.
    pub(super) fn routed(
        &self,
        order: usize,
        seed: u64,
        outlook: &mut Outlook,
        report: &mut dyn Report,
    ) -> Result<ArmRun, AgentError> {
        let tasks = &self.stream.orders[order];
        let first = order == 0 && seed == self.stream.seeds[0];
        let mut run = ArmRun::new(ROUTED, (order, tasks), seed);
        let mut skills = Vec::new();
        for (position, &task) in tasks.iter().enumerate() {
            let lived = outlook.time(ROUTED, || self.life(task, seed, &skills, report))?;
            let skill = self.skill(task, &lived)?;
            if let (Some(skill), true) = (&skill, first && self.stream.publish) {
                self.publish(skill, report)?;
            }
            skills.extend(skill);
            run.lives.push(lived);
            let stage = Stage { arm: ROUTED, seed: Some(seed), after: &tasks[..=position] };
            let now = seen(tasks, position);
            let cells = outlook.time("measuring", || match stage.known(self, now) {
                Some(known) => Ok(known),
                None => {
                    stage.measure(self, &Panel::Routed(Directory::new(self, &skills)?, RouteBy::Ridge), now, report)
                }
            })?;
            run.put(position, now, cells);
            self.tell(&run, position, outlook, report);
        }
        Ok(run)
    }

    /// A baseline, beside the routed library of the same seed and the first order.
    pub(super) fn baseline(
        &self,
        baseline: Baseline,
        routed: &ArmRun,
        outlook: &mut Outlook,
        report: &mut dyn Report,
    ) -> Result<ArmRun, AgentError> {
        let (tasks, seed) = (&routed.tasks, routed.seed);
        let arm = baseline.to_string();
        let mut run = ArmRun::new(&arm, (routed.order, tasks), seed);
        let mut skills = Vec::new();
        for (position, &task) in tasks.iter().enumerate() {
            let last = position + 1 == tasks.len();
            if baseline == Baseline::Joint && !last {
                continue;
            }
            let stage = Stage { arm: &arm, seed: Some(seed), after: &tasks[..=position] };
            let rehearsal = Rehearsal { baseline, seed, tasks: &tasks[..=position] };
            if baseline.trains() {
                run.lives.push(outlook.time(&arm, || rehearsal.train(self, report))?);
            } else {
                skills.extend(self.skill(task, &routed.lives[position])?);
            }
            let now = match baseline {
                // Its votes cost a whole pass a prompt, and what it is worth on tasks in between tells little.
                Baseline::Arrow if !last => &tasks[position..=position],
                _ => seen(tasks, position),
            };
            let cells = outlook.time("measuring", || match stage.known(self, now) {
                Some(known) => Ok(known),
                None => {
                    let panel = match baseline {
                        Baseline::Sequential | Baseline::Replay | Baseline::Joint => {
                            Panel::One(rehearsal.adapter(self)?)
                        }
                        Baseline::Oracle => Panel::Told(skills.clone()),
                        Baseline::Arrow => Panel::Routed(Directory::new(self, &skills)?, RouteBy::Arrow),
                        Baseline::Average => self.merged(&skills, Merge::Linear)?,
                        Baseline::Ties => self.merged(&skills, Merge::Ties { density: TIES_DENSITY })?,
                    };
                    stage.measure(self, &panel, now, report)
                }
            })?;
            run.put(position, now, cells);
            self.tell(&run, position, outlook, report);
        }
        Ok(run)
    }

    /// All of `skills` as one adapter.
    fn merged(&self, skills: &[Skill], how: Merge) -> Result<Panel, AgentError> {
        if skills.is_empty() {
            return Ok(Panel::Base);
        }
        let base = self.base();
        let load = |skill: &Skill| {
            let (adapter, config) = self.library.load_adapter(&skill.generation, &base.id, base.spec())?;
            Ok(LoraWeights::new(config, base.spec(), adapter.theta)?)
        };
        let loras = skills.iter().map(load).collect::<Result<Vec<_>, AgentError>>()?;
        let parts: Vec<Part<'_>> = loras.iter().map(|lora| Part { lora, weight: 1.0 }).collect();
        let rank = loras.iter().map(|lora| lora.config.rank).sum::<usize>().min(MERGED_RANK_MAX);
        let merged = merge(&parts, &MergeSettings { merge: how, rank, scale: 1.0, seed: 0 }, base.spec())?.lora;
        Ok(Panel::One(Arc::new(ActiveAdapter::new(format!("{how:?}"), merged.layout, merged.theta))))
    }

    /// Says how far an arm is, and what is left.
    fn tell(&self, run: &ArmRun, position: usize, outlook: &mut Outlook, report: &mut dyn Report) {
        let row: Vec<f64> = run.cells[position][..=position].iter().flatten().map(|cell| cell.strict).collect();
        let mean = 100.0 * row.iter().sum::<f64>() / row.len().max(1) as f64;
        let task = &self.tasks[run.tasks[position]].task.name;
        let orders = if self.stream.orders.len() > 1 { format!(" order {}", run.order + 1) } else { String::new() };
        let left = outlook.left().map(|left| format!("; {left} left")).unwrap_or_default();
        report.note(&format!(
            "{}{orders} seed {}: {task} is task {} of {}; {mean:.1} % on those so far{left}",
            run.arm,
            run.seed,
            position + 1,
            run.tasks.len(),
        ));
    }
}
