//! An answer as it comes: tokens from the engine into pieces of text for each choice, cut at stop strings. Knows no wire format.

use super::{
    error::ApiError,
    metrics::Metrics,
    worker::{Failure, Heard, Running},
};
use crate::{
    engine::{EventKind, FinishReason},
    text::{Held, Stream, Text},
};
use serde::Serialize;
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;

/// A token with its logprob.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct TokenLogprob {
    /// Its text; bytes that are no character of their own are `U+FFFD`.
    pub(super) token: String,
    /// In nats, under the model's own distribution.
    pub(super) logprob: f32,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

/// A drawn token with the most probable ones in its place.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct DrawnLogprob {
    #[serde(flatten)]
    pub(super) drawn: TokenLogprob,
    /// The most probable tokens.
    pub(super) top_logprobs: Vec<TokenLogprob>,
}

/// What a choice said next.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) choice: usize,
    pub(super) text: String,
    pub(super) logprobs: Vec<DrawnLogprob>,
    /// Why nothing follows.
    pub(super) end: Option<FinishReason>,
}

/// Tokens of a request and of its answer.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) total_tokens: usize,
}

/// One choice under way.
struct Choice<'a> {
    stream: Option<Stream<'a>>,
    held: Held,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    ended: bool,
}

/// What is to be heard.
pub(super) struct Hearing<'a> {
    text: &'a Text,
    metrics: &'a Metrics,
    running: Running,
    choices: Vec<Choice<'a>>,
    prompt_tokens: usize,
    asked: Instant,
    until: Instant,
    silent: bool,
}

/// What a request needs to be heard.
pub(super) struct Asked {
    pub(super) n: u64,
    pub(super) stop: Vec<String>,
    pub(super) prompt_tokens: usize,
    pub(super) asked: Instant,
    pub(super) until: Instant,
}

impl<'a> Hearing<'a> {
    pub(super) fn new(text: &'a Text, metrics: &'a Metrics, running: Running, asked: Asked) -> Self {
        let Asked { n, stop, prompt_tokens, asked, until } = asked;
        metrics.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
        let choice = |_| Choice {
            stream: Some(text.tokenizer.stream()),
            held: Held::new(stop.clone()),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            ended: false,
        };
        Self {
            text,
            metrics,
            running,
            choices: (0..n).map(choice).collect(),
            prompt_tokens,
            asked,
            until,
            silent: true,
        }
    }

    /// The next piece; none when every choice has ended.
    pub(super) async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        loop {
            if self.choices.iter().all(|choice| choice.ended) {
                return None;
            }
            let Ok(heard) = timeout_at(self.until, self.running.next()).await else {
                return Some(Err(ApiError::unavailable("the answer took longer than this server gives a request")));
            };
            match heard {
                Heard::Failed(failure) => return Some(Err(failed(failure))),
                Heard::Event(sample, kind) => {
                    if let Some(piece) = self.take(sample as usize, kind) {
                        return Some(Ok(piece));
                    }
                }
            }
        }
    }

    fn take(&mut self, index: usize, kind: EventKind) -> Option<Piece> {
        let piece = |text, logprobs, end| Piece { choice: index, text, logprobs, end };
        let choice = &mut self.choices[index];
        if choice.ended {
            return None; // Drawn before the engine heard that a stop string had come.
        }
        match kind {
            EventKind::Finished(reason) => {
                choice.ended = true;
                let rest = choice.stream.take().map(Stream::finish).unwrap_or_default();
                let text = choice.held.push(&rest) + &choice.held.finish();
                Some(piece(text, Vec::new(), Some(reason)))
            }
            EventKind::Token { token, logprob, top } => {
                if std::mem::take(&mut self.silent) {
                    self.metrics.first_token(self.asked.elapsed());
                }
                self.metrics.generated_tokens.fetch_add(1, Relaxed);
                choice.tokens.push(token);
                choice.logprobs.push(logprob);
                if self.text.stop_ids.contains(&token) {
                    return None;
                }
                let new = choice.stream.as_mut().map(|stream| stream.push(token)).unwrap_or_default();
                let text = choice.held.push(&new);
                let told = |(token, logprob): (u32, f32)| {
                    let bytes = self.text.tokenizer.bytes(token).to_vec();
                    TokenLogprob { token: String::from_utf8_lossy(&bytes).into_owned(), logprob, bytes }
                };
                let drawn =
                    DrawnLogprob { drawn: told((token, logprob)), top_logprobs: top.into_iter().map(told).collect() };
                let stopped = choice.held.stopped();
                if stopped {
                    choice.ended = true;
                    self.running.cancel_sample(index as u64);
                }
                Some(piece(text, vec![drawn], stopped.then_some(FinishReason::Stop)))
            }
        }
    }

    /// Tokens so far.
    pub(super) fn usage(&self) -> Usage {
        let completion_tokens = self.choices.iter().map(|choice| choice.tokens.len()).sum();
        let prompt_tokens = self.prompt_tokens;
        Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }

    /// What the first choice drew: ids and logprobs.
    pub(super) fn first(&self) -> (Vec<u32>, Vec<f32>) {
        self.choices.first().map(|choice| (choice.tokens.clone(), choice.logprobs.clone())).unwrap_or_default()
    }
}

fn failed(failure: Failure) -> ApiError {
    match failure {
        Failure::Refused(error) => error.into(),
        Failure::Engine => ApiError::internal("the engine failed in a step"),
        Failure::Lost => ApiError::unavailable("the answer was given up: its reader fell too far behind"),
    }
}

/// As OpenAI's clients spell it; a diverged answer is an error.
pub(super) fn finish_reason(reason: FinishReason) -> Result<&'static str, ApiError> {
    match reason {
        FinishReason::Stop => Ok("stop"),
        FinishReason::Length => Ok("length"),
        FinishReason::Diverged => {
            Err(ApiError::internal("the model gave numbers that are not finite, or no token fits the grammar"))
        }
    }
}
