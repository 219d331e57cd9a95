//! How long a library of many small skills takes to open, list and search. Never sees a model.

use super::{BenchError, Clock};
use crate::{
    common::{Digest, Phase, Progress, Report, Seed, Unit},
    library::{BaseId, Candidate, EnvId, GateDecision, Library, Provenance, RoutingFeatures, SkillName},
    lora::{LoraConfig, LoraWeights},
};
use socius_models::{Projection, Spec};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// Width of the routing features: that of the default base.
const HIDDEN: usize = 576;

/// A library of made-up skills of rank 1.
pub struct Shelf {
    root: PathBuf,
    publish: f64,
}

/// Median seconds.
#[derive(Clone, Copy, Debug)]
pub struct ShelfTimes {
    /// A publication, over all of them.
    pub publish: f64,
    /// Opening the library.
    pub open: f64,
    /// Listing all skills, the library just opened.
    pub list: f64,
    /// A search by words.
    pub search: f64,
    /// A search by routing features.
    pub like: f64,
    /// Showing one skill.
    pub show: f64,
}

impl Shelf {
    /// Publishes `skills` skills into a library at `root`, one by one.
    ///
    /// # Errors
    /// If the library cannot be written, or an end was asked for.
    pub fn fill(root: &Path, skills: usize, report: &mut dyn Report) -> Result<Self, BenchError> {
        let library = Library::open(root)?;
        let spec = Spec { hidden: HIDDEN, heads: 9, kv_heads: 3, head_dim: 64, layers: 1, ..Spec::tiny() };
        let start = Instant::now();
        for i in 0..skills {
            library.publish(&candidate(i, &lora(i, &spec)?, &spec))?;
            let (done, total) = (i as u64 + 1, Some(skills as u64));
            let phase = Phase::Measurement;
            report.progress(Progress { phase, label: "publishing", done, total, unit: Unit::Items, detail: "" });
            if report.cancelled() {
                return Err(BenchError::Cancelled);
            }
        }
        Ok(Self { root: root.to_owned(), publish: start.elapsed().as_secs_f64() / skills as f64 })
    }

    /// Opens the library anew for each question, as a command does.
    ///
    /// # Errors
    /// If the library cannot be read, or an end was asked for.
    pub fn measure(&self, runs: usize, report: &mut dyn Report) -> Result<ShelfTimes, BenchError> {
        let name: SkillName = name(0).parse().expect("a name");
        let mut time = |question: &dyn Fn(&Library) -> Result<(), BenchError>| {
            Clock { runs, report: &mut *report }.median(|| {
                let library = Library::open(&self.root)?;
                let start = Instant::now();
                question(&library)?;
                Ok(start.elapsed().as_secs_f64())
            })
        };
        let list = time(&|library| {
            library.list()?;
            Ok(())
        })?;
        let search = time(&|library| {
            library.search("kind 7")?;
            Ok(())
        })?;
        let like = time(&|library| {
            library.search_like(&*library.show(&name.clone().into())?)?;
            Ok(())
        })?;
        let show = time(&|library| {
            library.show(&name.clone().into())?;
            Ok(())
        })?;
        let open = Clock { runs, report }.time(|| {
            Library::open(&self.root)?;
            Ok(())
        })?;
        Ok(ShelfTimes { publish: self.publish, open, list, search, like, show })
    }
}

fn name(i: usize) -> String {
    format!("skill-{i:05}")
}

fn lora(i: usize, spec: &Spec) -> Result<LoraWeights, BenchError> {
    let config = LoraConfig::uniform(1, 1.0, &[Projection::Q]);
    let count = config.layout(spec)?.len();
    let mut rng = Seed::new(i as u64).purpose("adapter").rng();
    Ok(LoraWeights::new(config, spec, (0..count).map(|_| rng.uniform() as f32).collect())?)
}

fn candidate<'a>(i: usize, lora: &'a LoraWeights, spec: &'a Spec) -> Candidate<'a> {
    let mut rng = Seed::new(i as u64).purpose("features").rng();
    let row: Vec<f32> = (0..spec.hidden).map(|_| rng.normal() as f32).collect();
    let base = BaseId { name: "made-up".into(), digest: Digest::of("weights"), tokenizer: Digest::of("tokenizer") };
    Candidate {
        name: name(i).parse().expect("a name"),
        description: format!("a made-up skill of kind {}, which answers questions that nobody asks", i % 100),
        base,
        spec,
        lora,
        episodes: &[],
        routing: RoutingFeatures::new(0, &[row]).ok(),
        provenance: Provenance {
            env: Some(EnvId { name: format!("made-up-{}", i % 10), version: "1".into(), level: None }),
            gate: GateDecision { admitted: true, reasons: vec!["made up".into()] },
            ..Provenance::imported(jiff::Timestamp::UNIX_EPOCH)
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Silent;

    #[test]
    fn every_question_to_a_made_up_library_is_timed() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::fill(&folder.path().join("library"), 12, &mut Silent).unwrap();
        let times = shelf.measure(1, &mut Silent).unwrap();
        let ShelfTimes { publish, open, list, search, like, show } = times;
        assert!([publish, open, list, search, like, show].iter().all(|seconds| *seconds > 0.0), "{times:?}");
        assert_eq!(Library::open(&shelf.root).unwrap().search("kind 7").unwrap().len(), 1);
    }
}
