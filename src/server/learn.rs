//! `/v1/learn`: learners started, watched, listed and cancelled.

use super::{
    app::{App, Shared},
    body::Body,
    error::{ApiError, ErrorBody},
    learners::{Job, JobState, NotStarted, Task},
    sse,
};
use crate::{
    agent::{Budget, Method, Recipe, examples},
    envs::{self, Environment, Examples},
    library::SkillRef,
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use utoipa::ToSchema;

/// What is to be learned: an environment, examples, or what people said of answers.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LearnRequest {
    /// A built-in environment (`socius envs`).
    env: Option<String>,
    /// Examples, each `{"prompt", "completion"}` or `{"messages": […]}` that ends with the right reply.
    examples: Option<Vec<Map<String, Value>>>,
    /// Learn from the answers that feedback said to be right, or gave.
    #[serde(default)]
    feedback: bool,
    /// What the skill is called; an environment's own name without.
    name: Option<String>,
    /// A skill to start from, instead of the base.
    parent: Option<String>,
    /// `sft`, `raft`, `rloo` or `grpo`; without, the base is measured first.
    learner: Option<String>,
    /// Optimiser steps.
    #[schema(minimum = 1)]
    steps: Option<usize>,
    /// Seconds from base score to gate, instead of steps.
    seconds: Option<f64>,
    /// Difficulty of the items, from 1.
    level: Option<u32>,
    /// Rank of the adapter, 1 to 256.
    #[schema(minimum = 1, maximum = 256)]
    rank: Option<usize>,
    /// Peak learning rate; the learner's own without.
    lr: Option<f64>,
    seed: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobList {
    jobs: Vec<JobState>,
}

/// Start a learner.
#[utoipa::path(post, path = "/v1/learn", tag = "socius", request_body = LearnRequest, responses(
    (status = 202, body = JobState), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody),
))]
pub(super) async fn start(
    State(app): State<Shared>,
    Body(request): Body<LearnRequest>,
) -> Result<(StatusCode, Json<JobState>), ApiError> {
    let job = app.blocking(move |app| begin(app, request)).await?;
    Ok((StatusCode::ACCEPTED, Json(job.state())))
}

/// All learners since the server started.
#[utoipa::path(get, path = "/v1/learn", tag = "socius", responses(
    (status = 200, body = JobList), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn list(State(app): State<Shared>) -> Json<JobList> {
    Json(JobList { jobs: app.learners.list().iter().map(|job| job.state()).collect() })
}

/// One of them.
#[utoipa::path(get, path = "/v1/learn/{id}", tag = "socius", params(("id" = String, Path)), responses(
    (status = 200, body = JobState), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn show(State(app): State<Shared>, Path(id): Path<String>) -> Result<Json<JobState>, ApiError> {
    find(&app, &id).map(|job| Json(job.state()))
}

/// End it at its next step; the same request goes on from there.
#[utoipa::path(delete, path = "/v1/learn/{id}", tag = "socius", params(("id" = String, Path)), responses(
    (status = 200, body = JobState), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn cancel(State(app): State<Shared>, Path(id): Path<String>) -> Result<Json<JobState>, ApiError> {
    let job = find(&app, &id)?;
    job.cancel();
    app.learners.wake();
    Ok(Json(job.state()))
}

/// Its states as they change, as events, until it is over.
#[utoipa::path(get, path = "/v1/learn/{id}/events", tag = "socius", params(("id" = String, Path)), responses(
    (status = 200, body = String, content_type = "text/event-stream"), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn watch(State(app): State<Shared>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let mut states = find(&app, &id)?.watch();
    let (events, response) = sse::stream();
    tokio::spawn(async move {
        loop {
            let state = states.borrow_and_update().clone();
            events.send(&state).await?;
            if state.status.is_over() {
                return events.done().await;
            }
            tokio::select! {
                () = events.closed() => return Ok(()),
                // The sender lives in the job, which is only forgotten once it is over.
                _ = states.changed() => {}
            }
        }
    });
    Ok(response)
}

fn find(app: &App, id: &str) -> Result<Arc<Job>, ApiError> {
    app.learners.find(id).ok_or_else(|| ApiError::not_found("there is no learner of this id: GET /v1/learn lists them"))
}

fn begin(app: &App, request: LearnRequest) -> Result<Arc<Job>, ApiError> {
    let method = request.learner.as_deref().map(str::parse::<Method>).transpose();
    let mut method = method.map_err(|error| ApiError::field("learner", error.to_string()))?;
    let name = match (&request.name, &request.env) {
        (Some(name), _) => name.clone(),
        (None, Some(env)) => env.replace('@', "-"),
        (None, None) => return Err(ApiError::field("name", "the skill needs a name")),
    };
    let sources = [request.env.is_some(), request.examples.is_some(), request.feedback];
    if sources.iter().filter(|given| **given).count() != 1 {
        return Err(ApiError::bad("one of env, examples and feedback is to be learned from"));
    }
    let env: Box<dyn Environment> = match (&request.env, &request.examples) {
        (Some(env), _) => envs::find(env).map_err(|error| ApiError::field("env", error.to_string()))?,
        (None, given) => {
            method = method.or(Some(Method::Sft));
            let text = match given {
                Some(given) => {
                    given.iter().map(|one| Value::Object(one.clone()).to_string()).collect::<Vec<_>>().join("\n")
                }
                None => examples(&app.session.experiences()?),
            };
            let param = if given.is_some() { "examples" } else { "feedback" };
            Box::new(Examples::parse(&name, &text).map_err(|error| ApiError::field(param, error.to_string()))?)
        }
    };
    let level = request.level.unwrap_or(1);
    env.info().level(level).map_err(|error| ApiError::field("level", error.to_string()))?;
    let rank = request.rank.unwrap_or(16);
    if !(1..=256).contains(&rank) {
        return Err(ApiError::field("rank", "rank must be between 1 and 256"));
    }
    let budget = match (request.steps, request.seconds) {
        (Some(_), Some(_)) => return Err(ApiError::field("seconds", "steps or seconds, not both")),
        (Some(0), _) => return Err(ApiError::field("steps", "steps must be at least 1")),
        (Some(steps), None) => Some(Budget::Steps(steps)),
        (None, Some(seconds)) if seconds > 0.0 && seconds.is_finite() => Some(Budget::Seconds(seconds)),
        (None, Some(_)) => return Err(ApiError::field("seconds", "seconds must be above 0")),
        (None, None) => None,
    };
    if request.lr.is_some_and(|lr| !(lr > 0.0 && lr <= 1.0)) {
        return Err(ApiError::field("lr", "lr must be above 0 and at most 1"));
    }
    let parent = request.parent.as_deref().map(|parent| {
        let parent: SkillRef =
            parent.parse().map_err(|error: crate::library::NameError| ApiError::field("parent", error.to_string()))?;
        Ok::<_, ApiError>(app.session.library.show(&parent)?)
    });
    let recipe = Recipe {
        method,
        level,
        rank,
        alpha: 2.0 * rank as f64,
        seed: request.seed.unwrap_or(0),
        budget,
        lr: request.lr,
        ..Recipe::default()
    };
    let name = name.parse().map_err(|error: crate::library::NameError| ApiError::field("name", error.to_string()))?;
    let task = Task { id: app.id("learn"), env, recipe, name, parent: parent.transpose()? };
    app.learners.start(task).map_err(|why| match why {
        NotStarted::Taken => ApiError::conflict("a learner of this name is under way").of("name"),
        NotStarted::Full => ApiError::queue_full(),
        NotStarted::Ending => ApiError::ending(),
        NotStarted::Io(error) => ApiError::internal(error),
    })
}
