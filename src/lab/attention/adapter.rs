//! B1: every context becomes a LoRA adapter over the base. By self-study (Cartridges, arXiv 2506.06266): questions seeded by the context's own
//! items, trained against the base's answers with the context before it; and by predicting the context's next tokens, as baseline. Never
//! sees right answers.

use super::{
    config::AdapterConfig,
    found::Bench,
    smallest::smallest,
    study::{Course, Study, taught},
};
use crate::{
    lab::{Cost, LabError, synthetic::symbols::BEGIN},
    train::{TrainRow, loss},
};
use socius_models::{Layout, Projection};

/// What is adapted: the MLPs. The base's attention is as sharp as a table, and a small change of its queries or keys is a large one of
/// what it finds: with all linears at 1e-2, 16 facts were not learned in 512 steps (77 of 80 questions, one run).
const ADAPTED: [Projection; 3] = [Projection::Gate, Projection::Up, Projection::Down];

/// The adapter arm of a cell: the smallest rank that learns.
pub(super) fn measure(bench: &mut Bench<'_, '_>, settings: &AdapterConfig) -> Result<(), LabError> {
    let (rows, teacher) = taught(bench, &[BEGIN])?;
    let course = Course::distilled((settings.lr, settings.batch), (settings.steps_max, settings.passes_max));
    let found = smallest(bench, ("self-study", &settings.ranks), teacher, |bench, rank| {
        let layout = Layout::uniform(bench.reader.spec(), &ADAPTED, rank, 2.0);
        Ok(Study::of_adapters(bench, layout, (&rows, course), "self-study"))
    })?;
    found.map_or(Ok(()), |study| next_token(bench, course, study.layout, study.steps))
}

/// The baseline: the same adapter learns to continue the contexts themselves, for as many tokens as self-study trained on and no more steps.
fn next_token(bench: &mut Bench<'_, '_>, course: Course, layout: Layout, steps: usize) -> Result<(), LabError> {
    let trained = 4 * course.batch.min(bench.contexts[0].forward().len()) * steps;
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
    let steps = (trained / read.max(1)).clamp(1, steps);
    let course = Course { loss: &loss::nll, batch: 1, ..course };
    let mut study = Study::of_adapters(bench, layout, (&rows, course), "next-token");
    study.train(bench, steps)?;
    study.record(bench, "next token", &Cost::default())
}
