//! B2: every context becomes a model of its own from scratch, the smallest of several widths that answers the context's questions as the base
//! did with the context before it. Never sees right answers.

use super::{
    config::ScratchConfig,
    found::Bench,
    study::{Course, Study, taught},
};
use crate::{
    lab::{
        Cost, LabError, Purpose,
        synthetic::symbols::{BEGIN, VOCAB},
    },
    train::loss,
};
use socius_models::Spec;

/// Width of an attention head, or of the model where that is narrower.
const HEAD: usize = 16;

/// The arm of a cell: widths from the smallest until one has learned.
pub(super) fn measure(bench: &mut Bench<'_, '_>, settings: &ScratchConfig) -> Result<(), LabError> {
    let (rows, teacher) = taught(bench, &[BEGIN])?;
    let course =
        Course { loss: &loss::distillation, lr: settings.lr, batch: settings.batch, steps_max: settings.steps_max };
    let mut before: Cost = teacher;
    for &width in &settings.widths {
        let spec = Spec::small(VOCAB as usize, width, settings.layers, (width / HEAD).max(1));
        let mut study = Study::of_models(bench, &spec, (&rows, course))?;
        let learned = study.until_learned(bench)?;
        let found = study.record(bench, "all weights", &before)?;
        if learned && found {
            break;
        }
        // What was tried and not taken is part of what the next one costs.
        before += study.cost.as_purpose(Purpose::Sweep);
    }
    Ok(())
}
