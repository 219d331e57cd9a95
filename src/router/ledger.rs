//! What the router's index is solved from: exact sums over all prompts, and of each skill its own sums, a few of its prompts and its
//! words. Knows skills by what they were known by; never a file or a model.

use super::{
    RouterError, Settings, Terms, check,
    index::Index,
    solve,
    statistics::{self, Statistics, unit},
};
use crate::{
    common::Digest,
    library::{BaseId, RoutingFeatures, SkillName},
};
use std::collections::BTreeMap;

/// Prompts of a skill by which its scale is measured; of more, this many, evenly spread, are kept.
pub(super) const SAMPLE: usize = 16;

/// A skill as it comes.
#[derive(Clone, Copy, Debug)]
pub struct Newcomer<'a> {
    /// The generation that is routed to.
    pub generation: Digest,
    /// What its prompts look like to the base.
    pub features: &'a RoutingFeatures,
    /// What is known of it in words.
    pub words: &'a Terms,
    /// The accuracy that was measured when it was published, as a fraction: what outcomes are held against.
    pub promise: f64,
}

/// A skill as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Known {
    pub(super) generation: Digest,
    pub(super) promise: f64,
    pub(super) terms: Terms,
    /// Number of prompts.
    pub(super) rows: usize,
    /// Sum of their unit rows, exact.
    pub(super) sum: Vec<f64>,
    /// Unit rows of some, `[≤ SAMPLE, hidden]`.
    pub(super) sample: Vec<f32>,
}

/// A skill that cannot be routed to, and why. It can still be asked for by name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Skipped {
    /// The generation that it stands for.
    pub generation: Digest,
    /// Why.
    pub why: String,
}

/// The sums over one base's skills. Skills come and go by adding to them and subtracting from them, without rounding: what is
/// solved from them is the same to the bit as if only the skills that are there had ever come.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(super) base: BaseId,
    pub(super) background: RoutingFeatures,
    pub(super) background_statistics: Statistics,
    /// Of all skills.
    pub(super) statistics: Statistics,
    pub(super) skills: BTreeMap<SkillName, Known>,
    pub(super) skipped: BTreeMap<SkillName, Skipped>,
}

impl Ledger {
    /// Without skills. `background` are the features of prompts that belong to none ([`super::BACKGROUND`]).
    ///
    /// # Errors
    /// If `background` has no row or a value that is not finite.
    pub fn new(base: BaseId, background: RoutingFeatures) -> Result<Self, RouterError> {
        check(&background, background.layer, background.hidden)?;
        let statistics = Statistics::new(background.hidden);
        let mut background_statistics = statistics.clone();
        background_statistics.update(&background, 1.0);
        let (skills, skipped) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { base, background, background_statistics, statistics, skills, skipped })
    }

    /// Adds a skill under a name that has none.
    ///
    /// # Errors
    /// If its features are of another width or layer than the background, or not finite.
    ///
    /// # Panics
    /// If the name has one: [`Ledger::remove`] needs what it came with.
    pub fn add(&mut self, name: SkillName, newcomer: Newcomer<'_>) -> Result<(), RouterError> {
        let Newcomer { generation, features, words, promise } = newcomer;
        check(features, self.background.layer, self.background.hidden)?;
        assert!(!self.skills.contains_key(&name), "{name} is there already");
        self.skipped.remove(&name);
        self.statistics.update(features, 1.0);
        let rows = features.rows().len();
        let kept = rows.min(SAMPLE);
        let sample = (0..kept).flat_map(|i| unit(features.rows().nth(i * rows / kept).unwrap_or_default())).collect();
        let sum = statistics::sum(features);
        self.skills.insert(name, Known { generation, promise, terms: words.clone(), rows, sum, sample });
        Ok(())
    }

    /// Takes a skill away, of which `features` are what it came with. Nothing happens, and the answer is no, if the name has none or
    /// it came with others.
    #[must_use]
    pub fn remove(&mut self, name: &SkillName, features: &RoutingFeatures) -> bool {
        let same = |known: &Known| {
            known.rows == features.rows().len()
                && known.sum.len() == features.hidden
                && known.sum == statistics::sum(features)
        };
        if !self.skills.get(name).is_some_and(same) {
            return false;
        }
        self.skills.remove(name);
        self.statistics.update(features, -1.0);
        true
    }

    /// Remembers that a skill cannot be routed to.
    pub fn skip(&mut self, name: SkillName, skipped: Skipped) {
        self.skipped.insert(name, skipped);
    }

    /// Forgets a skill that could not be routed to.
    pub fn unskip(&mut self, name: &SkillName) {
        self.skipped.remove(name);
    }

    /// The generation that `name` was last seen with, routable or not.
    pub fn generation(&self, name: &SkillName) -> Option<Digest> {
        let skipped = || self.skipped.get(name).map(|skipped| skipped.generation);
        self.skills.get(name).map(|known| known.generation).or_else(skipped)
    }

    /// Names and generations that can be routed to, by name.
    pub fn skills(&self) -> impl Iterator<Item = (&SkillName, Digest)> {
        self.skills.iter().map(|(name, known)| (name, known.generation))
    }

    /// Those that cannot, by name.
    pub fn skipped(&self) -> impl Iterator<Item = (&SkillName, &Skipped)> {
        self.skipped.iter()
    }

    /// The base that all of them belong to.
    pub fn base(&self) -> &BaseId {
        &self.base
    }

    /// Solves for the skills against the background. What it takes grows with the number of skills and the cube of the width, not
    /// with the number of prompts.
    pub fn solve(&self, settings: Settings) -> Index {
        solve::solve(self, settings)
    }
}
