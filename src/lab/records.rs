//! The lines of a run: every measurement on disk before the next begins. Never knows what they mean.

use super::{Cell, Cost, LabError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

/// One measurement of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Of which cell.
    pub cell: Cell,
    /// What was found.
    pub values: Map<String, Value>,
    /// What it took.
    pub cost: Cost,
}

/// A cell that is through, or could not be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Which cell.
    pub cell: Cell,
    /// How many measurements it has.
    pub measurements: usize,
    /// Why it could not be measured, if it could not.
    pub error: Option<String>,
    /// The most memory that its process has held.
    pub peak_bytes: Option<u64>,
    /// Its wall time, from the process's birth.
    pub seconds: f64,
}

/// A line of `measurements.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A cell's process begins: what was measured of the cell before does not count.
    Begun(Cell),
    /// A measurement.
    Measured(Measurement),
    /// The cell's end.
    Finished(Finished),
}

/// A run's lines, and the file that they are appended to.
pub struct Records {
    path: PathBuf,
    file: File,
    cells: HashMap<String, State>,
}

/// What is known of a cell.
#[derive(Default)]
struct State {
    open: Vec<Measurement>,
    finished: Option<(Finished, Vec<Measurement>)>,
}

impl Records {
    /// Opens a folder's lines. A last line that a kill left half-written is dropped.
    ///
    /// # Errors
    /// If the file cannot be read or written, or another line is damaged.
    pub fn open(folder: &Path) -> Result<Self, LabError> {
        let path = folder.join("measurements.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(LabError::file(&path))?;
        let bytes = fs::read(&path).map_err(LabError::file(&path))?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(LabError::file(&path))?;
        }
        let mut records = Self { path, file, cells: HashMap::new() };
        for (number, line) in bytes[..whole].split(|&byte| byte == b'\n').enumerate().filter(|(_, l)| !l.is_empty()) {
            let line = serde_json::from_slice(line).map_err(|error| LabError::File {
                path: records.path.clone(),
                what: format!("line {} is damaged ({error}): take it out, and its cell is measured again", number + 1),
            })?;
            records.take(line);
        }
        Ok(records)
    }

    /// Adds a line. It is on disk before this returns.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&mut self, line: Line) -> Result<(), LabError> {
        let mut bytes = serde_json::to_vec(&line).expect("a line is plain data");
        bytes.push(b'\n');
        self.file.write_all(&bytes).and_then(|()| self.file.sync_data()).map_err(LabError::file(&self.path))?;
        self.take(line);
        Ok(())
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Begun(cell) => self.cells.entry(cell.key()).or_default().open.clear(),
            Line::Measured(measurement) => {
                self.cells.entry(measurement.cell.key()).or_default().open.push(measurement);
            }
            Line::Finished(finished) => {
                let state = self.cells.entry(finished.cell.key()).or_default();
                let measurements = std::mem::take(&mut state.open);
                state.finished = Some((finished, measurements));
            }
        }
    }

    /// How `cell` ended, if it has.
    pub fn finished(&self, cell: &Cell) -> Option<&Finished> {
        self.cells.get(&cell.key())?.finished.as_ref().map(|(finished, _)| finished)
    }

    /// What was measured of a cell that is through.
    pub fn measurements(&self, cell: &Cell) -> &[Measurement] {
        let through = |state: &State| state.finished.as_ref().is_some_and(|(finished, _)| finished.error.is_none());
        let state = self.cells.get(&cell.key()).filter(|state| through(state));
        state.and_then(|state| state.finished.as_ref()).map_or(&[], |(_, measurements)| measurements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cell(n: u32) -> Cell {
        Cell::of(&json!({"arm": "a", "n": n}))
    }

    fn measured(n: u32, value: f64) -> Line {
        let Value::Object(values) = json!({ "recall": value }) else { unreachable!() };
        Line::Measured(Measurement { cell: cell(n), values, cost: Cost { seconds: value, ..Cost::default() } })
    }

    fn finished(n: u32, measurements: usize, error: Option<&str>) -> Line {
        let error = error.map(str::to_owned);
        Line::Finished(Finished { cell: cell(n), measurements, error, peak_bytes: Some(1), seconds: 0.5 })
    }

    #[test]
    fn a_run_cut_anywhere_knows_its_finished_cells_and_forgets_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let lines = [
            Line::Begun(cell(1)),
            measured(1, 0.25),
            measured(1, 0.5),
            finished(1, 2, None),
            Line::Begun(cell(2)),
            measured(2, 0.75),
            finished(2, 1, Some("out of luck")),
            Line::Begun(cell(2)),
            measured(2, 1.0),
            finished(2, 1, None),
        ];
        let mut records = Records::open(folder.path()).unwrap();
        lines.iter().for_each(|line| records.append(line.clone()).unwrap());
        let path = folder.path().join("measurements.jsonl");
        let whole = fs::read(&path).unwrap();
        for end in 0..=whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let kept = whole[..end].iter().filter(|&&byte| byte == b'\n').count();
            let records = Records::open(folder.path()).unwrap();
            assert_eq!(records.measurements(&cell(1)).len(), if kept >= 4 { 2 } else { 0 }, "cut at {end}");
            let second = records.finished(&cell(2)).map(|finished| finished.error.is_some());
            assert_eq!(second, [None, Some(true), Some(false)][usize::from(kept >= 7) + usize::from(kept >= 10)]);
            assert_eq!(records.measurements(&cell(2)).len(), usize::from(kept >= 10));
        }
    }

    #[test]
    fn a_process_that_died_leaves_nothing_to_the_next_one_of_its_cell() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::open(folder.path()).unwrap();
        for line in
            [Line::Begun(cell(1)), measured(1, 0.1), Line::Begun(cell(1)), measured(1, 0.9), finished(1, 1, None)]
        {
            records.append(line).unwrap();
        }
        let values: Vec<f64> =
            records.measurements(&cell(1)).iter().map(|m| m.values["recall"].as_f64().unwrap()).collect();
        assert_eq!(values, [0.9]);
    }

    #[test]
    fn damage_inside_is_named_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("measurements.jsonl"), "{\"begun\":{}}\n{}\n").unwrap();
        let error = Records::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("measurements.jsonl: line 2"), "{error}");
    }
}
