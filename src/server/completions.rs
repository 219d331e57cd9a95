//! `POST /v1/completions`: text continued as it is.

use super::{
    answer::{DrawnLogprob, Hearing, Usage, finish_reason},
    app::{Ask, Begun, PromptInput, Shared},
    body::Body,
    error::{ApiError, ErrorBody},
    give::{Answer, give},
    request::{Own, StreamOptions, request},
    sse::{Events, Gone},
};
use crate::agent::Prompt;
use axum::{extract::State, response::Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

request! {
    /// Text to be continued.
    CompletionRequest {
        /// The text, or its tokens.
        prompt: TextOrIds,
        /// Tokens of the answer at most; 16 without.
        max_tokens: Option<usize>,
        /// Tells logprobs, with this many of the most probable tokens in each place (up to 20).
        logprobs: Option<usize>,
    }
}

/// A text, or its tokens.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum TextOrIds {
    /// Text; special tokens in it count.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
    /// A list of one text.
    Texts([String; 1]),
    /// A list of one list of token ids.
    Lists([Vec<u32>; 1]),
}

impl TextOrIds {
    fn input(self) -> PromptInput {
        match self {
            Self::Text(text) | Self::Texts([text]) => PromptInput::Text(Prompt::Raw(text)),
            Self::Ids(ids) | Self::Lists([ids]) => PromptInput::Ids(ids),
        }
    }
}

/// A continuation, or a part of one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Completion {
    id: String,
    /// `text_completion`.
    object: &'static str,
    created: i64,
    model: String,
    /// The skill that answered; none is the base.
    skill: Option<String>,
    /// Its generation.
    generation: Option<String>,
    choices: Vec<TextChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct TextChoice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
    /// Where each token begins in the answer, in characters.
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    fn push(&mut self, DrawnLogprob { drawn, top_logprobs }: DrawnLogprob, offset: &mut usize) {
        self.text_offset.push(*offset);
        *offset += drawn.token.chars().count();
        self.tokens.push(drawn.token);
        self.token_logprobs.push(drawn.logprob);
        self.top_logprobs.push(top_logprobs.into_iter().map(|top| (top.token, json!(top.logprob))).collect());
    }
}

/// Continue a text.
#[utoipa::path(post, path = "/v1/completions", tag = "openai", request_body = CompletionRequest, responses(
    (status = 200, description = "The continuation; with `stream`, events of the same form", body = Completion),
    (status = "4XX", description = "The request is wrong, or cannot be taken now", body = ErrorBody),
    (status = "5XX", description = "The server cannot answer", body = ErrorBody),
))]
pub(super) async fn complete(
    State(app): State<Shared>,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    let top_logprobs = request.logprobs.unwrap_or(0);
    if top_logprobs > 20 {
        return Err(ApiError::field("logprobs", "logprobs must be at most 20"));
    }
    let max_tokens = request.max_tokens.unwrap_or(16);
    if max_tokens == 0 {
        return Err(ApiError::field("max_tokens", "max_tokens must be at least 1"));
    }
    let plan = request.common().plan(Own { max_tokens, top_logprobs })?;
    let text = Text { id: app.id("cmpl"), created: Timestamp::now().as_second(), logprobs: request.logprobs.is_some() };
    give(text, app, Ask { prompt: request.prompt.input(), plan, grammar: None }).await
}

/// A continuation that is being given.
struct Text {
    id: String,
    created: i64,
    logprobs: bool,
}

impl Answer for Text {
    type Whole = Completion;

    async fn whole(self, app: Shared, begun: Begun) -> Result<Completion, ApiError> {
        let Begun { running, asked, who, .. } = begun;
        let told = || self.logprobs.then(TextLogprobs::default);
        let choice = |index| TextChoice { index, logprobs: told(), ..TextChoice::default() };
        let mut choices: Vec<TextChoice> = (0..asked.n as usize).map(choice).collect();
        let mut offsets = vec![0; choices.len()];
        let mut hearing = Hearing::new(&app.session.base.text, &app.metrics, running, asked);
        while let Some(piece) = hearing.next().await {
            let piece = piece?;
            let choice = &mut choices[piece.choice];
            choice.text += &piece.text;
            if let Some(told) = &mut choice.logprobs {
                piece.logprobs.into_iter().for_each(|drawn| told.push(drawn, &mut offsets[piece.choice]));
            }
            choice.finish_reason = piece.end.map(finish_reason).transpose()?;
        }
        Ok(Completion {
            choices,
            object: "text_completion",
            created: self.created,
            skill: who.skill(),
            generation: who.generation(),
            model: who.model,
            usage: Some(Some(hearing.usage())),
            id: self.id,
        })
    }

    async fn streamed(self, app: Shared, begun: Begun, options: StreamOptions, events: Events) -> Result<(), Gone> {
        let Begun { running, asked, who, .. } = begun;
        let mut offsets = vec![0; asked.n as usize];
        let mut hearing = Hearing::new(&app.session.base.text, &app.metrics, running, asked);
        let chunk = |choices, usage| Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: who.model.clone(),
            skill: who.skill(),
            generation: who.generation(),
            choices,
            usage: options.include_usage.then_some(usage),
        };
        while let Some(piece) = hearing.next().await {
            let read = piece.and_then(|piece| Ok((piece.end.map(finish_reason).transpose()?, piece)));
            let (finish_reason, piece) = match read {
                Ok(read) => read,
                Err(error) => return events.error(&error).await,
            };
            let mut logprobs = self.logprobs.then(TextLogprobs::default);
            if let Some(told) = &mut logprobs {
                piece.logprobs.into_iter().for_each(|drawn| told.push(drawn, &mut offsets[piece.choice]));
            }
            let choice = TextChoice { index: piece.choice, text: piece.text, logprobs, finish_reason };
            if !choice.text.is_empty() || choice.finish_reason.is_some() || choice.logprobs.is_some() {
                events.send(&chunk(vec![choice], None)).await?;
            }
        }
        if options.include_usage {
            events.send(&chunk(Vec::new(), Some(hearing.usage()))).await?;
        }
        events.done().await
    }
}
