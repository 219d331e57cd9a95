//! The experiment `bandwidth`: what a society answers and costs when its messages hold β tokens, and whether notes to a future self are worth
//! the same tokens of context. Never decides what a figure means.

mod findings;
mod notes;

use super::{
    Cost, Desk, Grid, LabError, Run,
    attention::society::{Agents, Society, Topology},
    synthetic::{Context, Question, Reader, Sizes, Workload, symbols::KEYS},
};
use crate::{agent::wilson, common::Seed, report::Page};
use serde::{Deserialize, Serialize};

/// See the module.
pub struct Bandwidth;

/// The configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    seeds: Vec<u64>,
    sizes: Vec<usize>,
    workloads: Vec<Workload>,
    questions: usize,
    chunk: usize,
    budgets: Vec<usize>,
    topologies: Vec<Topology>,
    fan: usize,
}

/// A cell: all budgets of one workload at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    workload: Workload,
    n: usize,
    seed: u64,
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Found {
    /// A topology, `notes`, or `end of the context`.
    way: String,
    /// β of a message, or the tokens that all notes or the end of the context may have.
    budget: usize,
    correct: usize,
    questions: usize,
    recall95: [f64; 2],
    /// Operations of a context and of a question.
    fixed: f64,
    each: f64,
    /// Tokens that notes came to on average, if they are notes.
    written: Option<f64>,
}

impl Grid for Bandwidth {
    type Config = Config;
    type Point = Point;
    const NAME: &'static str = "bandwidth";
    const SUMMARY: &'static str = "what messages of so many tokens let a society answer, and notes to a future self beside the same tokens of context";
    const CONFIGS: [&'static str; 2] = [include_str!("quick.toml"), include_str!("full.toml")];

    fn check(config: &Config) -> Result<(), LabError> {
        let fault = |what: &str| Err(LabError::Config(what.to_owned()));
        if config.questions == 0 || config.chunk == 0 || config.fan < 2 {
            return fault("questions and chunk are above 0, fan is at least 2");
        }
        if config.sizes.iter().any(|n| !(4..=(KEYS * KEYS) as usize).contains(n)) {
            return fault("sizes: from 4 to 4096 items");
        }
        Ok(())
    }

    fn points(config: &Config) -> Vec<(Point, f64)> {
        let mut points = Vec::new();
        for &n in &config.sizes {
            for &seed in &config.seeds {
                points.extend(config.workloads.iter().map(|&workload| (Point { workload, n, seed }, n as f64)));
            }
        }
        points
    }

    fn seeds(config: &Config) -> Vec<u64> {
        config.seeds.clone()
    }

    fn measure(config: &Config, point: Point, desk: &mut Desk<'_>) -> Result<(), LabError> {
        let seed = Seed::new(point.seed);
        let contexts = point.workload.contexts(point.n, config.questions, seed.purpose("contexts"));
        let most = config.budgets.iter().copied().max().unwrap_or(0);
        let agents = point.n.div_ceil(config.chunk);
        let sizes = Sizes { intermediate: 16, context_max: 9 * point.n + (most + 6) * (agents + 1) + 64 };
        let reader = Reader::new(sizes, seed.purpose("base"))?;
        let asked = contexts.iter().enumerate();
        let questions: Vec<(usize, Question)> =
            asked.flat_map(|(i, context)| context.forward().iter().map(move |&question| (i, question))).collect();
        let agents = Agents::read(&reader, &contexts, config.chunk)?;
        let total = config.budgets.len() as u64;
        for (done, &budget) in config.budgets.iter().enumerate() {
            desk.step(done as u64, total, format!("{budget} tokens"))?;
            for &topology in &config.topologies {
                let society = Society { message: budget, topology, fan: config.fan, routed: None };
                let spoken = society.answer(&reader, &agents, &questions)?;
                keep(
                    desk,
                    &society.name(),
                    budget,
                    (&contexts, &questions),
                    &spoken.given,
                    (spoken.fixed, spoken.asked),
                    None,
                )?;
            }
            let noted = notes::answer(&reader, &contexts, &questions, config.chunk, budget)?;
            keep(
                desk,
                "notes",
                budget,
                (&contexts, &questions),
                &noted.given,
                (noted.fixed, noted.asked),
                Some(noted.written),
            )?;
            let ended = notes::end(&reader, &contexts, &questions, budget)?;
            keep(
                desk,
                "end of the context",
                budget,
                (&contexts, &questions),
                &ended.given,
                (ended.fixed, ended.asked),
                None,
            )?;
        }
        Ok(())
    }

    fn report(runs: &[Run], page: &mut Page) {
        findings::write(runs, page);
    }
}

/// Grades and keeps what was answered one way.
fn keep(
    desk: &mut Desk<'_>,
    way: &str,
    budget: usize,
    (contexts, questions): (&[Context], &[(usize, Question)]),
    given: &[u32],
    (fixed, asked): (Cost, Cost),
    written: Option<f64>,
) -> Result<(), LabError> {
    let right = given.iter().zip(questions).filter(|(given, (_, question))| **given == question.answer);
    let correct = right.count();
    let found = Found {
        way: way.to_owned(),
        budget,
        correct,
        questions: questions.len(),
        recall95: wilson(correct, questions.len()),
        fixed: fixed.total_flops() / contexts.len() as f64 + 0.0,
        each: asked.total_flops() / questions.len() as f64,
        written,
    };
    desk.record(&found, fixed + asked)
}
