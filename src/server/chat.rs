//! `POST /v1/chat/completions`.

use super::{
    answer::{DrawnLogprob, Hearing, Piece, Usage, finish_reason},
    app::{App, Ask, Begun, PromptInput, Shared, Who},
    body::Body,
    error::{ApiError, ErrorBody},
    give::{Answer, give},
    recent::Answered,
    request::{Own, StreamOptions, request},
    sse::{Events, Gone},
    tools::{self, Reader, Tool, ToolCall, ToolChoice, Tools},
};
use crate::{agent::Prompt, common::Message, engine::FinishReason, episode::Turn, text::Grammar};
use axum::{extract::State, response::Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

request! {
    /// A conversation to be continued.
    ChatRequest {
        /// The conversation so far.
        #[schema(min_items = 1)]
        messages: Vec<ChatMessage>,
        /// Tokens of the answer at most.
        max_completion_tokens: Option<usize>,
        /// The same, by its older name.
        max_tokens: Option<usize>,
        /// Whether logprobs are told.
        logprobs: Option<bool>,
        /// How many of the most probable tokens are told in each place, up to 20.
        top_logprobs: Option<usize>,
        /// What the answer must be.
        response_format: Option<ResponseFormat>,
        /// Functions that may be called.
        tools: Option<Vec<Tool>>,
        /// Whether they must be.
        tool_choice: Option<ToolChoice>,
        /// Whether several may be called at once.
        parallel_tool_calls: Option<bool>,
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChatMessage {
    role: ChatRole,
    content: Option<Content>,
    /// Calls that the assistant made.
    tool_calls: Option<Vec<ToolCall>>,
    /// The call that a tool answers.
    #[allow(dead_code, reason = "templates of this kind tell calls and their answers apart by their order")]
    tool_call_id: Option<String>,
    /// Who speaks; templates here have no place for it, so only a tool's is taken.
    name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ChatRole {
    /// Standing instructions.
    System,
    /// The same, by its newer name.
    Developer,
    /// A person.
    User,
    /// The model.
    Assistant,
    /// A function's result.
    Tool,
}

/// Text, whole or in parts.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Content {
    /// Whole.
    Text(String),
    /// In parts.
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    #[allow(dead_code, reason = "there is only one kind")]
    r#type: PartType,
    text: String,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PartType {
    /// Text: this model reads nothing else.
    Text,
}

/// What an answer must be.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ResponseFormat {
    /// Anything.
    Text {},
    /// A JSON object.
    JsonObject {
        /// What it must fit, as llama-server has it.
        schema: Option<serde_json::Map<String, Value>>,
    },
    /// JSON that fits a schema.
    JsonSchema {
        /// The schema.
        json_schema: NamedSchema,
    },
    /// All of it matches a regular expression.
    Regex {
        /// The expression.
        regex: String,
    },
    /// A sentence of a Lark grammar.
    Grammar {
        /// The grammar.
        grammar: String,
    },
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NamedSchema {
    #[allow(dead_code, reason = "nothing here is called by it")]
    name: Option<String>,
    #[allow(dead_code, reason = "nothing here is called by it")]
    description: Option<String>,
    /// Draft 2020-12, as far as llguidance goes.
    schema: Option<serde_json::Map<String, Value>>,
    #[allow(dead_code, reason = "answers fit the schema whether this is set or not")]
    strict: Option<bool>,
}

impl ResponseFormat {
    fn grammar(self) -> Option<Grammar> {
        match self {
            Self::Text {} => None,
            Self::JsonObject { schema } | Self::JsonSchema { json_schema: NamedSchema { schema, .. } } => {
                Some(schema.map_or(Grammar::JsonObject, |schema| Grammar::Schema(Value::Object(schema))))
            }
            Self::Regex { regex } => Some(Grammar::Regex(regex)),
            Self::Grammar { grammar } => Some(Grammar::Lark(grammar)),
        }
    }
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatCompletion {
    id: String,
    /// `chat.completion`.
    object: &'static str,
    created: i64,
    model: String,
    /// The skill that answered; none is the base.
    skill: Option<String>,
    /// Its generation.
    generation: Option<String>,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatChoice {
    index: usize,
    message: Said,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Said {
    role: &'static str,
    content: Option<String>,
    /// Always null: nothing here refuses.
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatLogprobs {
    content: Vec<DrawnLogprob>,
    /// Always null: nothing here refuses.
    refusal: Option<String>,
}

/// One event of a streamed answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatChunk {
    id: String,
    /// `chat.completion.chunk`.
    object: &'static str,
    created: i64,
    model: String,
    skill: Option<String>,
    generation: Option<String>,
    choices: Vec<ChunkChoice>,
    /// Null but in the last chunk; only there if the usage is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// Continue a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest, responses(
    (status = 200, description = "The answer; with `stream`, events of `ChatChunk`", body = ChatCompletion),
    (status = "4XX", description = "The request is wrong, or cannot be taken now", body = ErrorBody),
    (status = "5XX", description = "The server cannot answer", body = ErrorBody),
))]
pub(super) async fn complete(
    State(app): State<Shared>,
    Body(request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    let order = Order::check(request, app.config.tokens_default)?;
    let Order { ask, tools, messages, logprobs } = order;
    let answer = Spoken { id: app.id("chatcmpl"), created: Timestamp::now().as_second(), tools, messages, logprobs };
    give(answer, app, ask).await
}

/// A checked request.
pub(super) struct Order {
    ask: Ask,
    pub(super) tools: Option<Tools>,
    messages: Vec<Message>,
    logprobs: bool,
}

impl Order {
    pub(super) fn check(request: ChatRequest, tokens_default: usize) -> Result<Self, ApiError> {
        let common = request.common();
        let ChatRequest { messages, tools, tool_choice, parallel_tool_calls, response_format, .. } = request;
        let logprobs = request.logprobs.unwrap_or(false);
        let top_logprobs = request.top_logprobs.unwrap_or(0);
        if top_logprobs > 0 && !logprobs {
            return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs: true"));
        }
        if top_logprobs > 20 {
            return Err(ApiError::field("top_logprobs", "top_logprobs must be at most 20"));
        }
        let max_tokens = request.max_completion_tokens.or(request.max_tokens).unwrap_or(tokens_default);
        if max_tokens == 0 {
            return Err(ApiError::field("max_completion_tokens", "max_completion_tokens must be at least 1"));
        }
        let plan = common.plan(Own { max_tokens, top_logprobs })?;
        let mut messages = conversation(messages)?;
        let tools = Tools::new(tools.unwrap_or_default(), tool_choice, parallel_tool_calls.unwrap_or(true))?;
        let mut grammar = response_format.and_then(ResponseFormat::grammar);
        if let Some(tools) = &tools {
            if tools.forced() && grammar.is_some() {
                return Err(ApiError::unsupported("response_format", "a call that is required has a form of its own"));
            }
            grammar = grammar.or(tools.grammar());
            tools.tell(&mut messages);
        }
        let prompt = PromptInput::Text(Prompt::Chat(messages.clone()));
        Ok(Self { ask: Ask { prompt, plan, grammar }, tools, messages, logprobs })
    }
}

/// Messages as templates read them.
pub(super) fn conversation(messages: Vec<ChatMessage>) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages must hold at least one message"));
    }
    messages.into_iter().enumerate().map(|(i, message)| message.read(i)).collect()
}

impl ChatMessage {
    fn read(self, index: usize) -> Result<Message, ApiError> {
        let field = |name: &str| format!("messages[{index}].{name}");
        let text = match self.content {
            Some(Content::Text(text)) => Some(text),
            Some(Content::Parts(parts)) => Some(parts.into_iter().map(|part| part.text).collect::<String>()),
            None => None,
        };
        if self.name.is_some() && self.role != ChatRole::Tool {
            return Err(ApiError::unsupported(&field("name"), "the chat template has no place for it"));
        }
        let calls = self.tool_calls.unwrap_or_default();
        if !calls.is_empty() && self.role != ChatRole::Assistant {
            return Err(ApiError::field(field("tool_calls"), "only the assistant calls tools"));
        }
        if text.is_none() && calls.is_empty() {
            return Err(ApiError::field(field("content"), format!("{} is missing", field("content"))));
        }
        let text = text.unwrap_or_default();
        Ok(match self.role {
            ChatRole::System | ChatRole::Developer => Message::system(text),
            ChatRole::User => Message::user(text),
            ChatRole::Tool => Message::user(tools::response(&text)),
            ChatRole::Assistant => {
                let parts = [text, tools::written(&calls)];
                Message::assistant(parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("\n"))
            }
        })
    }
}

/// An answer that is being given.
struct Spoken {
    id: String,
    created: i64,
    tools: Option<Tools>,
    messages: Vec<Message>,
    logprobs: bool,
}

/// One choice as far as it has come.
struct Draft {
    text: String,
    reader: Option<Reader>,
    calls: Vec<ToolCall>,
    logprobs: Vec<DrawnLogprob>,
    end: &'static str,
}

impl Spoken {
    fn drafts(&self, n: u64) -> Vec<Draft> {
        let draft = |_| Draft {
            text: String::new(),
            reader: self.tools.as_ref().map(Reader::new),
            calls: Vec::new(),
            logprobs: Vec::new(),
            end: "",
        };
        (0..n).map(draft).collect()
    }

    /// Adds `piece` to its draft; what is to be shown of it now: text, and calls at the end.
    fn take(&self, app: &App, draft: &mut Draft, piece: &Piece) -> Result<(String, Vec<ToolCall>), ApiError> {
        let mut text = match &mut draft.reader {
            Some(reader) => reader.push(&piece.text),
            None => piece.text.clone(),
        };
        if let Some(reason) = piece.end {
            draft.end = finish_reason(reason)?;
            if let (Some(reader), Some(tools)) = (draft.reader.take(), &self.tools) {
                let (rest, calls) = reader.finish(tools, || app.id("call"));
                text += &rest;
                if !calls.is_empty() && reason == FinishReason::Stop {
                    draft.end = "tool_calls";
                }
                draft.calls = calls;
            }
        }
        draft.text += &text;
        Ok((text, if piece.end.is_some() { draft.calls.clone() } else { Vec::new() }))
    }

    /// For feedback: what the first choice said.
    fn remember(&self, app: &App, prompt: Vec<u32>, who: &Who, hearing: &Hearing<'_>, reply: &str) {
        let (action, logprobs) = hearing.first();
        let turn = Turn { prompt, action, logprobs, generation: who.generation() };
        let messages = self.messages.clone();
        app.recent.remember(Answered { id: self.id.clone(), messages, reply: reply.to_owned(), turn });
    }

    fn told(&self, logprobs: Vec<DrawnLogprob>) -> Option<ChatLogprobs> {
        self.logprobs.then_some(ChatLogprobs { content: logprobs, refusal: None })
    }
}

impl Answer for Spoken {
    type Whole = ChatCompletion;

    async fn whole(self, app: Shared, begun: Begun) -> Result<ChatCompletion, ApiError> {
        let Begun { running, asked, prompt, who } = begun;
        let mut drafts = self.drafts(asked.n);
        let mut hearing = Hearing::new(&app.session.base.text, &app.metrics, running, asked);
        while let Some(piece) = hearing.next().await {
            let piece = piece?;
            self.take(&app, &mut drafts[piece.choice], &piece)?;
            drafts[piece.choice].logprobs.extend(piece.logprobs);
        }
        self.remember(&app, prompt, &who, &hearing, &drafts[0].text);
        let choice = |(index, draft): (usize, Draft)| ChatChoice {
            index,
            message: Said {
                role: "assistant",
                content: (!draft.text.is_empty() || draft.calls.is_empty()).then_some(draft.text),
                refusal: None,
                tool_calls: draft.calls.into_iter().map(|call| ToolCall { index: None, ..call }).collect(),
            },
            logprobs: self.told(draft.logprobs),
            finish_reason: draft.end,
        };
        Ok(ChatCompletion {
            choices: drafts.into_iter().enumerate().map(choice).collect(),
            object: "chat.completion",
            created: self.created,
            skill: who.skill(),
            generation: who.generation(),
            model: who.model,
            usage: hearing.usage(),
            id: self.id,
        })
    }

    async fn streamed(self, app: Shared, begun: Begun, options: StreamOptions, events: Events) -> Result<(), Gone> {
        let Begun { running, asked, prompt, who } = begun;
        let mut drafts = self.drafts(asked.n);
        let mut hearing = Hearing::new(&app.session.base.text, &app.metrics, running, asked);
        let chunk = |choices, usage| ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: who.model.clone(),
            skill: who.skill(),
            generation: who.generation(),
            choices,
            usage: options.include_usage.then_some(usage),
        };
        for index in 0..drafts.len() {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), tool_calls: Vec::new() };
            events.send(&chunk(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None)).await?;
        }
        while let Some(piece) = hearing.next().await {
            let taken = piece.and_then(|piece| Ok((self.take(&app, &mut drafts[piece.choice], &piece)?, piece)));
            let ((text, tool_calls), piece) = match taken {
                Ok(taken) => taken,
                Err(error) => return events.error(&error).await,
            };
            let index = piece.choice;
            let one = |delta, logprobs, finish_reason| ChunkChoice { index, delta, logprobs, finish_reason };
            let told = self.told(piece.logprobs).filter(|told| !told.content.is_empty());
            if !text.is_empty() || !tool_calls.is_empty() || told.is_some() {
                let delta = Delta { role: None, content: (!text.is_empty()).then_some(text), tool_calls };
                events.send(&chunk(vec![one(delta, told, None)], None)).await?;
            }
            if piece.end.is_some() {
                events.send(&chunk(vec![one(Delta::default(), None, Some(drafts[index].end))], None)).await?;
            }
        }
        self.remember(&app, prompt, &who, &hearing, &drafts[0].text);
        if options.include_usage {
            events.send(&chunk(Vec::new(), Some(hearing.usage()))).await?;
        }
        events.done().await
    }
}
