//! What can go wrong in an environment, split by what the caller does next. Never knows which environment it is.

use super::{Form, Split, process::ProcessError};

/// Why an environment could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// Usage: no environment has this name.
    #[error("no environment is called {name:?}; did you mean {nearest:?}? Known: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The known name that is closest to it.
        nearest: String,
        /// All known names, separated by commas.
        known: String,
    },
    /// Usage: no such level.
    #[error("{env} has levels 1 to {levels}, not {level}")]
    Level {
        /// The environment.
        env: String,
        /// What was asked for.
        level: u32,
        /// Its highest level.
        levels: usize,
    },
    /// Usage: this form of question does not exist here, or not in this split.
    #[error("{env} asks no {form} questions in the {split} split")]
    Form {
        /// The environment.
        env: String,
        /// What was asked for.
        form: Form,
        /// Where.
        split: Split,
    },
    /// The environment offers no (further) item of this kind.
    #[error("{env} level {level} offered no {split} item in {attempts} candidates: it needs more distinct items")]
    Exhausted {
        /// The environment.
        env: String,
        /// The level asked for.
        level: u32,
        /// The split asked for.
        split: Split,
        /// Candidates looked at.
        attempts: usize,
    },
    /// An item that this environment did not make.
    #[error("this is not an item of {env}: {reason}; got {content}")]
    Content {
        /// The environment.
        env: String,
        /// What its content lacks.
        reason: String,
        /// The content.
        content: String,
    },
    /// The environment's process misbehaved: the run ends, and can be resumed once the process is mended.
    #[error(transparent)]
    Process(Box<ProcessError>),
}

impl From<ProcessError> for EnvError {
    fn from(error: ProcessError) -> Self {
        Self::Process(Box::new(error))
    }
}
