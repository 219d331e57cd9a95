//! Server-sent events: values as `data:` lines, with no more of them in memory than a slow reader may leave. Knows no content.

use super::error::ApiError;
use axum::response::{
    IntoResponse, Response,
    sse::{Event, KeepAlive, Sse},
};
use serde::Serialize;
use std::{convert::Infallible, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

/// Events that wait for a reader; whoever writes them waits too.
const UNREAD_MAX: usize = 16;
/// How long a reader may take over none of them before it counts as gone, so that what it asked for holds no place for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where events are written.
#[derive(Clone)]
pub(super) struct Events(mpsc::Sender<Event>);

/// The reader has gone.
#[derive(Debug)]
pub(super) struct Gone;

impl Events {
    /// One event.
    pub(super) async fn send(&self, value: &impl Serialize) -> Result<(), Gone> {
        self.write(serde_json::to_string(value).expect("an event is plain data")).await
    }

    /// What OpenAI's streams end with.
    pub(super) async fn done(&self) -> Result<(), Gone> {
        self.write("[DONE]".into()).await
    }

    /// What ends a stream that went wrong.
    pub(super) async fn error(&self, error: &ApiError) -> Result<(), Gone> {
        self.send(&error.body()).await
    }

    async fn write(&self, data: String) -> Result<(), Gone> {
        match timeout(PATIENCE, self.0.send(Event::default().data(data))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// Done when the reader has gone.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// A response, and where its events are written.
pub(super) fn stream() -> (Events, Response) {
    let (sender, receiver) = mpsc::channel(UNREAD_MAX);
    let events = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    (Events(sender), Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}
