//! One point of an experiment's grid, and what its measuring has at hand. Never knows which experiment.

use super::{Cost, LabError};
use crate::common::{Digest, Home, Report};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{fmt, path::PathBuf};

/// What distinguishes a cell from the others of its run: arm, workload, N, seed, … in the order that its experiment gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cell(Map<String, Value>);

impl Cell {
    /// The cell of a plain structure.
    ///
    /// # Panics
    /// Unless `parameters` serialises to an object: that is the experiment's own mistake.
    pub fn of(parameters: &impl Serialize) -> Self {
        match serde_json::to_value(parameters) {
            Ok(Value::Object(map)) => Self(map),
            other => panic!("a cell is an object, not {other:?}"),
        }
    }

    /// Back to the structure that it was made of.
    ///
    /// # Errors
    /// If it is another experiment's.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, LabError> {
        let value = Value::Object(self.0.clone());
        serde_json::from_value(value).map_err(|error| LabError::Cell(format!("{self}: {error}")))
    }

    /// What it is called in files and between processes: 16 hexadecimal digits.
    pub fn key(&self) -> String {
        let text = serde_json::to_string(&self.0).expect("a cell is plain data");
        Digest::of(text).to_string()[..16].to_owned()
    }

    /// Names and values.
    pub fn parameters(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// `arm attention, n 64, seed 0`.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            match value {
                Value::String(text) => write!(f, "{separator}{name} {text}")?,
                other => write!(f, "{separator}{name} {other}")?,
            }
        }
        Ok(())
    }
}

/// What a cell's process tells whoever started it, a JSON line each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// A measurement.
    Measured {
        /// Names and values, as the experiment's report reads them.
        values: Map<String, Value>,
        /// What it took.
        cost: Cost,
    },
    /// How far it is.
    Progress {
        /// Steps done.
        done: u64,
        /// Of how many.
        total: u64,
        /// What it is at, in words.
        detail: String,
    },
    /// It is through.
    Finished {
        /// The most memory that the process has held.
        peak_bytes: Option<u64>,
    },
    /// It cannot be measured.
    Failed(String),
}

/// What the measuring of a cell has at hand.
pub struct Desk<'a> {
    /// The data folder: checkpoints, library.
    pub home: Home,
    /// A folder that all cells of the run share, for what a cell makes for later ones. Exists.
    pub shared: PathBuf,
    /// Whoever waits.
    pub report: &'a mut dyn Report,
    pub(super) tell: &'a mut dyn FnMut(Told) -> Result<(), LabError>,
}

impl Desk<'_> {
    /// Keeps a measurement with what it took. It is on disk before this returns.
    ///
    /// # Errors
    /// If it cannot be kept.
    ///
    /// # Panics
    /// Unless `values` serialises to an object.
    pub fn record(&mut self, values: &impl Serialize, cost: Cost) -> Result<(), LabError> {
        let Cell(values) = Cell::of(values);
        (self.tell)(Told::Measured { values, cost })
    }

    /// Says how far the cell is.
    ///
    /// # Errors
    /// [`LabError::Cancelled`] if nobody waits any more.
    pub fn step(&mut self, done: u64, total: u64, detail: impl Into<String>) -> Result<(), LabError> {
        if self.report.cancelled() {
            return Err(LabError::Cancelled);
        }
        (self.tell)(Told::Progress { done, total, detail: detail.into() })
    }
}
