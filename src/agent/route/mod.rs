//! Bringing skills back: a prompt's features through the router to a generation, or to the base. Never trains.

pub(super) mod arrow;
mod bench;
pub(super) mod current;
pub(super) mod features;
mod history;

pub use bench::{RouteBench, RouteTimings};
pub(super) use features::ROUTING_PROMPTS;
pub use features::routing_features;
pub use history::Decision as LoggedDecision;

use super::{AgentError, Session};
use crate::{
    common::{Digest, Seed},
    library::Generation,
    router::{Evidence, Index, Outcomes, Prototypes, Route, RouteBy},
};
use history::History;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The router's answer to one prompt.
#[derive(Clone, Debug)]
pub struct Routed {
    /// What the router decided, and on what grounds.
    pub route: Route,
    /// The skill that answers; none is the base.
    pub choice: Option<Arc<Generation>>,
}

/// How prompts are routed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Routing {
    /// What scores go by.
    pub by: RouteBy,
    /// Tries skills of which little is known now and then, by draws from this seed. Off in serving.
    pub explore: Option<Seed>,
}

/// What a session keeps of its router between prompts.
#[derive(Default)]
pub(super) struct Kept {
    current: Mutex<Option<current::Current>>,
    prototypes: Mutex<HashMap<Digest, Arc<Prototypes>>>,
    history: Mutex<Option<Arc<History>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left is either whole or absent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Who answers each of these prompts, by the library as it stands now.
    pub fn route(&self, prompts: &[Vec<u32>]) -> Result<Vec<Routed>, AgentError> {
        self.route_as(prompts, Routing::default())
    }

    /// The same by other means. Every decision is logged in the home; a home that cannot be written to is no reason not to route.
    pub fn route_as(&self, prompts: &[Vec<u32>], routing: Routing) -> Result<Vec<Routed>, AgentError> {
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let index = self.index()?;
        let history = self.history();
        let outcomes = history.as_ref().map(|history| history.outcomes()).unwrap_or_default();
        let scores = self.scores(&index, prompts, routing.by)?;
        let mut routed = Vec::with_capacity(prompts.len());
        for (i, (prompt, scores)) in (0..).zip(prompts.iter().zip(scores)) {
            let words = features::words(&self.base, prompt)?;
            let explore = routing.explore.map(|seed| seed.index(i));
            let evidence = Evidence { words: Some(&words), outcomes: &outcomes, explore };
            routed.push(self.routed(index.choose(routing.by, &scores, &evidence))?);
        }
        if let Some(history) = history {
            let decisions = prompts.iter().zip(&routed).map(|(prompt, routed)| (&prompt[..], &routed.route));
            history.log(&decisions.collect::<Vec<_>>());
        }
        Ok(routed)
    }

    /// Tells the router what an answer under `generation` earned, from 0 to 1: a grade, or what its user thought of it.
    ///
    /// # Errors
    /// If the reward is not in 0 … 1, or the home cannot be written to.
    pub fn reward(&self, generation: Digest, reward: f64) -> Result<(), AgentError> {
        History::open(&self.home)?.reward(generation, reward)
    }

    /// What became of answers, by generation.
    pub fn outcomes(&self) -> Outcomes {
        self.history().map(|history| history.outcomes().as_ref().clone()).unwrap_or_default()
    }

    /// One score a skill of the index, for each prompt.
    fn scores(&self, index: &Index, prompts: &[Vec<u32>], by: RouteBy) -> Result<Vec<Vec<f64>>, AgentError> {
        match by {
            RouteBy::Ridge => {
                let features = features::pooled(&self.base, prompts)?;
                Ok(features.iter().map(|row| index.by_features(row)).collect::<Result<_, _>>()?)
            }
            RouteBy::Bm25 => {
                let scores = |prompt: &Vec<u32>| Ok(index.by_text(&features::words(&self.base, prompt)?));
                prompts.iter().map(scores).collect()
            }
            RouteBy::Arrow => self.votes(index, prompts),
        }
    }

    fn routed(&self, route: Route) -> Result<Routed, AgentError> {
        let choice = route.generation.map(|id| self.library.generation(id)).transpose()?;
        Ok(Routed { route, choice })
    }

    fn history(&self) -> Option<Arc<History>> {
        let mut kept = lock(&self.routing.history);
        if kept.is_none() {
            *kept = History::open(&self.home).ok().map(Arc::new);
        }
        kept.clone()
    }
}
