//! Which skill a prompt calls for, if any: what is known of skills × a prompt → choice. Pure; never sees files or a model.
//!
//! ```text
//! skills ──► Ledger (exact sums) ──► Index (one weight row a skill, their words) ──► scores ──► Route
//! ```
//!
//! Features are the mean hidden state of a middle layer of the base ([`layer`]) over the prompt, without what every prompt begins
//! with. A ridge classifier with a class of background prompts scores every skill, and so does how much nearer the prompt is to the
//! skill than to any background prompt; both on a scale on which a prompt of its own scores about 1. A score is their mean; what
//! reaches the threshold for none is left to the base. Among skills that score about alike the words decide, and a
//! skill that has disappointed counts for less. Skills come and go by adding to and subtracting from the ledger's sums.

mod arrow;
mod background;
mod cholesky;
mod file;
mod index;
mod ledger;
mod mix;
mod nearness;
mod solve;
mod statistics;
#[cfg(test)]
mod testing;
mod text;
mod usefulness;

pub use arrow::{Prototypes, SITES as ARROW_SITES, Votes};
pub use background::BACKGROUND;
pub use file::FORMAT;
pub use index::Index;
pub use ledger::{Ledger, Newcomer, Skipped};
pub use mix::mix;
pub use text::Terms;
pub use usefulness::{Outcomes, Record};

use crate::{
    common::{Digest, Seed},
    library::{RoutingFeatures, SkillName},
};
use serde::{Deserialize, Serialize};
use socius_models::Spec;
use std::{fmt, str::FromStr};

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
    /// The score that the best skill must reach, where 1 is the mean score of its own prompts, each left out in turn.
    pub accept: f64,
    /// Skills that score less than this below the best are taken instead where their words make up for it.
    pub margin: f64,
    /// No skill may take more than this part of the background prompts (each left out in turn). A skill that would, because its
    /// prompts are few or like everyone's, has its scores scaled down until it does not.
    pub strangers: f64,
    /// How far the prompts' covariance around their skills' means, in which nearness is measured, is shrunk: in units of its mean variance.
    pub shrinkage: f64,
    /// All skills together may take no more than this part: the threshold rises above `accept` until they do not. The background is
    /// made to be hard: of eighteen skills among 500 others 11 % of it pass at 0.43, where 9 % of fresh strangers did.
    pub strangers_of_all: f64,
}

impl Default for Settings {
    /// Chosen on SmolLM2-135M-Instruct over the built-in environments (docs/log.md).
    fn default() -> Self {
        Self { lambda: 0.2, accept: 0.3, margin: 0.1, strangers: 0.03, shrinkage: 1.0, strangers_of_all: 0.11 }
    }
}

/// What a choice goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteBy {
    /// What the base makes of the prompt: the router proper.
    #[default]
    Ridge,
    /// The prompt's words against those that are known of each skill.
    Bm25,
    /// The skills' weights alone (Ostapenko et al. 2024, arXiv 2405.11157). It never leaves a prompt to the base.
    Arrow,
}

impl RouteBy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ridge, Self::Bm25, Self::Arrow];
}

impl fmt::Display for RouteBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ridge => "ridge",
            Self::Bm25 => "bm25",
            Self::Arrow => "arrow",
        })
    }
}

/// Not a way to route.
#[derive(Debug, thiserror::Error)]
#[error("nothing routes by {0:?}: ridge, bm25 or arrow is expected")]
pub struct UnknownRouteBy(String);

impl FromStr for RouteBy {
    type Err = UnknownRouteBy;

    fn from_str(name: &str) -> Result<Self, UnknownRouteBy> {
        Self::ALL.into_iter().find(|by| by.to_string() == name).ok_or_else(|| UnknownRouteBy(name.to_owned()))
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
    /// Of another width than the skills'.
    #[error("a prompt's features have width {found}; {expected} is expected")]
    Width {
        /// Width given.
        found: usize,
        /// Width of the base.
        expected: usize,
    },
    /// Not a number.
    #[error("routing features hold {0}; every value must be finite")]
    NotFinite(f32),
}

/// What speaks for a choice beside the scores.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The prompt in words.
    pub words: Option<&'a str>,
    /// What became of earlier answers.
    pub outcomes: &'a Outcomes,
    /// Draws each skill's usefulness from what is known of it, instead of taking the mean, so that what is little known gets tried.
    pub explore: Option<Seed>,
}

/// A score, and what it was made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scored {
    /// The skill.
    pub skill: SkillName,
    /// What counts: how well the prompt fits, times the usefulness.
    pub score: f64,
    /// How well the prompt fits. By ridge: about 1 for the skill's own prompts, about 0 for others'.
    pub prompt: f64,
    /// What the words say: 0 … 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<f64>,
    /// What earlier answers say: 1 for a skill that keeps what it promised when it was published, less for one that does not.
    pub usefulness: f64,
}

/// What the router decided, and on what grounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Route {
    /// The skill; none for the base.
    pub choice: Option<SkillName>,
    /// The generation that the choice stood for in the catalogue.
    pub generation: Option<Digest>,
    /// The best skills, best first; equal ones by name.
    pub scores: Vec<Scored>,
    /// How many there are to choose from.
    pub skills: usize,
    /// What scores go by.
    pub by: RouteBy,
    /// What the best must reach.
    pub threshold: f64,
    /// Skills that score less than this below the best are taken instead where their words make up for it.
    pub margin: f64,
    /// How far the best lies above the next best or the threshold, whichever is higher; below 0 if it does not reach it.
    pub lead: Option<f64>,
    /// Whether the words chose another than the best score.
    pub contested: bool,
}

fn check(features: &RoutingFeatures, layer: usize, hidden: usize) -> Result<(), RouterError> {
    if (features.layer, features.hidden) != (layer, hidden) || features.values.is_empty() {
        let (found, found_layer) = (features.hidden, features.layer);
        return Err(RouterError::Shape { found, found_layer, expected: hidden, expected_layer: layer });
    }
    match features.values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(RouterError::NotFinite(*value)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
