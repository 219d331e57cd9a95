//! A small library for tests. Never compiled into the program.

use super::*;
use crate::{
    common::Digest,
    episode::{Episode, Turn},
    lora::{LoraConfig, LoraWeights, testing::random},
};
use socius_models::{Projection, Spec};
use std::{fs, path::Path, sync::Arc};

pub(super) struct Fixture {
    pub(super) library: Library,
    pub(super) base: BaseId,
    pub(super) spec: Spec,
    /// Removed with the fixture.
    pub(super) folder: tempfile::TempDir,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open(&folder.path().join("library")).unwrap();
        Self { library, base: base(), spec: Spec::tiny(), folder }
    }

    pub(super) fn lora(&self, seed: u64) -> LoraWeights {
        random(LoraConfig::uniform(4, 8.0, &[Projection::Q, Projection::Down]), &self.spec, seed)
    }

    pub(super) fn features(&self, seed: u64) -> RoutingFeatures {
        let mut rng = crate::common::Seed::new(seed).rng();
        let rows: Vec<Vec<f32>> =
            (0..5).map(|_| (0..self.spec.hidden).map(|_| rng.normal() as f32).collect()).collect();
        RoutingFeatures::new(1, &rows).unwrap()
    }

    pub(super) fn episodes(&self) -> Vec<Episode> {
        let turn = Turn { prompt: vec![1, 2, 3], action: vec![4], logprobs: vec![-0.25], generation: None };
        let episode = Episode {
            env: "reverse".into(),
            item: "0f".into(),
            wording: 1,
            turns: vec![turn],
            reward: 1.0,
            strict: true,
            lenient: true,
            feedback: None,
        };
        vec![episode.clone(), Episode { strict: false, reward: 0.0, ..episode }]
    }

    pub(super) fn candidate<'a>(&'a self, name: &str, seed: u64, lora: &'a LoraWeights) -> Candidate<'a> {
        Candidate {
            name: name.parse().unwrap(),
            description: format!("what {name} does"),
            base: self.base.clone(),
            spec: &self.spec,
            lora,
            episodes: self.episodes().leak(),
            routing: Some(self.features(seed)),
            provenance: provenance(),
        }
    }

    pub(super) fn publish(&self, name: &str, seed: u64) -> Arc<Generation> {
        self.library.publish(&self.candidate(name, seed, &self.lora(seed))).unwrap()
    }
}

fn base() -> BaseId {
    BaseId { name: "org/Tiny".into(), digest: Digest::of("weights"), tokenizer: Digest::of("tokenizer") }
}

pub(super) fn provenance() -> Provenance {
    let score = |strict| Score { strict, lenient: 0.9, items: 256, ci95: [strict / 2.0, 0.95] };
    Provenance {
        env: Some(EnvId { name: "reverse".into(), version: "1".into(), level: None }),
        learner: "sft".into(),
        hyper_parameters: serde_json::json!({"lr": 5e-4, "steps": 12}).as_object().unwrap().clone(),
        seed: Some(7),
        items: ItemsUsed { train: vec!["aa".into()], validation: vec!["bb".into()], test: vec!["cc".into()] },
        cost: Cost { sampled_tokens: 0, trained_tokens: 11_000, steps: 12, seconds: 61.5 },
        test: Some(Comparison { before: score(0.0), after: score(0.875) }),
        ..Provenance::imported("2025-01-02T03:04:05Z".parse().unwrap())
    }
}

pub(super) fn manifest(name: &str) -> Manifest {
    let blob = BlobRef { digest: Digest::of(name), bytes: 12 };
    Manifest {
        socius_generation: FORMAT,
        name: name.parse().unwrap(),
        number: 1,
        previous: None,
        description: "an example".into(),
        base: base(),
        rank: 4,
        blobs: Blobs {
            adapter_config: blob,
            adapter_weights: blob,
            episodes: Some(blob),
            routing: Some(RoutingRef { blob, layer: 14 }),
        },
        provenance: provenance(),
    }
}

/// Copies all that lies in `from` into `to`.
pub(super) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_folder(&path, &to),
            false => assert!(fs::copy(&path, &to).is_ok()),
        }
    }
}
