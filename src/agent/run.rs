//! A learning run on disk: what it is, how far it got, and the learner itself, so that a kill at any instant costs at most the
//! steps since the last checkpoint. Never decides what happens next.

use super::{
    AgentError,
    budget::Pace,
    measure::Grades,
    recipe::{Method, Recipe},
};
use crate::{common::write_atomic, episode::Episode, library::Provenance, train::Learner};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use socius_models::Spec;
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

/// What a run is: the same settings give the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) env: String,
    pub(super) env_version: String,
    pub(super) base: String,
    pub(super) dtype: String,
    /// Generation that it starts from.
    pub(super) parent: Option<String>,
    pub(super) recipe: Recipe,
}

impl Settings {
    /// The first setting in which the two differ.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let rows = [
            ("environment", self.env == other.env),
            ("environment version", self.env_version == other.env_version),
            ("base", self.base == other.base),
            ("dtype", self.dtype == other.dtype),
            ("parent", self.parent == other.parent),
            ("seed", self.recipe.seed == other.recipe.seed),
            ("learner", self.recipe.method == other.recipe.method),
            ("setting of the recipe", self.recipe == other.recipe),
        ];
        rows.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
    }
}

/// What the untrained subagent achieved, and so how it learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Birth {
    pub(super) validation: Grades,
    pub(super) test: Grades,
    pub(super) method: Method,
    pub(super) why: String,
    /// Steps of warm-up on the format, taken first.
    pub(super) warmup: usize,
}

/// What a step of training saw.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps before it.
    pub step: usize,
    /// Mean loss.
    pub loss: f64,
    /// Mean reward of what was sampled, where it learned from samples.
    pub reward: Option<f64>,
}

/// How far a run got.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) birth: Option<Birth>,
    /// How many steps there will be.
    pub(super) pace: Pace,
    /// Steps taken, those without anything to learn included.
    pub(super) step: usize,
    pub(super) sampled_tokens: u64,
    #[serde(default)]
    pub(super) read_tokens: u64,
    pub(super) trained_tokens: u64,
    #[serde(default)]
    pub(super) scored_tokens: u64,
    /// What was seen at each step that trained.
    #[serde(default)]
    pub(super) curve: Vec<Point>,
    /// Mean absolute difference between recorded and recomputed logprobs, summed over the steps that sampled.
    pub(super) gap_sum: f64,
    pub(super) gap_steps: usize,
    /// Seconds of life before this process.
    pub(super) seconds: f64,
    /// Length of the episode file that belongs to `step`.
    pub(super) episode_bytes: u64,
}

/// A run's folder.
pub(super) struct Run {
    folder: PathBuf,
    pub(super) progress: Progress,
    pub(super) learner: Learner,
    checkpoint: Option<PathBuf>,
}

impl Run {
    /// Opens the run in `folder` if there is one, else begins it with `newborn`.
    pub(super) fn open(
        folder: PathBuf,
        name: &str,
        settings: &Settings,
        spec: &Spec,
        newborn: impl FnOnce() -> Result<Learner, AgentError>,
    ) -> Result<Self, AgentError> {
        fs::create_dir_all(&folder).map_err(|error| fault(&folder, &error))?;
        let path = folder.join("settings.json");
        if !path.exists() {
            write_json(&path, settings)?;
        }
        let found: Settings = read_json(&path)?;
        if let Some(what) = settings.difference(&found) {
            return Err(AgentError::OtherRun { name: name.to_owned(), what: what.to_owned(), path: folder });
        }
        let path = folder.join("progress.json");
        let progress: Progress = if path.exists() { read_json(&path)? } else { Progress::default() };
        let checkpoint = (progress.step > 0).then(|| folder.join(format!("learner-{}", progress.step)));
        let learner = match &checkpoint {
            Some(path) => Learner::load(path, spec)?,
            None => newborn()?,
        };
        let run = Self { folder, progress, learner, checkpoint };
        run.truncate_episodes()?;
        Ok(run)
    }

    /// Makes progress and learner durable together: the progress file names the learner file that belongs to it.
    pub(super) fn checkpoint(&mut self) -> Result<(), AgentError> {
        let before = self.checkpoint.take();
        if self.progress.step > 0 {
            let path = self.folder.join(format!("learner-{}", self.progress.step));
            if before.as_ref() != Some(&path) {
                self.learner.save(&path)?;
            }
            self.checkpoint = Some(path);
        }
        write_json(&self.folder.join("progress.json"), &self.progress)?;
        if let Some(old) = before.filter(|old| self.checkpoint.as_ref() != Some(old)) {
            fs::remove_file(&old).map_err(|error| fault(&old, &error))?;
        }
        Ok(())
    }

    fn episode_path(&self) -> PathBuf {
        self.folder.join("episodes.jsonl")
    }

    /// Drops episodes of steps after the last checkpoint: they will be sampled again.
    fn truncate_episodes(&self) -> Result<(), AgentError> {
        let path = self.episode_path();
        let open =
            || fs::OpenOptions::new().create(true).append(true).open(&path)?.set_len(self.progress.episode_bytes);
        open().map_err(|error| fault(&path, &error))
    }

    /// Adds what happened in a step.
    pub(super) fn append(&mut self, episodes: &[Episode]) -> Result<(), AgentError> {
        let path = self.episode_path();
        let mut lines = Vec::new();
        for episode in episodes {
            serde_json::to_writer(&mut lines, episode).expect("an episode is JSON");
            lines.push(b'\n');
        }
        let write = || fs::OpenOptions::new().append(true).open(&path)?.write_all(&lines);
        write().map_err(|error| fault(&path, &error))?;
        self.progress.episode_bytes += lines.len() as u64;
        Ok(())
    }

    /// Everything that happened in training.
    pub(super) fn episodes(&self) -> Result<Vec<Episode>, AgentError> {
        let path = self.episode_path();
        let text = fs::read_to_string(&path).map_err(|error| fault(&path, &error))?;
        text.lines().map(|line| serde_json::from_str(line).map_err(|error| fault(&path, &error))).collect()
    }

    /// The provenance that this run publishes under: the one settled before a crash, else `now`. So publishing again after a crash
    /// between the library's commit and [`Run::finish`] is publishing the same generation.
    pub(super) fn settle(&self, now: Provenance) -> Result<Provenance, AgentError> {
        let path = self.folder.join("provenance.json");
        if path.exists() {
            return read_json(&path);
        }
        write_json(&path, &now)?;
        Ok(now)
    }

    /// The run is over and what it gave is published (or refused): nothing is left to resume.
    pub(super) fn finish(self) -> Result<(), AgentError> {
        fs::remove_dir_all(&self.folder).map_err(|error| fault(&self.folder, &error))
    }
}

fn fault(path: &Path, error: &dyn std::fmt::Display) -> AgentError {
    AgentError::Run { path: path.to_owned(), what: error.to_string() }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), AgentError> {
    let bytes = serde_json::to_vec_pretty(value).expect("settings and progress are JSON");
    write_atomic(path, &bytes).map_err(|error| fault(path, &error))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, AgentError> {
    let bytes = fs::read(path).map_err(|error| fault(path, &error))?;
    serde_json::from_slice(&bytes).map_err(|error| fault(path, &format!("{error}; remove the folder to start over")))
}
