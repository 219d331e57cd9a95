//! What work takes, counted: tokens, floating-point operations, seconds. Pure.

use crate::agent::Mark;
use serde::{Deserialize, Serialize};
use socius_models::Spec;
use std::ops::AddAssign;

/// What something took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Tokens of prompts that were read, evaluations included.
    pub read_tokens: u64,
    /// Tokens drawn.
    pub sampled_tokens: u64,
    /// Tokens that passed through forward and backward.
    pub trained_tokens: u64,
    /// Floating-point operations, counted analytically.
    pub flops: f64,
    /// Wall time. What several things took together is shared among them.
    pub seconds: f64,
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.read_tokens += other.read_tokens;
        self.sampled_tokens += other.sampled_tokens;
        self.trained_tokens += other.trained_tokens;
        self.flops += other.flops;
        self.seconds += other.seconds;
    }
}

impl Spent {
    /// Of answers, each under an adapter of `adapter` parameters.
    pub(super) fn answering(spec: &Spec, marks: &[Mark], adapters: &[usize]) -> Self {
        let mut spent = Self::default();
        for (mark, &adapter) in marks.iter().zip(adapters) {
            spent += Self {
                read_tokens: mark.read,
                sampled_tokens: mark.drawn,
                flops: forward(spec, adapter, mark.read, mark.drawn),
                seconds: mark.seconds,
                ..Self::default()
            };
        }
        spent
    }
}

/// Weights of the linears of all layers: 106.2 million for SmolLM2-135M.
fn linear_weights(spec: &Spec) -> f64 {
    let (hidden, attention) = (spec.hidden, 2 * (spec.q_dim() + spec.kv_dim()));
    (spec.layers * hidden * (attention + 3 * spec.intermediate)) as f64
}

fn head_weights(spec: &Spec) -> f64 {
    (spec.hidden * spec.vocab) as f64
}

/// Operations of reading `read` tokens and drawing `drawn` more: two for each weight and token, the head for drawn tokens alone, and
/// attention's two products with everything before.
pub(in crate::agent) fn forward(spec: &Spec, adapter: usize, read: u64, drawn: u64) -> f64 {
    let tokens = (read + drawn) as f64;
    let attention = 4.0 * (spec.layers * spec.q_dim()) as f64 * tokens * (tokens + 1.0) / 2.0;
    forward_rows(spec, adapter, read, drawn) + attention
}

/// The same of many rows, by the tokens of all: without attention, a hundredth of it for rows of 40 tokens. [`forward`] of a sum would let
/// rows attend to each other.
pub fn forward_rows(spec: &Spec, adapter: usize, read: u64, drawn: u64) -> f64 {
    2.0 * (linear_weights(spec) + adapter as f64) * (read + drawn) as f64 + 2.0 * head_weights(spec) * drawn as f64
}

/// Operations of reading `tokens` of many rows as far as the output of the first `layers`.
pub(super) fn reading(spec: &Spec, layers: usize, tokens: u64) -> f64 {
    2.0 * linear_weights(spec) * tokens as f64 * layers as f64 / spec.layers as f64
}

/// Operations of training an adapter on `tokens`, of which `scored` have a loss: four for each frozen weight and token (the frozen
/// weights need no gradient of their own), six for each of the adapter's. Attention, a hundredth of it for rows of 40 tokens, is left
/// out.
pub fn training(spec: &Spec, adapter: usize, tokens: u64, scored: u64) -> f64 {
    let weights = 4.0 * linear_weights(spec) + 6.0 * adapter as f64;
    weights * tokens as f64 + 4.0 * head_weights(spec) * scored as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_those_counted_by_hand_for_the_tiny_base() {
        let spec = Spec::tiny();
        let linears: usize = spec
            .slots()
            .filter(|slot| spec.shape(*slot).len() == 2)
            .map(|s| spec.shape(s).iter().product::<usize>())
            .sum();
        let tables = if spec.tied_head { 1 } else { 2 } * spec.hidden * spec.vocab;
        assert_eq!(linear_weights(&spec), (linears - tables) as f64);
        let attention = 4.0 * (spec.layers * spec.q_dim()) as f64;
        assert_eq!(forward(&spec, 0, 2, 0) - 2.0 * forward(&spec, 0, 1, 0), attention);
        assert_eq!(forward(&spec, 5, 1, 0) - forward(&spec, 0, 1, 0), 10.0);
        assert_eq!(training(&spec, 0, 1, 0), 4.0 * linear_weights(&spec));
        assert_eq!(forward(&spec, 7, 3, 2) - forward_rows(&spec, 7, 3, 2), 15.0 * attention);
        assert_eq!(forward_rows(&spec, 7, 6, 4), 2.0 * forward_rows(&spec, 7, 3, 2), "rows do not see each other");
        assert_eq!(reading(&spec, spec.layers, 9), forward_rows(&spec, 0, 9, 0));
        assert_eq!(reading(&spec, 0, 9), 0.0);
    }

    #[test]
    fn what_several_things_took_adds_up() {
        let mark = |read, drawn| Mark { read, drawn, seconds: 0.5, ..Mark::default() };
        let spent = Spent::answering(&Spec::tiny(), &[mark(3, 1), mark(5, 2)], &[0, 0]);
        assert_eq!((spent.read_tokens, spent.sampled_tokens, spent.seconds), (8, 3, 1.0));
        assert_eq!(spent.flops, forward(&Spec::tiny(), 0, 3, 1) + forward(&Spec::tiny(), 0, 5, 2));
    }
}
