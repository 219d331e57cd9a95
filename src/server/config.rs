//! What a server is told when it starts: where it listens and what it may hold. Plain data.

use crate::engine::Limits;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Where a server listens, who may use it, and its limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port; port 0 takes a free one.
    pub bind: SocketAddr,
    /// What clients must send as `Authorization: Bearer KEY`; needed for any address but a loopback one.
    pub api_key: Option<String>,
    /// Folder that adapters may be loaded from by path.
    pub adapters: PathBuf,
    /// What the engine holds.
    pub limits: Limits,
    /// Requests that may run or wait; more are told to try again.
    pub requests_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// Tokens of an answer when the request does not say.
    pub tokens_default: usize,
    /// How long a request may take from its start to its last token.
    pub time_max: Duration,
    /// How long requests may go on after the server was asked to end.
    pub drain_max: Duration,
    /// Learners that run at a time; others wait.
    pub learners_max: usize,
}

impl Config {
    /// Whether everybody who can reach the address may use the server.
    pub(super) fn is_open_to_others(&self) -> bool {
        !self.bind.ip().is_loopback() && self.api_key.as_ref().is_none_or(String::is_empty)
    }
}
