//! What a generation says about itself: where it came from, what it cost and what it is known to be worth. Plain data.

use super::SkillName;
use crate::common::Digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The version of [`Manifest`] that this program writes; it reads this one and all before it.
pub const FORMAT: u32 = 1;

/// Which base an adapter belongs to. Two bases are the same when both digests are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BaseId {
    /// A hub id where there is one: it is written into what is exported.
    pub name: String,
    /// Of the checkpoint.
    pub digest: Digest,
    /// Of the tokenizer.
    pub tokenizer: Digest,
}

impl BaseId {
    /// Whether both mean the same weights and the same token ids, whatever they are called.
    pub fn same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.tokenizer == other.tokenizer
    }
}

/// The environment that a skill was learned in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnvId {
    /// Name, as `socius envs` lists it, or the command of an outside one.
    pub name: String,
    /// Version of its items and grades.
    pub version: String,
    /// Level, where it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
}

/// Digests of the items that were used, by split.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ItemsUsed {
    /// Learned from.
    pub train: Vec<String>,
    /// Seen by the gate.
    pub validation: Vec<String>,
    /// Reported, and never decided upon.
    pub test: Vec<String>,
}

/// Accuracies over some items, as fractions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Whole replies that were right.
    pub strict: f64,
    /// First complete answer spans that were right.
    pub lenient: f64,
    /// Number of items.
    pub items: usize,
    /// 95 % interval of `strict`.
    pub ci95: [f64; 2],
}

/// A score before learning and after it, on the same items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Under the base or the parent.
    pub before: Score,
    /// Under the candidate.
    pub after: Score,
}

/// Everything that learning took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Tokens sampled from the model.
    pub sampled_tokens: u64,
    /// Tokens that passed through forward and backward.
    pub trained_tokens: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Wall time from birth to gate.
    pub seconds: f64,
}

/// What the gate decided, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateDecision {
    /// Whether the candidate became a skill.
    pub admitted: bool,
    /// One sentence each.
    pub reasons: Vec<String>,
}

/// How a generation came to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// None for skills that were taught from a file or imported.
    pub env: Option<EnvId>,
    /// `sft`, `raft`, `rloo`, `grpo`, … or `import`.
    pub learner: String,
    /// Every setting that the run depended on, by name.
    pub hyper_parameters: Map<String, Value>,
    /// The run's seed; none where nothing was drawn.
    pub seed: Option<u64>,
    /// Items used.
    pub items: ItemsUsed,
    /// What it took.
    pub cost: Cost,
    /// On the validation items that the gate saw.
    pub validation: Option<Comparison>,
    /// On the test items that are only reported.
    pub test: Option<Comparison>,
    /// On kinds of test item that are reported apart, by kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub apart: BTreeMap<String, Comparison>,
    /// Generations that it was born from.
    pub parents: Vec<Digest>,
    /// The gate's decision.
    pub gate: GateDecision,
    /// When it was published.
    pub created: Timestamp,
}

impl Provenance {
    /// Of an adapter made elsewhere, of which nothing is known but when it came.
    pub fn imported(created: Timestamp) -> Self {
        Self {
            env: None,
            learner: "import".into(),
            hyper_parameters: Map::new(),
            seed: None,
            items: ItemsUsed::default(),
            cost: Cost::default(),
            validation: None,
            test: None,
            apart: BTreeMap::new(),
            parents: Vec::new(),
            gate: GateDecision { admitted: true, reasons: vec!["imported; not measured here".into()] },
            created,
        }
    }
}

/// A stored object that a manifest refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// Of the object's bytes.
    pub digest: Digest,
    /// Their number.
    pub bytes: u64,
}

/// Routing features of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingRef {
    /// A safetensors file with one tensor `features`, `[prompts, hidden]` in f32.
    #[serde(flatten)]
    pub blob: BlobRef,
    /// The layer after which they were taken.
    pub layer: usize,
}

/// The objects of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blobs {
    /// PEFT's `adapter_config.json`.
    pub adapter_config: BlobRef,
    /// PEFT's `adapter_model.safetensors`.
    pub adapter_weights: BlobRef,
    /// The episodes that it was trained on: JSON lines under zstd.
    pub episodes: Option<BlobRef>,
    /// What the router knows it by.
    pub routing: Option<RoutingRef>,
}

impl Blobs {
    /// Every object with the word for it.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, BlobRef)> {
        let some = [("adapter configuration", self.adapter_config), ("adapter weights", self.adapter_weights)];
        let episodes = self.episodes.map(|blob| ("episodes", blob));
        let routing = self.routing.map(|routing| ("routing features", routing.blob));
        some.into_iter().chain(episodes).chain(routing)
    }
}

/// The immutable record of one published generation. The digest of its stored bytes is the generation's id. With `number` and
/// `previous` the objects alone say every name's history, so the index can be made again from them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`] of the program that wrote it.
    pub socius_generation: u32,
    /// The skill.
    pub name: SkillName,
    /// Place in the name's history, from 1, without gaps.
    pub number: u32,
    /// The generation before it under this name.
    pub previous: Option<Digest>,
    /// What the skill is for, in a sentence.
    pub description: String,
    /// The base that it belongs to.
    pub base: BaseId,
    /// The adapter's usual rank; 0 of a trained prefix.
    pub rank: usize,
    /// Its objects.
    pub blobs: Blobs,
    /// How it came to be.
    pub provenance: Provenance,
}

/// A published generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Digest of the manifest's bytes.
    pub id: Digest,
    /// What it says.
    pub manifest: Manifest,
}

/// One row of `skills list`. The index keeps it, so that ten thousand are listed without opening a manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkillSummary {
    /// The skill.
    pub name: SkillName,
    /// Its current generation.
    pub generation: Digest,
    /// That generation's place in the history.
    pub number: u32,
    /// Name of the base.
    pub base: String,
    /// Name of the environment.
    pub env: Option<String>,
    /// The adapter's usual rank; 0 of a trained prefix.
    pub rank: usize,
    /// Size of the adapter's files.
    pub bytes: u64,
    /// When it was published.
    pub created: Timestamp,
    /// Strict test accuracy before learning.
    pub before: Option<f64>,
    /// Strict test accuracy after it.
    pub after: Option<f64>,
    /// Generations that it was born from.
    pub parents: Vec<Digest>,
    /// What the skill is for.
    pub description: String,
}

impl From<&Generation> for SkillSummary {
    fn from(generation: &Generation) -> Self {
        let Manifest { name, number, description, base, rank, blobs, provenance, .. } = &generation.manifest;
        let test = provenance.test.or(provenance.validation);
        Self {
            name: name.clone(),
            generation: generation.id,
            number: *number,
            base: base.name.clone(),
            env: provenance.env.as_ref().map(|env| env.name.clone()),
            rank: *rank,
            bytes: blobs.adapter_config.bytes + blobs.adapter_weights.bytes,
            created: provenance.created,
            before: test.map(|test| test.before.strict),
            after: test.map(|test| test.after.strict),
            parents: provenance.parents.clone(),
            description: description.clone(),
        }
    }
}
