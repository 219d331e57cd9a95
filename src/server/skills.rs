//! Skills as they stand, the router's choice, feedback, and embeddings.

use super::{
    app::Shared,
    body::Body,
    chat::{ChatMessage, conversation},
    error::{ApiError, ErrorBody},
};
use crate::{
    agent::{Experience, Prompt},
    common::Message,
    engine::{Engine, Limits},
    library::SkillSummary,
    router,
};
use axum::{Json, extract::State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

const INPUTS_MAX: usize = 256;

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SkillList {
    /// One object a skill, as `socius skills list --json` prints them.
    #[schema(value_type = Vec<Object>)]
    skills: Vec<SkillSummary>,
}

/// The current generation of every skill.
#[utoipa::path(get, path = "/v1/skills", tag = "socius", responses(
    (status = 200, body = SkillList), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn list(State(app): State<Shared>) -> Result<Json<SkillList>, ApiError> {
    let skills = app.blocking(|app| Ok(app.session.library.list()?.skills)).await?;
    Ok(Json(SkillList { skills }))
}

/// A prompt to be routed: one of both.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteRequest {
    prompt: Option<String>,
    messages: Option<Vec<ChatMessage>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RouteAnswer {
    /// The skill that would answer; none is the base.
    choice: Option<String>,
    /// Its generation.
    generation: Option<String>,
}

/// Who would answer.
#[utoipa::path(post, path = "/v1/route", tag = "socius", request_body = RouteRequest, responses(
    (status = 200, body = RouteAnswer), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn route(
    State(app): State<Shared>,
    Body(request): Body<RouteRequest>,
) -> Result<Json<RouteAnswer>, ApiError> {
    let messages = match (request.prompt, request.messages) {
        (Some(prompt), None) => vec![Message::user(prompt)],
        (None, Some(messages)) => conversation(messages)?,
        _ => return Err(ApiError::bad("either prompt or messages is to be routed")),
    };
    app.computing(move |app| {
        let ids = app.session.prompt_ids(&Prompt::Chat(messages))?;
        // A prompt that does not fit is not worth a pass.
        app.fits(&ids)?;
        let chosen = app.session.choose(&crate::agent::SkillChoice::Auto, &ids)?;
        Ok(Json(RouteAnswer {
            choice: chosen.as_ref().map(|generation| generation.manifest.name.to_string()),
            generation: chosen.as_ref().map(|generation| generation.id.to_string()),
        }))
    })
    .await
}

/// What an answer was worth, what would have been right, or both.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FeedbackRequest {
    /// The answer's id.
    id: String,
    /// From 0 to 1.
    reward: Option<f32>,
    /// The right answer.
    answer: Option<String>,
}

/// Say what an answer was worth: `POST /v1/learn` with `feedback` learns from it.
#[utoipa::path(post, path = "/v1/feedback", tag = "socius", request_body = FeedbackRequest, responses(
    (status = 200, body = Value), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn feedback(
    State(app): State<Shared>,
    Body(request): Body<FeedbackRequest>,
) -> Result<Json<Value>, ApiError> {
    let FeedbackRequest { id, reward, answer } = request;
    if reward.is_none() && answer.is_none() {
        return Err(ApiError::bad("reward, answer or both must be given"));
    }
    if reward.is_some_and(|reward| !(0.0..=1.0).contains(&reward)) {
        return Err(ApiError::field("reward", "reward must be between 0 and 1"));
    }
    app.blocking(move |app| {
        let missing = || ApiError::not_found("no chat completion of this id is remembered").of("id");
        let found = app.recent.find(&id).ok_or_else(missing)?;
        let (messages, reply, turn) = (found.messages, found.reply, found.turn);
        app.session.remember(&Experience { at: Timestamp::now(), messages, reply, reward, answer, turn })?;
        Ok(Json(json!({ "stored": true })))
    })
    .await
}

/// Texts to be embedded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EmbeddingRequest {
    input: EmbeddingInput,
    /// The base: skills share its states.
    model: Option<String>,
    /// `float` or `base64` (little-endian f32).
    encoding_format: Option<EmbeddingFormat>,
    /// Who asks; nothing depends on it.
    #[allow(dead_code, reason = "clients send it for abuse reports, which a local server has no use for")]
    user: Option<String>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum EmbeddingInput {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Token ids.
    Ids(Vec<u32>),
    /// Lists of token ids.
    Lists(Vec<Vec<u32>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum EmbeddingFormat {
    /// Numbers.
    Float,
    /// Little-endian f32 in base64.
    Base64,
}

/// The mean of the base's states over each text after the layer that the router reads, of length 1.
#[utoipa::path(post, path = "/v1/embeddings", tag = "openai", request_body = EmbeddingRequest, responses(
    (status = 200, body = Value), (status = "4XX", body = ErrorBody),
))]
pub(super) async fn embed(
    State(app): State<Shared>,
    Body(request): Body<EmbeddingRequest>,
) -> Result<Json<Value>, ApiError> {
    app.computing(move |app| {
        let model = app.base_names()[0].to_owned();
        if request.model.as_deref().is_some_and(|asked| asked != "auto" && !app.base_names().contains(&asked)) {
            return Err(ApiError::not_found(format!("embeddings are the base's: ask for {model}")).of("model"));
        }
        let text = |text: String| app.session.prompt_ids(&Prompt::Raw(text));
        let inputs: Vec<Vec<u32>> = match request.input {
            EmbeddingInput::Text(one) => vec![text(one)?],
            EmbeddingInput::Texts(all) => all.into_iter().map(text).collect::<Result<_, _>>()?,
            EmbeddingInput::Ids(ids) => vec![ids],
            EmbeddingInput::Lists(lists) => lists,
        };
        let context = app.session.base.spec().context_max;
        if !(1..=INPUTS_MAX).contains(&inputs.len()) || inputs.iter().any(|ids| ids.is_empty() || ids.len() > context) {
            let message = format!("input must be 1 to {INPUTS_MAX} texts of 1 to {context} tokens");
            return Err(ApiError::field("input", message));
        }
        let tokens: usize = inputs.iter().map(Vec::len).sum();
        let most = app.config.limits.cache_tokens_max;
        if tokens > most {
            return Err(ApiError::too_large(format!(
                "input has {tokens} tokens, and at most {most} are read at a time"
            )));
        }
        let base = &app.session.base;
        let engine = Engine::new(base.model.clone(), Limits::default());
        let prompts: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
        let states = engine.pooled(&[], &prompts, router::layer(base.spec()))?;
        let as_base64 = request.encoding_format == Some(EmbeddingFormat::Base64);
        let one = |(index, state): (usize, Vec<f32>)| {
            let length = state.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
            let unit: Vec<f32> = state.iter().map(|x| (f64::from(*x) / length) as f32).collect();
            let embedding = if as_base64 { json!(base64(&unit)) } else { json!(unit) };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        };
        Ok(Json(json!({
            "object": "list",
            "data": states.into_iter().enumerate().map(one).collect::<Vec<_>>(),
            "model": model,
            "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
        })))
    })
    .await
}

/// RFC 4648, with padding.
fn base64(values: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let group = |group: &[u8]| {
        let bits = group.iter().chain([&0, &0]).take(3).fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        let digit = |i: usize| if i <= group.len() { ALPHABET[(bits >> (18 - 6 * i) & 63) as usize] } else { b'=' };
        (0..4).map(digit).map(char::from).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_rfc_4648_has_it() {
        for (values, text) in
            [(&[][..], ""), (&[1.0], "AACAPw=="), (&[1.0, -2.5], "AACAPwAAIMA="), (&[0.0; 3], "AAAAAAAAAAAAAAAA")]
        {
            assert_eq!(base64(values), text);
        }
    }
}
