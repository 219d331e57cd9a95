//! An environment in another process and any language: JSON lines over stdin and stdout. Never trusts what it reads.

mod child;
mod protocol;

use super::{Draw, EnvError, Environment, Info, Item, Outcome, Session};
use crate::common::Message;
pub use child::Limits;
use child::{LineChild, NoLine};
use protocol::{Fault, Observed, Played, Request, excerpt};
use serde_json::{Map, Value};
use std::sync::{Arc, Mutex, PoisonError};

/// How an environment's process misbehaved. After any of these but `Refused` it has been ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It did not start.
    #[error("`{command}` cannot be started: {source}")]
    Spawn {
        /// The shell command.
        command: String,
        /// Why.
        source: std::io::Error,
    },
    /// It did not answer in time.
    #[error(
        "`{command}` did not answer {request:?} within {seconds} s; expected one line: {expected} (is its output flushed?)"
    )]
    Silent {
        /// The shell command.
        command: String,
        /// The request's type.
        request: &'static str,
        /// The limit.
        seconds: f64,
        /// A right answer.
        expected: &'static str,
    },
    /// It ended.
    #[error("`{command}` ended ({how}) instead of answering {request:?}; expected: {expected}{stderr}")]
    Ended {
        /// The shell command.
        command: String,
        /// The request's type.
        request: &'static str,
        /// Exit status and the unfinished line before its end, as far as known.
        how: String,
        /// A right answer.
        expected: &'static str,
        /// Its last words on stderr, if any.
        stderr: String,
    },
    /// It answered something else.
    #[error("`{command}` answered {request:?} with {received}: {reason}; expected: {expected}")]
    Unreadable {
        /// The shell command.
        command: String,
        /// The request's type.
        request: &'static str,
        /// The beginning of its line.
        received: String,
        /// What is wrong with it.
        reason: String,
        /// A right answer.
        expected: &'static str,
    },
    /// Its line does not end.
    #[error(
        "`{command}` answered {request:?} with a line of more than {bytes_max} bytes: {received}; expected: {expected}"
    )]
    Oversize {
        /// The shell command.
        command: String,
        /// The request's type.
        request: &'static str,
        /// The limit.
        bytes_max: usize,
        /// The beginning of its line.
        received: String,
        /// A right answer.
        expected: &'static str,
    },
    /// It speaks another version of the protocol.
    #[error("`{command}` speaks version {received} of the protocol; expected \"socius\": {expected} in its hello")]
    Version {
        /// The shell command.
        command: String,
        /// The version that it named.
        received: String,
        /// Ours.
        expected: u64,
    },
    /// It said that it cannot, in words of its own.
    #[error("`{command}` refused {request:?}: {message}")]
    Refused {
        /// The shell command.
        command: String,
        /// The request's type.
        request: &'static str,
        /// Its words.
        message: String,
    },
    /// It was ended before, for this reason.
    #[error("{first} (the process was ended then)")]
    Gone {
        /// The first error.
        first: String,
    },
}

/// Reads a line as the reply to each kind of request: what a fuzzer sees of the protocol.
#[cfg(fuzzing)]
pub fn read_line(line: &[u8]) {
    if let Ok(fields) = protocol::fields(line, 1) {
        let _ = (protocol::hello(fields.clone()), protocol::content(fields.clone()), protocol::played(fields));
    }
    let _ = excerpt(line);
}

/// The conversation with one child.
struct Link {
    command: String,
    limits: Limits,
    /// None once it misbehaved, and then why.
    child: Result<LineChild, String>,
    next_id: u64,
}

impl Link {
    fn ask<T>(
        &mut self,
        request: &Request,
        read: fn(Map<String, Value>) -> Result<T, Fault>,
    ) -> Result<T, ProcessError> {
        let child = self.child.as_mut().map_err(|first| ProcessError::Gone { first: first.clone() })?;
        let id = self.next_id;
        self.next_id += 1;
        let answer = child.ask(request.line(id));
        let result = match answer {
            Ok(line) => {
                let result = protocol::fields(&line, id).and_then(read);
                result.map_err(|fault| self.fault(request, fault, &line))
            }
            Err(none) => Err(self.no_line(request, none)),
        };
        result.inspect_err(|error| self.end(error))
    }

    /// After a wrong answer, what comes next cannot be trusted either.
    fn end(&mut self, error: &ProcessError) {
        if matches!(error, ProcessError::Refused { .. }) {
            return;
        }
        if let Ok(mut child) = std::mem::replace(&mut self.child, Err(error.to_string())) {
            child.kill();
        }
    }

    fn fault(&self, request: &Request, fault: Fault, line: &[u8]) -> ProcessError {
        let (command, expected, request) = (self.command.clone(), request.expected(), request.name());
        match fault {
            Fault::Unreadable(reason) => {
                ProcessError::Unreadable { command, request, received: excerpt(line), reason, expected }
            }
            Fault::Refused(message) => ProcessError::Refused { command, request, message },
            Fault::Version(received) => ProcessError::Version { command, received, expected: protocol::VERSION },
        }
    }

    fn no_line(&self, request: &Request, none: NoLine) -> ProcessError {
        let (command, expected, request) = (self.command.clone(), request.expected(), request.name());
        match none {
            NoLine::Silent => {
                ProcessError::Silent { command, request, seconds: self.limits.reply.as_secs_f64(), expected }
            }
            NoLine::Oversize(start) => {
                let (bytes_max, received) = (self.limits.line_bytes_max, excerpt(&start));
                ProcessError::Oversize { command, request, bytes_max, received, expected }
            }
            NoLine::Ended { partial, status, stderr } => {
                let mut how = status.map_or_else(|| "its output closed".into(), |status| status.to_string());
                if !partial.is_empty() {
                    how += &format!(", after the unfinished line {}", excerpt(&partial));
                }
                let stderr = if stderr.is_empty() { stderr } else { format!("; on stderr it said:\n{stderr}") };
                ProcessError::Ended { command, request, how, expected, stderr }
            }
        }
    }
}

/// An environment that a child process plays. Cheap to share; requests are answered one after another.
pub struct ProcessEnvironment {
    info: Info,
    link: Arc<Mutex<Link>>,
}

impl ProcessEnvironment {
    /// Starts a shell command and says hello to it.
    ///
    /// # Errors
    /// It does not start, or its answer is not the protocol's.
    pub fn spawn(command: &str) -> Result<Self, EnvError> {
        Self::spawn_within(command, Limits::default())
    }

    /// As [`ProcessEnvironment::spawn`], within limits.
    ///
    /// # Errors
    /// As there.
    pub fn spawn_within(command: &str, limits: Limits) -> Result<Self, EnvError> {
        let child = LineChild::spawn(command, limits)
            .map_err(|source| ProcessError::Spawn { command: command.to_owned(), source })?;
        let mut link = Link { command: command.to_owned(), limits, child: Ok(child), next_id: 1 };
        let info = link.ask(&Request::Hello { socius: protocol::VERSION }, protocol::hello)?;
        Ok(Self { info, link: Arc::new(Mutex::new(link)) })
    }

    fn open(&self, item: &Item) -> Result<(Playing, Observed), EnvError> {
        let turns_max = self.info.level(item.level)?.turns_max;
        let playing = Playing {
            link: Arc::clone(&self.link),
            item: item.clone(),
            replies: Vec::new(),
            messages: Vec::new(),
            teacher: None,
            turns_left: turns_max,
        };
        match playing.ask(turns_max)? {
            Played::Next(observed) => Ok((playing, observed)),
            Played::Done(_) => unreachable!("a grade before the first reply is unreadable"),
        }
    }
}

impl Environment for ProcessEnvironment {
    fn info(&self) -> &Info {
        &self.info
    }

    fn candidate(&self, level: u32, draw: Draw) -> Result<Value, EnvError> {
        self.info.level(level)?;
        let seed = draw.rng().next_u64() >> 11;
        Ok(lock(&self.link).ask(&Request::Item { level, seed }, protocol::content)?)
    }

    fn start(&self, item: &Item) -> Result<Box<dyn Session>, EnvError> {
        let (mut playing, observed) = self.open(item)?;
        playing.observed(observed);
        Ok(Box::new(playing))
    }

    fn choices(&self, item: &Item) -> Result<Vec<String>, EnvError> {
        Ok(self.open(item)?.1.choices)
    }
}

fn lock(link: &Mutex<Link>) -> std::sync::MutexGuard<'_, Link> {
    // A panic elsewhere leaves at most an unread reply, which the next one's id tells apart.
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An episode. The process is asked with all replies so far, so it needs no memory and cannot mix up two episodes.
struct Playing {
    link: Arc<Mutex<Link>>,
    item: Item,
    replies: Vec<String>,
    messages: Vec<Message>,
    teacher: Option<String>,
    turns_left: usize,
}

impl Playing {
    /// What follows the replies so far, of which there may be `turns_left` more.
    fn ask(&self, turns_left: usize) -> Result<Played, EnvError> {
        let Item { content, level, wording, .. } = &self.item;
        let request = Request::Play { content, level: *level, wording: *wording, replies: &self.replies };
        let read = match (self.replies.is_empty(), turns_left) {
            (true, _) => first,
            (false, 0) => last,
            (false, _) => protocol::played,
        };
        Ok(lock(&self.link).ask(&request, read)?)
    }

    fn observed(&mut self, observed: Observed) {
        self.messages.extend(observed.messages);
        self.teacher = observed.teacher;
    }
}

fn first(fields: Map<String, Value>) -> Result<Played, Fault> {
    match protocol::played(fields)? {
        Played::Done(_) => Err(Fault::Unreadable("there is no reply yet to grade".into())),
        next => Ok(next),
    }
}

fn last(fields: Map<String, Value>) -> Result<Played, Fault> {
    match protocol::played(fields)? {
        Played::Next(_) => Err(Fault::Unreadable("the last of \"turns_max\" replies must be graded".into())),
        done => Ok(done),
    }
}

impl Session for Playing {
    fn observe(&self) -> &[Message] {
        &self.messages
    }

    fn teacher(&self) -> Option<String> {
        self.teacher.clone()
    }

    fn act(&mut self, reply: &str) -> Result<Outcome, EnvError> {
        assert!(self.turns_left > 0, "a reply after the episode's end");
        self.turns_left -= 1;
        self.replies.push(reply.to_owned());
        self.messages.push(Message::assistant(reply));
        match self.ask(self.turns_left)? {
            Played::Next(observed) => {
                self.observed(observed);
                Ok(Outcome::Next)
            }
            Played::Done(grade) => {
                (self.turns_left, self.teacher) = (0, None);
                Ok(Outcome::Done(grade))
            }
        }
    }
}
