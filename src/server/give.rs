//! Giving an answer as it was asked for: as one body, or as events while it comes. Knows no wire format.

use super::{
    app::{Ask, Begun, Shared},
    error::ApiError,
    request::StreamOptions,
    sse::{self, Events, Gone},
};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::future::Future;

/// An answer in its two forms.
pub(super) trait Answer: Send + 'static {
    /// What stands in one body.
    type Whole: Serialize;

    /// Everything at its end.
    fn whole(self, app: Shared, begun: Begun) -> impl Future<Output = Result<Self::Whole, ApiError>> + Send;

    /// Piece by piece.
    fn streamed(
        self,
        app: Shared,
        begun: Begun,
        options: StreamOptions,
        events: Events,
    ) -> impl Future<Output = Result<(), Gone>> + Send;
}

/// Puts `ask` in line and responds with `answer`. Whoever hangs up ends the request at once, whether it waits or runs: without events
/// because the server then drops this future, with events because the channel closes.
pub(super) async fn give(answer: impl Answer, app: Shared, ask: Ask) -> Result<Response, ApiError> {
    let stream = ask.plan.stream;
    let begun = app.begin(ask).await?;
    let Some(options) = stream else { return Ok(Json(answer.whole(app, begun).await?).into_response()) };
    let (events, response) = sse::stream();
    tokio::spawn(async move {
        let gone = events.clone();
        tokio::select! {
            () = gone.closed() => {}
            // A reader that went away is no error.
            _ = answer.streamed(app, begun, options, events) => {}
        }
    });
    Ok(response)
}
