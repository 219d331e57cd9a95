//! The environment trait: an item becomes observations, replies become a grade. Never sees tokens or models.

use super::{EnvError, Form, HeldOut, Item, Split, Wordings};
use crate::common::{Message, Rng, Seed};
use serde_json::Value;

/// One difficulty of an environment.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// What makes it this level.
    pub description: String,
    /// Tokens that a right reply needs at most, with some room: a hint for the sampler.
    pub reply_tokens_max: usize,
    /// Replies in an episode at most.
    pub turns_max: usize,
    /// Expected strict accuracy of the best constant answer (always the first choice, …), where an item is a choice of few.
    pub baseline: Option<f64>,
}

impl Level {
    /// A level of one reply without choices.
    pub fn new(description: impl Into<String>, reply_tokens_max: usize) -> Self {
        Self { description: description.into(), reply_tokens_max, turns_max: 1, baseline: None }
    }

    /// With a constant-answer baseline.
    pub fn baseline(self, baseline: f64) -> Self {
        Self { baseline: Some(baseline), ..self }
    }
}

/// What an environment says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Its name, world included where it has one (`cipher@7`).
    pub name: String,
    /// Changes whenever the same seed would give other items or grades; part of a skill's provenance.
    pub version: String,
    /// One sentence for people and for routing.
    pub description: String,
    /// Difficulties; level 1 is the first.
    pub levels: Vec<Level>,
    /// Instruction wordings.
    pub wordings: Wordings,
    /// What keeps test questions out of training.
    pub held_out: HeldOut,
    /// Forms of question; `Direct` is always one.
    pub forms: Vec<Form>,
}

impl Info {
    /// The level numbered `level`, from 1.
    ///
    /// # Errors
    /// No such level.
    pub fn level(&self, level: u32) -> Result<&Level, EnvError> {
        let index = (level as usize).checked_sub(1);
        index.and_then(|index| self.levels.get(index)).ok_or_else(|| EnvError::Level {
            env: self.name.clone(),
            level,
            levels: self.levels.len(),
        })
    }
}

/// How an episode was judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Grade {
    /// In `[0, 1]`: what learning maximises. 1 for the best possible play.
    pub reward: f32,
    /// The whole reply is right, format included.
    pub strict: bool,
    /// The first complete answer span is right.
    pub lenient: bool,
    /// The right answer, where it can be revealed.
    pub feedback: Option<String>,
}

/// What a reply led to.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// There is something new to observe.
    Next,
    /// The episode is over.
    Done(Grade),
}

/// One episode on one item.
pub trait Session: Send {
    /// The whole conversation so far, the model's replies included.
    fn observe(&self) -> &[Message];

    /// The best reply now, given only what has been observed and learned; none where the environment does not reveal it.
    fn teacher(&self) -> Option<String>;

    /// Takes the model's reply.
    ///
    /// # Errors
    /// A process that fails.
    ///
    /// # Panics
    /// If the episode is over.
    fn act(&mut self, reply: &str) -> Result<Outcome, EnvError>;
}

/// The randomness of one candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The same for all candidates that are tried for one item.
    pub seed: Seed,
    /// Counts them.
    pub attempt: u64,
}

impl Draw {
    /// For this candidate alone.
    pub fn rng(self) -> Rng {
        self.seed.purpose("content").index(self.attempt).rng()
    }

    /// Shared by all candidates that are tried for an item: for the class of its answer, whose balance would otherwise suffer
    /// where a class has fewer members in the wanted split.
    pub fn class(self) -> Rng {
        self.seed.purpose("class").rng()
    }
}

/// A text environment.
pub trait Environment: Send + Sync {
    /// What it says of itself; constant.
    fn info(&self) -> &Info;

    /// A candidate content of a level: a pure function of its arguments. The caller keeps it if its hash is of the wanted split.
    ///
    /// # Errors
    /// A process that fails.
    fn candidate(&self, level: u32, draw: Draw) -> Result<Value, EnvError>;

    /// All facts of a level and form, for environments that hold out wordings; none for the others.
    fn facts(&self, _level: u32, _form: Form) -> Option<Vec<Value>> {
        None
    }

    /// Begins an episode.
    ///
    /// # Errors
    /// An item of another environment; a process that fails.
    fn start(&self, item: &Item) -> Result<Box<dyn Session>, EnvError>;

    /// The replies that a constant policy can choose from, in an order that does not depend on which is right; empty where the
    /// answer is open. Format warm-ups with random labels draw from here.
    ///
    /// # Errors
    /// As [`Environment::start`].
    fn choices(&self, _item: &Item) -> Result<Vec<String>, EnvError> {
        Ok(Vec::new())
    }

    /// The split that an item belongs to.
    fn split(&self, item: &Item) -> Split {
        match self.info().held_out {
            HeldOut::Items => Split::of(&item.id),
            HeldOut::Wordings => {
                let wordings = &self.info().wordings;
                let of = |split: &Split| wordings.of(*split).contains(&item.wording);
                Split::ALL.into_iter().find(of).unwrap_or(Split::Test)
            }
        }
    }
}

/// The right reply to an item that is answered in one turn, where it is revealed.
///
/// # Errors
/// As [`Environment::start`].
pub fn answer(env: &dyn Environment, item: &Item) -> Result<Option<String>, EnvError> {
    Ok(env.start(item)?.teacher().filter(|_| env.info().levels.iter().all(|level| level.turns_max == 1)))
}
