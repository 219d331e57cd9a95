//! HTTP: one file into one path, resumable, never waiting for ever. Knows neither the hub's cache nor digests.

use super::{At, error::SourceError};
use crate::common::{Phase, Progress, Report, Unit};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::Path,
    time::Duration,
};
use ureq::{
    Agent, Body, RequestBuilder,
    config::RedirectAuthHeaders,
    http::{Response, StatusCode, Uri},
};

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// For a name and for a connection, each: past this the next source is tried.
    pub connect: Duration,
    /// For the first or next byte of an answer.
    pub silence: Duration,
}

impl Default for Wait {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), silence: Duration::from_secs(20) }
    }
}

/// Attempts in a row that may bring nothing before a download is given up.
const FRUITLESS_MAX: u32 = 2;

/// A client of one host.
pub(super) struct Transfer {
    agent: Agent,
    origin: String,
    host: String,
    token: Option<String>,
}

impl Transfer {
    pub(super) fn new(endpoint: &str, token: Option<String>, wait: Wait) -> Self {
        let config = Agent::config_builder()
            .user_agent(concat!("socius/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(wait.connect))
            .timeout_connect(Some(wait.connect))
            .timeout_recv_response(Some(wait.silence))
            .timeout_per_read(Some(wait.silence))
            .build();
        let uri: Option<Uri> = endpoint.parse().ok();
        let authority = uri.as_ref().and_then(Uri::authority).map(|authority| authority.to_string());
        let origin = match (&uri, &authority) {
            (Some(uri), Some(authority)) => format!("{}://{authority}", uri.scheme_str().unwrap_or("https")),
            _ => endpoint.to_owned(),
        };
        Self { agent: config.new_agent(), origin, host: authority.unwrap_or_else(|| endpoint.to_owned()), token }
    }

    /// Scheme and host, without a final slash.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// An answer that does not follow the protocol.
    pub(super) fn protocol(&self, what: &str, problem: String) -> SourceError {
        SourceError::Protocol { host: self.host.clone(), what: what.to_owned(), problem }
    }

    /// The headers at `url`, which may be a redirect.
    pub(super) fn head(&self, url: &str, what: &str) -> Result<Response<Body>, SourceError> {
        let request = self.signed(self.agent.head(url)).config().max_redirects(0).build();
        self.answered(request.call(), what)
    }

    /// A small JSON document.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, url: &str, what: &str) -> Result<T, SourceError> {
        let mut response = self.answered(self.signed(self.agent.get(url)).call(), what)?;
        let bytes = response.body_mut().read_to_vec().map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&bytes).map_err(|error| self.protocol(what, format!("bad JSON: {error}")))
    }

    /// `url`'s `bytes` into `part`, going on from what it already has. Broken connections are taken up again as long as each
    /// brings something.
    pub(super) fn file(
        &self,
        url: &str,
        part: &Path,
        bytes: u64,
        label: &str,
        report: &mut dyn Report,
    ) -> Result<(), SourceError> {
        let mut file = OpenOptions::new().create(true).append(true).open(part).at(part)?;
        let mut have = file.metadata().at(part)?.len();
        let mut fruitless = 0;
        while have != bytes {
            if have > bytes {
                file.set_len(0).at(part)?;
                have = 0;
            }
            let before = have;
            let mut progress = |done| {
                report.progress(Progress {
                    phase: Phase::Download,
                    label,
                    done,
                    total: Some(bytes),
                    unit: Unit::Bytes,
                    detail: "",
                });
                report.cancelled()
            };
            let mut pour = Pour { url, part, bytes, label, have: &mut have, file: &mut file };
            match self.pour(&mut pour, &mut progress) {
                Err(error @ SourceError::Unreachable { .. }) => {
                    fruitless = if have > before { 0 } else { fruitless + 1 };
                    if fruitless == FRUITLESS_MAX {
                        return Err(error);
                    }
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// One request from `have` on, until its body ends.
    fn pour(&self, to: &mut Pour<'_>, progress: &mut dyn FnMut(u64) -> bool) -> Result<(), SourceError> {
        let range = format!("bytes={}-", *to.have);
        let request = self.signed(self.agent.get(to.url)).header("range", range);
        let mut response = self.answered(request.call(), to.label)?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            to.file.set_len(0).at(to.part)?;
            *to.have = 0;
        } else if let Some(from) = range_start(&response).filter(|from| from != to.have) {
            return Err(self.protocol(to.label, format!("bytes from {from} instead of {}", to.have)));
        }
        let mut reader = response.body_mut().as_reader();
        let mut buffer = vec![0; 256 << 10];
        loop {
            if progress(*to.have) {
                return Err(SourceError::Cancelled);
            }
            let read = reader.read(&mut buffer).map_err(|error| self.unreachable(&error))?;
            if read == 0 && *to.have < to.bytes {
                return Err(self.unreachable(&"the connection closed early"));
            }
            if read == 0 {
                return Ok(());
            }
            if *to.have + read as u64 > to.bytes {
                return Err(self.protocol(to.label, format!("more than the {} bytes that it announced", to.bytes)));
            }
            to.file.write_all(&buffer[..read]).at(to.part)?;
            *to.have += read as u64;
        }
    }

    /// Sends `body` as `kind`; the answer's body.
    pub(super) fn post(&self, url: &str, what: &str, kind: &str, body: &[u8]) -> Result<Vec<u8>, SourceError> {
        let request =
            self.signed(self.agent.post(url)).header("content-type", kind).header("accept", kind_of_answer(kind));
        let mut response = self.answered(request.send(body), what)?;
        response.body_mut().read_to_vec().map_err(|error| self.unreachable(&error))
    }

    /// Sends `body` to a place that the hub named, which is not told who we are.
    pub(super) fn put_unsigned(
        &self,
        url: &str,
        what: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(), SourceError> {
        let request = headers.iter().fold(self.agent.put(url), |request, (name, value)| request.header(*name, *value));
        self.answered(request.send(body), what).map(drop)
    }

    fn signed<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        // Compression would make `content-length` and ranges speak of other bytes.
        let request = request.header("accept-encoding", "identity");
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn answered(&self, answer: Result<Response<Body>, ureq::Error>, what: &str) -> Result<Response<Body>, SourceError> {
        let response = answer.map_err(|error| self.unreachable(&error))?;
        let (host, what, status) = (self.host.clone(), what.to_owned(), response.status().as_u16());
        match status {
            200..=399 => Ok(response),
            401 | 403 => {
                let hint = match self.token {
                    Some(_) => "check that the token in HF_TOKEN has the right to it",
                    None => "set HF_TOKEN to a token that has the right to it",
                };
                Err(SourceError::Unauthorized { host, what, status, hint })
            }
            404 | 410 => Err(SourceError::NotFound { host, what }),
            _ => Err(SourceError::Status { host, what, status }),
        }
    }

    fn unreachable(&self, reason: &dyn std::fmt::Display) -> SourceError {
        SourceError::Unreachable { host: self.host.clone(), reason: reason.to_string() }
    }
}

/// Git LFS answers in its own type, everything else in JSON.
fn kind_of_answer(kind: &str) -> &str {
    if kind.contains("git-lfs") { kind } else { "application/json" }
}

/// Where a response's body goes.
struct Pour<'a> {
    url: &'a str,
    part: &'a Path,
    bytes: u64,
    label: &'a str,
    have: &'a mut u64,
    file: &'a mut File,
}

/// `N` of `Content-Range: bytes N-M/L`.
fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
