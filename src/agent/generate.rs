//! Answering a prompt, streamed: under a named skill, the routed one, or the base. Never trains.

use super::{AgentError, Routing, Session};
use crate::{
    common::Message,
    engine::{Engine, Event, EventKind, FinishReason, Limits, Request, Sampling},
    library::{Generation, SkillRef},
    text::{Held, Stream},
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
            held: Held::new(question.stop.clone()),
            on_text,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            finish_reason: FinishReason::Length,
        };
        let request = Request::new(prompt, sampling).under(adapter);
        let mut engine = Engine::new(self.base.model.clone(), Limits::default());
        engine.run_all(vec![request], &mut |event| heard.take(event))?;
        let Heard { stream, mut held, tokens, logprobs, finish_reason, on_text, .. } = heard;
        // Whoever broke off wants nothing more; the answer is whole without them.
        let _ = on_text(&(held.push(&stream.finish()) + &held.finish()));
        Ok(Answer { text: held.into_text(), tokens, logprobs, finish_reason, generation, prompt_tokens })
    }
}

/// An answer as it comes.
struct Heard<'a> {
    stop_ids: &'a [u32],
    stream: Stream<'a>,
    held: Held,
    on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    finish_reason: FinishReason,
}

impl Heard<'_> {
    fn take(&mut self, event: &Event) -> ControlFlow<()> {
        match event.kind {
            EventKind::Finished(reason) => self.finish_reason = reason,
            EventKind::Token { token, logprob, .. } => {
                self.tokens.push(token);
                self.logprobs.push(logprob);
                if !self.stop_ids.contains(&token) {
                    let piece = self.stream.push(token);
                    let released = self.held.push(&piece);
                    if !released.is_empty() {
                        (self.on_text)(&released)?;
                    }
                    if self.held.stopped() {
                        self.finish_reason = FinishReason::Stop;
                        return ControlFlow::Break(());
                    }
                }
            }
        }
        ControlFlow::Continue(())
    }
}
