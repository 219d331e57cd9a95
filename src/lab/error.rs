//! What can go wrong in the lab, split by what the caller does next.

use crate::{agent::AgentError, common::HomeError, train::TrainError};
use socius_models::ModelError;
use std::{io, path::PathBuf};

/// An error of the lab.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the transparent ones say it themselves")]
pub enum LabError {
    /// Whoever waited asked for the end; what was measured is kept.
    #[error("interrupted; what was measured is kept, and the same command goes on from there")]
    Cancelled,
    /// No experiment has this name.
    #[error("there is no experiment {name:?}: there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A configuration that does not describe a run.
    #[error("configuration: {0}")]
    Config(String),
    /// A file of a run cannot be read or written.
    #[error("{path}: {what}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A cell's process ended without a result.
    #[error("the cell's process ended without a result ({0})")]
    Process(String),
    /// A cell could not be measured.
    #[error("{0}")]
    Cell(String),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl LabError {
    /// Whether somebody asked for the end, however deep it was noticed.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled | Self::Agent(AgentError::Cancelled))
    }

    /// A file's trouble.
    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { path, what: error.to_string() }
    }
}
