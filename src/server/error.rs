//! Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}` under the right status. Knows no request.

use crate::{agent::AgentError, engine::EngineError, library::LibraryError, text::TextError};
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// Why a request was not answered.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) detail: ErrorDetail,
    retry_after: Option<Duration>,
}

/// The body of every error.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    error: ErrorDetail,
}

/// What was wrong, and what would be right.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ErrorDetail {
    message: String,
    /// The kind, by which clients choose the exception.
    r#type: &'static str,
    /// The field that is wrong.
    param: Option<String>,
    /// The kind, more exactly.
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let detail = ErrorDetail { message: message.into(), r#type: kind, param: None, code: None };
        Self { status, detail, retry_after: None }
    }

    /// The request is wrong.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// The field `param` is wrong.
    pub(super) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad(message).of(param)
    }

    /// The field `param` asks for what this server does not do.
    pub(super) fn unsupported(param: &str, right: &str) -> Self {
        Self::field(param, format!("{param} is not supported: {right}")).coded("unsupported_parameter")
    }

    /// No valid key came with the request.
    pub(super) fn unauthorised() -> Self {
        let message = "this server asks for a key: send it as `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message).coded("invalid_api_key")
    }

    /// There is no such thing.
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    /// The path exists, but not for this method.
    pub(super) fn wrong_method(message: String) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    /// What is asked for conflicts with what there is.
    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict_error", message)
    }

    /// The request is more than the server ever holds.
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message).coded("request_too_large")
    }

    /// The body did not come to its end in time.
    pub(super) fn slow_body(patience: Duration) -> Self {
        let message = format!("the body did not come to its end within {} s", patience.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    }

    /// Too many requests wait already.
    pub(super) fn queue_full() -> Self {
        let message = "too many requests are waiting: try again in a moment";
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message).coded("queue_full");
        error.after(Duration::from_secs(1))
    }

    /// The server takes nothing new.
    pub(super) fn ending() -> Self {
        Self::unavailable("the server is about to end")
    }

    /// The server cannot answer now.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).after(Duration::from_secs(5))
    }

    /// A fault of ours; `why` goes to the log, not to the client.
    pub(super) fn internal(why: impl std::fmt::Display) -> Self {
        tracing::error!(%why, "internal error");
        let message = "internal error: the server's log has the cause under this request's id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message).coded("internal_error")
    }

    pub(super) fn of(mut self, param: impl Into<String>) -> Self {
        self.detail.param = Some(param.into());
        self
    }

    pub(super) fn coded(mut self, code: &'static str) -> Self {
        self.detail.code = Some(code);
        self
    }

    fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// As it stands in a body.
    pub(super) fn body(&self) -> ErrorBody {
        ErrorBody { error: self.detail.clone() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs()));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match &error {
            EngineError::Request { .. } => Self::bad(error.to_string()),
            EngineError::Context { .. } => Self::bad(error.to_string()).coded("context_length_exceeded"),
            EngineError::Capacity { .. } => Self::too_large(error.to_string()),
            EngineError::Model(_) => Self::internal(error),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::NoTemplate | TextError::Render(_) | TextError::Encode(_) | TextError::Grammar(_) => {
                Self::bad(error.to_string())
            }
            TextError::Io { .. } | TextError::Tokenizer { .. } | TextError::Metadata(_) | TextError::BadTemplate(_) => {
                Self::internal(error)
            }
        }
    }
}

impl From<LibraryError> for ApiError {
    fn from(error: LibraryError) -> Self {
        match &error {
            LibraryError::NotFound { .. } => Self::not_found(error.to_string()),
            LibraryError::Ambiguous { .. }
            | LibraryError::Name(_)
            | LibraryError::Lora(_)
            | LibraryError::ForeignBase { .. }
            | LibraryError::Candidate { .. } => Self::bad(error.to_string()),
            LibraryError::Busy { .. } => Self::unavailable(error.to_string()),
            _ => Self::internal(error),
        }
    }
}

impl From<AgentError> for ApiError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Engine(error) => error.into(),
            AgentError::Text(error) => error.into(),
            AgentError::Library(error) => error.into(),
            AgentError::Lora(error) => LibraryError::from(error).into(),
            AgentError::Env(error) => Self::bad(error.to_string()),
            AgentError::NoAnswers { .. } | AgentError::OtherRun { .. } => Self::bad(error.to_string()),
            _ => Self::internal(error),
        }
    }
}
