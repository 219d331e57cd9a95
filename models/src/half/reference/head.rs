//! The head of the reference: final norm, logits, scores of targets and their gradient. Never sees layers or adapters.

use super::{Reference, add, ops, watch};
use crate::{HeadGradient, Scores, Target, TargetTokens};
use candle_core::{D, DType, Result, Tensor};

/// Targets a tape covers at once: bounds the logits held, at 128 × 49,152 × 4 B = 25 MB for SmolLM2.
const CHUNK: usize = 128;

impl Reference {
    /// `[positions, vocab]`.
    pub(super) fn head_logits(&self, x: &Tensor, positions: &[usize]) -> Result<Tensor> {
        let ids: Vec<u32> = positions.iter().map(|&p| p as u32).collect();
        let x = x.index_select(&Tensor::from_vec(ids, positions.len(), &self.device)?, 0)?;
        self.head.apply(&ops::rms_norm(&x, &self.final_norm, self.spec.norm_eps)?)
    }

    pub(super) fn head_scores(&self, x: &Tensor, targets: &[Target]) -> Result<Scores> {
        let mut scores = Scores { logprobs: Vec::new(), entropies: Vec::new() };
        for targets in targets.chunks(CHUNK) {
            let (logprobs, entropies) = self.score_tensors(x, targets)?;
            scores.logprobs.extend(logprobs.to_dtype(DType::F32)?.to_vec1::<f32>()?);
            scores.entropies.extend(entropies.to_dtype(DType::F32)?.to_vec1::<f32>()?);
        }
        Ok(scores)
    }

    /// `learned` are the gradients of the final norm and of the head, if they learn.
    pub(super) fn head_gradient(
        &self,
        x: &Tensor,
        targets: &[Target],
        gradient: HeadGradient<'_>,
        mut learned: Option<[&mut [f32]; 2]>,
    ) -> Result<Tensor> {
        let mut dx = x.zeros_like()?;
        for (chunk, targets) in targets.chunks(CHUNK).enumerate() {
            let x = watch(x)?;
            let (logprobs, entropies) = self.score_tensors(&x, targets)?;
            let weighed = |scores: Tensor, weights: &[f32]| {
                let weights = &weights[chunk * CHUNK..][..targets.len()];
                let weights = Tensor::from_slice(weights, targets.len(), &self.device)?.to_dtype(self.dtype)?;
                (scores * weights)?.sum_all()
            };
            let mut loss = weighed(logprobs, gradient.logprobs)?;
            if let Some(weights) = gradient.entropies {
                loss = (loss + weighed(entropies, weights)?)?;
            }
            let tape = loss.backward()?;
            let gradient = |leaf: &Tensor| tape.get(leaf).expect("every leaf of the head has a gradient");
            dx = (dx + gradient(&x))?;
            if let Some([norm, head]) = &mut learned {
                add(norm, gradient(&self.final_norm))?;
                add(head, gradient(self.head.weight()))?;
            }
        }
        Ok(dx)
    }

    /// `(Σ q log p, entropy)` of each target, `[targets]` each.
    pub(super) fn score_tensors(&self, x: &Tensor, targets: &[Target]) -> Result<(Tensor, Tensor)> {
        let positions: Vec<usize> = targets.iter().map(|target| target.position).collect();
        let log_p = ops::log_softmax(&self.head_logits(x, &positions)?)?;
        let entropies = (log_p.exp()? * &log_p)?.sum(D::Minus1)?.neg()?;
        let picks = Picks::new(targets, self.spec.vocab);
        let entries = picks.weights.len();
        let cells = Tensor::from_vec(picks.cells, entries, &self.device)?;
        let weights = Tensor::from_vec(picks.weights, entries, &self.device)?.to_dtype(self.dtype)?;
        let owners = Tensor::from_vec(picks.owners, entries, &self.device)?;
        let weighed = (log_p.flatten_all()?.index_select(&cells, 0)? * weights)?;
        let zeros = Tensor::zeros(targets.len(), self.dtype, &self.device)?;
        Ok((zeros.index_add(&owners, &weighed, 0)?, entropies))
    }
}

/// Every (token, weight) of every target: its cell in `[targets, vocab]`, its weight, and whose it is.
struct Picks {
    cells: Vec<u32>,
    weights: Vec<f32>,
    owners: Vec<u32>,
}

impl Picks {
    fn new(targets: &[Target], vocab: usize) -> Self {
        let mut picks = Self { cells: Vec::new(), weights: Vec::new(), owners: Vec::new() };
        for (owner, target) in targets.iter().enumerate() {
            let mut pick = |token: u32, weight: f32| {
                picks.cells.push((owner * vocab) as u32 + token);
                picks.weights.push(weight);
                picks.owners.push(owner as u32);
            };
            match &target.tokens {
                TargetTokens::Token(token) => pick(*token, 1.0),
                TargetTokens::Soft(tokens) => tokens.iter().for_each(|&(token, weight)| pick(token, weight)),
            }
        }
        picks
    }
}
