//! What chat and text completions ask for in common, and how it becomes a checked way to sample. Knows no prompt and no answer.

use super::error::ApiError;
use crate::{common::Seed, engine::Sampling};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};
use utoipa::ToSchema;

const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 1024;

/// What a stream carries beside its tokens.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamOptions {
    /// Whether a last chunk tells the usage.
    #[serde(default)]
    pub(super) include_usage: bool,
}

/// One text or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    /// One.
    One(String),
    /// Several.
    More(Vec<String>),
}

impl OneOrMore {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::More(texts) => texts,
        }
    }
}

/// The fields that both kinds of request have.
#[derive(Clone, Debug)]
pub(super) struct Common {
    pub(super) model: Option<String>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) n: Option<u64>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) seed: Option<i64>,
    pub(super) stop: Option<OneOrMore>,
    pub(super) logit_bias: Option<BTreeMap<String, f32>>,
    pub(super) ignore_eos: Option<bool>,
}

/// Defines a request with the common fields and its own; what is in neither is refused by name.
macro_rules! request {
    ($(#[$doc:meta])* $name:ident { $($(#[$own:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$own])* pub(super) $field: $type,)*
            /// The base, a skill, `base:skill`, or `auto` for the router's choice. Without: `auto`.
            pub(super) model: Option<String>,
            /// Whether the answer comes as events.
            pub(super) stream: Option<bool>,
            /// What a stream carries beside its tokens.
            pub(super) stream_options: Option<$crate::server::request::StreamOptions>,
            /// Answers; 1 without.
            #[schema(minimum = 1)]
            pub(super) n: Option<u64>,
            /// From 0 (the most probable token) to 2; 1 without.
            pub(super) temperature: Option<f32>,
            /// Draw from the smallest set of tokens with this much probability.
            pub(super) top_p: Option<f32>,
            /// Draw from this many most probable tokens; 0 and -1 take all.
            pub(super) top_k: Option<i64>,
            /// Drop tokens less probable than this fraction of the most probable one.
            pub(super) min_p: Option<f32>,
            /// Divides the logits of tokens that have occurred; 1 is none.
            pub(super) repetition_penalty: Option<f32>,
            /// From -2 to 2, subtracted from the logits of tokens that the answer has.
            pub(super) presence_penalty: Option<f32>,
            /// From -2 to 2, the same for each time that it has them.
            pub(super) frequency_penalty: Option<f32>,
            /// The same seed draws the same tokens.
            pub(super) seed: Option<i64>,
            /// Texts that end the answer and are not part of it.
            pub(super) stop: Option<$crate::server::request::OneOrMore>,
            /// From -100 to 100 by token id.
            pub(super) logit_bias: Option<std::collections::BTreeMap<String, f32>>,
            /// Go on past the model's own end of text, as vLLM and llama-server have it: every answer then has `max_tokens`.
            pub(super) ignore_eos: Option<bool>,
            /// Who asks; nothing depends on it.
            #[allow(dead_code, reason = "clients send it for abuse reports, which a local server has no use for")]
            pub(super) user: Option<String>,
        }

        impl $name {
            /// The fields that it has in common with others.
            pub(super) fn common(&self) -> $crate::server::request::Common {
                $crate::server::request::Common {
                    model: self.model.clone(),
                    stream: self.stream,
                    stream_options: self.stream_options,
                    n: self.n,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    repetition_penalty: self.repetition_penalty,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    seed: self.seed,
                    stop: self.stop.clone(),
                    logit_bias: self.logit_bias.clone(),
                    ignore_eos: self.ignore_eos,
                }
            }
        }
    };
}
pub(super) use request;

/// What a request's own fields say about sampling.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    /// Tokens at most.
    pub(super) max_tokens: usize,
    /// Most probable tokens that are told beside the drawn one.
    pub(super) top_logprobs: usize,
}

/// A request's sampling, checked.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) model: String,
    /// Whether to stream, and then whether with the usage.
    pub(super) stream: Option<StreamOptions>,
    pub(super) n: u64,
    pub(super) sampling: Sampling,
    pub(super) stop: Vec<String>,
    /// Whether the model's own end of text ends an answer.
    pub(super) ends: bool,
}

impl Common {
    /// Checks every field; the engine checks what depends on the model.
    pub(super) fn plan(self, own: Own) -> Result<Plan, ApiError> {
        let stream = match (self.stream.unwrap_or(false), self.stream_options) {
            (true, options) => Some(options.unwrap_or_default()),
            (false, None) => None,
            (false, Some(_)) => return Err(ApiError::field("stream_options", "stream_options needs stream: true")),
        };
        let n = self.n.unwrap_or(1);
        if n == 0 {
            return Err(ApiError::field("n", "n must be at least 1"));
        }
        let stop = self.stop.map(OneOrMore::into_vec).unwrap_or_default();
        if stop.len() > STOPS_MAX || stop.iter().any(|stop| stop.is_empty() || stop.len() > STOP_BYTES_MAX) {
            let message = format!("stop must be at most {STOPS_MAX} texts of 1 to {STOP_BYTES_MAX} bytes");
            return Err(ApiError::field("stop", message));
        }
        let range = |name: &str, value: Option<f32>, default: f32, low: f32, high: f32| match value {
            Some(value) if !(low..=high).contains(&value) => {
                Err(ApiError::field(name, format!("{name} must be between {low} and {high}, not {value}")))
            }
            value => Ok(value.unwrap_or(default)),
        };
        let top_p = range("top_p", self.top_p, 1.0, 0.0, 1.0)?;
        let top_k = match self.top_k.unwrap_or(0) {
            ..-1 => return Err(ApiError::field("top_k", "top_k must be at least 1, or 0 or -1 for all")),
            -1 | 0 => None,
            k => Some(k as usize),
        };
        let sampling = Sampling {
            temperature: range("temperature", self.temperature, 1.0, 0.0, 2.0)?,
            // No share at all is the most probable token alone.
            top_p: top_p.max(f32::MIN_POSITIVE),
            top_k,
            min_p: range("min_p", self.min_p, 0.0, 0.0, 1.0)?,
            repetition_penalty: range("repetition_penalty", self.repetition_penalty, 1.0, 0.01, 100.0)?,
            presence_penalty: range("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency_penalty: range("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)?,
            logit_bias: biases(&self.logit_bias.unwrap_or_default())?,
            top_logprobs: own.top_logprobs,
            seed: Seed::new(self.seed.map_or_else(fresh_seed, |seed| seed as u64)),
            max_tokens: own.max_tokens,
            stop_ids: Vec::new(),
        };
        let ends = !self.ignore_eos.unwrap_or(false);
        Ok(Plan { model: self.model.unwrap_or_else(|| "auto".into()), stream, n, sampling, stop, ends })
    }
}

fn biases(map: &BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, ApiError> {
    let one = |(id, bias): (&String, &f32)| match id.parse() {
        Ok(id) if (-100.0..=100.0).contains(bias) => Ok((id, *bias)),
        _ => Err(ApiError::field(
            "logit_bias",
            format!("logit_bias must map token ids to numbers from -100 to 100, not {id:?} to {bias}"),
        )),
    };
    map.iter().map(one).collect()
}

/// A seed that no other request has.
fn fresh_seed() -> u64 {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    Seed::new(nanos).index(DRAWN.fetch_add(1, Ordering::Relaxed)).key()
}
