//! A run: the cells of a configuration, one after another, into one folder. Never knows what they measure.

use super::{Cell, Cost, Desk, Finished, LabError, Launch, Line, Manifest, Measurement, Records, Told, find};
use crate::common::{Home, Phase, Progress, Report, Unit, peak_bytes};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
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
        let state = |(cell, _): (Cell, f64)| {
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
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// No cell begins after so long; none for no limit.
    pub time: Option<Duration>,
    /// Whether cells that failed before are measured again.
    pub retry: bool,
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
    let keys: HashSet<String> = plan.cells.iter().map(|(cell, _)| cell.key()).collect();
    assert_eq!(keys.len(), plan.cells.len(), "no two cells of a plan are the same");
    let ended = |records: &Records, cell: &Cell| match records.finished(cell) {
        Some(Finished { error: Some(_), .. }) => !limits.retry,
        found => found.is_some(),
    };
    let mut clock = Clock::default();
    let todo: Vec<&(Cell, f64)> = plan.cells.iter().filter(|(cell, _)| !ended(&records, cell)).collect();
    let begun = Instant::now();
    for (at, (cell, weight)) in todo.iter().enumerate() {
        if limits.time.is_some_and(|limit| begun.elapsed() >= limit) {
            break;
        }
        let left: f64 = todo[at..].iter().map(|(_, weight)| weight).sum();
        let place = format!("cell {} of {}: {cell}", plan.cells.len() - todo.len() + at + 1, plan.cells.len());
        report.note(&format!("{place}{}", clock.left(left)));
        let started = Instant::now();
        measure(folder, cell, launch, &mut records, report)?;
        clock.add(started.elapsed(), *weight);
    }
    let count = |wanted: &dyn Fn(Option<&Finished>) -> bool| {
        plan.cells.iter().filter(|(cell, _)| wanted(records.finished(cell))).count()
    };
    let through = count(&|found| found.is_some_and(|finished| finished.error.is_none()));
    let failed = count(&|found| found.is_some_and(|finished| finished.error.is_some()));
    Ok(Progressed { through, failed, left: plan.cells.len() - through - failed })
}

/// Seconds that a unit of expected work has taken so far.
#[derive(Default)]
struct Clock {
    seconds: f64,
    weight: f64,
}

impl Clock {
    fn add(&mut self, time: Duration, weight: f64) {
        self.seconds += time.as_secs_f64();
        self.weight += weight;
    }

    fn left(&self, weight: f64) -> String {
        if self.weight == 0.0 {
            return String::new();
        }
        let minutes = self.seconds / self.weight * weight / 60.0;
        if minutes < 1.0 { "; less than a minute left".to_owned() } else { format!("; about {minutes:.0} min left") }
    }
}

fn measure(
    folder: &Path,
    cell: &Cell,
    launch: &dyn Launch,
    records: &mut Records,
    report: &mut dyn Report,
) -> Result<(), LabError> {
    let started = Instant::now();
    records.append(Line::Begun(cell.clone()))?;
    let label = cell.to_string();
    let (mut measurements, mut peak, mut error) = (0, None, None);
    let waits = std::cell::RefCell::new(report);
    let mut tell = |told: Told| {
        match told {
            Told::Measured { values, cost } => {
                measurements += 1;
                records.append(Line::Measured(Measurement { cell: cell.clone(), values, cost }))?;
            }
            Told::Progress { done, total, detail } => {
                let (phase, unit) = (Phase::Measurement, Unit::Steps);
                let total = Some(total);
                waits.borrow_mut().progress(Progress { phase, label: &label, done, total, unit, detail: &detail });
            }
            Told::Finished { peak_bytes } => peak = peak_bytes,
            Told::Failed(why) => error = Some(why),
        }
        Ok(())
    };
    let wanted = || !waits.borrow().cancelled();
    match launch.launch(folder, cell, &mut tell, &wanted) {
        Ok(()) => {}
        Err(LabError::Process(why)) => error = Some(why),
        Err(other) => return Err(other),
    }
    if let Some(why) = &error {
        waits.borrow_mut().note(&format!("{label}: {why}"));
    }
    let seconds = started.elapsed().as_secs_f64();
    records.append(Line::Finished(Finished { cell: cell.clone(), measurements, error, peak_bytes: peak, seconds }))
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
    let found = plan.cells.iter().find(|(cell, _)| cell.key() == key);
    let unknown = || LabError::Cell(format!("the run has no cell {key}"));
    let (cell, _) = found.ok_or_else(unknown)?;
    let shared = folder.join("shared");
    let result = experiment.measure(&manifest.config, cell, &mut Desk { home, shared, report, tell });
    match result {
        Ok(()) => tell(Told::Finished { peak_bytes: peak_bytes() }),
        Err(error) if error.is_cancelled() => Err(LabError::Cancelled),
        Err(error) => tell(Told::Failed(error.to_string())),
    }
}
