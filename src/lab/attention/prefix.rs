//! B3: every context becomes the keys and values of a prefix (a cartridge, Eyuboglu et al. 2025, arXiv 2506.06266), fewer than the context has,
//! trained as B1 is by self-study. Never sees right answers.

use super::{
    config::PrefixConfig,
    found::Bench,
    study::{Course, Study, taught},
};
use crate::{
    lab::{Cost, LabError, Purpose},
    train::loss,
};

/// The arm of a cell: prefixes from the shortest until one has learned. One that is as long as the context is the context itself, and is
/// not tried.
pub(super) fn measure(bench: &mut Bench<'_, '_>, settings: &PrefixConfig) -> Result<(), LabError> {
    // The prefix stands where the context stood, its beginning included.
    let (rows, teacher) = taught(bench, &[])?;
    let course =
        Course { loss: &loss::distillation, lr: settings.lr, batch: settings.batch, steps_max: settings.steps_max };
    let mut before: Cost = teacher;
    let length = bench.contexts.iter().map(|context| context.tokens().len()).min().unwrap_or(0);
    for &positions in settings.positions.iter().filter(|&&positions| positions < length) {
        let mut study = Study::of_prefixes(bench, positions, (&rows, course))?;
        let learned = study.until_learned(bench)?;
        let found = study.record(bench, "self-study", &before)?;
        if learned && found {
            break;
        }
        // What was tried and not taken is part of what the next one costs.
        before += study.cost.as_purpose(Purpose::Sweep);
    }
    Ok(())
}
