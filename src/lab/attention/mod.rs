//! The experiment `attention-vs-compression`: what it costs to let N items interact, when the interaction is paid as attention, as joint
//! compression into parameters, as a society of bounded agents, or as retrieval. Never decides what a figure means.

mod adapter;
mod bm25;
mod config;
mod findings;
pub mod found;
mod gathered;
mod incontext;
mod prefix;
mod scratch;
mod smallest;
pub mod society;
mod study;

pub use config::{AdapterConfig, Arm, Config, Point, PrefixConfig, ScratchConfig, SocietyConfig};

use super::{Desk, Grid, LabError, Run};
use crate::report::Page;
use found::Bench;
pub(super) use found::timed;
pub(super) use study::Draw;

/// See the module.
pub struct AttentionVsCompression;

impl Grid for AttentionVsCompression {
    type Config = Config;
    type Point = Point;
    const NAME: &'static str = "attention-vs-compression";
    const SUMMARY: &'static str =
        "what interaction among N items costs as attention, as joint compression, as a society and as retrieval";
    const CONFIGS: [&'static str; 2] = [include_str!("quick.toml"), include_str!("full.toml")];

    fn check(config: &Config) -> Result<(), LabError> {
        config.check()
    }

    fn points(config: &Config) -> Vec<(Point, f64)> {
        let weighed = |point: Point| {
            let weight = point.weight();
            (point, weight)
        };
        config.points().into_iter().map(weighed).collect()
    }

    fn seeds(config: &Config) -> Vec<u64> {
        config.seeds.clone()
    }

    fn measure(config: &Config, point: Point, desk: &mut Desk<'_>) -> Result<(), LabError> {
        let mut bench = Bench::new(config, point, desk)?;
        match bench.point.arm {
            Arm::Attention => incontext::attention(&mut bench),
            Arm::Window => incontext::window(&mut bench),
            Arm::Retrieval => incontext::retrieval(&mut bench),
            Arm::Society => society::measure(&mut bench, checked(&config.society)),
            Arm::Adapter => adapter::measure(&mut bench, checked(&config.adapter)),
            Arm::Prefix => prefix::measure(&mut bench, checked(&config.prefix)),
            Arm::Scratch => scratch::measure(&mut bench, checked(&config.scratch)),
        }
    }

    fn report(runs: &[Run], page: &mut Page) {
        findings::write(runs, page);
    }
}

/// The settings of an arm that runs.
fn checked<T>(settings: &Option<T>) -> &T {
    settings.as_ref().expect("checked with the arms")
}
