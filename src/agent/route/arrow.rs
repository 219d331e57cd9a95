//! Routing by weights alone: each skill's prototypes against the tokens of a prompt as the base's linears read them.

use super::lock;
use crate::{
    agent::{AgentError, Base, Session},
    common::Digest,
    lora::ActiveAdapter,
    router::{ARROW_SITES, Index, Prototypes, Votes, mix},
};
use socius_models::{Batch, Projection, Row, Site};
use std::sync::Arc;

impl Session {
    /// Each skill's part of the votes of each prompt's own tokens, in the index's order.
    pub(super) fn votes(&self, index: &Index, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f64>>, AgentError> {
        let skills = index.skills().map(|(_, id)| self.prototypes(id)).collect::<Result<Vec<_>, _>>()?;
        votes(&self.base, &skills.iter().map(|skill| &**skill).collect::<Vec<_>>(), prompts)
    }

    /// The `most` skills that Arrow gives most of a prompt's votes, mixed by their parts of those: one adapter, which may stand in a
    /// batch beside others. None if there is no skill.
    ///
    /// # Errors
    /// If a skill cannot be loaded.
    pub fn mixed(&self, prompt: &[u32], most: usize) -> Result<Option<ActiveAdapter>, AgentError> {
        let index = self.index()?;
        let votes = self.votes(&index, &[prompt.to_vec()])?.remove(0);
        let mut best: Vec<(f64, Digest)> = votes.into_iter().zip(index.skills().map(|(_, id)| id)).collect();
        best.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        best.truncate(most);
        let total: f64 = best.iter().map(|(part, _)| part).sum();
        if total <= 0.0 {
            return Ok(None);
        }
        let adapter =
            |(part, id): &(f64, Digest)| Ok((self.adapter(&*self.library.generation(*id)?)?, (part / total) as f32));
        let parts = best.iter().map(adapter).collect::<Result<Vec<_>, AgentError>>()?;
        let parts: Vec<(&ActiveAdapter, f32)> = parts.iter().map(|(adapter, part)| (&**adapter, *part)).collect();
        Ok(Some(mix(&parts, self.base.spec())))
    }

    fn prototypes(&self, id: Digest) -> Result<Arc<Prototypes>, AgentError> {
        if let Some(found) = lock(&self.routing.prototypes).get(&id) {
            return Ok(found.clone());
        }
        let generation = self.library.generation(id)?;
        let prototypes = Arc::new(Prototypes::of(&*self.adapter(&generation)?));
        lock(&self.routing.prototypes).insert(id, prototypes.clone());
        Ok(prototypes)
    }
}

/// Each skill's part of the votes of each prompt's own tokens.
pub(in crate::agent) fn votes(
    base: &Base,
    skills: &[&Prototypes],
    prompts: &[Vec<u32>],
) -> Result<Vec<Vec<f64>>, AgentError> {
    let preamble = base.preamble()?;
    let mut votes = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        // As for features: the tokens that every prompt begins with say nothing of this one.
        let own = preamble.iter().zip(&prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
        let mut of_prompt = Votes::new(skills);
        base.model.observe(&Batch::new([Row::new(prompt)]), &mut |layer, attention, inputs| {
            for projection in ARROW_SITES {
                let reads_attention = matches!(projection, Projection::Q | Projection::K | Projection::V);
                if reads_attention == attention {
                    of_prompt.add(Site { layer, projection }, &inputs[own..]);
                }
            }
        })?;
        votes.push(of_prompt.parts());
    }
    Ok(votes)
}
