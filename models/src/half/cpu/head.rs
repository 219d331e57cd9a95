//! The head on the CPU: final norm, logits, scores of targets and their gradient. Never layers or adapters.

use super::{Buffer, Cpu};
use crate::{HeadGradient, Scores, Target, TargetTokens};
use socius_kernels::head::{self, Coefficients};
use socius_kernels::linear::PackedLinear;
use socius_kernels::norm;

/// What scoring keeps for the backward pass.
pub(crate) struct Saved {
    /// ∂score/∂(normed hidden row) of each target, in the order of positions, if every position has one target. The gradient of a
    /// loss is a coefficient times that, so the logits need not be computed again.
    by_hidden: Option<Vec<f32>>,
}

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
        let mut logits = Buffer::new(positions.len() * self.spec.vocab);
        head::logits(self.head_weight(), &hidden, &mut logits);
        logits.take()
    }

    pub(super) fn head_scores(&self, x: &[f32], targets: &[Target]) -> Scores {
        self.score(x, targets, &mut None)
    }

    /// Scores, and where every position has one target and the head is `frozen`, their gradients.
    pub(super) fn head_scores_recorded(&self, x: &[f32], targets: &[Target], frozen: bool) -> (Scores, Saved) {
        let mut by_hidden = frozen.then(Vec::new);
        let scores = self.score(x, targets, &mut by_hidden);
        (scores, Saved { by_hidden })
    }

    /// With `by_hidden`, it becomes ∂score/∂hidden in the order of positions, or nothing where positions have several targets.
    fn score(&self, x: &[f32], targets: &[Target], by_hidden: &mut Option<Vec<f32>>) -> Scores {
        let sorted = Sorted::new(targets, |_| true);
        let hidden = self.normed(&self.final_norm, &self.gather(x, &sorted.positions));
        if sorted.positions.len() < targets.len() {
            *by_hidden = None;
        }
        if let Some(by_hidden) = by_hidden {
            by_hidden.resize(hidden.len(), 0.0);
        }
        let mut scores = Scores { logprobs: vec![0.0; targets.len()], entropies: vec![0.0; targets.len()] };
        let found = head::scores(self.head_weight(), &hidden, &sorted.targets(), by_hidden.as_deref_mut());
        for (&i, (logprob, entropy)) in sorted.order.iter().zip(found) {
            (scores.logprobs[i], scores.entropies[i]) = (logprob, entropy);
        }
        scores
    }

    /// `learned` are the gradients of the final norm and of the head, if they learn.
    pub(super) fn head_gradient(
        &self,
        x: &[f32],
        (targets, saved): (&[Target], Option<Saved>),
        gradient: HeadGradient<'_>,
        learned: Option<[&mut [f32]; 2]>,
    ) -> Buffer {
        let width = self.spec.hidden;
        // A target whose coefficients are 0 moves nothing, and its row of logits is the dearest of all.
        let moves = |i: usize| gradient.logprobs[i] != 0.0 || gradient.entropies.is_some_and(|e| e[i] != 0.0);
        let by_hidden = saved.and_then(|saved| saved.by_hidden).filter(|_| gradient.entropies.is_none());
        let sorted = Sorted::new(targets, |i| by_hidden.is_some() || moves(i));
        let rows = self.gather(x, &sorted.positions);
        let pick = |of: &[f32]| sorted.order.iter().map(|&i| of[i]).collect::<Vec<_>>();
        let (logprobs, entropies) = (pick(gradient.logprobs), gradient.entropies.map(pick));
        let (d_gain, d_head) = learned.map(|[gain, head]| (gain, head)).unzip();
        let d_hidden = match by_hidden {
            Some(mut d) => {
                let rows = d.chunks_exact_mut(width).zip(&logprobs);
                rows.for_each(|(row, c)| row.iter_mut().for_each(|d| *d *= c));
                d
            }
            None => {
                let hidden = self.normed(&self.final_norm, &rows);
                let coefficients = Coefficients { logprobs: &logprobs, entropies: entropies.as_deref() };
                let mut d = vec![0.0; hidden.len()];
                head::backward(self.head_weight(), &hidden, &sorted.targets(), coefficients, &mut d, d_head);
                d
            }
        };
        if let Some(into) = d_gain {
            norm::add_gain_gradient(self.norm(&self.final_norm), &rows, &d_hidden, into);
        }
        let mut d_rows = vec![0.0; rows.len()];
        norm::backward(self.norm(&self.final_norm), &rows, &d_hidden, &mut d_rows);
        let mut dx = Buffer::zeros(x.len());
        for (&position, d) in sorted.positions.iter().zip(d_rows.chunks_exact(width)) {
            dx[position * width..(position + 1) * width].copy_from_slice(d);
        }
        dx
    }
}
