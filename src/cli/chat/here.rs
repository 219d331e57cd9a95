//! Talking with a base that this process opened. Never sees a socket.

use super::{super::answer, Partner, Terminal};
use crate::{
    agent::{Answer, Experience, Prompt, Question, Session, SkillChoice},
    common::Message,
    engine::Sampling,
    episode::Turn,
};
use anyhow::Context;
use jiff::Timestamp;

/// A base and the skills over it.
pub(super) struct Local {
    session: Session,
    sampling: Sampling,
    last: Option<Experience>,
}

impl Local {
    pub(super) fn new(session: Session, sampling: Sampling) -> Self {
        Self { session, sampling, last: None }
    }

    /// An answer of which nothing has been said yet.
    fn experience(&self, prompt: &Prompt, messages: &[Message], answer: Answer) -> anyhow::Result<Experience> {
        let Answer { text: reply, tokens: action, logprobs, generation, .. } = answer;
        let generation = generation.map(|generation| generation.id.to_string());
        let turn = Turn { prompt: self.session.prompt_ids(prompt)?, action, logprobs, generation };
        let messages = messages.to_vec();
        Ok(Experience { at: Timestamp::now(), messages, reply, reward: None, answer: None, turn })
    }
}

impl Partner for Local {
    fn answer(&mut self, messages: &[Message], skill: &SkillChoice, terminal: &mut Terminal) -> anyhow::Result<String> {
        let question = Question {
            prompt: Prompt::Chat(messages.to_vec()),
            skill: skill.clone(),
            sampling: self.sampling.clone(),
            stop: Vec::new(),
        };
        let answer = answer::stream(&self.session, &question, terminal)?;
        answer::who(&question, answer.generation.as_deref(), terminal);
        let experience = self.experience(&question.prompt, messages, answer)?;
        Ok(self.last.insert(experience).reply.clone())
    }

    fn judge(&mut self, reward: f32, right: Option<String>) -> anyhow::Result<()> {
        let last = self.last.as_ref().context("nothing has been answered yet")?;
        let experience = Experience { at: Timestamp::now(), reward: Some(reward), answer: right, ..last.clone() };
        Ok(self.session.remember(&experience)?)
    }
}
