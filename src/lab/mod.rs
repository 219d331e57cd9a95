//! Registered experiments, records that survive any kill, reports. Never sees flags or terminals, and computes nothing that a
//! reader could not compute again from the run's folder.
//!
//! An [`Experiment`] expands a TOML configuration into cells. Each cell is measured in a process of its own, so that its peak
//! memory is its own, and every measurement is a line of the run's folder before the next begins:
//!
//! ```text
//! HOME/lab/attention-vs-compression-quick-1a2b3c4d/
//!   manifest.json         configuration with its digest, seeds, model and tokenizer, machine, version
//!   measurements.jsonl    a line a measurement as it is taken, and one when its cell is finished or has failed
//!   shared/               what cells leave for later ones (a subagent's traces)
//!   report/               index.html, a plot each as SVG and PNG, measurements as CSV and Parquet
//! ```
//!
//! Running the same configuration again goes on where it stopped: finished cells are skipped, and what an unfinished cell had
//! measured is measured again.

pub mod artifact;
pub mod attention;
pub mod bandwidth;
mod cell;
mod cost;
mod counted;
mod error;
mod experiment;
mod launch;
mod manifest;
pub mod mqar;
mod records;
mod report;
mod run;
mod schedule;
pub mod stats;
pub mod synthetic;
mod table;

pub use artifact::Artifact;
pub use cell::{Cell, Desk, Told};
pub use cost::{Cost, Meter, Purpose};
pub use error::LabError;
pub use experiment::{Experiment, Grid, Plan, Planned, Size, experiments, find, parse_config};
pub use launch::{Launch, Processes};
pub use manifest::{Machine, Manifest};
pub use records::{Finished, Line, Measurement, Records};
pub use report::{Written, report};
pub use run::{Limits, Progressed, Run, measure_cell, run};
