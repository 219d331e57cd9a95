//! What happened: a subagent's turns on one item, with the tokens, logprobs and generation of each action, and how it was graded.

use serde::{Deserialize, Serialize};

/// One exchange: everything that the model saw, and what it then sampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Token ids of the whole context before the action, chat template included.
    pub prompt: Vec<u32>,
    /// Sampled token ids, the end-of-turn token included if it was sampled.
    pub action: Vec<u32>,
    /// Logprob of each action token under the distribution that the model gave (temperature 1, no truncation), in nats.
    pub logprobs: Vec<f32>,
    /// Digest of the adapter that sampled it; none for the base.
    pub generation: Option<String>,
}

/// One attempt at one item, from birth to grade.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// Environment name.
    pub env: String,
    /// Digest of the item's canonical content.
    pub item: String,
    /// Index of the instruction wording.
    pub wording: usize,
    /// Turns in order.
    pub turns: Vec<Turn>,
    /// Reward in `[0, 1]`: what learning maximises.
    pub reward: f32,
    /// Whether the whole reply was right.
    pub strict: bool,
    /// Whether the first complete answer span was right.
    pub lenient: bool,
    /// The right answer, where the environment reveals it.
    pub feedback: Option<String>,
}
