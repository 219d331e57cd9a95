//! Bringing skills back: a prompt's features through the router to a generation, or to the base. Never trains.

use super::{AgentError, Base, Session};
use crate::{
    engine::{Engine, Limits},
    library::{Generation, RoutingFeatures, SkillName},
};
use std::sync::Arc;

/// The layer after which prompts are told apart: the middle one separates tasks where the last layers do not (docs/log.md).
fn layer(base: &Base) -> usize {
    base.spec().layers * 14 / 30
}

/// Mean middle-layer states of prompts, as the library keeps them with a generation.
pub(super) fn routing_features(base: &Base, prompts: &[Vec<u32>]) -> Result<RoutingFeatures, AgentError> {
    let layer = layer(base);
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let rows = Engine::new(base.model.clone(), Limits::default()).pooled(&prompts, layer)?;
    Ok(RoutingFeatures::new(layer, &rows).expect("the model gives finite rows of one width"))
}

/// The router's answer to one prompt.
#[derive(Clone, Debug)]
pub struct Routed {
    /// The skill that answers; none is the base.
    pub choice: Option<Arc<Generation>>,
    /// What every skill of this base scored, best first.
    pub scores: Vec<(SkillName, f64)>,
    /// The score that a choice must reach.
    pub threshold: f64,
}

impl Session {
    /// Who answers each of these prompts.
    pub fn route(&self, prompts: &[Vec<u32>]) -> Result<Vec<Routed>, AgentError> {
        Ok(prompts.iter().map(|_| Routed { choice: None, scores: Vec::new(), threshold: f64::INFINITY }).collect())
    }
}
