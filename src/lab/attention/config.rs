//! What a run of the experiment is made of, and its grid. Never measures.

use crate::lab::{
    LabError,
    attention::society::Topology,
    synthetic::{Workload, symbols::KEYS},
};
use serde::{Deserialize, Serialize};

/// A way to pay for interaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// The whole context is attended to.
    Attention,
    /// The beginning and the last tokens are.
    Window,
    /// LoRA over the frozen base.
    Adapter,
    /// A small model from scratch.
    Scratch,
    /// Keys and values before the question.
    Prefix,
    /// Agents with bounded contexts and messages.
    Society,
    /// The items that BM25 finds are attended to.
    Retrieval,
}

/// The configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A repetition each: other contexts, other base, other training.
    pub seeds: Vec<u64>,
    /// Items of a context.
    pub sizes: Vec<usize>,
    /// What is asked.
    pub workloads: Vec<Workload>,
    /// Which arms run.
    pub arms: Vec<Arm>,
    /// Forward questions a cell at least, over as many contexts as that takes.
    pub questions: usize,
    /// Width of the base's MLPs.
    pub intermediate: usize,
    /// The window's tokens after the beginning.
    pub window: Vec<usize>,
    /// Items that retrieval reads.
    pub retrieved: Vec<usize>,
    /// The society.
    pub society: SocietyConfig,
    /// LoRA over the base.
    pub adapter: AdapterConfig,
    /// Trained prefixes, if that arm runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<PrefixConfig>,
    /// Models from scratch, if that arm runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<ScratchConfig>,
}

/// See [`Config::society`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocietyConfig {
    /// n₀: items that an agent reads.
    pub chunk: usize,
    /// β: tokens of a message.
    pub message: usize,
    /// Who reads whose messages.
    pub topologies: Vec<Topology>,
    /// Agents whose messages one agent reads, in a tree.
    pub fan: usize,
    /// Agents that a router asks, besides asking all.
    pub routed: usize,
}

/// See [`Config::adapter`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Ranks from the smallest; the next is tried when one does not reach the quality.
    pub ranks: Vec<usize>,
    /// Peak learning rate.
    pub lr: f64,
    /// Questions a step.
    pub batch: usize,
    /// Steps at most; looked at after every doubling from 8.
    pub steps_max: usize,
    /// Largest N that is tried.
    pub size_max: usize,
}

/// See [`Config::prefix`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixConfig {
    /// Lengths from the shortest; the next is tried when one does not reach the quality.
    pub positions: Vec<usize>,
    /// Peak learning rate.
    pub lr: f64,
    /// Questions a step.
    pub batch: usize,
    /// Steps at most; looked at after every doubling from 8.
    pub steps_max: usize,
    /// Largest N that is tried.
    pub size_max: usize,
}

/// See [`Config::scratch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScratchConfig {
    /// Widths from the smallest: even, and multiples of 16 above that; the next is tried when one does not reach the quality.
    pub widths: Vec<usize>,
    /// Layers, each with attention and a four times as wide MLP.
    pub layers: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Questions a step.
    pub batch: usize,
    /// Steps at most; looked at after every doubling from 8.
    pub steps_max: usize,
    /// Largest N that is tried.
    pub size_max: usize,
}

/// A cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// How.
    pub arm: Arm,
    /// What.
    pub workload: Workload,
    /// Items.
    pub n: usize,
    /// Repetition.
    pub seed: u64,
}

impl Arm {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Attention, Self::Window, Self::Adapter, Self::Scratch, Self::Prefix, Self::Society, Self::Retrieval];

    /// As the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "A attention",
            Self::Window => "A′ window",
            Self::Adapter => "B1 LoRA",
            Self::Scratch => "B2 from scratch",
            Self::Prefix => "B3 prefix",
            Self::Society => "C society",
            Self::Retrieval => "D retrieval",
        }
    }
}

impl Config {
    /// Whether it describes a run.
    ///
    /// # Errors
    /// If it does not, with what would.
    pub fn check(&self) -> Result<(), LabError> {
        let fault = |what: &str| Err(LabError::Config(what.to_owned()));
        let lists = [
            self.seeds.is_empty(),
            self.sizes.is_empty(),
            self.workloads.is_empty(),
            self.arms.is_empty(),
            self.window.is_empty(),
            self.retrieved.is_empty(),
            self.adapter.ranks.is_empty(),
            self.society.topologies.is_empty(),
        ];
        if lists.contains(&true) {
            return fault("seeds, sizes, workloads, arms, window, retrieved, ranks and topologies need a member each");
        }
        if self.sizes.iter().any(|n| !(4..=(KEYS * KEYS) as usize).contains(n)) {
            return fault("sizes: from 4 to 4096 items");
        }
        if self.questions == 0 || self.adapter.batch == 0 || self.intermediate == 0 {
            return fault("questions, batch and intermediate are above 0");
        }
        if self.society.chunk == 0 || self.society.message < 3 || self.society.fan < 2 || self.society.routed == 0 {
            return fault("society: chunk and routed above 0, message at least 3 tokens (an item), fan at least 2");
        }
        if self.adapter.steps_max < 8 {
            return fault("adapter.steps_max is at least 8");
        }
        match &self.prefix {
            None if self.arms.contains(&Arm::Prefix) => {
                return fault("the arm \"prefix\" needs its settings, [prefix]");
            }
            Some(p) if p.positions.is_empty() || p.positions.contains(&0) || p.batch == 0 || p.steps_max < 8 => {
                return fault("prefix: positions and batch are above 0, steps_max is at least 8");
            }
            _ => {}
        }
        match &self.scratch {
            None if self.arms.contains(&Arm::Scratch) => {
                return fault("the arm \"scratch\" needs its settings, [scratch]");
            }
            Some(s) if s.widths.is_empty() || s.widths.iter().any(|&width| !is_width(width)) => {
                return fault("scratch.widths are even up to 16, and multiples of 16 above that");
            }
            Some(s) if s.layers == 0 || s.batch == 0 || s.steps_max < 8 => {
                return fault("scratch: layers and batch are above 0, steps_max is at least 8");
            }
            _ => {}
        }
        Ok(())
    }

    /// The grid: small sizes first, so that a run that is broken off says something about every arm.
    pub fn points(&self) -> Vec<Point> {
        let mut points = Vec::new();
        for &seed in &self.seeds {
            for &n in &self.sizes {
                for &workload in &self.workloads {
                    for &arm in &self.arms {
                        let tried = match arm {
                            Arm::Adapter => n <= self.adapter.size_max,
                            Arm::Prefix => self.prefix.as_ref().is_some_and(|settings| n <= settings.size_max),
                            Arm::Scratch => self.scratch.as_ref().is_some_and(|settings| n <= settings.size_max),
                            _ => true,
                        };
                        if tried {
                            points.push(Point { arm, workload, n, seed });
                        }
                    }
                }
            }
        }
        points
    }
}

/// Whether heads of 16, or one narrower, make up a model so wide; rotary positions turn pairs.
fn is_width(width: usize) -> bool {
    width > 0 && width.is_multiple_of(if width > 16 { 16 } else { 2 })
}

impl Point {
    /// What the cell is expected to take, in arbitrary units.
    pub fn weight(&self) -> f64 {
        let n = self.n as f64;
        match self.arm {
            Arm::Adapter | Arm::Scratch | Arm::Prefix => 8.0 + n / 8.0,
            _ => 1.0 + n / 200.0 + (n / 800.0).powi(2),
        }
    }
}
