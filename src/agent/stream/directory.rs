//! The router over the skills that one arm has at one stage: prompts in, skills out. Never sees a task's name.

use super::desk::{Desk, Prompts, Skill};
use crate::{
    agent::AgentError,
    library::{Catalogue, CatalogueEntry, SkillName},
    router::{Router, Settings},
};
use std::{collections::HashMap, sync::Arc};

/// A router and whom it chooses from.
pub(super) struct Directory {
    router: Router,
    skills: Vec<Skill>,
}

impl Directory {
    /// Over `skills`, in any order.
    pub(super) fn new(desk: &Desk<'_>, skills: &[Skill]) -> Result<Self, AgentError> {
        let mut router = Router::new(desk.base().id.clone(), desk.background()?.clone(), Settings::default())?;
        let entries = skills.iter().map(|skill| {
            let manifest = &skill.generation.manifest;
            Ok(CatalogueEntry {
                name: manifest.name.clone(),
                generation: skill.generation.id,
                base: manifest.base.clone(),
                description: manifest.description.clone(),
                features: desk.library.routing_features(&skill.generation)?.map(Arc::new),
            })
        });
        let entries = entries.collect::<Result<Vec<_>, AgentError>>()?;
        router.sync(&Catalogue { entries, damaged: Vec::new() });
        Ok(Self { router, skills: skills.to_vec() })
    }

    /// Who answers each of the prompts; none is the base.
    pub(super) fn choose(&self, _: &Desk<'_>, prompts: &Prompts) -> Result<Vec<Option<&Skill>>, AgentError> {
        let by_name: HashMap<&SkillName, &Skill> =
            self.skills.iter().map(|skill| (&skill.generation.manifest.name, skill)).collect();
        let choose = |row| Ok(self.router.route(row)?.choice.and_then(|name| by_name.get(&name).copied()));
        prompts.features.rows().map(choose).collect()
    }

    /// The skill that most of the prompts go to, if more than half do.
    pub(super) fn most(&self, desk: &Desk<'_>, prompts: &Prompts) -> Result<Option<&Skill>, AgentError> {
        let chosen = self.choose(desk, prompts)?;
        let count = |skill: &Skill| chosen.iter().flatten().filter(|found| found.task == skill.task).count();
        Ok(self.skills.iter().find(|skill| 2 * count(skill) > chosen.len()))
    }
}
