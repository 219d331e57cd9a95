//! llama-server's endpoints: health, properties, tokens, templates, adapters, metrics.

use super::{
    app::{App, Shared},
    body::{Body, Whole},
    chat::{ChatMessage, conversation},
    error::{ApiError, ErrorBody},
};
use crate::{
    agent::Prompt,
    library::SkillRef,
    text::{ChatTemplate, Specials},
};
use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use utoipa::ToSchema;

/// Whether the server takes requests.
#[utoipa::path(get, path = "/health", tag = "llama-server", security(()), responses(
    (status = 200, body = Value), (status = 503, body = Value, description = "It is about to end"),
))]
pub(super) async fn health(State(app): State<Shared>) -> (StatusCode, Json<Value>) {
    match app.draining.load(Ordering::Relaxed) {
        true => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "ending" }))),
        false => (StatusCode::OK, Json(json!({ "status": "ok" }))),
    }
}

/// What is served, and how.
#[utoipa::path(get, path = "/props", tag = "llama-server", responses(
    (status = 200, body = Value), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn props(State(app): State<Shared>) -> Json<Value> {
    let base = &app.session.base;
    let token = |id: Option<u32>| id.and_then(|id| base.text.tokenizer.token(id));
    let ends = base.text.tokenizer.ends();
    Json(json!({
        "default_generation_settings": { "n_ctx": base.spec().context_max, "n_predict": app.config.tokens_default },
        "total_slots": app.config.limits.rows_max,
        "model_path": base.id.name,
        "model_alias": app.base_names()[0],
        "chat_template": base.text.template.as_ref().map(ChatTemplate::source),
        "bos_token": token(ends.bos),
        "eos_token": token(ends.eos),
        "build_info": concat!("socius ", env!("CARGO_PKG_VERSION")),
    }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenizeRequest {
    content: String,
    /// Whether the beginning of text is put in front where the model expects one.
    #[serde(default)]
    add_special: bool,
    /// Whether special tokens that the text spells are those tokens.
    #[serde(default = "yes")]
    parse_special: bool,
    /// Whether each token comes with its text.
    #[serde(default)]
    with_pieces: bool,
}

fn yes() -> bool {
    true
}

/// The tokens of a text.
#[utoipa::path(post, path = "/tokenize", tag = "llama-server", request_body = TokenizeRequest, responses(
    (status = 200, body = Value), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn tokenize(
    State(app): State<Shared>,
    Body(request): Body<TokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    app.blocking(move |app| {
        let text = &app.session.base.text;
        let specials = if request.parse_special { Specials::Parse } else { Specials::Plain };
        let mut ids = text.tokenizer.encode(&request.content, specials)?;
        let ends = text.tokenizer.ends();
        if request.add_special && ends.add_bos {
            ids.splice(0..0, ends.bos);
        }
        let piece = |id: &u32| {
            let bytes = text.tokenizer.bytes(*id);
            // A piece that is no text of its own comes as its bytes, as from llama-server.
            let piece = std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), |text| json!(text));
            json!({ "id": id, "piece": piece })
        };
        Ok(Json(json!({ "tokens": if request.with_pieces { ids.iter().map(piece).collect() } else { json!(ids) } })))
    })
    .await
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DetokenizeRequest {
    tokens: Vec<u32>,
}

/// The text of tokens.
#[utoipa::path(post, path = "/detokenize", tag = "llama-server", request_body = DetokenizeRequest, responses(
    (status = 200, body = Value), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn detokenize(State(app): State<Shared>, Body(request): Body<DetokenizeRequest>) -> Json<Value> {
    Json(json!({ "content": app.session.base.text.tokenizer.decode_with_specials(&request.tokens) }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateRequest {
    #[schema(min_items = 1)]
    pub(super) messages: Vec<ChatMessage>,
}

/// A conversation as the model reads it.
#[utoipa::path(post, path = "/apply-template", tag = "llama-server", request_body = TemplateRequest, responses(
    (status = 200, body = Value), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn apply_template(
    State(app): State<Shared>,
    Body(request): Body<TemplateRequest>,
) -> Result<Json<Value>, ApiError> {
    app.blocking(move |app| {
        let ids = app.session.prompt_ids(&Prompt::Chat(conversation(request.messages)?))?;
        Ok(Json(json!({ "prompt": app.session.base.text.tokenizer.decode_with_specials(&ids) })))
    })
    .await
}

/// A skill, as llama-server lists adapters.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AdapterCard {
    id: usize,
    /// Its name here.
    path: String,
    /// 1 if it answers where the base is asked for, else 0.
    scale: f32,
}

/// How strong an adapter is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AdapterScale {
    id: usize,
    scale: f32,
}

/// The skills over this base, by name: their place is their id.
#[utoipa::path(get, path = "/lora-adapters", tag = "llama-server", responses(
    (status = 200, body = Vec<AdapterCard>), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn adapters(State(app): State<Shared>) -> Result<Json<Vec<AdapterCard>>, ApiError> {
    app.blocking(|app| {
        let default = app.default_skill().clone();
        let card = |(id, path): (usize, String)| AdapterCard {
            scale: f32::from(u8::from(default.as_ref().is_some_and(|skill| skill.name.as_str() == path))),
            id,
            path,
        };
        Ok(Json(names(app)?.into_iter().enumerate().map(card).collect()))
    })
    .await
}

/// Say which skill answers where the base is asked for. A skill answers or it does not, and one at a time: scales are 0 or 1.
#[utoipa::path(post, path = "/lora-adapters", tag = "llama-server", request_body = Vec<AdapterScale>, responses(
    (status = 200, body = Value), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn set_adapters(State(app): State<Shared>, Whole(bytes): Whole) -> Result<Json<Value>, ApiError> {
    let scales: Vec<AdapterScale> = serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::bad(format!("a list of {{\"id\", \"scale\"}} is expected: {error}")))?;
    app.blocking(move |app| {
        let names = names(app)?;
        let mut chosen = None;
        for AdapterScale { id, scale } in scales {
            let missing = || ApiError::field("id", format!("there is no adapter {id}: GET /lora-adapters lists them"));
            let name = names.get(id).ok_or_else(missing)?;
            if scale == 1.0 && chosen.is_none() {
                chosen = Some(name);
            } else if scale != 0.0 {
                return Err(ApiError::field("scale", "one adapter may have scale 1, and all others have 0"));
            }
        }
        let skill = chosen.map(|name| name.parse::<SkillRef>()).transpose();
        let skill = skill.map_err(|error| ApiError::field("id", error.to_string()))?;
        *app.default_skill() = skill;
        Ok(Json(json!({ "success": true })))
    })
    .await
}

fn names(app: &App) -> Result<Vec<String>, ApiError> {
    let base = &app.session.base.id.name;
    let skills = app.session.library.list()?.skills.into_iter();
    Ok(skills.filter(|skill| skill.base == *base).map(|skill| skill.name.to_string()).collect())
}

/// Counters and gauges, as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "llama-server", responses(
    (status = 200, body = String, content_type = "text/plain"), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn metrics(State(app): State<Shared>) -> impl IntoResponse {
    let learning = app.learners.list().iter().filter(|job| !job.state().status.is_over()).count();
    let text = app.metrics.render(&[
        ("socius_requests", "Requests that run or wait.", app.worker.in_flight() as u64),
        ("socius_adapter_bytes", "Adapters in memory.", app.session.adapter_bytes() as u64),
        ("socius_learners", "Learners that run or wait.", learning as u64),
    ]);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}
