//! What the stream's first order and seed learn becomes skills of the user's own library, under the tasks' names, once.

use super::desk::{Desk, Published, Skill};
use crate::{
    agent::AgentError,
    common::Report,
    library::{Candidate, Provenance},
    lora::LoraWeights,
};

impl Desk<'_> {
    /// Publishes `skill` in the user's library, unless that has been done: what became of it there since is the user's business.
    pub(super) fn publish(&self, skill: &Skill, report: &mut dyn Report) -> Result<(), AgentError> {
        let id = skill.generation.id;
        if self.published.borrow().get(&id).is_some() {
            return Ok(());
        }
        let (base, manifest) = (self.base(), &skill.generation.manifest);
        let (adapter, config) = self.library.load_adapter(&skill.generation, &base.id, base.spec())?;
        let lora = LoraWeights::new(config, base.spec(), adapter.theta)?;
        let published = self.published.borrow();
        // Parents are the run's own; those that became the user's are named as such there.
        let parents = manifest.provenance.parents.iter();
        let parents = parents.map(|parent| published.get(parent).map_or(*parent, |known| known.generation)).collect();
        drop(published);
        let name = self.tasks[skill.task].task.name.clone();
        let generation = self.session.library.publish(&Candidate {
            name: name.clone(),
            description: manifest.description.clone(),
            base: manifest.base.clone(),
            spec: base.spec(),
            lora: &lora,
            episodes: &self.library.episodes(&skill.generation)?,
            routing: self.library.routing_features(&skill.generation)?,
            provenance: Provenance { parents, ..manifest.provenance.clone() },
        })?;
        report.note(&format!("published {name}@{}", generation.manifest.number));
        self.published.borrow_mut().insert(id, Published { name, generation: generation.id })?;
        Ok(())
    }
}
