//! A training step as learning takes it: rows of several learners in one joint pass, and a step of each. Never samples.

use super::{BenchError, random_tokens};
use crate::{
    common::Seed,
    lora::{LoraConfig, init},
    train::{AdamW, Job, Learner, PassLimits, TrainRow, forward_backward, loss, optim_step},
};
use socius_models::{Model, Projection};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    /// Learners in one joint pass.
    pub learners: usize,
    /// Rows of each learner.
    pub batch: usize,
    /// Tokens of a row, every one with a loss.
    pub length: usize,
    /// Rank of the adapters, which are on every linear.
    pub rank: usize,
    /// What a pass may hold.
    pub limits: PassLimits,
}

/// Learners that train on random tokens.
pub struct Training<'m> {
    model: &'m Model,
    limits: PassLimits,
    learners: Vec<Learner>,
    /// Of each learner.
    rows: Vec<Vec<TrainRow>>,
}

impl<'m> Training<'m> {
    /// Untrained learners and their rows.
    ///
    /// # Errors
    /// If the rank is out of range.
    pub fn new(model: &'m Model, work: Train) -> Result<Self, BenchError> {
        let (spec, rank) = (model.spec(), work.rank);
        let layout = LoraConfig::uniform(rank, 2.0 * rank as f64, &Projection::ALL).layout(spec)?;
        let learner = |i| Learner::new(layout.clone(), init(&layout, Seed::new(i)), i, 0.0);
        // The last token of a row is only predicted, so one more makes `length` go through the model.
        let row = |i| {
            let mut prompt = random_tokens(i, work.length + 1, spec.vocab);
            let completion = prompt.split_off(1);
            TrainRow::answer(prompt, completion)
        };
        let rows = |learner| (0..work.batch).map(|i| row(learner * work.batch + i)).collect();
        Ok(Self {
            model,
            limits: work.limits,
            learners: (0..work.learners as u64).map(learner).collect(),
            rows: (0..work.learners).map(rows).collect(),
        })
    }

    /// How many parameters all learners have.
    pub fn parameters(&self) -> usize {
        self.learners.iter().map(|learner| learner.theta().len()).sum()
    }

    /// Forward, backward and AdamW, with the settings that learning has by default.
    ///
    /// # Errors
    /// If a row is longer than the context, or what training says.
    pub fn step(&mut self) -> Result<(), BenchError> {
        let jobs = self.learners.iter_mut().zip(&self.rows);
        let mut jobs: Vec<Job<'_>> = jobs.map(|(learner, rows)| Job { learner, rows, loss: &loss::nll }).collect();
        forward_backward(self.model, &mut jobs, self.limits)?;
        for learner in &mut self.learners {
            optim_step(learner, &AdamW::default())?;
        }
        Ok(())
    }
}
