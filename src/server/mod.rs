//! HTTP: the protocols of OpenAI, vLLM and llama-server over the agent's session. The only place with an async runtime; never
//! computes anything itself.
//!
//! A request is parsed into a checked plan (`request`, `chat`, `completions`), prepared on a thread that may take its time (`app`:
//! tokens, router, adapter, grammar) and handed to the thread that owns the engine (`worker`), which answers by a bounded channel.
//! `answer` turns tokens into pieces of text; the handlers give them their wire form.

mod answer;
mod app;
mod body;
mod chat;
mod completions;
mod config;
mod courtesy;
mod error;
#[cfg(fuzzing)]
pub mod fuzz;
mod give;
mod learn;
mod learners;
mod llama;
mod metrics;
mod models;
mod openapi;
mod recent;
mod request;
mod skills;
mod sse;
mod tools;
mod worker;

pub use config::Config;

use crate::{agent::Session, common::Digest};
use app::{App, Shared};
use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use error::ApiError;
use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

/// Why a server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Everybody could use it.
    #[error("{0} is not a loopback address: give a key with --api-key, or bind 127.0.0.1")]
    Open(SocketAddr),
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// Threads or sockets failed.
    #[error("the server failed: {0}")]
    Io(#[from] std::io::Error),
}

/// Serves `session` until `end` is done, then lets what runs come to its end. `listening` is told the address.
pub fn serve(
    session: Session,
    config: Config,
    listening: impl FnOnce(SocketAddr),
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    if config.is_open_to_others() {
        return Err(ServeError::Open(config.bind));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(async {
        let address = config.bind;
        let socket = tokio::net::TcpListener::bind(address).await;
        let socket = socket.map_err(|source| ServeError::Bind { address, source })?;
        let drain = config.drain_max;
        let app = Arc::new(App::new(session, config)?);
        listening(socket.local_addr()?);
        let (asked, was_asked) = tokio::sync::oneshot::channel();
        let (draining, learning) = (app.clone(), app.clone());
        let shutdown = async move {
            end.await;
            draining.draining.store(true, Ordering::Relaxed);
            draining.learners.end();
            let _ = asked.send(());
        };
        let serving = axum::serve(socket, routes(app)).with_graceful_shutdown(shutdown);
        let too_long = async {
            let _ = was_asked.await;
            tokio::time::sleep(drain).await;
        };
        let serving = async {
            serving.await?;
            // Learners come to a checkpoint first.
            learning.learners.ended().await;
            Ok(())
        };
        tokio::select! {
            ended = serving => ended.map_err(ServeError::Io),
            () = too_long => Ok(()),
        }
    });
    // What still runs on blocking threads is a request that nobody waits for any more.
    runtime.shutdown_background();
    done
}

/// Sleeps until `asked` says so.
pub async fn until(asked: fn() -> bool) {
    while !asked() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn routes(app: Shared) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model}", get(models::show))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/embeddings", post(skills::embed))
        .route("/v1/load_lora_adapter", post(models::load))
        .route("/v1/unload_lora_adapter", post(models::unload))
        .route("/v1/skills", get(skills::list))
        .route("/v1/route", post(skills::route))
        .route("/v1/feedback", post(skills::feedback))
        .route("/v1/learn", post(learn::start).get(learn::list))
        .route("/v1/learn/{id}", get(learn::show))
        .route("/v1/learn/{id}", delete(learn::cancel))
        .route("/v1/learn/{id}/events", get(learn::watch))
        .route("/props", get(llama::props))
        .route("/tokenize", post(llama::tokenize))
        .route("/detokenize", post(llama::detokenize))
        .route("/apply-template", post(llama::apply_template))
        .route("/lora-adapters", get(llama::adapters).post(llama::set_adapters))
        .route("/metrics", get(llama::metrics))
        .route_layer(middleware::from_fn_with_state(app.clone(), authorised));
    Router::new()
        .route("/health", get(llama::health))
        .route("/openapi.json", get(openapi::document))
        .merge(guarded)
        .fallback(|| async {
            ApiError::not_found("there is nothing at this path: GET /openapi.json says what there is")
        })
        .method_not_allowed_fallback(|request: Request| async move {
            ApiError::wrong_method(format!("this path does not take {}", request.method()))
        })
        .layer(DefaultBodyLimit::max(app.config.body_bytes_max))
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            ApiError::internal("a handler panicked").into_response()
        }))
        .layer(middleware::from_fn_with_state(app.clone(), traced))
        .with_state(app)
}

/// Lets a request through that brings the key.
async fn authorised(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let Some(key) = app.config.api_key.as_deref().filter(|key| !key.is_empty()) else {
        return next.run(request).await;
    };
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sent = sent.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    // Digests differ in their first byte or not whatever the keys have in common: time tells nothing of the key.
    if Digest::of(sent) == Digest::of(key) { next.run(request).await } else { ApiError::unauthorised().into_response() }
}

/// Gives a request its id, logs it, and counts it.
async fn traced(State(app): State<Shared>, request: Request, next: Next) -> Response {
    const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    let sent = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let id = sent.filter(|id| (1..=128).contains(&id.len())).map_or_else(|| app.id("req"), str::to_owned);
    let span = tracing::info_span!("request", %id, method = %request.method(), path = request.uri().path());
    let start = std::time::Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let (status, ms) = (response.status().as_u16(), start.elapsed().as_millis() as u64);
    span.in_scope(|| tracing::info!(status, ms, "answered"));
    app.metrics.responded(status);
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
