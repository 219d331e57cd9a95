//! Training as primitives: rows of tokens in, gradients and steps out; never samples, grades, or chooses what to learn from.
//!
//! A [`Learner`] is one adapter with its gradient and optimiser state. [`forward_backward`] adds to the gradients of any number of
//! learners in one walk over the shared base, and [`optim_step`] takes one learner's step. Every learning method is a loop over
//! these two:
//!
//! ```text
//! forward_backward(&model, &mut [Job { learner: &mut learner, rows: &rows, loss: &loss::nll }], PassLimits::default())?;
//! optim_step(&mut learner, &AdamW::default())?;
//! ```
//!
//! **Normalisation.** The loss of a call is, for each learner, `Σ weight · term / n` over its own scored tokens, where n counts its
//! tokens of non-zero weight in this call. It depends neither on other learners nor on how rows are cut into passes, and so do
//! the gradients, to the byte. Consecutive calls before a step add up.

mod advantage;
mod checkpoint;
mod learner;
pub mod loss;
mod optim;
mod pack;
mod pass;
mod row;
mod score;
#[cfg(test)]
mod tests;

pub use advantage::{group_normalised, leave_one_out};
pub use learner::Learner;
pub use loss::{Loss, Tokens};
pub use optim::{AdamW, Decay, Schedule, StepStats, optim_step};
pub use pack::PassLimits;
pub use pass::{Job, PassStats, forward_backward};
pub use row::{Label, TrainRow};
pub use score::{attach_base, score};

use socius_models::ModelError;
use std::path::PathBuf;

/// An error of training.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A row cannot be trained on; nothing was computed.
    #[error("training row {row}: {what}")]
    Row {
        /// Its index among the rows given.
        row: usize,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// The loss reads a value that a row's label lacks.
    #[error("the loss needs {0} on every trained token, and a label has none")]
    Label(&'static str),
    /// The loss, or a gradient, is no longer a number: the learner has to go back to an earlier state.
    #[error("{0} is not finite: lower the learning rate, or clip the gradient")]
    Diverged(&'static str),
    /// The loss could not be evaluated.
    #[error("loss: {0}")]
    Loss(#[from] candle_core::Error),
    /// The pass failed. Gradients of the call's learners are part-made: see [`Learner::discard_gradient`].
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file of learner state cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of learner state is truncated, corrupt, of another version or for another base.
    #[error("{path}: {what}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        what: String,
    },
}
