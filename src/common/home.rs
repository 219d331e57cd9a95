//! The folder that holds everything socius keeps between runs. Knows where things lie, never what is in them.

use std::path::{Path, PathBuf};

/// The data folder: `$SOCIUS_HOME`, else the platform's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

/// There is nowhere to keep data.
#[derive(Debug, thiserror::Error)]
#[error("no data folder: this account has no home directory; set SOCIUS_HOME to a folder that may be written")]
pub struct HomeError;

impl Home {
    /// As the process's environment says. Creates nothing.
    pub fn from_env() -> Result<Self, HomeError> {
        match std::env::var_os("SOCIUS_HOME").filter(|value| !value.is_empty()) {
            Some(root) => Ok(Self::at(root)),
            None => directories::ProjectDirs::from("", "", "socius")
                .map(|folders| Self::at(folders.data_dir()))
                .ok_or(HomeError),
        }
    }

    /// At a folder, made absolute so that a later change of directory does not move it.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self { root: std::path::absolute(&root).unwrap_or(root) }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Checkpoints and their records.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// Skills and their provenance.
    pub fn library(&self) -> PathBuf {
        self.root.join("library")
    }

    /// Learning runs that are not finished, each resumable.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// Runs of streams of tasks, each with a library of its own.
    pub fn streams(&self) -> PathBuf {
        self.root.join("streams")
    }

    /// Runs of experiments.
    pub fn lab(&self) -> PathBuf {
        self.root.join("lab")
    }

    /// What people said of answers: one JSON object a line.
    pub fn experience(&self) -> PathBuf {
        self.root.join("experience.jsonl")
    }

    /// What can be computed again, and is kept because that takes seconds.
    pub fn derived(&self) -> PathBuf {
        self.root.join("derived")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_absolute_and_everything_lies_inside_it() {
        let home = Home::at("some/folder");
        assert!(home.root().is_absolute() && home.root().ends_with("some/folder"));
        for inside in
            [home.models(), home.library(), home.runs(), home.streams(), home.lab(), home.experience(), home.derived()]
        {
            assert!(inside.starts_with(home.root()));
        }
    }
}
