//! B2: every context becomes a model of its own from scratch, the smallest of several widths that answers the context's questions as the base
//! did with the context before it. Never sees right answers.

use super::{
    config::ScratchConfig,
    found::Bench,
    smallest::smallest,
    study::{Course, Study, taught},
};
use crate::lab::{
    LabError,
    synthetic::symbols::{BEGIN, VOCAB},
};
use socius_models::Spec;

/// Width of an attention head, or of the model where that is narrower.
const HEAD: usize = 16;

/// The arm of a cell: the smallest width that learns.
pub(super) fn measure(bench: &mut Bench<'_, '_>, settings: &ScratchConfig) -> Result<(), LabError> {
    let (rows, teacher) = taught(bench, &[BEGIN])?;
    let course = Course::distilled((settings.lr, settings.batch), (settings.steps_max, settings.passes_max));
    smallest(bench, ("all weights", &settings.widths), teacher, |bench, width| {
        let spec = Spec::small(VOCAB as usize, width, settings.layers, (width / HEAD).max(1));
        Study::of_models(bench, &spec, (&rows, course))
    })?;
    Ok(())
}
