//! Bringing skills back: a prompt's features through the router to a generation, or to the base. Never trains.

use super::{AgentError, Base, Session};
use crate::{
    common::{Digest, Home, Message, write_atomic},
    engine::{Engine, Limits},
    episode::Episode,
    library::{CatalogueEntry, Generation, RoutingFeatures},
    router::{BACKGROUND, Route, Router, Settings, layer},
};
use std::{collections::BTreeSet, fs, sync::Arc};

/// Prompts that the router knows a skill by: with 16, prompts in new wordings are told from strangers' less well (docs/log.md).
pub(super) const ROUTING_PROMPTS: usize = 64;

/// The router's answer to one prompt.
#[derive(Clone, Debug)]
pub struct Routed {
    /// What the router decided, and on what grounds.
    pub route: Route,
    /// The skill that answers; none is the base.
    pub choice: Option<Arc<Generation>>,
}

/// Mean middle-layer states of prompts, each the conversation before a reply, as the library keeps them with a generation.
///
/// # Errors
/// If the model cannot take a prompt.
///
/// # Panics
/// Without a prompt.
pub fn routing_features(base: &Base, conversations: &[Vec<Message>]) -> Result<RoutingFeatures, AgentError> {
    let prompts = conversations.iter().map(|messages| base.prompt_ids(messages)).collect::<Result<Vec<_>, _>>()?;
    features(base, &prompts)
}

/// The same of prompts in tokens.
pub(super) fn features(base: &Base, prompts: &[Vec<u32>]) -> Result<RoutingFeatures, AgentError> {
    let rows = pooled(base, prompts)?;
    Ok(RoutingFeatures::new(layer(base.spec()), &rows).expect("the model gives finite rows of one width"))
}

fn pooled(base: &Base, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, AgentError> {
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let engine = Engine::new(base.model.clone(), Limits::default());
    Ok(engine.pooled(&base.preamble()?, &prompts, layer(base.spec()))?)
}

/// Features of what belongs to no skill: a pass over some four hundred prompts.
fn background(base: &Base, home: &Home) -> Result<RoutingFeatures, AgentError> {
    let prompts = BACKGROUND.lines().map(|prompt| base.prompt_ids(&[Message::user(prompt)]));
    let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
    // Ids are u32; one that none has ends each prompt.
    let tokens = prompts.iter().flat_map(|prompt| prompt.iter().chain([&u32::MAX])).flat_map(|id| id.to_le_bytes());
    let tokens = tokens.collect::<Vec<_>>();
    kept(base, home, "background", &tokens, || features(base, &prompts))
}

/// Features that `compute` gives, of which the home keeps the outcome under `kind`, what they are of, and the base.
fn kept(
    base: &Base,
    home: &Home,
    kind: &str,
    of: &[u8],
    compute: impl FnOnce() -> Result<RoutingFeatures, AgentError>,
) -> Result<RoutingFeatures, AgentError> {
    let layer = layer(base.spec());
    // Code that pools differently must change the version.
    let settings = format!("pooled 1, after layer {layer}, {:?}", base.dtype);
    let key = Digest::of_parts([base.id.digest.bytes(), base.id.tokenizer.bytes(), settings.as_bytes(), of]);
    let path = home.derived().join(format!("{kind}-{}.safetensors", key.short()));
    if let Some(features) = fs::read(&path).ok().and_then(|bytes| RoutingFeatures::from_bytes(&bytes, layer).ok()) {
        return Ok(features);
    }
    let features = compute()?;
    // A home that cannot be written to is no reason not to route.
    let _ = fs::create_dir_all(home.derived()).and_then(|()| write_atomic(&path, &features.to_bytes()));
    Ok(features)
}

/// Up to [`ROUTING_PROMPTS`] different first prompts, evenly spread over `episodes`.
fn prompts_of(episodes: &[Episode]) -> Vec<Vec<u32>> {
    let prompts = episodes.iter().filter_map(|episode| episode.turns.first()).map(|turn| &turn.prompt);
    let different: Vec<_> = prompts.collect::<BTreeSet<_>>().into_iter().collect();
    let count = different.len().min(ROUTING_PROMPTS);
    (0..count).map(|i| different[i * different.len() / count].clone()).collect()
}

impl Session {
    /// Who answers each of these prompts, by the library as it stands now.
    pub fn route(&self, prompts: &[Vec<u32>]) -> Result<Vec<Routed>, AgentError> {
        let router = self.router()?;
        pooled(&self.base, prompts)?.iter().map(|features| self.routed(&router, features)).collect()
    }

    /// The router over the library as it stands now. What belongs to no skill is computed once a session.
    fn router(&self) -> Result<Router, AgentError> {
        let mut kept = self.router.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut router = match kept.take() {
            Some(router) => router,
            None => Router::new(self.base.id.clone(), background(&self.base, &self.home)?, Settings::default())?,
        };
        let mut catalogue = self.library.catalogue()?;
        catalogue.entries.iter_mut().try_for_each(|entry| self.refresh(entry))?;
        router.sync(&catalogue);
        *kept = Some(router.clone());
        Ok(router)
    }

    /// A skill whose features were taken after another layer than this version routes by gets new ones from what it was trained on.
    fn refresh(&self, entry: &mut CatalogueEntry) -> Result<(), AgentError> {
        let current = |features: &Arc<RoutingFeatures>| features.layer == layer(self.base.spec());
        if !entry.base.same(&self.base.id) || entry.features.as_ref().is_none_or(current) {
            return Ok(());
        }
        let prompts = prompts_of(&self.library.episodes(&*self.library.generation(entry.generation)?)?);
        if !prompts.is_empty() {
            let compute = || features(&self.base, &prompts);
            let features = kept(&self.base, &self.home, "skill", entry.generation.bytes(), compute)?;
            entry.features = Some(Arc::new(features));
        }
        Ok(())
    }

    fn routed(&self, router: &Router, features: &[f32]) -> Result<Routed, AgentError> {
        let route = router.route(features)?;
        let choice = route.generation.map(|id| self.library.generation(id)).transpose()?;
        Ok(Routed { route, choice })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::episode::Turn;

    fn episode(prompt: u32) -> Episode {
        let turn = Turn { prompt: vec![prompt], action: vec![], logprobs: vec![], generation: None };
        Episode {
            env: "e".into(),
            item: "i".into(),
            wording: 0,
            turns: vec![turn.clone(), Turn { prompt: vec![prompt, 1], ..turn }],
            reward: 1.0,
            strict: true,
            lenient: true,
            feedback: None,
        }
    }

    #[test]
    fn a_skill_is_known_by_different_first_prompts_spread_over_what_it_was_trained_on() {
        for (different, expected) in [(0, 0), (3, 3), (64, 64), (65, 64), (200, 64)] {
            let episodes: Vec<Episode> = (0..2 * different).map(|i| episode(i % different.max(1))).collect();
            let prompts = prompts_of(&episodes);
            assert_eq!(prompts.len(), expected);
            assert!(prompts.iter().all(|prompt| prompt.len() == 1));
        }
    }
}
