//! B3: every context becomes the keys and values of a prefix (a cartridge, Eyuboglu et al. 2025, arXiv 2506.06266), fewer than the context has,
//! trained as B1 is by self-study. Never sees right answers.

use super::{
    config::PrefixConfig,
    found::Bench,
    smallest::smallest,
    study::{Course, Study, taught},
};
use crate::lab::LabError;

/// The arm of a cell: the shortest prefix that learns. One that is as long as the context is the context itself, and is not tried.
pub(super) fn measure(bench: &mut Bench<'_, '_>, settings: &PrefixConfig) -> Result<(), LabError> {
    // The prefix stands where the context stood, its beginning included.
    let (rows, teacher) = taught(bench, &[])?;
    let course = Course::distilled((settings.lr, settings.batch), (settings.steps_max, settings.passes_max));
    let length = bench.contexts.iter().map(|context| context.tokens().len()).min().unwrap_or(0);
    let shorter: Vec<usize> = settings.positions.iter().copied().filter(|&positions| positions < length).collect();
    smallest(bench, ("self-study", &shorter), teacher, |bench, positions| {
        Study::of_prefixes(bench, positions, (&rows, course))
    })?;
    Ok(())
}
