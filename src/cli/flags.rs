//! Flags that several commands share, and how each becomes a checked value. Never runs anything but the opening of a base.

use super::Terminal;
use crate::{
    agent::{BaseChoice, Budget, Outline, Session, SkillChoice},
    common::{Home, Message, Role, Seed},
    engine::Sampling,
    fetch,
    library::{NameError, SkillRef, Which},
    train::PassLimits,
};
use anyhow::Context;
use clap::ValueEnum;
use serde_json::{Value, json};
use socius_models::{DeviceChoice, Dtype};
use std::num::NonZeroUsize;

/// Which base, and what it runs on.
#[derive(clap::Args)]
pub(super) struct BaseFlags {
    /// The base: a known name (see `socius models`), a hub id or a path; fetched if it is not here
    #[arg(long, default_value = fetch::DEFAULT_MODEL)]
    model: String,
    /// What computes: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// What weights and linear inputs are rounded to
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Rounding,
    /// How a quantised checkpoint's weights are kept: as they are, with int8 inputs (smaller and faster for one answer
    /// at a time, a little less exact), or unpacked to bf16, which auto means: it is what skills are trained and judged on
    #[arg(long, value_enum, default_value = "auto")]
    weights: Weights,
    /// CPU threads; all cores without. The result does not depend on it
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rounding {
    Bf16,
    F32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Weights {
    Auto,
    Bf16,
    Quantised,
}

impl BaseFlags {
    /// Opens the base and the library over it.
    pub(super) fn open(&self, terminal: &mut Terminal) -> anyhow::Result<Session> {
        socius_kernels::selected()?;
        if let Some(threads) = self.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get());
            pool.build_global().context("--threads: the threads cannot be started")?;
        }
        let dtype = self.kept()?;
        let choice = BaseChoice { model: self.model.clone(), device: self.device, dtype };
        Ok(Session::open(&choice, Home::from_env()?, terminal)?)
    }

    fn kept(&self) -> anyhow::Result<Dtype> {
        match (self.dtype, self.weights) {
            (Rounding::Bf16, Weights::Auto | Weights::Bf16) => Ok(Dtype::Bf16),
            (Rounding::Bf16, Weights::Quantised) => Ok(Dtype::Quantised),
            (Rounding::F32, Weights::Auto) => Ok(Dtype::F32),
            (Rounding::F32, _) => anyhow::bail!("--dtype f32 unpacks weights to f32: leave out --weights"),
        }
    }
}

/// How much memory training may take.
#[derive(clap::Args)]
pub(super) struct MemoryFlag {
    /// Memory that a training pass may keep for its way back, such as 512M or 2G: with less it computes more again, and the result
    /// is the same to the byte. Weights and optimisers are not counted
    #[arg(long, value_parser = memory, value_name = "BYTES")]
    memory: Option<usize>,
}

impl MemoryFlag {
    pub(super) fn limits(&self) -> PassLimits {
        let default = PassLimits::default();
        PassLimits { recorded_bytes_max: self.memory.unwrap_or(default.recorded_bytes_max), ..default }
    }
}

/// Bytes, or kibibytes, mebibytes or gibibytes: `1000000`, `64K`, `512M`, `1.5G`.
fn memory(text: &str) -> Result<usize, String> {
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, 'K')) => (&text[..at], 1 << 10),
        Some((at, 'M')) => (&text[..at], 1 << 20),
        Some((at, 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let bytes = number.parse::<f64>().ok().map(|number| number * f64::from(unit));
    let bytes = bytes.filter(|bytes| (1.0..=2f64.powi(60)).contains(bytes));
    let wrong = || format!("{text:?} is not an amount of memory: a number of bytes is expected, as in 512M or 1.5G");
    bytes.map(|bytes| bytes as usize).ok_or_else(wrong)
}

/// Which base, where only its shape is needed.
#[derive(clap::Args)]
pub(super) struct OutlineFlags {
    /// The base: a known name (see `socius models`), a hub id or a path; fetched if it is not here
    #[arg(long, default_value = fetch::DEFAULT_MODEL)]
    model: String,
}

impl OutlineFlags {
    /// The base's identity and architecture, without loading its weights.
    pub(super) fn outline(&self, terminal: &mut Terminal) -> anyhow::Result<Outline> {
        Ok(Outline::open(&self.model, &Home::from_env()?, terminal)?)
    }
}

/// How tokens are drawn.
#[derive(clap::Args)]
pub(super) struct SamplingFlags {
    /// Tokens at most
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// 0 takes the most probable token; above, tokens are drawn
    #[arg(long, default_value_t = 0.0, value_parser = at_least_zero)]
    temperature: f32,
    /// Draw from the smallest set of tokens with this much probability
    #[arg(long, default_value_t = 1.0, value_parser = fraction)]
    top_p: f32,
    /// Draw from this many most probable tokens
    #[arg(long)]
    top_k: Option<NonZeroUsize>,
    /// Drop tokens less probable than this fraction of the most probable one
    #[arg(long, default_value_t = 0.0, value_parser = fraction)]
    min_p: f32,
    /// Divides the logits of tokens that have occurred; 1 is none
    #[arg(long, default_value_t = 1.0, value_parser = above_zero)]
    repetition_penalty: f32,
    /// The same seed draws the same tokens
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SamplingFlags {
    pub(super) fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k.map(NonZeroUsize::get),
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: Seed::new(self.seed),
            max_tokens: self.max_tokens as usize,
            ..Sampling::default()
        }
    }

    /// The same as the fields of a request by OpenAI's protocol; those beyond it only where they say something.
    pub(super) fn fields(&self) -> Value {
        let mut fields = json!({
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "max_completion_tokens": self.max_tokens,
        });
        let own = [
            ("top_k", self.top_k.map(|k| json!(k))),
            ("min_p", (self.min_p != 0.0).then(|| json!(self.min_p))),
            ("repetition_penalty", (self.repetition_penalty != 1.0).then(|| json!(self.repetition_penalty))),
        ];
        own.into_iter().filter_map(|(name, value)| Some((name, value?))).for_each(|(name, value)| fields[name] = value);
        fields
    }
}

/// `auto`, `none`, or a skill.
pub(super) fn skill(text: &str) -> Result<SkillChoice, NameError> {
    match text {
        "auto" => Ok(SkillChoice::Auto),
        "none" => Ok(SkillChoice::None),
        name => name.parse().map(SkillChoice::Named),
    }
}

/// As [`skill`] reads it.
pub(super) fn skill_text(skill: &SkillChoice) -> String {
    match skill {
        SkillChoice::Auto => "auto".to_owned(),
        SkillChoice::Routed(routing) => format!("auto by {}", routing.by),
        SkillChoice::None => "none".to_owned(),
        SkillChoice::Named(SkillRef { name, which }) => match which {
            Which::Current => name.to_string(),
            Which::Number(number) => format!("{name}@{number}"),
            Which::Prefix(digits) => format!("{name}@{digits}"),
        },
    }
}

/// A system message.
pub(super) fn system(content: String) -> Message {
    Message { role: Role::System, content }
}

/// `90s`, `5m`, `1.5h`.
pub(super) fn budget(text: &str) -> Result<Budget, String> {
    let wrong = || format!("{text:?} is not a time: a number with its unit is expected, as in 90s, 5m or 1.5h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1.0,
        'm' => 60.0,
        'h' => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    let total = number * seconds;
    if total > 0.0 && total.is_finite() { Ok(Budget::Seconds(total)) } else { Err(wrong()) }
}

/// A number in `[0, 1]`.
pub(super) fn fraction(text: &str) -> Result<f32, String> {
    number(text, "a number from 0 to 1", |n| (0.0..=1.0).contains(&n))
}

fn at_least_zero(text: &str) -> Result<f32, String> {
    number(text, "a number from 0 on", |n| n >= 0.0)
}

fn above_zero(text: &str) -> Result<f32, String> {
    number(text, "a number above 0", |n| n > 0.0)
}

fn number(text: &str, expected: &str, fits: impl Fn(f32) -> bool) -> Result<f32, String> {
    let found = text.parse().ok().filter(|n: &f32| n.is_finite() && fits(*n));
    found.ok_or_else(|| format!("{expected} is expected"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    #[test]
    fn a_budget_is_a_positive_time_with_its_unit() {
        for (text, seconds) in [("90s", 90.0), ("5m", 300.0), ("1.5h", 5400.0)] {
            assert_eq!(budget(text), Ok(Budget::Seconds(seconds)));
        }
        for bad in ["", "5", "m", "-5m", "0s", "5 minutes", "infs", "NaNm", "5é", "1e400s"] {
            assert!(budget(bad).unwrap_err().contains("90s"), "{bad:?}");
        }
    }

    #[test]
    fn memory_is_bytes_or_a_number_with_its_unit() {
        for (text, bytes) in [("1", 1), ("64K", 64 << 10), ("512M", 512 << 20), ("1.5G", 3 << 29)] {
            assert_eq!(memory(text), Ok(bytes));
        }
        for bad in ["", "G", "0", "-1G", "2 G", "2GB", "NaN", "inf", "1e40", "5é"] {
            assert!(memory(bad).unwrap_err().contains("512M"), "{bad:?}");
        }
    }

    #[test]
    fn a_skill_is_auto_none_or_a_name() {
        assert_eq!(skill("auto"), Ok(SkillChoice::Auto));
        assert_eq!(skill("none"), Ok(SkillChoice::None));
        assert!(matches!(skill("reverse@2"), Ok(SkillChoice::Named(_))));
        assert!(skill("../x").is_err());
        for text in ["auto", "none", "a", "a@2", "a@1234ab"] {
            assert_eq!(skill_text(&skill(text).unwrap()), text);
        }
    }

    #[test]
    fn weights_are_kept_as_asked_and_auto_is_what_skills_were_trained_on() {
        use Dtype::*;
        let rows = [
            (vec![], Some(Bf16)),
            (vec!["--weights", "bf16"], Some(Bf16)),
            (vec!["--weights", "quantised"], Some(Quantised)),
            (vec!["--dtype", "f32"], Some(F32)),
            (vec!["--dtype", "f32", "--weights", "quantised"], None),
            (vec!["--dtype", "f32", "--weights", "bf16"], None),
        ];
        for (args, expected) in rows {
            let command = BaseFlags::augment_args(clap::Command::new("socius").no_binary_name(true));
            let flags = BaseFlags::from_arg_matches(&command.get_matches_from(&args)).unwrap();
            assert_eq!(flags.kept().ok(), expected, "{args:?}");
        }
    }

    #[test]
    fn numbers_outside_their_range_are_refused() {
        assert!(fraction("1").is_ok() && fraction("1.1").is_err() && fraction("NaN").is_err());
        assert!(at_least_zero("0").is_ok() && at_least_zero("-1").is_err() && at_least_zero("inf").is_err());
        assert!(above_zero("0.1").is_ok() && above_zero("0").is_err());
    }
}
