//! How a subagent is to learn, as plain data: everything that decides a run's bytes. Never runs anything.

use super::{budget::Budget, gate::Gate};
use crate::{
    lora::LoraConfig,
    train::{AdamW, Decay, Schedule},
};
use serde::{Deserialize, Serialize};
use socius_models::Projection;
use std::{fmt, str::FromStr};

/// A way to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Supervised on revealed answers.
    Sft,
    /// Supervised on one's own rewarded samples (RAFT, arXiv 2304.06767).
    Raft,
    /// REINFORCE with a leave-one-out baseline (arXiv 2402.14740).
    Rloo,
    /// Group-normalised advantages and a clipped ratio (arXiv 2402.03300).
    Grpo,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sft, Self::Raft, Self::Rloo, Self::Grpo];

    /// Whether it learns from reward alone.
    pub fn samples(self) -> bool {
        self != Self::Sft
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sft => "sft",
            Self::Raft => "raft",
            Self::Rloo => "rloo",
            Self::Grpo => "grpo",
        })
    }
}

/// Not a way to learn.
#[derive(Debug, thiserror::Error)]
#[error("no learner is called {0:?}: auto, sft, raft, rloo or grpo is expected")]
pub struct UnknownMethod(String);

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(name: &str) -> Result<Self, UnknownMethod> {
        Self::ALL.into_iter().find(|method| method.to_string() == name).ok_or_else(|| UnknownMethod(name.to_owned()))
    }
}

/// Everything that decides what is learned, apart from environment and base.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// None chooses by measuring the base (`auto`).
    pub method: Option<Method>,
    /// Of items, samples, initialisation and dropout.
    pub seed: u64,
    /// None takes the method's own number of steps.
    pub budget: Option<Budget>,
    /// Rank of the adapter.
    pub rank: usize,
    /// Numerator of the adapter's scale alpha / rank.
    pub alpha: f64,
    /// Positions of a trained prefix in place of an adapter of that rank; 0: no prefix. It begins as [`super::Course::beginning`] is read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub positions: usize,
    /// Peak learning rate; none takes the method's own.
    pub lr: Option<f64>,
    /// Weight of the KL to the base in reward-only learning.
    pub kl: f64,
    /// Probability of dropping an adapter's input in training.
    pub dropout: f64,
    /// Difficulty of the items, from 1.
    pub level: u32,
    /// Items that the gate judges by.
    pub validation_items: usize,
    /// Items that the report is about.
    pub test_items: usize,
    /// What the gate asks.
    pub gate: Gate,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            method: None,
            seed: 0,
            budget: None,
            rank: 16,
            alpha: 32.0,
            positions: 0,
            lr: None,
            kl: 0.0,
            dropout: 0.0,
            level: 1,
            validation_items: 96,
            test_items: 256,
            gate: Gate::default(),
        }
    }
}

/// A method's own settings, where the recipe leaves them open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Defaults {
    /// Optimiser steps.
    pub(super) steps: usize,
    /// Peak learning rate.
    pub(super) lr: f64,
    /// Different items a step.
    pub(super) items: usize,
    /// Samples of each item.
    pub(super) samples: u64,
    /// Sampling temperature.
    pub(super) temperature: f32,
}

impl Method {
    pub(super) fn defaults(self) -> Defaults {
        match self {
            // 64 × 8 rows of 5 to 20 answer tokens: docs/results.md has what they reach.
            Self::Sft => Defaults { steps: 64, lr: 1e-3, items: 8, samples: 0, temperature: 0.0 },
            // 8 × 8 samples, below temperature 1 so that a rare reward is met more often.
            Self::Raft => Defaults { steps: 20, lr: 5e-4, items: 8, samples: 8, temperature: 0.6 },
            Self::Rloo | Self::Grpo => Defaults { steps: 24, lr: 5e-4, items: 8, samples: 8, temperature: 0.6 },
        }
    }
}

impl Recipe {
    /// The adapter's settings.
    pub(super) fn lora(&self) -> LoraConfig {
        if self.positions > 0 {
            return LoraConfig::prefix(self.positions);
        }
        LoraConfig { dropout: self.dropout, ..LoraConfig::uniform(self.rank, self.alpha, &Projection::ALL) }
    }

    /// The optimiser of a run of `steps` steps: late steps of a constant rate oscillate, so it falls to 0.
    pub(super) fn optimiser(&self, method: Method, steps: usize) -> AdamW {
        let schedule = Schedule { warmup: 3, decay: Decay::Linear { steps: steps as u64 } };
        let usual = if self.positions > 0 { PREFIX_LR } else { method.defaults().lr };
        AdamW { lr: self.lr.unwrap_or(usual), schedule, ..AdamW::default() }
    }
}

/// Keys and values are of the size of activations, not of weights.
const PREFIX_LR: f64 = 1e-2;

fn is_zero(positions: &usize) -> bool {
    *positions == 0
}
