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
    /// The window's tokens after the beginning, if that arm runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub window: Vec<usize>,
    /// Items that retrieval reads, if that arm runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retrieved: Vec<usize>,
    /// The society, if that arm runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub society: Option<SocietyConfig>,
    /// LoRA over the base, if that arm runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterConfig>,
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
    /// Ranks, ascending: the smallest that learns is looked for.
    pub ranks: Vec<usize>,
    /// Peak learning rate.
    pub lr: f64,
    /// Questions a step.
    pub batch: usize,
    /// Steps at most; looked at after every doubling from 8.
    pub steps_max: usize,
    /// As many passes over a context's questions at most, where that is more steps.
    #[serde(default)]
    pub passes_max: usize,
    /// Largest N that is tried.
    pub size_max: usize,
}

/// See [`Config::prefix`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixConfig {
    /// Lengths, ascending: the shortest that learns is looked for.
    pub positions: Vec<usize>,
    /// Peak learning rate.
    pub lr: f64,
    /// Questions a step.
    pub batch: usize,
    /// Steps at most; looked at after every doubling from 8.
    pub steps_max: usize,
    /// As many passes over a context's questions at most, where that is more steps.
    #[serde(default)]
    pub passes_max: usize,
    /// Largest N that is tried.
    pub size_max: usize,
}

/// See [`Config::scratch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScratchConfig {
    /// Widths, ascending: even, and multiples of 16 above that. The smallest that learns is looked for.
    pub widths: Vec<usize>,
    /// Layers, each with attention and a four times as wide MLP.
    pub layers: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Questions a step.
    pub batch: usize,
    /// Steps at most; looked at after every doubling from 8.
    pub steps_max: usize,
    /// As many passes over a context's questions at most, where that is more steps.
    #[serde(default)]
    pub passes_max: usize,
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

    /// Whether it learns a context from its questions.
    pub fn learns_questions(self) -> bool {
        matches!(self, Self::Adapter | Self::Scratch | Self::Prefix)
    }

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
        if self.seeds.is_empty() || self.sizes.is_empty() || self.workloads.is_empty() || self.arms.is_empty() {
            return fault("seeds, sizes, workloads and arms need a member each");
        }
        if self.sizes.iter().any(|n| !(4..=(KEYS * KEYS) as usize).contains(n)) {
            return fault("sizes: from 4 to 4096 items");
        }
        if self.questions == 0 || self.intermediate == 0 {
            return fault("questions and intermediate are above 0");
        }
        self.settled(Arm::Window, "window", some(&self.window), |_| None)?;
        self.settled(Arm::Retrieval, "retrieved", some(&self.retrieved), |_| None)?;
        self.settled(Arm::Society, "[society]", self.society.as_ref(), SocietyConfig::fault)?;
        self.settled(Arm::Adapter, "[adapter]", self.adapter.as_ref(), AdapterConfig::fault)?;
        self.settled(Arm::Prefix, "[prefix]", self.prefix.as_ref(), PrefixConfig::fault)?;
        self.settled(Arm::Scratch, "[scratch]", self.scratch.as_ref(), ScratchConfig::fault)
    }

    /// Whether an arm that runs has its settings, and settings that are given have no fault.
    fn settled<T: ?Sized>(
        &self,
        arm: Arm,
        setting: &str,
        given: Option<&T>,
        fault: impl Fn(&T) -> Option<&'static str>,
    ) -> Result<(), LabError> {
        let fault = match given {
            None if self.arms.contains(&arm) => format!("the arm {} needs its settings, {setting}", arm.name()),
            None => return Ok(()),
            Some(settings) => match fault(settings) {
                Some(fault) => format!("{setting}: {fault}"),
                None => return Ok(()),
            },
        };
        Err(LabError::Config(fault))
    }

    /// The grid: small sizes first, so that a run that is broken off says something about every arm under every seed.
    pub fn points(&self) -> Vec<Point> {
        let mut points = Vec::new();
        for &n in &self.sizes {
            for &seed in &self.seeds {
                for &workload in &self.workloads {
                    for &arm in &self.arms {
                        let tried = match arm {
                            Arm::Adapter => self.adapter.as_ref().is_some_and(|settings| n <= settings.size_max),
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

/// A list that has members.
fn some<T>(list: &[T]) -> Option<&[T]> {
    (!list.is_empty()).then_some(list)
}

/// Whether a list of sizes to try has members, above 0 and each above the one before it.
fn ascend(sizes: &[usize]) -> bool {
    sizes.first().is_some_and(|&first| first > 0) && sizes.is_sorted_by(|a, b| a < b)
}

/// What is wrong with the batches and steps of an arm that learns.
fn course_fault(batch: usize, steps_max: usize) -> Option<&'static str> {
    (batch == 0 || steps_max < 8).then_some("batch is above 0, steps_max at least 8")
}

impl SocietyConfig {
    fn fault(&self) -> Option<&'static str> {
        let wrong =
            self.topologies.is_empty() || self.chunk == 0 || self.message < 3 || self.fan < 2 || self.routed == 0;
        wrong.then_some("topologies has a member, chunk and routed are above 0, message at least 3 tokens (an item), fan at least 2")
    }
}

impl AdapterConfig {
    fn fault(&self) -> Option<&'static str> {
        let wrong = !ascend(&self.ranks);
        wrong.then_some("ranks are above 0 and ascend").or(course_fault(self.batch, self.steps_max))
    }
}

impl PrefixConfig {
    fn fault(&self) -> Option<&'static str> {
        let wrong = !ascend(&self.positions);
        wrong.then_some("positions are above 0 and ascend").or(course_fault(self.batch, self.steps_max))
    }
}

impl ScratchConfig {
    fn fault(&self) -> Option<&'static str> {
        let wrong = !ascend(&self.widths) || self.widths.iter().any(|&width| !is_width(width));
        let widths = wrong.then_some("widths ascend, are even up to 16, and multiples of 16 above that");
        widths.or((self.layers == 0).then_some("layers is above 0")).or(course_fault(self.batch, self.steps_max))
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

#[cfg(test)]
mod tests {
    use super::Config;

    const HEAD: &str = "seeds = [0]\nsizes = [16, 64]\nworkloads = [\"book\"]\nquestions = 4\nintermediate = 16\n";
    const COURSE: &str = "lr = 5e-3\nbatch = 8\nsteps_max = 8\nsize_max = 16\n";

    fn config(settings: &str) -> Config {
        toml::from_str(&format!("{HEAD}{settings}")).unwrap()
    }

    #[test]
    fn an_arm_needs_its_settings_and_no_others() {
        for arm in ["attention", "window", "retrieval", "society", "adapter", "scratch", "prefix"] {
            let checked = config(&format!("arms = [\"{arm}\"]")).check();
            assert_eq!(checked.is_ok(), arm == "attention", "{arm}");
        }
        let joint = format!(
            "arms = [\"adapter\", \"scratch\"]\n[adapter]\nranks = [4]\n{COURSE}[scratch]\nwidths = [4]\nlayers = 1\n{COURSE}"
        );
        config(&joint).check().unwrap();
        assert_eq!(config(&joint).points().len(), 2, "a size above an arm's largest is not tried");
    }

    #[test]
    fn settings_that_cannot_run_are_named() {
        let society = |chunk, message| {
            format!(
                "arms = [\"society\"]\n[society]\nchunk = {chunk}\nmessage = {message}\ntopologies = [\"flat\"]\nfan = 4\nrouted = 4"
            )
        };
        let widths = |widths| format!("arms = [\"scratch\"]\n[scratch]\nwidths = {widths}\nlayers = 1\n{COURSE}");
        let ranks = |ranks| format!("arms = [\"adapter\"]\n[adapter]\nranks = {ranks}\n{COURSE}");
        config(&society(16, 3)).check().unwrap();
        for (settings, named) in [
            ("arms = []".to_owned(), "arms"),
            ("arms = [\"window\"]".to_owned(), "window"),
            (society(0, 3), "[society]: "),
            (society(16, 2), "at least 3 tokens"),
            (widths("[3]"), "even up to 16"),
            (widths("[24]"), "multiples of 16"),
            (widths("[4, 2]"), "widths ascend"),
            (ranks("[0]"), "[adapter]: ranks"),
            (ranks("[4, 4]"), "above 0 and ascend"),
            (ranks("[4]").replace("steps_max = 8", "steps_max = 7"), "steps_max at least 8"),
        ] {
            let error = config(&settings).check().unwrap_err().to_string();
            assert!(error.contains(named), "{settings}\n{error}");
        }
    }
}
