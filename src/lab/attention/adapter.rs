//! B1: every context becomes a LoRA adapter over the base. By self-study (Cartridges, arXiv 2506.06266): questions seeded by the context's own
//! items, trained against the base's answers with the context before it; and by predicting the context's next tokens, as baseline. Never
//! sees right answers.

use super::found::{Answers, Bench, timed};
use crate::{
    common::Rng,
    lab::{
        Cost, LabError, Purpose,
        synthetic::{
            Question, best,
            symbols::BEGIN,
            work::{Stretch, train_adapter},
        },
    },
    lora,
    train::{AdamW, Job, Learner, Loss, PassLimits, TrainRow, forward_backward, loss, optim_step},
};
use socius_models::{Adapter, Layout, Projection};
use std::{collections::BTreeMap, time::Instant};

/// What is adapted: the MLPs. The base's attention is as sharp as a table, and a small change of its queries or keys is a large one of
/// what it finds: with all linears at 1e-2, 16 facts were not learned in 512 steps (77 of 80 questions, one run).
const ADAPTED: [Projection; 3] = [Projection::Gate, Projection::Up, Projection::Down];
/// Symbols of a teacher's distribution that are kept.
const TEACHER_KEPT: usize = 8;
/// The share of trained questions that must be answered as the teacher did. Looking there needs no right answers.
const LEARNED: f64 = 0.99;
/// Steps after which is looked first.
const LOOK_FIRST: usize = 8;

/// The adapter arm of a cell: ranks from the smallest until one has learned.
pub(super) fn measure(bench: &mut Bench<'_, '_>) -> Result<(), LabError> {
    let (rows, teacher) = taught(bench)?;
    let mut before = teacher;
    for rank in bench.config.adapter.ranks.clone() {
        let layout = Layout::uniform(bench.reader.spec(), &ADAPTED, rank, 2.0);
        let mut study = Study::new(bench, layout, &rows, "self-study");
        let learned = study.until_learned(bench)?;
        let found = study.record(bench, "self-study", &before)?;
        if learned && found {
            return next_token(bench, rank, study.steps);
        }
        // What was tried and not taken is part of what the next one costs.
        before += study.cost.as_purpose(Purpose::Sweep);
    }
    Ok(())
}

/// For every context the rows that it is learned from, and what asking the teacher took.
fn taught(bench: &Bench<'_, '_>) -> Result<(Vec<Vec<TrainRow>>, Cost), LabError> {
    let reader = &bench.reader;
    let contexts: Vec<Vec<u32>> = bench.contexts.iter().map(|context| context.tokens()).collect();
    let questions = bench.forward();
    timed(Purpose::Teacher, || {
        let (read, flops) = reader.read(&contexts)?;
        let asked: Vec<_> = questions.iter().map(|(i, question)| (&read[*i], question.tokens.to_vec())).collect();
        let answered = reader.ask(&asked)?;
        let mut rows: Vec<Vec<TrainRow>> = vec![Vec::new(); contexts.len()];
        for ((i, question), logits) in questions.iter().zip(&answered.logits) {
            let prompt = [&[BEGIN][..], &question.tokens].concat();
            rows[*i].push(TrainRow::soft(prompt, vec![best(logits)], vec![likeliest(logits)]));
        }
        let tokens = contexts.iter().map(|tokens| tokens.len() as u64).sum::<u64>() + answered.tokens;
        Ok((rows, tokens, flops + answered.flops))
    })
}

/// The most probable symbols with their probabilities, which add up to 1.
fn likeliest(logits: &[f32]) -> Vec<(u32, f32)> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|logit| (logit - highest).exp())).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(TEACHER_KEPT);
    let sum: f32 = all.iter().map(|(_, p)| p).sum();
    all.iter().map(|&(token, p)| (token, p / sum)).collect()
}

/// A learner a context, all trained in the same passes over the base.
struct Study<'r> {
    layout: Layout,
    learners: Vec<Learner>,
    rows: &'r [Vec<TrainRow>],
    draws: Vec<Draw>,
    steps: usize,
    cost: Cost,
}

/// Rows in an order that is shuffled whenever all were seen.
pub(super) struct Draw {
    order: Vec<usize>,
    at: usize,
    rng: Rng,
}

impl Draw {
    /// Over `count` rows.
    pub(super) fn new(count: usize, rng: Rng) -> Self {
        Self { order: (0..count).collect(), at: count, rng }
    }

    /// The next rows: `batch` of them, or all if there are fewer.
    pub(super) fn take(&mut self, batch: usize) -> Vec<usize> {
        let count = self.order.len();
        (0..batch.min(count))
            .map(|_| {
                if self.at == count {
                    self.rng.shuffle(&mut self.order);
                    self.at = 0;
                }
                self.at += 1;
                self.order[self.at - 1]
            })
            .collect()
    }
}

impl<'r> Study<'r> {
    fn new(bench: &Bench<'_, '_>, layout: Layout, rows: &'r [Vec<TrainRow>], purpose: &str) -> Self {
        let seed = bench.seed.purpose("adapter").purpose(purpose);
        let learner = |i: usize| {
            let seed = seed.index(i as u64);
            Learner::new(layout.clone(), lora::init(&layout, seed), seed.key(), 0.0)
        };
        let learners = (0..rows.len()).map(learner).collect();
        let draw =
            |(i, rows): (usize, &Vec<TrainRow>)| Draw::new(rows.len(), seed.purpose("order").index(i as u64).rng());
        let draws = rows.iter().enumerate().map(draw).collect();
        Self { layout, learners, rows, draws, steps: 0, cost: Cost::default() }
    }

    /// Trains until almost all trained questions are answered as the teacher did, or the steps are used up.
    fn until_learned(&mut self, bench: &mut Bench<'_, '_>) -> Result<bool, LabError> {
        let mut look = LOOK_FIRST;
        loop {
            let most = bench.config.adapter.steps_max;
            bench.desk.step(self.steps as u64, most as u64, format!("rank {}", self.layout.sites()[0].rank))?;
            self.train(bench, look.min(most))?;
            if self.agreement(bench)? >= LEARNED {
                return Ok(true);
            }
            if self.steps >= most {
                return Ok(false);
            }
            look *= 2;
        }
    }

    fn train(&mut self, bench: &Bench<'_, '_>, until: usize) -> Result<(), LabError> {
        let begun = Instant::now();
        let settings = AdamW { lr: bench.config.adapter.lr, ..AdamW::default() };
        let distil: &Loss<'_> = &loss::distillation;
        let (mut tokens, mut flops) = (0, 0.0);
        while self.steps < until {
            let batches: Vec<Vec<TrainRow>> = self
                .draws
                .iter_mut()
                .zip(self.rows)
                .map(|(draw, rows)| {
                    draw.take(bench.config.adapter.batch).into_iter().map(|i| rows[i].clone()).collect()
                })
                .collect();
            let mut jobs: Vec<Job<'_>> = self
                .learners
                .iter_mut()
                .zip(&batches)
                .map(|(learner, rows)| Job { learner, rows, loss: distil })
                .collect();
            let limits = PassLimits { share_prompts: false, ..PassLimits::default() };
            forward_backward(bench.reader.model(), &mut jobs, limits)?;
            for learner in &mut self.learners {
                optim_step(learner, &settings)?;
            }
            for row in batches.iter().flatten() {
                let read = row.prompt.len() + row.completion.len() - 1;
                let stretch = Stretch { cached: 0, tokens: read, scored: row.completion.len() };
                flops += train_adapter(bench.reader.spec(), &self.layout, stretch);
                tokens += read as u64;
            }
            self.steps += 1;
        }
        self.cost += Cost { seconds: begun.elapsed().as_secs_f64(), ..Cost::of(Purpose::Trained, tokens, flops) };
        Ok(())
    }

    /// The share of trained questions that are answered as the teacher did.
    fn agreement(&mut self, bench: &Bench<'_, '_>) -> Result<f64, LabError> {
        let trained: Vec<(usize, [u32; 3], u32)> = self
            .rows
            .iter()
            .enumerate()
            .flat_map(|(i, rows)| {
                rows.iter().map(move |row| (i, [row.prompt[1], row.prompt[2], row.prompt[3]], row.completion[0]))
            })
            .collect();
        let questions: Vec<(Option<usize>, [u32; 3])> = trained.iter().map(|row| (Some(row.0), row.1)).collect();
        let adapters: Vec<Adapter<'_>> = self.learners.iter().map(Learner::adapter).collect();
        let (answers, took) = timed(Purpose::Validation, || {
            let answered = bench.reader.recall(&questions, &adapters)?;
            Ok((answered.best(), answered.tokens, answered.flops))
        })?;
        self.cost += took;
        let same = answers.iter().zip(&trained).filter(|(answer, row)| **answer == row.2).count();
        Ok(same as f64 / trained.len() as f64)
    }

    /// Asks everything and keeps what was found; whether the quality was reached.
    fn record(&self, bench: &mut Bench<'_, '_>, variant: &str, before: &Cost) -> Result<bool, LabError> {
        let adapters: Vec<Adapter<'_>> = self.learners.iter().map(Learner::adapter).collect();
        let ask = |questions: Vec<(usize, Question)>| {
            let questions: Vec<_> = questions.iter().map(|(i, question)| (Some(*i), question.tokens)).collect();
            timed(Purpose::Decode, || {
                let answered = bench.reader.recall(&questions, &adapters)?;
                Ok((answered.best(), answered.tokens, answered.flops))
            })
        };
        let (_, asked) = ask(bench.forward())?;
        let (given, _) = ask(bench.all())?;
        let setting = BTreeMap::from([
            ("rank".to_owned(), self.layout.sites()[0].rank as f64),
            ("parameters".to_owned(), self.layout.len() as f64),
            ("steps".to_owned(), self.steps as f64),
        ]);
        let fixed = before.clone() + self.cost.clone();
        let kept_bytes = 4 * self.layout.len() as u64;
        let given = given.into_iter().map(Some).collect();
        Ok(bench.record(Answers { variant, given, fixed, asked, kept_bytes, setting })?.reached)
    }
}

/// The baseline: the same adapter learns to continue the contexts themselves, for as many tokens as self-study trained on.
fn next_token(bench: &mut Bench<'_, '_>, rank: usize, steps: usize) -> Result<(), LabError> {
    let trained = 4 * bench.config.adapter.batch.min(bench.contexts[0].forward().len()) * steps;
    let rows: Vec<Vec<TrainRow>> = bench
        .contexts
        .iter()
        .map(|context| {
            // A quarter of what fits in a pass, so that a step is no longer than it need be.
            let pieces = context.items.chunks(64);
            pieces.map(|items| TrainRow::answer(vec![BEGIN], items.concat())).collect()
        })
        .collect();
    let read: usize = rows[0].iter().map(|row| row.completion.len()).sum::<usize>() / rows[0].len();
    let steps = (trained / read.max(1)).clamp(1, bench.config.adapter.steps_max);
    let layout = Layout::uniform(bench.reader.spec(), &ADAPTED, rank, 2.0);
    let mut study = Study::new(bench, layout, &rows, "next-token");
    let begun = Instant::now();
    let settings = AdamW { lr: bench.config.adapter.lr, ..AdamW::default() };
    let (mut tokens, mut flops) = (0, 0.0);
    for _ in 0..steps {
        let batches: Vec<Vec<TrainRow>> = study
            .draws
            .iter_mut()
            .zip(&rows)
            .map(|(draw, rows)| draw.take(1).into_iter().map(|i| rows[i].clone()).collect())
            .collect();
        let likelihood: &Loss<'_> = &loss::nll;
        let mut jobs: Vec<Job<'_>> = study
            .learners
            .iter_mut()
            .zip(&batches)
            .map(|(learner, rows)| Job { learner, rows, loss: likelihood })
            .collect();
        forward_backward(bench.reader.model(), &mut jobs, PassLimits::default())?;
        for learner in &mut study.learners {
            optim_step(learner, &settings)?;
        }
        for row in batches.iter().flatten() {
            let read = row.completion.len();
            let stretch = Stretch { cached: 0, tokens: read, scored: read };
            flops += train_adapter(bench.reader.spec(), &study.layout, stretch);
            tokens += read as u64;
        }
        study.steps += 1;
    }
    study.cost += Cost { seconds: begun.elapsed().as_secs_f64(), ..Cost::of(Purpose::Trained, tokens, flops) };
    study.record(bench, "next token", &Cost::default())?;
    Ok(())
}
