//! Which skill a prompt calls for, if any: features × the library's catalogue → choice. Pure; never sees text, files or a model.
//!
//! Features are the mean hidden state of a middle layer of the base ([`layer`]) over the prompt, without what every prompt begins
//! with. A ridge classifier with a class of background prompts scores every skill, on a scale on which a prompt of its own scores
//! about 1; what reaches the threshold for none is left to the base. Skills come and go by adding to and subtracting from the
//! classifier's sufficient statistics.

mod background;
mod cholesky;
mod fit;
mod statistics;
#[cfg(test)]
mod testing;

pub use background::BACKGROUND;

use crate::{
    common::Digest,
    library::{BaseId, Catalogue, RoutingFeatures, SkillName},
};
use fit::{Data, Fit};
use serde::Serialize;
use socius_models::Spec;
use statistics::Statistics;
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

/// The layer whose output features are taken from: 12 of SmolLM2's 30, where routing was best (docs/log.md), and the same fraction
/// elsewhere.
pub fn layer(spec: &Spec) -> usize {
    spec.layers * 12 / 30
}

/// How the classifier is regularised and when it abstains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Ridge, in units of the mean eigenvalue of the centred Gram matrix.
    pub lambda: f64,
    /// The score that the best skill must reach, where 1 is the median score of its own prompts, each left out in turn.
    pub accept: f64,
    /// No skill may take more than this part of the background prompts (each left out in turn). A skill that would, because its
    /// prompts are few or like everyone's, has its scores scaled down until it does not.
    pub strangers: f64,
}

impl Default for Settings {
    /// Chosen on SmolLM2-135M-Instruct over the built-in environments with 64 prompts each (docs/log.md).
    fn default() -> Self {
        Self { lambda: 0.2, accept: 0.38, strangers: 0.02 }
    }
}

/// Features that the router cannot use.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// Of another width or layer than the background.
    #[error(
        "routing features of width {found} after layer {found_layer}; width {expected} after layer {expected_layer} is expected"
    )]
    Shape {
        /// Width given.
        found: usize,
        /// Layer given.
        found_layer: usize,
        /// Width of the base.
        expected: usize,
        /// Layer that the router works on.
        expected_layer: usize,
    },
    /// Not a number.
    #[error("routing features hold {0}; every value must be finite")]
    NotFinite(f32),
}

/// A skill that cannot be routed to, and why. It can still be asked for by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The skill.
    pub name: SkillName,
    /// Why.
    pub why: String,
}

/// A score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scored {
    /// The skill.
    pub skill: SkillName,
    /// About 1 for its own prompts, about 0 for others'.
    pub score: f64,
}

/// What the router decided, and on what grounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Route {
    /// The skill; none for the base.
    pub choice: Option<SkillName>,
    /// The generation that the choice stood for in the catalogue.
    pub generation: Option<Digest>,
    /// Every skill, best first; equal ones by name.
    pub scores: Vec<Scored>,
    /// What the best must reach.
    pub threshold: f64,
}

#[derive(Clone, Debug)]
struct Skill {
    generation: Digest,
    features: Arc<RoutingFeatures>,
}

/// The classifier over one base's skills.
#[derive(Clone, Debug)]
pub struct Router {
    base: BaseId,
    background: RoutingFeatures,
    settings: Settings,
    skills: BTreeMap<SkillName, Skill>,
    background_statistics: Statistics,
    /// Of all skills.
    statistics: Statistics,
    /// Solved when it is next needed.
    fit: OnceLock<Fit>,
}

impl Router {
    /// A router without skills. `background` are the features of prompts that belong to none ([`BACKGROUND`]).
    ///
    /// # Errors
    /// If `background` has no row or a value that is not finite.
    pub fn new(base: BaseId, background: RoutingFeatures, settings: Settings) -> Result<Self, RouterError> {
        check(&background, background.layer, background.hidden)?;
        let statistics = Statistics::new(background.hidden);
        let mut background_statistics = statistics.clone();
        background_statistics.update(&background, 1.0);
        let skills = BTreeMap::new();
        Ok(Self { base, background, settings, skills, background_statistics, statistics, fit: OnceLock::new() })
    }

    /// Follows `catalogue`: skills that are new come, others go, changed ones are replaced. Returns those that cannot be routed
    /// to: of another base, or without features that fit.
    pub fn sync(&mut self, catalogue: &Catalogue) -> Vec<Skipped> {
        let mut skipped = Vec::new();
        let mut wanted = BTreeMap::new();
        for entry in &catalogue.entries {
            let why = match &entry.features {
                _ if !entry.base.same(&self.base) => Some(format!("it belongs to {}", entry.base.name)),
                None => Some("it came without prompts".to_owned()),
                Some(features) => match check(features, self.background.layer, self.background.hidden) {
                    Err(error) => Some(error.to_string()),
                    Ok(()) => {
                        wanted.insert(entry.name.clone(), (entry.generation, features.clone()));
                        None
                    }
                },
            };
            skipped.extend(why.map(|why| Skipped { name: entry.name.clone(), why }));
        }
        let gone: Vec<SkillName> = self.skills.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        gone.iter().for_each(|name| self.remove(name));
        for (name, (generation, features)) in wanted {
            self.put(name, generation, features);
        }
        skipped
    }

    /// Adds a skill, or replaces what stood under its name.
    ///
    /// # Errors
    /// If `features` are of another width or layer than the background, or not finite.
    pub fn add(
        &mut self,
        name: SkillName,
        generation: Digest,
        features: Arc<RoutingFeatures>,
    ) -> Result<(), RouterError> {
        check(&features, self.background.layer, self.background.hidden)?;
        self.put(name, generation, features);
        Ok(())
    }

    /// Forgets a skill; nothing happens if it is not known.
    pub fn remove(&mut self, name: &SkillName) {
        if let Some(old) = self.skills.remove(name) {
            self.statistics.update(&old.features, -1.0);
            self.fit.take();
        }
    }

    /// Scores every skill for a prompt of which `features` (`[hidden]`) are the pooled state, and chooses.
    ///
    /// # Errors
    /// If `features` are of another width, or not finite.
    pub fn route(&self, features: &[f32]) -> Result<Route, RouterError> {
        let prompt =
            RoutingFeatures { layer: self.background.layer, hidden: features.len(), values: features.to_vec() };
        check(&prompt, self.background.layer, self.background.hidden)?;
        let fit = self.fit.get_or_init(|| {
            let skills: Vec<&RoutingFeatures> = self.skills.values().map(|skill| &*skill.features).collect();
            let (background, background_statistics) = (&self.background, &self.background_statistics);
            let data = Data { statistics: &self.statistics, skills: &skills, background, background_statistics };
            Fit::new(&data, self.settings)
        });
        let names = self.skills.keys().cloned();
        let mut scores: Vec<Scored> =
            names.zip(fit.scores(features)).map(|(skill, score)| Scored { skill, score }).collect();
        // The sort is stable and the map in order, so equal scores stay in the order of names.
        scores.sort_by(|a, b| b.score.total_cmp(&a.score));
        let choice = scores.first().filter(|best| best.score >= self.settings.accept).map(|best| best.skill.clone());
        let generation = choice.as_ref().map(|name| self.skills[name].generation);
        Ok(Route { choice, generation, scores, threshold: self.settings.accept })
    }

    /// Names and generations that can be routed to, by name.
    pub fn skills(&self) -> impl Iterator<Item = (&SkillName, Digest)> {
        self.skills.iter().map(|(name, skill)| (name, skill.generation))
    }

    fn put(&mut self, name: SkillName, generation: Digest, features: Arc<RoutingFeatures>) {
        match self.skills.get_mut(&name) {
            Some(known) if known.features == features => known.generation = generation,
            _ => {
                self.remove(&name);
                self.statistics.update(&features, 1.0);
                self.fit.take();
                self.skills.insert(name, Skill { generation, features });
            }
        }
    }
}

fn check(features: &RoutingFeatures, layer: usize, hidden: usize) -> Result<(), RouterError> {
    let RoutingFeatures { layer: found_layer, hidden: found, values } = features;
    if (*found_layer, *found) != (layer, hidden) || values.is_empty() {
        let (found, found_layer) = (*found, *found_layer);
        return Err(RouterError::Shape { found, found_layer, expected: hidden, expected_layer: layer });
    }
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(RouterError::NotFinite(*value)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
