//! Bringing skills back: a prompt's features through the router to a generation, or to the base. Never trains.

use super::{AgentError, Base, Session};
use crate::{
    common::Message,
    engine::{Engine, Limits},
    library::{Generation, RoutingFeatures},
    router::{BACKGROUND, Route, Router, Settings, layer},
};
use std::sync::Arc;

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
    let rows = pooled(base, &prompts)?;
    Ok(RoutingFeatures::new(layer(base.spec()), &rows).expect("the model gives finite rows of one width"))
}

fn pooled(base: &Base, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, AgentError> {
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    Ok(Engine::new(base.model.clone(), Limits::default()).pooled(&prompts, layer(base.spec()))?)
}

/// A router that knows no skill yet, only what belongs to none.
fn untaught(base: &Base) -> Result<Router, AgentError> {
    let background = routing_features(base, &BACKGROUND.map(|prompt| vec![Message::user(prompt)]))?;
    Ok(Router::new(base.id.clone(), background, Settings::default())?)
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
            None => untaught(&self.base)?,
        };
        router.sync(&self.library.catalogue()?);
        *kept = Some(router.clone());
        Ok(router)
    }

    fn routed(&self, router: &Router, features: &[f32]) -> Result<Routed, AgentError> {
        let route = router.route(features)?;
        let choice = route.generation.map(|id| self.library.generation(id)).transpose()?;
        Ok(Routed { route, choice })
    }
}
