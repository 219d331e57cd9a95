//! The head on the CPU: final norm, logits, scores of targets and their gradient. Never layers or adapters.

use super::Cpu;
use crate::{HeadGradient, Scores, Target, TargetTokens};
use socius_kernels::head::{self, Coefficients};
use socius_kernels::linear::PackedLinear;
use socius_kernels::norm;

/// Targets in the order of their positions, and the positions without repetition.
struct Sorted {
    /// Index of each target in the caller's list.
    order: Vec<usize>,
    positions: Vec<usize>,
    /// Of each target, in `order`: index into `positions`, and its tokens.
    rows: Vec<(usize, Vec<(u32, f32)>)>,
}

impl Sorted {
    /// The targets for which `wanted` says true.
    fn new(targets: &[Target], wanted: impl Fn(usize) -> bool) -> Self {
        let mut order: Vec<usize> = (0..targets.len()).filter(|&i| wanted(i)).collect();
        order.sort_by_key(|&i| targets[i].position);
        let mut positions: Vec<usize> = order.iter().map(|&i| targets[i].position).collect();
        positions.dedup();
        let row = |&i: &usize| {
            let row = positions.partition_point(|&position| position < targets[i].position);
            let tokens = match &targets[i].tokens {
                TargetTokens::Token(token) => vec![(*token, 1.0)],
                TargetTokens::Soft(tokens) => tokens.clone(),
            };
            (row, tokens)
        };
        Self { rows: order.iter().map(row).collect(), order, positions }
    }

    fn targets(&self) -> Vec<head::Target<'_>> {
        self.rows.iter().map(|(row, tokens)| head::Target { row: *row, tokens }).collect()
    }
}

impl Cpu {
    fn head_weight(&self) -> &PackedLinear {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The rows of `x` at `positions`.
    fn gather(&self, x: &[f32], positions: &[usize]) -> Vec<f32> {
        let width = self.spec.hidden;
        positions.iter().flat_map(|&position| &x[position * width..(position + 1) * width]).copied().collect()
    }

    /// `[positions, vocab]`.
    pub(super) fn head_logits(&self, x: &[f32], positions: &[usize]) -> Vec<f32> {
        let hidden = self.normed(&self.final_norm, &self.gather(x, positions));
        let mut logits = vec![0.0; positions.len() * self.spec.vocab];
        head::logits(self.head_weight(), &hidden, &mut logits);
        logits
    }

    pub(super) fn head_scores(&self, x: &[f32], targets: &[Target]) -> Scores {
        let sorted = Sorted::new(targets, |_| true);
        let hidden = self.normed(&self.final_norm, &self.gather(x, &sorted.positions));
        let mut scores = Scores { logprobs: vec![0.0; targets.len()], entropies: vec![0.0; targets.len()] };
        let found = head::scores(self.head_weight(), &hidden, &sorted.targets());
        for (&i, (logprob, entropy)) in sorted.order.iter().zip(found) {
            (scores.logprobs[i], scores.entropies[i]) = (logprob, entropy);
        }
        scores
    }

    pub(super) fn head_gradient(&self, x: &[f32], targets: &[Target], gradient: HeadGradient<'_>) -> Vec<f32> {
        let width = self.spec.hidden;
        // A target whose coefficients are 0 moves nothing, and its row of logits is the dearest of all.
        let moves = |i: usize| gradient.logprobs[i] != 0.0 || gradient.entropies.is_some_and(|e| e[i] != 0.0);
        let sorted = Sorted::new(targets, moves);
        let rows = self.gather(x, &sorted.positions);
        let hidden = self.normed(&self.final_norm, &rows);
        let pick = |of: &[f32]| sorted.order.iter().map(|&i| of[i]).collect::<Vec<_>>();
        let (logprobs, entropies) = (pick(gradient.logprobs), gradient.entropies.map(pick));
        let coefficients = Coefficients { logprobs: &logprobs, entropies: entropies.as_deref() };
        let mut d_hidden = vec![0.0; hidden.len()];
        head::backward(self.head_weight(), &hidden, &sorted.targets(), coefficients, &mut d_hidden);
        let mut d_rows = vec![0.0; rows.len()];
        norm::backward(self.norm(&self.final_norm), &rows, &d_hidden, &mut d_rows);
        let mut dx = vec![0.0; x.len()];
        for (&position, d) in sorted.positions.iter().zip(d_rows.chunks_exact(width)) {
            dx[position * width..(position + 1) * width].copy_from_slice(d);
        }
        dx
    }
}
