//! What every cell of the experiment needs and records: contexts, the base, and answers counted with what they took. Never knows how an arm
//! answers.

use super::config::{Config, Point};
use crate::{
    agent::wilson,
    common::Seed,
    lab::{
        Cost, Desk, LabError, Meter, Purpose,
        synthetic::{Context, Form, Question, Reader, Sizes},
    },
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The lower 95 % bound of recall that counts as answering.
pub const QUALITY: f64 = 0.95;

/// A measurement of the experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Which variant of the arm.
    pub variant: String,
    /// Forward questions answered rightly.
    pub correct: usize,
    /// Forward questions asked.
    pub questions: usize,
    /// Contexts that they were about.
    pub contexts: usize,
    /// Wilson's 95 % interval of recall.
    pub recall95: [f64; 2],
    /// Whether the lower bound is [`QUALITY`] or more.
    pub reached: bool,
    /// Questions in other forms: answered rightly, asked.
    pub forms: BTreeMap<Form, [usize; 2]>,
    /// A context before any question: operations, seconds.
    pub fixed: [f64; 2],
    /// A question: operations, seconds.
    pub each: [f64; 2],
    /// Bytes kept between questions.
    pub kept_bytes: u64,
    /// What was chosen or needed: steps, rank, width, parameters.
    pub setting: BTreeMap<String, f64>,
}

/// What a variant answered and what that took, over all contexts.
pub struct Answers<'a> {
    /// Which variant.
    pub variant: &'a str,
    /// One for every question of every context, in their order; none for forms that were not asked.
    pub given: Vec<Option<u32>>,
    /// Before any question.
    pub fixed: Cost,
    /// All forward questions together.
    pub asked: Cost,
    /// A context's.
    pub kept_bytes: u64,
    /// See [`Found::setting`].
    pub setting: BTreeMap<String, f64>,
}

/// A cell in the making.
pub struct Bench<'a, 'd> {
    /// The run's configuration.
    pub config: &'a Config,
    /// The cell.
    pub point: Point,
    /// The base.
    pub reader: Reader,
    /// As many as have the forward questions that were asked for.
    pub contexts: Vec<Context>,
    /// Of the cell: contexts, base and training have their own purposes of it.
    pub seed: Seed,
    /// Where measurements go.
    pub desk: &'a mut Desk<'d>,
}

impl<'a, 'd> Bench<'a, 'd> {
    /// Contexts and base of a cell.
    pub fn new(config: &'a Config, point: Point, desk: &'a mut Desk<'d>) -> Result<Self, LabError> {
        let seed = Seed::new(point.seed);
        let contexts = point.workload.contexts(point.n, config.questions, seed.purpose("contexts"));
        // Items, messages of every agent, a question: three times the items is more than any arm reads.
        let sizes = Sizes { intermediate: config.intermediate, context_max: 9 * point.n + 1024 };
        let reader = Reader::new(sizes, seed.purpose("base"))?;
        Ok(Self { config, point, reader, contexts, seed, desk })
    }

    /// Every forward question with its context's index.
    pub fn forward(&self) -> Vec<(usize, Question)> {
        let asked = self.contexts.iter().enumerate();
        asked.flat_map(|(i, context)| context.forward().iter().map(move |&question| (i, question))).collect()
    }

    /// Every question in whatever form with its context's index.
    pub fn all(&self) -> Vec<(usize, Question)> {
        let asked = self.contexts.iter().enumerate();
        asked.flat_map(|(i, context)| context.questions.iter().map(move |&question| (i, question))).collect()
    }

    /// Grades and keeps what a variant answered.
    pub fn record(&mut self, answers: Answers<'_>) -> Result<(), LabError> {
        let mut forms: BTreeMap<Form, [usize; 2]> = BTreeMap::new();
        let questions = self.all();
        assert_eq!(questions.len(), answers.given.len(), "an answer a question");
        for ((_, question), given) in questions.iter().zip(&answers.given) {
            if let Some(given) = given {
                let tally = forms.entry(question.form).or_default();
                tally[0] += usize::from(*given == question.answer);
                tally[1] += 1;
            }
        }
        let [correct, asked] = forms.get(&Form::Forward).copied().unwrap_or_default();
        let recall95 = wilson(correct, asked);
        let contexts = self.contexts.len();
        // Adding 0.0 turns the sum of nothing, which is -0, into 0.
        let share = |cost: &Cost, of: usize| [cost.total_flops() / of as f64 + 0.0, cost.seconds / of as f64];
        let found = Found {
            variant: answers.variant.to_owned(),
            correct,
            questions: asked,
            contexts,
            recall95,
            reached: recall95[0] >= QUALITY,
            forms,
            fixed: share(&answers.fixed, contexts),
            each: share(&answers.asked, asked.max(1)),
            kept_bytes: answers.kept_bytes,
            setting: answers.setting,
        };
        let cost = Cost { kept_bytes: answers.kept_bytes, ..answers.fixed + answers.asked };
        self.desk.record(&found, cost)
    }
}

/// Runs `work`, which says what operations and tokens it took, and adds the seconds and what the kernels count.
pub fn timed<T>(
    purpose: Purpose,
    work: impl FnOnce() -> Result<(T, u64, f64), LabError>,
) -> Result<(T, Cost), LabError> {
    let meter = Meter::begin();
    let (value, tokens, flops) = work()?;
    Ok((value, meter.cost(purpose, tokens, flops)))
}
