//! What a run is a run of: enough to make it again, and to know when it cannot be compared. Never knows what was found.

use super::{Experiment, LabError, Plan, Size};
use crate::{
    agent::Outline,
    common::{Digest, Home, Report, write_atomic},
    library::BaseId,
};
use serde::{Deserialize, Serialize};
use std::{fmt, fs, path::Path, thread};

/// Of the program and of what it measures; the second number changes when a cell would be measured otherwise.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), ", measurements 3");

/// The first file of a run's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The experiment's name.
    pub experiment: String,
    /// `quick`, `full`, or the name of the file that the configuration came from.
    pub size: String,
    /// The configuration, as it was read.
    pub config: String,
    /// Of the configuration.
    pub config_digest: Digest,
    /// Every seed that is used.
    pub seeds: Vec<u64>,
    /// The checkpoint that cells open, with its tokenizer, if they open one.
    pub model: Option<BaseId>,
    /// Where it was begun.
    pub machine: Machine,
    /// Other machines on which it went on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub continued_on: Vec<Machine>,
    /// CPU threads of a cell.
    pub threads: usize,
    /// The version of the program and of its measurements.
    pub version: String,
}

/// What the figures in seconds depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name, where the system says it.
    pub processor: Option<String>,
    /// Logical processors.
    pub cores: usize,
    /// The instruction set that kernels use.
    pub simd: String,
    /// Operating system and architecture.
    pub system: String,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let processor = self.processor.as_deref().unwrap_or("an unnamed processor");
        write!(f, "{processor} ({} cores, {}, {})", self.cores, self.simd, self.system)
    }
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            processor: name.map(|(_, name)| name.trim().to_owned()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            simd: socius_kernels::selected()
                .map_or_else(|error| error.to_string(), |variant| variant.name().to_owned()),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

impl Manifest {
    /// Of a run that begins here and now.
    ///
    /// # Errors
    /// If the checkpoint cannot be opened.
    pub fn new(
        experiment: &dyn Experiment,
        (size, config): (&str, &str),
        plan: &Plan,
        (home, threads): (&Home, usize),
        report: &mut dyn Report,
    ) -> Result<Self, LabError> {
        let model = plan.model.as_deref().map(|model| Outline::open(model, home, report)).transpose()?;
        Ok(Self {
            experiment: experiment.name().to_owned(),
            size: size.to_owned(),
            config: config.to_owned(),
            config_digest: Digest::of(config),
            seeds: plan.seeds.clone(),
            model: model.map(|outline| outline.id),
            machine: Machine::here(),
            continued_on: Vec::new(),
            threads,
            version: VERSION.to_owned(),
        })
    }

    /// The name of its folder under the data folder's `lab`.
    pub fn folder_name(experiment: &str, size: &str, config: &str) -> String {
        format!("{experiment}-{size}-{}", &Digest::of(config).to_string()[..8])
    }

    /// What `folder` holds, if it holds a run.
    ///
    /// # Errors
    /// If its manifest cannot be read, or is none.
    pub fn read(folder: &Path) -> Result<Self, LabError> {
        let path = folder.join("manifest.json");
        let bytes = fs::read(&path).map_err(LabError::file(&path))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| LabError::File { path, what: format!("not a run's manifest ({error})") })
    }

    /// Writes it, or checks that what is there describes the same run; a machine that the run was not on before is added.
    ///
    /// # Errors
    /// If the folder belongs to another run, or cannot be written.
    pub fn settle(&self, folder: &Path) -> Result<Self, LabError> {
        fs::create_dir_all(folder.join("shared")).map_err(LabError::file(folder))?;
        let path = folder.join("manifest.json");
        if !path.exists() {
            self.write(&path)?;
        }
        let mut kept = Self::read(folder)?;
        let other = |what: &str| LabError::File {
            path: path.clone(),
            what: format!("this folder holds a run with another {what}: give another --folder, or remove it"),
        };
        if kept.experiment != self.experiment {
            return Err(other("experiment"));
        }
        if kept.config_digest != self.config_digest {
            return Err(other("configuration"));
        }
        if kept.model != self.model {
            return Err(other("model"));
        }
        if kept.version != self.version {
            return Err(other(&format!("version of the program ({}, not {})", kept.version, self.version)));
        }
        if kept.threads != self.threads {
            return Err(other(&format!("number of threads ({} of them: go on with --threads {0})", kept.threads)));
        }
        if kept.machine != self.machine && !kept.continued_on.contains(&self.machine) {
            kept.continued_on.push(self.machine.clone());
            kept.write(&path)?;
        }
        Ok(kept)
    }

    fn write(&self, path: &Path) -> Result<(), LabError> {
        let bytes = serde_json::to_vec_pretty(self).expect("a manifest is plain data");
        write_atomic(path, &bytes).map_err(LabError::file(path))
    }

    /// The size that the configuration came from, if it came from none of somebody's own.
    pub fn known_size(&self) -> Option<Size> {
        [Size::Quick, Size::Full].into_iter().find(|size| size.name() == self.size)
    }
}
