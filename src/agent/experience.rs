//! What people said of answers: kept as lines of JSON, and read back as examples to learn from. Never trains.

use super::{AgentError, Session};
use crate::{common::Message, episode::Turn};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
};

/// Reward from which one's own answer is worth learning.
const GOOD: f32 = 0.999;

/// An answer, and what was said of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Experience {
    /// When.
    pub at: Timestamp,
    /// The conversation before the answer.
    pub messages: Vec<Message>,
    /// The answer.
    pub reply: String,
    /// What it was worth, from 0 to 1, if that was said.
    pub reward: Option<f32>,
    /// The right answer, if that was said.
    pub answer: Option<String>,
    /// The same exchange in tokens, with logprobs and the generation that answered.
    pub turn: Turn,
}

impl Experience {
    /// What would have been right, as far as that is known.
    fn right(&self) -> Option<&str> {
        let own = self.reward.is_some_and(|reward| reward >= GOOD).then_some(self.reply.as_str());
        self.answer.as_deref().or(own)
    }
}

/// Those with a right answer, as lines that [`crate::envs::Examples`] reads; a later one about the same conversation replaces an
/// earlier one.
pub fn examples(experiences: &[Experience]) -> String {
    let mut latest: Vec<(&[Message], &str)> = Vec::new();
    for experience in experiences {
        let Some(right) = experience.right().filter(|right| !right.trim().is_empty()) else { continue };
        latest.retain(|(messages, _)| *messages != experience.messages);
        latest.push((&experience.messages, right));
    }
    let line = |(messages, right): &(&[Message], &str)| {
        let reply = Message::assistant(*right);
        let all: Vec<&Message> = messages.iter().chain([&reply]).collect();
        json!({ "messages": all }).to_string()
    };
    latest.iter().map(line).collect::<Vec<_>>().join("\n")
}

impl Session {
    /// Keeps `experience`, and tells the router what the skill that answered earned.
    pub fn remember(&self, experience: &Experience) -> Result<(), AgentError> {
        self.keep(experience)?;
        let generation = experience.turn.generation.as_deref().and_then(|id| id.parse().ok());
        match (generation, experience.reward) {
            (Some(generation), Some(reward)) => self.reward(generation, reward.into()),
            _ => Ok(()),
        }
    }

    fn keep(&self, experience: &Experience) -> Result<(), AgentError> {
        let path = self.home.experience();
        let mut line = serde_json::to_vec(experience).expect("an experience is plain data");
        line.push(b'\n');
        let written =
            OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| file.write_all(&line));
        written.map_err(|error| AgentError::Run { path, what: error.to_string() })
    }

    /// All that was kept, oldest first. A line that was cut off by a crash is passed over.
    pub fn experiences(&self) -> Result<Vec<Experience>, AgentError> {
        let path = self.home.experience();
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(AgentError::Run { path, what: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envs::Examples;

    #[test]
    fn what_was_right_becomes_an_example_and_the_last_word_counts() {
        let said = |prompt: &str, reward, answer: Option<&str>| Experience {
            at: Timestamp::UNIX_EPOCH,
            messages: vec![Message::user(prompt)],
            reply: "mine".into(),
            reward,
            answer: answer.map(str::to_owned),
            turn: Turn { prompt: vec![], action: vec![], logprobs: vec![], generation: None },
        };
        let all = [
            said("a", Some(0.0), None),
            said("b", Some(1.0), None),
            said("c", None, Some("old")),
            said("c", Some(0.0), Some("new")),
            said("d", None, Some("  ")),
        ];
        let text = examples(&all);
        let replies: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["messages"][1]["content"].clone())
            .collect();
        assert_eq!(replies, ["mine", "new"]);
        assert!(Examples::parse("x", &text).is_ok());
        assert_eq!(examples(&all[..1]), "");
    }
}
