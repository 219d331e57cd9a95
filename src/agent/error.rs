//! What can end a subagent's life early, split by what the caller does next.

use crate::{
    common::JournalError,
    engine::EngineError,
    envs::{DocumentError, EnvError},
    fetch::FetchError,
    library::LibraryError,
    lora::LoraError,
    router::RouterError,
    text::TextError,
    train::TrainError,
};
use socius_models::ModelError;
use std::path::PathBuf;

/// An error of the learning loop.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the transparent ones say it themselves")]
pub enum AgentError {
    /// Whoever waited asked for the end; what was checkpointed is resumable.
    #[error("interrupted; the same command goes on from the last checkpoint")]
    Cancelled,
    /// Supervised learning in an environment that reveals nothing.
    #[error("{env} reveals no right answers, so there is nothing to imitate: use --learner rloo, grpo or raft")]
    NoAnswers {
        /// The environment.
        env: String,
    },
    /// A run of this name exists with other settings.
    #[error("a run called {name} is under way with another {what}: give another --name, or remove {path}")]
    OtherRun {
        /// The run.
        name: String,
        /// The setting that differs.
        what: String,
        /// Where it lies.
        path: PathBuf,
    },
    /// Not a reward.
    #[error("a reward of {found} was given; a number from 0 to 1 is expected")]
    Reward {
        /// What was given.
        found: f64,
    },
    /// The generation does not say how it came to be.
    #[error("{skill} cannot be replayed: {what}")]
    NotReplayable {
        /// The generation.
        skill: String,
        /// What is missing, and what would help.
        what: String,
    },
    /// A run's file cannot be read or written.
    #[error("{path}: {what}")]
    Run {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A merged skill's parents do not go together.
    #[error("these skills cannot be merged: {what}")]
    Merge {
        /// Why.
        what: String,
    },
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Lora(#[from] LoraError),
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error(transparent)]
    Router(#[from] RouterError),
}
