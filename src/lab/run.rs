//! A run: the cells of a configuration, measured into one folder. Never knows what they measure.

use super::{
    Cell, Cost, Desk, Finished, LabError, Launch, Manifest, Measurement, Planned, Records, Told, find, schedule,
};
use crate::common::{Home, Report, peak_bytes};
use std::{
    collections::HashSet,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

/// A run as far as it is.
pub struct Run {
    /// Where it lies.
    pub folder: PathBuf,
    /// What it is a run of.
    pub manifest: Manifest,
    /// Its cells in their order, each with how it ended and what was measured.
    pub cells: Vec<(Cell, Option<Finished>, Vec<Measurement>)>,
}

impl Run {
    /// Reads a run's folder.
    ///
    /// # Errors
    /// If it holds none, or one of an experiment that is not known here.
    pub fn read(folder: &Path) -> Result<Self, LabError> {
        let manifest = Manifest::read(folder)?;
        let plan = find(&manifest.experiment)?.plan(&manifest.config)?;
        let records = Records::open(folder)?;
        let state = |Planned { cell, .. }| {
            let (finished, measurements) = (records.finished(&cell).cloned(), records.measurements(&cell).to_vec());
            (cell, finished, measurements)
        };
        Ok(Self { folder: folder.to_owned(), manifest, cells: plan.cells.into_iter().map(state).collect() })
    }

    /// Everything that was measured in cells that are through.
    pub fn measurements(&self) -> impl Iterator<Item = &Measurement> {
        self.cells.iter().flat_map(|(_, _, measurements)| measurements)
    }

    /// How many cells are through, failed, and still to be measured.
    pub fn tally(&self) -> (usize, usize, usize) {
        let failed = |finished: &Finished| finished.error.is_some();
        let ended = self.cells.iter().filter_map(|(_, finished, _)| finished.as_ref());
        let failures = ended.clone().filter(|finished| failed(finished)).count();
        let through = ended.count() - failures;
        (through, failures, self.cells.len() - through - failures)
    }

    /// What all finished cells took.
    pub fn cost(&self) -> Cost {
        self.measurements().map(|measurement| measurement.cost.clone()).sum()
    }
}

/// What a call of [`run`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progressed {
    /// Cells that are through, earlier calls' included.
    pub through: usize,
    /// Cells that could not be measured.
    pub failed: usize,
    /// Cells that a limit left for the next call.
    pub left: usize,
}

/// How far a call may go.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// No cell begins after so long; none for no limit.
    pub time: Option<Duration>,
    /// Whether cells that failed before are measured again.
    pub retry: bool,
    /// Cells at a time.
    pub jobs: NonZeroUsize,
}

/// Measures what is missing of the run in `folder`.
///
/// # Errors
/// [`LabError::Cancelled`] if nobody waits any more, and whatever is no fault of a single cell. What was measured is kept.
pub fn run(
    folder: &Path,
    launch: &dyn Launch,
    limits: Limits,
    report: &mut dyn Report,
) -> Result<Progressed, LabError> {
    let manifest = Manifest::read(folder)?;
    let plan = find(&manifest.experiment)?.plan(&manifest.config)?;
    let mut records = Records::open(folder)?;
    let keys: HashSet<String> = plan.cells.iter().map(|planned| planned.cell.key()).collect();
    assert_eq!(keys.len(), plan.cells.len(), "no two cells of a plan are the same");
    let ended = |records: &Records, cell: &Cell| match records.finished(cell) {
        Some(Finished { error: Some(_), .. }) => !limits.retry,
        found => found.is_some(),
    };
    let todo: Vec<&Planned> = plan.cells.iter().filter(|planned| !ended(&records, &planned.cell)).collect();
    schedule::measure((folder, launch), (todo, plan.cells.len()), limits, &mut records, report)?;
    let count = |wanted: &dyn Fn(Option<&Finished>) -> bool| {
        plan.cells.iter().filter(|planned| wanted(records.finished(&planned.cell))).count()
    };
    let through = count(&|found| found.is_some_and(|finished| finished.error.is_none()));
    let failed = count(&|found| found.is_some_and(|finished| finished.error.is_some()));
    Ok(Progressed { through, failed, left: plan.cells.len() - through - failed })
}

/// What a cell's process does: measures the cell of that key in the run at `folder`, telling as it goes.
///
/// # Errors
/// [`LabError::Cancelled`] if nobody waits any more, and what keeps the cell from being found. What keeps it from being measured is
/// told.
pub fn measure_cell(
    (home, folder): (Home, &Path),
    key: &str,
    tell: &mut dyn FnMut(Told) -> Result<(), LabError>,
    report: &mut dyn Report,
) -> Result<(), LabError> {
    let manifest = Manifest::read(folder)?;
    let experiment = find(&manifest.experiment)?;
    let plan = experiment.plan(&manifest.config)?;
    let found = plan.cells.iter().find(|planned| planned.cell.key() == key);
    let unknown = || LabError::Cell(format!("the run has no cell {key}"));
    let cell = &found.ok_or_else(unknown)?.cell;
    let shared = folder.join("shared");
    let result = experiment.measure(&manifest.config, cell, &mut Desk { home, shared, report, tell });
    match result {
        Ok(()) => tell(Told::Finished { peak_bytes: peak_bytes() }),
        Err(error) if error.is_cancelled() => Err(LabError::Cancelled),
        Err(error) => tell(Told::Failed(error.to_string())),
    }
}
