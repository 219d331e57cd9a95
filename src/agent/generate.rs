//! Answering a prompt, streamed: under a named skill, the routed one, or the base. Never trains.

use super::{AgentError, Routing, Session};
use crate::{
    common::Message,
    engine::{Engine, Event, EventKind, FinishReason, Limits, Request, Sampling},
    library::{Generation, SkillRef},
    text::Stream,
};
use std::{ops::ControlFlow, sync::Arc};

/// Which skill answers.
#[derive(Clone, Debug, PartialEq)]
pub enum SkillChoice {
    /// The router's choice, or the base.
    Auto,
    /// The same, by other means than the router proper.
    Routed(Routing),
    /// The base.
    None,
    /// This one.
    Named(SkillRef),
}

/// What is continued.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A conversation, through the chat template.
    Chat(Vec<Message>),
    /// Text as it is.
    Raw(String),
}

/// A prompt and how it is to be answered.
#[derive(Clone, Debug)]
pub struct Question {
    /// What is continued.
    pub prompt: Prompt,
    /// Who answers.
    pub skill: SkillChoice,
    /// How tokens are drawn; stop ids are the base's own.
    pub sampling: Sampling,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The text, without stop string and end-of-turn token.
    pub text: String,
    /// Ids as drawn, the stop id included.
    pub tokens: Vec<u32>,
    /// Logprob of each in nats, under the model's own distribution.
    pub logprobs: Vec<f32>,
    /// Why it ended; a stop string counts as a stop.
    pub finish_reason: FinishReason,
    /// Who answered; none is the base.
    pub generation: Option<Arc<Generation>>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

impl Session {
    /// The token ids of a prompt.
    pub fn prompt_ids(&self, prompt: &Prompt) -> Result<Vec<u32>, AgentError> {
        match prompt {
            Prompt::Chat(messages) => self.base.prompt_ids(messages),
            Prompt::Raw(text) => Ok(self.base.text.raw_ids(text)?),
        }
    }

    /// Answers `question`; `on_text` receives the text as it comes, in whole characters, never a part of a stop string, and
    /// may break off: the answer is then what has come so far.
    pub fn answer(
        &self,
        question: &Question,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, AgentError> {
        let prompt = self.prompt_ids(&question.prompt)?;
        let generation = self.choose(&question.skill, &prompt)?;
        let adapter = generation.as_ref().map(|generation| self.adapter(generation)).transpose()?;
        let prompt_tokens = prompt.len();
        let sampling = Sampling { stop_ids: self.base.text.stop_ids.clone(), ..question.sampling.clone() };
        let mut heard = Heard {
            stop_ids: &self.base.text.stop_ids,
            stream: self.base.text.tokenizer.stream(),
            held: Held::new(&question.stop, on_text),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            finish_reason: FinishReason::Length,
        };
        let request = Request::new(prompt, sampling).under(adapter);
        let mut engine = Engine::new(self.base.model.clone(), Limits::default());
        engine.run_all(vec![request], &mut |event| heard.take(event))?;
        let Heard { stream, mut held, tokens, logprobs, finish_reason, .. } = heard;
        // Whoever broke off wants nothing more; the answer is whole without them.
        let _ = held.push(&stream.finish());
        Ok(Answer { text: held.finish(), tokens, logprobs, finish_reason, generation, prompt_tokens })
    }
}

/// An answer as it comes.
struct Heard<'a> {
    stop_ids: &'a [u32],
    stream: Stream<'a>,
    held: Held<'a>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    finish_reason: FinishReason,
}

impl Heard<'_> {
    fn take(&mut self, event: &Event) -> ControlFlow<()> {
        match event.kind {
            EventKind::Finished(reason) => self.finish_reason = reason,
            EventKind::Token { token, logprob } => {
                self.tokens.push(token);
                self.logprobs.push(logprob);
                if !self.stop_ids.contains(&token) {
                    let piece = self.stream.push(token);
                    let flow = self.held.push(&piece);
                    if self.held.stopped {
                        self.finish_reason = FinishReason::Stop;
                    }
                    return flow;
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// Text on its way out, of which the end is held back while it may be the beginning of a stop string.
struct Held<'a> {
    stop: &'a [String],
    on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    text: String,
    sent: usize,
    stopped: bool,
}

impl<'a> Held<'a> {
    fn new(stop: &'a [String], on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>) -> Self {
        Self { stop, on_text, text: String::new(), sent: 0, stopped: false }
    }

    /// Adds `piece`; breaks when a stop string is complete, after which nothing more is taken, or when the receiver does.
    fn push(&mut self, piece: &str) -> ControlFlow<()> {
        if self.stopped {
            return ControlFlow::Break(());
        }
        self.text.push_str(piece);
        let found = self.stop.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| self.text.find(stop)).min();
        if let Some(end) = found {
            self.text.truncate(end);
            self.stopped = true;
        }
        self.send(if self.stopped { self.text.len() } else { self.text.len() - self.pending() })?;
        if self.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Bytes at the end that may begin a stop string.
    fn pending(&self) -> usize {
        let begins = |stop: &String| {
            let longest = stop.len().saturating_sub(1).min(self.text.len());
            (1..=longest).rev().find(|&n| stop.is_char_boundary(n) && self.text.ends_with(&stop[..n]))
        };
        self.stop.iter().filter_map(begins).max().unwrap_or(0)
    }

    fn send(&mut self, end: usize) -> ControlFlow<()> {
        if end <= self.sent {
            return ControlFlow::Continue(());
        }
        let from = std::mem::replace(&mut self.sent, end);
        (self.on_text)(&self.text[from..end])
    }

    fn finish(mut self) -> String {
        // As above: a receiver who broke off does not change the answer.
        let _ = self.send(self.text.len());
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_string_is_cut_off_and_no_part_of_it_is_streamed() {
        let rows: &[(&[&str], &[&str], &str)] = &[
            (&["ab", "c\n", "\nd"], &["\n\n"], "abc"),
            (&["ab", "c\n", "d"], &["\n\n"], "abc\nd"),
            (&["Ende", "ENDx"], &["END"], "Ende"),
            (&["aé", "éb"], &["éé"], "a"),
            (&["abc"], &["", "bc", "b"], "a"),
            (&["abc"], &[], "abc"),
        ];
        for (pieces, stop, expected) in rows {
            let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
            let mut streamed = String::new();
            let mut on_text = |text: &str| {
                streamed.push_str(text);
                ControlFlow::Continue(())
            };
            let mut held = Held::new(&stop, &mut on_text);
            let _ = pieces.iter().try_for_each(|piece| held.push(piece));
            let text = held.finish();
            assert_eq!((text.as_str(), streamed.as_str()), (*expected, *expected), "{pieces:?} {stop:?}");
        }
    }
}
