//! The arms of a stream, stage by stage: the routed library in every order, and the baselines beside it. Knows neither files nor
//! reports.

use super::{
    desk::{Cell, Desk, Life, Skill},
    directory::Directory,
    outlook::Outlook,
    panel::{Panel, Stage, kind},
    rehearse::Rehearsal,
    spec::Baseline,
};
use crate::{
    agent::AgentError,
    common::{Digest, Report},
    library::LibraryError,
    lora::{ActiveAdapter, LoraWeights, Merge, MergeSettings, Part, merge},
    router::RouteBy,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The routed library's name among arms.
pub(super) const ROUTED: &str = "routed";
/// A merge of eight adapters of rank 16 is exact at this rank; of more, the largest directions are kept.
const MERGED_RANK_MAX: usize = 128;
/// Share of elements that TIES keeps (the paper's default).
const TIES_DENSITY: f64 = 0.2;

/// One arm under one order and seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
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

/// What is asked after the task at `position`: everything up to it, and the next, for forward transfer. Of arms whose answers at one stage
/// say nothing of the next (merges), or that cost a pass of their own (Arrow's votes), in between only the task itself: enough for
/// what is kept at the end.
fn asked(baseline: Option<Baseline>, tasks: &[usize], position: usize) -> &[usize] {
    let last = position + 1 == tasks.len();
    match baseline {
        Some(Baseline::Average | Baseline::Ties | Baseline::Arrow) if !last => &tasks[position..=position],
        Some(Baseline::Joint) if !last => &[],
        _ => &tasks[..(position + 2).min(tasks.len())],
    }
}

/// What the stages of an arm in which it is asked are called.
fn asking(arm: &str) -> String {
    format!("asking {arm}")
}

/// The stages of a run whose outcome is not known.
pub(super) fn expected(desk: &Desk<'_>) -> Outlook {
    let stream = desk.stream;
    let mut outlook = Outlook::default();
    outlook.expect(ROUTED, desk.unlived());
    let mut arm = |baseline: Option<Baseline>, seed: u64, tasks: &[usize]| {
        let arm = baseline.map_or_else(|| ROUTED.to_owned(), |baseline| baseline.to_string());
        if desk.is_finished(&arm, tasks, seed) {
            return;
        }
        for position in 0..tasks.len() {
            let (now, after) = (asked(baseline, tasks, position), &tasks[..=position]);
            let stage = Stage { arm: &arm, seed: Some(seed), after };
            outlook.expect(&asking(&arm), usize::from(stage.known(desk, now).is_none()));
            if let Some(baseline) = baseline.filter(|baseline| baseline.trains() && !now.is_empty()) {
                let known = Rehearsal { baseline, seed, tasks: after }.known(desk).is_some();
                outlook.expect(&arm, usize::from(!known));
            }
        }
    };
    for &seed in &stream.seeds {
        stream.orders.iter().for_each(|order| arm(None, seed, order));
        stream.baselines.iter().for_each(|&baseline| arm(Some(baseline), seed, &stream.orders[0]));
    }
    outlook
}

/// What a whole arm depends on under one order and seed.
fn key(desk: &Desk<'_>, arm: &str, tasks: &[usize], seed: u64) -> Digest {
    let each: Vec<_> = tasks.iter().map(|&task| desk.identity(task)).collect();
    desk.key(&kind("arm", arm), &serde_json::json!([arm, seed, desk.names(tasks), each, desk.stream.items]))
}

impl Desk<'_> {
    /// Whether an arm is known from its beginning to its end.
    pub(super) fn is_finished(&self, arm: &str, tasks: &[usize], seed: u64) -> bool {
        self.finished.borrow().get(&key(self, arm, tasks, seed)).is_some()
    }

    /// An arm from the memory of the run, which needs nothing that was learned for it; else as `live` has it.
    fn whole(
        &self,
        arm: &str,
        (order, tasks): (usize, &[usize]),
        seed: u64,
        live: impl FnOnce(ArmRun) -> Result<ArmRun, AgentError>,
    ) -> Result<ArmRun, AgentError> {
        let key = key(self, arm, tasks, seed);
        if self.finished.borrow().get(&key).is_none() {
            let run = live(ArmRun::new(arm, (order, tasks), seed))?;
            self.finished.borrow_mut().insert(key, run)?;
        }
        let known = self.finished.borrow().get(&key).cloned().expect("it has been run");
        // Where its tasks and its order stand in the file may have changed since.
        Ok(ArmRun { order, tasks: tasks.to_vec(), ..known })
    }

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
        let run = self.whole(ROUTED, (order, tasks), seed, |run| self.live_routed(run, outlook, report))?;
        // An arm may have come to its end before anyone wanted it published.
        if self.publishes(&run) {
            for (&task, life) in run.tasks.iter().zip(&run.lives) {
                match self.skill(task, life) {
                    Ok(skill) => skill.iter().try_for_each(|skill| self.publish(skill, report))?,
                    Err(AgentError::Library(LibraryError::NotFound { .. } | LibraryError::Damaged { .. })) => report.note(&format!(
                        "{} is not published: this folder has what was measured of it, and not its adapter as it was",
                        life.task
                    )),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(run)
    }

    /// Whether what `run` learns becomes the user's.
    fn publishes(&self, run: &ArmRun) -> bool {
        self.stream.publish && run.order == 0 && run.seed == self.stream.seeds[0]
    }

    fn live_routed(
        &self,
        mut run: ArmRun,
        outlook: &mut Outlook,
        report: &mut dyn Report,
    ) -> Result<ArmRun, AgentError> {
        let (tasks, seed) = (run.tasks.clone(), run.seed);
        let mut skills = Vec::new();
        for (position, &task) in tasks.iter().enumerate() {
            let lived = self.life(task, seed, &skills, outlook, report)?;
            let skill = self.skill(task, &lived)?;
            if let (Some(skill), true) = (&skill, self.publishes(&run)) {
                self.publish(skill, report)?;
            }
            skills.extend(skill);
            run.lives.push(lived);
            let stage = Stage { arm: ROUTED, seed: Some(seed), after: &tasks[..=position] };
            let now = asked(None, &tasks, position);
            let cells = match stage.known(self, now) {
                Some(known) => known,
                None => outlook.time(&asking(ROUTED), || {
                    let panel = Panel::Routed(Box::new(Directory::new(self, &skills)?), RouteBy::Ridge);
                    stage.measure(self, &panel, now, report)
                })?,
            };
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
        let place = (routed.order, &routed.tasks[..]);
        self.whole(&baseline.to_string(), place, routed.seed, |run| {
            self.live_baseline(baseline, (run, routed), outlook, report)
        })
    }

    fn live_baseline(
        &self,
        baseline: Baseline,
        (mut run, routed): (ArmRun, &ArmRun),
        outlook: &mut Outlook,
        report: &mut dyn Report,
    ) -> Result<ArmRun, AgentError> {
        let (tasks, seed, arm) = (&routed.tasks, routed.seed, run.arm.clone());
        let mut skills = Vec::new();
        for (position, &task) in tasks.iter().enumerate() {
            let now = asked(Some(baseline), tasks, position);
            if now.is_empty() {
                continue;
            }
            let stage = Stage { arm: &arm, seed: Some(seed), after: &tasks[..=position] };
            let rehearsal = Rehearsal { baseline, seed, tasks: &tasks[..=position] };
            if baseline.trains() {
                run.lives.push(rehearsal.train(self, outlook, report)?);
            } else {
                // What the library learned was learned for this arm too.
                run.lives.push(routed.lives[position].clone());
                skills.extend(self.skill(task, &routed.lives[position])?);
            }
            let cells = match stage.known(self, now) {
                Some(known) => known,
                None => outlook.time(&asking(&arm), || {
                    let panel = match baseline {
                        Baseline::Sequential | Baseline::Replay | Baseline::Joint => {
                            Panel::One(rehearsal.adapter(self)?)
                        }
                        Baseline::Oracle => Panel::Told(skills.clone()),
                        Baseline::Arrow => Panel::Routed(Box::new(Directory::new(self, &skills)?), RouteBy::Arrow),
                        Baseline::Average => self.merged(&skills, Merge::Linear)?,
                        Baseline::Ties => self.merged(&skills, Merge::Ties { density: TIES_DENSITY })?,
                    };
                    stage.measure(self, &panel, now, report)
                })?,
            };
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
