//! The experiment `mqar`: Zoology's multi-query associative recall at Zoology's sizes, learned by our attention from scratch, so that what the
//! paper publishes of attention can be laid over it. Never decides what a figure means.
//!
//! What differs from the paper's attention: positions are rotary instead of learned, norms are RMSNorm, and there is no dropout. What is the
//! same: sequences, vocabulary, two layers of attention alone with one head, tied head, AdamW with decay 0.1 and half a cosine, the sweep of
//! rates, and training that ends early once 99 % of validation queries are right.

mod config;
mod findings;
mod pupil;

pub use config::{Config, Point, Size};

use super::{
    Desk, Grid, LabError, Run,
    synthetic::{Mqar as Setting, Recall},
};
use crate::{agent::wilson, common::Seed, report::Page};
use pupil::Pupil;
use serde::{Deserialize, Serialize};

/// See the module.
pub struct Mqar;

/// A measurement: one model at one rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Found {
    /// Test queries answered rightly.
    correct: usize,
    /// Test queries.
    queries: usize,
    /// Wilson's 95 % interval of accuracy.
    accuracy95: [f64; 2],
    /// Accuracy on validation queries, by which rates are chosen.
    validation: f64,
    /// Steps taken.
    steps: usize,
    /// Sequences trained on, each as often as it was.
    sequences: usize,
    /// Weights of the model.
    parameters: usize,
    /// Mean loss in nats of each stretch of training between two looks.
    losses: Vec<f64>,
}

impl Grid for Mqar {
    type Config = Config;
    type Point = Point;
    const NAME: &'static str = "mqar";
    const SUMMARY: &'static str = "Zoology's multi-query associative recall: accuracy of attention by width and length";
    const CONFIGS: [&'static str; 2] = [include_str!("quick.toml"), include_str!("full.toml")];

    fn check(config: &Config) -> Result<(), LabError> {
        config.check()
    }

    fn points(config: &Config) -> Vec<(Point, f64)> {
        config.points()
    }

    fn seeds(config: &Config) -> Vec<u64> {
        config.seeds.clone()
    }

    fn measure(config: &Config, point: Point, desk: &mut Desk<'_>) -> Result<(), LabError> {
        let size = config.size(&point)?;
        let setting = config.setting(size);
        // The same sequences for all widths and rates.
        let seed = Seed::new(point.seed).purpose("mqar").index(point.length as u64);
        let sequences = |purpose: &str, count: usize| -> Vec<Recall> {
            let seed = seed.purpose(purpose);
            (0..count as u64).map(|i| setting.sequence(seed.index(i))).collect()
        };
        let (validation, test) = (sequences("validation", config.validation), sequences("test", config.test));
        let mut pupil = Pupil::new(config, &point, seed)?;
        let (validation, losses) = pupil.study(&size, &|i| training(&setting, seed, i), &validation, desk)?;
        let correct = pupil.correct(&test)?;
        let queries = test.iter().map(|recall| recall.queries.len()).sum();
        let found = Found {
            correct,
            queries,
            accuracy95: wilson(correct, queries),
            validation,
            steps: pupil.steps,
            sequences: pupil.sequences,
            parameters: pupil.parameters(),
            losses,
        };
        desk.record(&found, pupil.cost.clone())
    }

    fn report(runs: &[Run], page: &mut Page) {
        findings::write(runs, page);
    }
}

/// The `i`-th training sequence: made again whenever it is seen, as that is less than keeping a hundred thousand.
fn training(setting: &Setting, seed: Seed, i: usize) -> Recall {
    setting.sequence(seed.purpose("train").index(i as u64))
}
