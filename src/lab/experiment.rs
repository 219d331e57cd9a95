//! What an experiment is, and which there are. A new one is a type that implements [`Grid`] and a line in [`experiments`].

use super::{Artifact, Cell, Desk, LabError, Run, attention::AttentionVsCompression, bandwidth::Bandwidth, mqar::Mqar};
use crate::report::Page;
use serde::{Serialize, de::DeserializeOwned};

/// How much of an experiment is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Minutes: shows that everything runs and claims nothing.
    Quick,
    /// What claims rest on; resumed over as many sittings as it takes.
    Full,
}

impl Size {
    /// `quick` or `full`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }
}

/// A cell that is to be measured.
pub struct Planned {
    /// Which one.
    pub cell: Cell,
    /// What it is expected to take, in any unit that is the same for all of its plan.
    pub weight: f64,
    /// Cells before it whose ends it waits for: it uses what they leave in the shared folder.
    pub after: Vec<Cell>,
}

/// A configuration's cells, in the order in which they begin.
pub struct Plan {
    /// No two are the same.
    pub cells: Vec<Planned>,
    /// Every seed that is used.
    pub seeds: Vec<u64>,
    /// The checkpoint that cells open, if they open one: its digest and its tokenizer's go into the manifest.
    pub model: Option<String>,
}

/// A question with a grid of cells, the measuring of one cell, and a page that says what was found. Stateless: everything that
/// matters is in the configuration, a cell and the run's folder.
pub trait Experiment: Sync {
    /// What it is called on the command line.
    fn name(&self) -> &'static str;

    /// One sentence: what it asks.
    fn summary(&self) -> &'static str;

    /// Its configuration of that size, in TOML.
    fn config(&self, size: Size) -> &'static str;

    /// The cells of a configuration.
    ///
    /// # Errors
    /// If the configuration is not one, with what would be right.
    fn plan(&self, config: &str) -> Result<Plan, LabError>;

    /// Measures one cell, in a process of its own. Gives the same values whenever it is called again with the same cell.
    ///
    /// # Errors
    /// Whatever keeps the cell from being measured; it is recorded and the other cells go on.
    fn measure(&self, config: &str, cell: &Cell, desk: &mut Desk<'_>) -> Result<(), LabError>;

    /// Writes what one run found, or two beside each other, however far they are.
    fn report(&self, runs: &[Run], page: &mut Page);
}

/// An experiment whose configuration and cells have types of their own; each is an [`Experiment`].
pub trait Grid: Sync {
    /// What the TOML says.
    type Config: DeserializeOwned;
    /// What distinguishes a cell.
    type Point: Serialize + DeserializeOwned;
    /// See [`Experiment::name`].
    const NAME: &'static str;
    /// See [`Experiment::summary`].
    const SUMMARY: &'static str;
    /// The quick and the full configuration.
    const CONFIGS: [&'static str; 2];

    /// Whether a configuration describes a run.
    ///
    /// # Errors
    /// If it does not, with what would.
    fn check(config: &Self::Config) -> Result<(), LabError>;

    /// The points in the order in which they begin, each with what it is expected to take, in any unit.
    fn points(config: &Self::Config) -> Vec<(Self::Point, f64)>;

    /// See [`Planned::after`].
    fn after(_: &Self::Config, _: &Self::Point) -> Vec<Self::Point> {
        Vec::new()
    }

    /// See [`Plan::seeds`].
    fn seeds(config: &Self::Config) -> Vec<u64>;

    /// See [`Plan::model`].
    fn model(_: &Self::Config) -> Option<String> {
        None
    }

    /// See [`Experiment::measure`].
    ///
    /// # Errors
    /// Whatever keeps the point from being measured.
    fn measure(config: &Self::Config, point: Self::Point, desk: &mut Desk<'_>) -> Result<(), LabError>;

    /// See [`Experiment::report`].
    fn report(runs: &[Run], page: &mut Page);
}

/// A checked configuration.
fn checked<G: Grid>(config: &str) -> Result<G::Config, LabError> {
    let config = parse_config(config)?;
    G::check(&config)?;
    Ok(config)
}

impl<G: Grid> Experiment for G {
    fn name(&self) -> &'static str {
        G::NAME
    }

    fn summary(&self) -> &'static str {
        G::SUMMARY
    }

    fn config(&self, size: Size) -> &'static str {
        G::CONFIGS[size as usize]
    }

    fn plan(&self, config: &str) -> Result<Plan, LabError> {
        let config = checked::<G>(config)?;
        let planned = |(point, weight)| {
            let after = G::after(&config, &point).iter().map(Cell::of).collect();
            Planned { cell: Cell::of(&point), weight, after }
        };
        let cells = G::points(&config).into_iter().map(planned).collect();
        Ok(Plan { cells, seeds: G::seeds(&config), model: G::model(&config) })
    }

    fn measure(&self, config: &str, cell: &Cell, desk: &mut Desk<'_>) -> Result<(), LabError> {
        G::measure(&checked::<G>(config)?, cell.read()?, desk)
    }

    fn report(&self, runs: &[Run], page: &mut Page) {
        G::report(runs, page);
    }
}

/// All experiments, in the order in which they are listed.
pub fn experiments() -> &'static [&'static dyn Experiment] {
    &[&AttentionVsCompression, &Bandwidth, &Artifact, &Mqar]
}

/// The experiment of that name.
///
/// # Errors
/// If there is none, with the names that there are.
pub fn find(name: &str) -> Result<&'static dyn Experiment, LabError> {
    let known = || experiments().iter().map(|experiment| experiment.name()).collect::<Vec<_>>().join(", ");
    let found = experiments().iter().find(|experiment| experiment.name() == name);
    found.copied().ok_or_else(|| LabError::Unknown { name: name.to_owned(), known: known() })
}

/// Reads an experiment's own type out of its TOML; an error names the key.
///
/// # Errors
/// If the text is not TOML, or a key is missing, unknown or of another type.
pub fn parse_config<T: DeserializeOwned>(text: &str) -> Result<T, LabError> {
    let parsed = toml::Deserializer::parse(text).map_err(|error| LabError::Config(error.message().to_owned()))?;
    serde_path_to_error::deserialize(parsed).map_err(|error| {
        let (path, what) = (error.path().to_string(), error.into_inner());
        LabError::Config(format!("{path}: {}", what.message()))
    })
}
