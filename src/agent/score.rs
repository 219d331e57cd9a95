//! How probable a given completion is, token by token. Never samples.

use super::{AgentError, Prompt, Session, SkillChoice};
use crate::train::{PassLimits, score};

/// A completion's tokens and their logprobs in nats.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// What each token says.
    pub texts: Vec<String>,
    /// Logprob of each given everything before it.
    pub logprobs: Vec<f32>,
}

impl Session {
    /// Scores `completion` as the continuation of `prompt`.
    pub fn score(&self, prompt: &Prompt, completion: &str, skill: &SkillChoice) -> Result<Scored, AgentError> {
        let prompt = self.prompt_ids(prompt)?;
        let tokens = self.base.plain_ids(completion)?;
        let adapter = self.choose(skill, &prompt)?.map(|generation| self.adapter(&generation)).transpose()?;
        let view = adapter.as_ref().map(|adapter| adapter.adapter());
        let sequences = [(&prompt[..], &tokens[..])];
        let logprobs = score(&self.base.model, view, &sequences, PassLimits::default())?.remove(0);
        let texts = tokens.iter().map(|&token| self.base.text.tokenizer.decode_with_specials(&[token])).collect();
        Ok(Scored { tokens, texts, logprobs })
    }
}
