//! Who answers which question at one stage of an arm, and what that is worth: cells. Never trains.

use super::{
    arms::ROUTED,
    cost::{Spent, reading},
    desk::{Cell, Desk, Skill},
    directory::Directory,
};
use crate::{
    agent::{AgentError, Grades, Mark, Place},
    common::{Digest, Report},
    lora::ActiveAdapter,
    router::{self, RouteBy},
};
use socius_models::Spec;
use std::{collections::BTreeMap, sync::Arc};

/// Those who can answer.
pub(super) enum Panel {
    /// Nobody but the base.
    Base,
    /// One adapter answers everything.
    One(Arc<ActiveAdapter>),
    /// The router chooses among skills by the prompt alone, by what it goes by.
    Routed(Box<Directory>, RouteBy),
    /// A task's own skill answers, as if somebody had said which task it is.
    Told(Vec<Skill>),
}

/// Of which kind a result of an arm is: what is routed depends on the router too.
pub(super) fn kind(result: &str, arm: &str) -> String {
    if arm == ROUTED { format!("{result}, router {}", router::FORMAT) } else { result.to_owned() }
}

/// One stage: an arm after some tasks.
pub(super) struct Stage<'a> {
    /// `routed`, `base` or a baseline.
    pub(super) arm: &'a str,
    pub(super) seed: Option<u64>,
    /// What had been learned by then.
    pub(super) after: &'a [usize],
}

impl Stage<'_> {
    /// The key of this stage's cell of `task`. Everything but the base and the library told which task it is depends on all that was
    /// learned before, in its order.
    fn key(&self, desk: &Desk<'_>, task: usize) -> Digest {
        let after: Vec<_> = self.after.iter().map(|&task| desk.identity(task)).collect();
        let of = serde_json::json!([self.arm, self.seed, after, desk.identity(task), desk.stream.items]);
        desk.key(&kind("cell", self.arm), &of)
    }

    /// The cells of `tasks` that are known; all of them, or none.
    pub(super) fn known(&self, desk: &Desk<'_>, tasks: &[usize]) -> Option<Vec<Cell>> {
        let cells = desk.cells.borrow();
        tasks.iter().map(|&task| cells.get(&self.key(desk, task)).cloned()).collect()
    }

    /// Measures the cells of `tasks` that are not known, in common batches.
    pub(super) fn measure(
        &self,
        desk: &Desk<'_>,
        panel: &Panel,
        tasks: &[usize],
        report: &mut dyn Report,
    ) -> Result<Vec<Cell>, AgentError> {
        let unknown = |task: &usize| self.known(desk, &[*task]).is_none();
        let open: Vec<usize> = tasks.iter().copied().filter(unknown).collect();
        let who = open.iter().map(|&task| panel.who(desk, self.arm, task)).collect::<Result<Vec<_>, _>>()?;
        let mut places = Vec::new();
        for (&task, who) in open.iter().zip(&who) {
            let opened = &desk.tasks[task];
            let own = opened.items.iter().zip(who);
            places.extend(own.map(|(item, (_, adapter))| Place { env: &*opened.env, item, adapter: adapter.clone() }));
        }
        let marks = desk.marks.ask(desk.base(), &places, report)?;
        let mut rest = &marks[..];
        for (&task, who) in open.iter().zip(&who) {
            let (own, others) = rest.split_at(who.len());
            rest = others;
            let cell = self.cell(desk, task, panel, (who, own));
            let key = self.key(desk, task);
            desk.cells.borrow_mut().insert(key, cell)?;
        }
        Ok(self.known(desk, tasks).expect("what was not known has been measured"))
    }

    fn cell(&self, desk: &Desk<'_>, task: usize, panel: &Panel, (who, marks): (&[Answerer], &[Mark])) -> Cell {
        let Grades { strict, lenient } = Mark::grades(marks);
        let share = |flags: &[bool]| flags.iter().filter(|&&flag| flag).count() as f64 / flags.len().max(1) as f64;
        let mut answered_by = BTreeMap::new();
        who.iter().for_each(|(name, _)| *answered_by.entry(name.clone()).or_default() += 1);
        let size = |(_, adapter): &Answerer| adapter.as_ref().map_or(0, |adapter| adapter.theta.len());
        let spec = desk.base().spec();
        let mut spent = Spent::answering(spec, marks, &who.iter().map(size).collect::<Vec<_>>());
        spent.flops += reading(spec, panel.read_before(spec), spent.read_tokens);
        Cell {
            arm: self.arm.to_owned(),
            seed: self.seed,
            after: desk.names(self.after),
            task: desk.tasks[task].task.name.clone(),
            strict: share(&strict),
            lenient: share(&lenient),
            items: marks.len(),
            answered_by,
            spent,
        }
    }
}

/// Who answers a question: a name for people, and an adapter unless it is the base.
type Answerer = (String, Option<Arc<ActiveAdapter>>);

impl Panel {
    /// Layers through which the router reads a prompt before anyone answers it.
    fn read_before(&self, spec: &Spec) -> usize {
        match self {
            Self::Routed(_, RouteBy::Ridge) => router::layer(spec),
            Self::Routed(_, RouteBy::Arrow) => spec.layers,
            _ => 0,
        }
    }

    fn who(&self, desk: &Desk<'_>, arm: &str, task: usize) -> Result<Vec<Answerer>, AgentError> {
        let base = || ("base".to_owned(), None);
        let named = |skill: &Skill| (desk.tasks[skill.task].task.name.to_string(), Some(skill.adapter.clone()));
        let count = desk.tasks[task].items.len();
        Ok(match self {
            Self::Base => vec![base(); count],
            Self::One(adapter) => vec![(arm.to_owned(), Some(adapter.clone())); count],
            Self::Told(skills) => {
                let own = skills.iter().find(|skill| skill.task == task);
                vec![own.map_or_else(base, named); count]
            }
            Self::Routed(directory, by) => {
                let chosen = directory.choose(desk, desk.tested(task)?, *by)?;
                chosen.into_iter().map(|skill| skill.map_or_else(base, named)).collect()
            }
        })
    }
}
