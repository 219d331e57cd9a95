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
pub mod society;
mod study;

pub use config::{AdapterConfig, Arm, Config, Point, PrefixConfig, ScratchConfig, SocietyConfig};

use super::{Cell, Desk, Experiment, LabError, Plan, Run, Size, parse_config};
use crate::report::Page;
use found::Bench;
pub(super) use found::timed;

/// See the module.
pub struct AttentionVsCompression;

impl Experiment for AttentionVsCompression {
    fn name(&self) -> &'static str {
        "attention-vs-compression"
    }

    fn summary(&self) -> &'static str {
        "what interaction among N items costs as attention, as joint compression, as a society and as retrieval"
    }

    fn config(&self, size: Size) -> &'static str {
        match size {
            Size::Quick => include_str!("quick.toml"),
            Size::Full => include_str!("full.toml"),
        }
    }

    fn plan(&self, config: &str) -> Result<Plan, LabError> {
        let config: Config = parse_config(config)?;
        config.check()?;
        let cells = config.points().into_iter().map(|point| (Cell::of(&point), point.weight())).collect();
        Ok(Plan { cells, seeds: config.seeds, model: None })
    }

    fn measure(&self, config: &str, cell: &Cell, desk: &mut Desk<'_>) -> Result<(), LabError> {
        let config: Config = parse_config(config)?;
        let mut bench = Bench::new(&config, cell.read()?, desk)?;
        match bench.point.arm {
            Arm::Attention => incontext::attention(&mut bench),
            Arm::Window => incontext::window(&mut bench),
            Arm::Retrieval => incontext::retrieval(&mut bench),
            Arm::Society => society::measure(&mut bench),
            Arm::Adapter => adapter::measure(&mut bench),
            Arm::Prefix => prefix::measure(&mut bench, config.prefix.as_ref().expect("checked with the arms")),
            Arm::Scratch => scratch::measure(&mut bench, config.scratch.as_ref().expect("checked with the arms")),
        }
    }

    fn report(&self, runs: &[Run], page: &mut Page) {
        findings::write(runs, page);
    }
}
