//! B1: every context becomes a LoRA adapter over the base. By self-study (Cartridges, arXiv 2506.06266): questions seeded by the context's own
//! items, trained against the base's answers with the context before it; and by predicting the context's next tokens, as baseline. Never
//! sees right answers.

use super::{
    found::Bench,
    study::{Course, Study, taught},
};
use crate::{
    lab::{
        Cost, LabError, Meter, Purpose,
        synthetic::{
            symbols::BEGIN,
            work::{Stretch, train_under},
        },
    },
    train::{AdamW, Job, Loss, PassLimits, TrainRow, forward_backward, loss, optim_step},
};
use socius_models::{Layout, Projection};

/// What is adapted: the MLPs. The base's attention is as sharp as a table, and a small change of its queries or keys is a large one of
/// what it finds: with all linears at 1e-2, 16 facts were not learned in 512 steps (77 of 80 questions, one run).
const ADAPTED: [Projection; 3] = [Projection::Gate, Projection::Up, Projection::Down];
/// The adapter arm of a cell: ranks from the smallest until one has learned.
pub(super) fn measure(bench: &mut Bench<'_, '_>) -> Result<(), LabError> {
    let (rows, teacher) = taught(bench)?;
    let mut before = teacher;
    for rank in bench.config.adapter.ranks.clone() {
        let layout = Layout::uniform(bench.reader.spec(), &ADAPTED, rank, 2.0);
        let mut study = Study::of_adapters(bench, layout, (&rows, course(bench)), "self-study");
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

fn course(bench: &Bench<'_, '_>) -> Course {
    let settings = &bench.config.adapter;
    Course { lr: settings.lr, batch: settings.batch, steps_max: settings.steps_max }
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
    let mut study = Study::of_adapters(bench, layout, (&rows, course(bench)), "next-token");
    let meter = Meter::begin();
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
            flops += train_under(bench.reader.spec(), &study.layout, stretch);
            tokens += read as u64;
        }
        study.steps += 1;
    }
    study.cost += meter.cost(Purpose::Trained, tokens, flops);
    study.record(bench, "next token", &Cost::default())?;
    Ok(())
}
