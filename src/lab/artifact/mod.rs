//! The experiment `artifact`: what is worth keeping of a subagent, its own adapter or its traces? Never knows how adapters are trained or
//! judged in detail.
//!
//! One adapter for each environment, learned from reward, stands against one adapter for all of them that learns from the subagents' traces
//! (all, or the successes alone), by on-policy distillation from the subagents, or from reward itself. Everyone is first shown the same
//! revealed answers. Who learns all environments has as many calls of environments and as many operations as all subagents together; traces
//! are the subagents' own, so their calls are the same.

mod arms;
mod judge;
mod report;

use super::{Desk, Grid, LabError, Run};
use crate::report::Page;
use serde::{Deserialize, Serialize};

/// The experiment.
pub struct Artifact;

/// Its settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    model: String,
    environments: Vec<String>,
    /// Environments that nobody trains in.
    bystanders: Vec<String>,
    seeds: Vec<u64>,
    /// Of each environment, before anything is sampled: a reward that nobody ever meets teaches nothing.
    revealed_answers: usize,
    /// Of a subagent, beyond those.
    steps: usize,
    items: usize,
    samples: u64,
    temperature: f32,
    lr: f64,
    rank: usize,
    checkpoints: usize,
    validation_items: usize,
    test_items: usize,
    text_tokens: usize,
}

/// Who learns, and from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Arm {
    /// Nobody: the base as it is.
    Base,
    /// One adapter for one environment, from its own rewards.
    Subagent,
    /// One for all, supervised on everything that the subagents were shown and sampled.
    Traces,
    /// The same on what was right of it.
    Successes,
    /// One for all, whose own samples the subagents score token by token.
    Distillation,
    /// One for all, from its own rewards.
    Joint,
}

impl Arm {
    /// Those that learn all environments in one adapter.
    const ONE_FOR_ALL: [Self; 4] = [Self::Traces, Self::Successes, Self::Distillation, Self::Joint];

    fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Subagent => "subagent",
            Self::Traces => "traces",
            Self::Successes => "successes",
            Self::Distillation => "distillation",
            Self::Joint => "joint",
        }
    }
}

/// A point of the grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    seed: u64,
    arm: Arm,
    /// Of a subagent.
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<String>,
}

impl Grid for Artifact {
    type Config = Config;
    type Point = Point;
    const NAME: &'static str = "artifact";
    const SUMMARY: &'static str = "a subagent's own adapter, or one model trained on its traces?";
    const CONFIGS: [&'static str; 2] = [include_str!("quick.toml"), include_str!("full.toml")];

    fn check(config: &Config) -> Result<(), LabError> {
        config.check()
    }

    fn points(config: &Config) -> Vec<(Point, f64)> {
        let n = config.environments.len() as f64;
        let mut points = Vec::new();
        for &seed in &config.seeds {
            let point = |arm, env| Point { seed, arm, env };
            if seed == config.seeds[0] {
                points.push((point(Arm::Base, None), 0.5));
            }
            points.extend(config.environments.iter().map(|env| (point(Arm::Subagent, Some(env.clone())), 1.0)));
            points.extend(Arm::ONE_FOR_ALL.map(|arm| (point(arm, None), n)));
        }
        points
    }

    fn after(config: &Config, point: &Point) -> Vec<Point> {
        let learns_all = Arm::ONE_FOR_ALL.contains(&point.arm);
        let subagent = |env: &String| Point { seed: point.seed, arm: Arm::Subagent, env: Some(env.clone()) };
        config.environments.iter().filter(|_| learns_all).map(subagent).collect()
    }

    fn seeds(config: &Config) -> Vec<u64> {
        config.seeds.clone()
    }

    fn model(config: &Config) -> Option<String> {
        Some(config.model.clone())
    }

    fn measure(config: &Config, point: Point, desk: &mut Desk<'_>) -> Result<(), LabError> {
        arms::measure(config, &point, desk)
    }

    fn report(runs: &[Run], page: &mut Page) {
        report::report(runs, page);
    }
}

impl Config {
    fn check(&self) -> Result<(), LabError> {
        let wrong = |what: &str| Err(LabError::Config(what.to_owned()));
        let counts = [self.steps, self.items, self.rank, self.checkpoints, self.test_items];
        if self.environments.is_empty() || self.seeds.is_empty() {
            return wrong("environments and seeds name at least one each");
        }
        if counts.contains(&0) || self.validation_items == 0 || self.text_tokens < 2 {
            return wrong(
                "steps, items, rank, checkpoints and numbers of items are at least 1, text_tokens at least 2",
            );
        }
        if self.samples < 2 {
            return wrong("samples: at least 2, for a reward is compared with those of the other samples");
        }
        let mut names: Vec<&String> = self.environments.iter().chain(&self.bystanders).collect();
        names.sort();
        names.dedup();
        if names.len() < self.environments.len() + self.bystanders.len() {
            return wrong("every environment is named once, to be learned or to stand by");
        }
        for name in names {
            crate::envs::find(name).map_err(|error| LabError::Config(error.to_string()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Experiment, Planned, Size, parse_config};

    #[test]
    fn both_sizes_are_plans_whose_traces_come_before_who_learns_from_them() {
        let config = |size| parse_config::<Config>(Artifact.config(size)).unwrap();
        for size in [Size::Quick, Size::Full] {
            let plan = Artifact.plan(Artifact.config(size)).unwrap();
            for (at, Planned { cell, after, .. }) in plan.cells.iter().enumerate() {
                let Point { arm, .. } = cell.read().unwrap();
                let teachers = if Arm::ONE_FOR_ALL.contains(&arm) { config(size).environments.len() } else { 0 };
                assert_eq!(after.len(), teachers);
                assert!(after.iter().all(|cell| plan.cells[..at].iter().any(|before| before.cell == *cell)));
            }
        }
        let full = config(Size::Full);
        assert!(full.environments.len() >= 4 && full.seeds.len() >= 5);
    }

    #[test]
    fn a_configuration_that_is_none_is_refused_with_what_would_be_right() {
        let quick = Artifact.config(Size::Quick);
        for (from, to, what) in [
            ("samples = 8", "samples = 1", "at least 2"),
            ("\"capitals\"", "\"repeat\"", "named once"),
            ("\"capitals\"", "\"capitlas\"", "did you mean"),
            ("rank = 8", "rank = 0", "at least 1"),
            ("rank = 8", "rnak = 8", "rnak"),
            ("seeds = [0]", "seeds = []", "at least one"),
        ] {
            let error = Artifact.plan(&quick.replace(from, to)).err().expect(to).to_string();
            assert!(error.contains(what), "{to}: {error}");
        }
    }
}
