//! The router over the skills that one arm has at one stage: prompts in, skills out. Never sees a task's name.

use super::desk::{Desk, Prompts, Skill};
use crate::{
    agent::{
        AgentError,
        route::{arrow::votes, current::document, features::words},
    },
    router::{Evidence, Index, Ledger, Newcomer, Outcomes, Prototypes, RouteBy, Settings, Terms},
};

/// A router and whom it chooses from.
pub(super) struct Directory {
    index: Index,
    /// In the index's order. Skills that cannot be routed to are left out.
    skills: Vec<Skill>,
}

impl Directory {
    /// Over `skills`, in any order.
    pub(super) fn new(desk: &Desk<'_>, skills: &[Skill]) -> Result<Self, AgentError> {
        let mut ledger = Ledger::new(desk.base().id.clone(), desk.background()?.clone())?;
        for Skill { generation, .. } in skills {
            let Some(features) = desk.library.routing_features(generation)? else { continue };
            let manifest = &generation.manifest;
            let newcomer = Newcomer {
                generation: generation.id,
                features: &features,
                words: &Terms::of(&document(generation, &features)),
                promise: manifest.provenance.test.map_or(0.5, |test| test.after.strict),
            };
            ledger.add(manifest.name.clone(), newcomer)?;
        }
        let index = ledger.solve(Settings::default());
        let named = |id| skills.iter().find(|skill| skill.generation.id == id).cloned();
        let skills = index.skills().filter_map(|(_, id)| named(id)).collect();
        Ok(Self { index, skills })
    }

    /// Who answers each of the prompts; none is the base.
    pub(super) fn choose(
        &self,
        desk: &Desk<'_>,
        prompts: &Prompts,
        by: RouteBy,
    ) -> Result<Vec<Option<&Skill>>, AgentError> {
        let scores = self.scores(desk, prompts, by)?;
        let mut chosen = Vec::with_capacity(scores.len());
        for (ids, scores) in prompts.ids.iter().zip(scores) {
            let words = words(desk.base(), ids)?;
            // What became of earlier answers is left out: a stream is measured by what its prompts alone say.
            let evidence = Evidence { words: Some(&words), outcomes: &Outcomes::default(), explore: None };
            let route = self.index.choose(by, &scores, &evidence);
            chosen.push(self.skills.iter().find(|skill| route.generation == Some(skill.generation.id)));
        }
        Ok(chosen)
    }

    fn scores(&self, desk: &Desk<'_>, prompts: &Prompts, by: RouteBy) -> Result<Vec<Vec<f64>>, AgentError> {
        match by {
            RouteBy::Ridge => prompts.features.rows().map(|row| Ok(self.index.by_features(row)?)).collect(),
            RouteBy::Bm25 => {
                let scores = |ids: &Vec<u32>| Ok(self.index.by_text(&words(desk.base(), ids)?));
                prompts.ids.iter().map(scores).collect()
            }
            RouteBy::Arrow => {
                let prototypes: Vec<Prototypes> =
                    self.skills.iter().map(|skill| Prototypes::of(&skill.adapter)).collect();
                votes(desk.base(), &prototypes.iter().collect::<Vec<_>>(), &prompts.ids)
            }
        }
    }

    /// The skill that most of the prompts go to, if more than half do.
    pub(super) fn most(&self, desk: &Desk<'_>, prompts: &Prompts) -> Result<Option<&Skill>, AgentError> {
        let chosen = self.choose(desk, prompts, RouteBy::Ridge)?;
        let count = |skill: &Skill| chosen.iter().flatten().filter(|found| found.task == skill.task).count();
        Ok(self.skills.iter().find(|skill| 2 * count(skill) > chosen.len()))
    }
}
