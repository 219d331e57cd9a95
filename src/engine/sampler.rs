//! From one row of logits to one token: pure arithmetic and one counter-based draw; knows nothing of models or requests.

use super::Constraint;
use crate::common::Seed;
use socius_kernels::head;
use std::{cmp::Ordering, collections::BTreeMap};

/// As OpenAI's interface has it.
const TOP_LOGPROBS_MAX: usize = 20;

/// How tokens are drawn, and when a sample stops.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 is greedy.
    pub temperature: f32,
    /// Keep only this many most probable tokens.
    pub top_k: Option<usize>,
    /// Keep the smallest set of most probable tokens that holds this much probability (nucleus, arXiv 1904.09751); 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less probable than this fraction of the most probable one (arXiv 2407.01082); 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occur in prompt or sample (CTRL, arXiv 1909.05858); 1 is
    /// none.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that occur in the sample (OpenAI's); 0 is none.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens for each time that they occur in the sample (OpenAI's); 0 is none.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many of the most probable tokens are told beside the drawn one.
    pub top_logprobs: usize,
    /// Where draws come from.
    pub seed: Seed,
    /// Tokens at most; the context's end may come sooner.
    pub max_tokens: usize,
    /// Tokens that end a sample.
    pub stop_ids: Vec<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            top_logprobs: 0,
            seed: Seed::new(0),
            max_tokens: 256,
            stop_ids: Vec::new(),
        }
    }
}

/// A token, and logprobs under the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Draw {
    pub(super) token: u32,
    pub(super) logprob: f32,
    /// The most probable tokens.
    pub(super) top: Vec<(u32, f32)>,
}

/// What a draw follows.
#[derive(Clone, Copy)]
pub(super) struct Drawn<'a> {
    pub(super) prompt: &'a [u32],
    pub(super) sampled: &'a [u32],
    /// Index of the sample.
    pub(super) sample: u64,
}

/// A token that may still be drawn: weight `exp((logit − max) / temperature)`.
#[derive(Clone, Copy)]
struct Candidate {
    token: u32,
    weight: f64,
}

impl Sampling {
    /// The most probable token, always.
    pub fn greedy(max_tokens: usize, stop_ids: Vec<u32>) -> Self {
        Self { temperature: 0.0, max_tokens, stop_ids, ..Self::default() }
    }

    /// What is out of range over a vocabulary of `vocab` ids, if anything is: `(field, what would be right)`.
    pub(super) fn fault(&self, vocab: usize) -> Option<(&'static str, &'static str)> {
        let known = |&(token, bias): &(u32, f32)| (token as usize) < vocab && bias.is_finite();
        let faults = [
            (self.temperature >= 0.0 && self.temperature.is_finite(), "temperature", "a number from 0 (greedy) up"),
            (self.top_k != Some(0), "top_k", "at least 1, or none"),
            (self.top_p > 0.0 && self.top_p <= 1.0, "top_p", "above 0 and at most 1"),
            ((0.0..=1.0).contains(&self.min_p), "min_p", "between 0 and 1"),
            (
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "repetition_penalty",
                "a number above 0 (1 is none)",
            ),
            (self.presence_penalty.is_finite(), "presence_penalty", "a number"),
            (self.frequency_penalty.is_finite(), "frequency_penalty", "a number"),
            (self.logit_bias.iter().all(known), "logit_bias", "numbers for token ids that exist"),
            (self.top_logprobs <= TOP_LOGPROBS_MAX, "top_logprobs", "at most 20"),
            (self.max_tokens > 0, "max_tokens", "at least 1"),
        ];
        faults.into_iter().find(|fault| !fault.0).map(|(_, field, right)| (field, right))
    }

    /// Draws the token that follows `before` from `logits` `[vocab]`, as far as `constraint` allows; none if a logit is not a
    /// number, or nothing is allowed.
    pub(super) fn draw(
        &self,
        logits: &[f32],
        before: Drawn<'_>,
        constraint: Option<&mut dyn Constraint>,
    ) -> Option<Draw> {
        let all = head::Stats::of(logits);
        if !all.logsumexp.is_finite() {
            return None;
        }
        let index = before.sampled.len() as u64;
        let uniform = self.seed.purpose("sample").index(before.sample).index(index).rng().uniform();
        let token = if constraint.is_none() && !self.adjusts() {
            self.choose(logits, all.max, uniform)
        } else {
            let mut adjusted = self.adjusted(logits, before);
            if constraint.is_some_and(|constraint| !constraint.mask(&mut adjusted)) {
                return None;
            }
            let left = head::Stats::of(&adjusted);
            if !left.logsumexp.is_finite() {
                return None;
            }
            self.choose(&adjusted, left.max, uniform)
        };
        let logprob = |token: u32| logits[token as usize] - all.logsumexp;
        let top = most_probable(logits, self.top_logprobs).into_iter().map(|token| (token, logprob(token))).collect();
        Some(Draw { token, logprob: logprob(token), top })
    }

    /// Whether logits are changed before a draw.
    fn adjusts(&self) -> bool {
        let penalties = [self.repetition_penalty - 1.0, self.presence_penalty, self.frequency_penalty];
        penalties.iter().any(|&penalty| penalty != 0.0) || !self.logit_bias.is_empty()
    }

    /// Logits with penalties and biases.
    fn adjusted(&self, logits: &[f32], Drawn { prompt, sampled, .. }: Drawn<'_>) -> Vec<f32> {
        let mut adjusted = logits.to_vec();
        if self.repetition_penalty != 1.0 {
            for &token in prompt.iter().chain(sampled) {
                // From the raw logit, so that a token seen twice is penalised once.
                let (logit, penalty) = (logits[token as usize], self.repetition_penalty);
                adjusted[token as usize] = if logit > 0.0 { logit / penalty } else { logit * penalty };
            }
        }
        let mut counts = BTreeMap::<u32, f32>::new();
        sampled.iter().for_each(|&token| *counts.entry(token).or_default() += 1.0);
        for (token, count) in counts {
            adjusted[token as usize] -= self.presence_penalty + count * self.frequency_penalty;
        }
        self.logit_bias.iter().for_each(|&(token, bias)| adjusted[token as usize] += bias);
        adjusted
    }

    fn choose(&self, logits: &[f32], max: f32, uniform: f64) -> u32 {
        let inverse = 1.0 / self.temperature;
        // At zero, and where it is so near zero that its inverse is infinite, the most probable token has all the weight.
        if inverse.is_infinite() {
            return logits.iter().position(|&l| l == max).expect("the maximum is one of them") as u32;
        }
        head::with_weights(logits, (max, inverse), |weights| {
            if self.top_k.is_none() && self.top_p == 1.0 && self.min_p == 0.0 {
                return pick_any(weights, uniform);
            }
            pick(&self.candidates(weights), uniform)
        })
    }

    /// What top-k, top-p and min-p leave of the weights at a temperature, in that order (as transformers applies them).
    fn candidates(&self, weights: &[f32]) -> Vec<Candidate> {
        let mut left: Vec<_> =
            weights.iter().enumerate().map(|(i, &w)| Candidate { token: i as u32, weight: w.into() }).collect();
        if let Some(k) = self.top_k.filter(|&k| k < left.len()) {
            left.select_nth_unstable_by(k - 1, descending);
            left.truncate(k);
        }
        if self.top_k.is_some() || self.top_p < 1.0 {
            left.sort_unstable_by(descending);
        }
        if self.top_p < 1.0 {
            left.truncate(nucleus(&left, self.top_p.into()));
        }
        // The most probable token's weight is 1.
        left.retain(|candidate| candidate.weight >= f64::from(self.min_p));
        left
    }
}

/// The `count` tokens of the greatest logits, greatest first; the lower id first among equals.
fn most_probable(logits: &[f32], count: usize) -> Vec<u32> {
    if count == 0 {
        return Vec::new();
    }
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, order);
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(order);
    tokens
}

/// Most probable first; the lower id first among equals, so that a cut never depends on the sort.
fn descending(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

/// How many of the sorted candidates hold `share` of their total weight.
fn nucleus(sorted: &[Candidate], share: f64) -> usize {
    let enough = share * sorted.iter().map(|c| c.weight).sum::<f64>();
    let mut held = 0.0;
    let reaches = |c: &Candidate| {
        held += c.weight;
        held >= enough
    };
    sorted.iter().position(reaches).map_or(sorted.len(), |last| last + 1)
}

/// Inverts the cumulative weight of all tokens at `uniform` in `[0, 1)`: piece by piece, then inside one.
fn pick_any(weights: &[f32], uniform: f64) -> u32 {
    const PIECE: usize = 256;
    let sums: Vec<f64> = weights.chunks(PIECE).map(sum).collect();
    let mut left = uniform * sums.iter().sum::<f64>();
    let has_weight = |sum: &f64| *sum > 0.0;
    let last = sums.iter().rposition(has_weight).expect("the most probable token has weight 1");
    let piece = sums[..last].iter().position(|sum| {
        let inside = left < *sum;
        left -= if inside { 0.0 } else { *sum };
        inside
    });
    let piece = piece.unwrap_or(last);
    let inside = weights.chunks(PIECE).nth(piece).expect("a piece");
    let passes = |weight: &f32| {
        left -= f64::from(*weight);
        left < 0.0
    };
    // Rounding may leave a hair after the last token; it belongs to the last one that has any weight.
    let within = inside.iter().position(passes).or_else(|| inside.iter().rposition(|&weight| weight > 0.0));
    (piece * PIECE + within.expect("the piece has weight")) as u32
}

/// Sum in eight lanes.
fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    for chunk in weights.chunks(8) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &weight)| *lane += f64::from(weight));
    }
    lanes.iter().sum()
}

/// Inverts the candidates' cumulative weight at `uniform` in `[0, 1)`.
fn pick(candidates: &[Candidate], uniform: f64) -> u32 {
    let mut left = uniform * candidates.iter().map(|c| c.weight).sum::<f64>();
    let passes = |c: &&Candidate| {
        left -= c.weight;
        left < 0.0
    };
    // Rounding may leave a hair after the last candidate; it belongs to the last one that has any weight.
    let drawn = candidates.iter().find(passes).or_else(|| candidates.iter().rfind(|c| c.weight > 0.0));
    drawn.expect("the most probable token is always left").token
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Drawn<'_> = Drawn { prompt: &[], sampled: &[], sample: 0 };

    /// Probabilities 0.4, 0.3, 0.2, 0.1 at ids 2, 0, 3, 1.
    fn hand_logits() -> [f32; 4] {
        [0.3f32, 0.1, 0.4, 0.2].map(f32::ln)
    }

    #[test]
    fn truncation_keeps_exactly_the_tokens_of_the_table() {
        let all = Sampling::default;
        let rows: [(&str, Sampling, &[u32]); 10] = [
            ("nothing cut", all(), &[0, 1, 2, 3]),
            ("top-k 2", Sampling { top_k: Some(2), ..all() }, &[0, 2]),
            ("top-k beyond the vocabulary", Sampling { top_k: Some(9), ..all() }, &[0, 1, 2, 3]),
            ("top-p inside the first token", Sampling { top_p: 0.3, ..all() }, &[2]),
            ("top-p includes the token that crosses it", Sampling { top_p: 0.65, ..all() }, &[0, 2]),
            ("top-p of nearly all", Sampling { top_p: 0.95, ..all() }, &[0, 1, 2, 3]),
            ("min-p is relative to the best", Sampling { min_p: 0.45, ..all() }, &[0, 2, 3]),
            ("min-p 1 keeps the best", Sampling { min_p: 1.0, ..all() }, &[2]),
            // At temperature 0.5 weights are squared: 16, 9, 4, 1 of 30.
            ("temperature comes before top-p", Sampling { temperature: 0.5, top_p: 0.8, ..all() }, &[0, 2]),
            // Of the two kept by top-k, 0.4 is 57 %.
            ("top-p is a share of what top-k left", Sampling { top_k: Some(2), top_p: 0.55, ..all() }, &[2]),
        ];
        for (name, sampling, expected) in rows {
            let weights = hand_logits().map(|logit| ((logit - 0.4f32.ln()) / sampling.temperature).exp());
            let mut kept: Vec<_> = sampling.candidates(&weights).iter().map(|c| c.token).collect();
            kept.sort_unstable();
            assert_eq!(kept, expected, "{name}");
        }
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        let sampling = Sampling::greedy(1, vec![]);
        for (logits, expected) in [(&[1.0f32, 3.0, 3.0][..], 1), (&[-1.0, -1.0], 0), (&[f32::NEG_INFINITY, 0.0], 1)] {
            assert_eq!(sampling.draw(logits, FIRST, None).unwrap().token, expected);
        }
    }

    #[test]
    fn a_row_that_is_not_finite_draws_nothing() {
        for logits in [[f32::NAN, 0.0], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            assert_eq!(Sampling::default().draw(&logits, FIRST, None), None, "{logits:?}");
        }
    }

    #[test]
    fn the_penalty_shrinks_seen_logits_once_and_leaves_the_logprob_raw() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy(1, vec![]) };
        let logits = [4.0, 3.0, -1.0, 0.0];
        assert_eq!(
            sampling.adjusted(&logits, Drawn { prompt: &[0, 2], sampled: &[0], sample: 0 }),
            [2.0, 3.0, -2.0, 0.0]
        );
        let draw = sampling.draw(&logits, Drawn { prompt: &[0], sampled: &[2], sample: 0 }, None).unwrap();
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        assert_eq!(draw.token, 1);
        assert!((f64::from(draw.logprob) - (3.0 - total.ln())).abs() < 1e-6);
    }

    #[test]
    fn penalties_and_biases_move_the_draw_and_not_what_is_told_of_the_model() {
        let logits = [4.0, 3.0, -1.0, 0.0];
        let greedy = || Sampling { top_logprobs: 2, ..Sampling::greedy(1, vec![]) };
        let rows = [
            (greedy(), 0),
            (Sampling { presence_penalty: 1.5, ..greedy() }, 1),
            (Sampling { frequency_penalty: 0.4, ..greedy() }, 0),
            (Sampling { frequency_penalty: 0.6, ..greedy() }, 1),
            (Sampling { logit_bias: vec![(2, 100.0), (0, -100.0)], ..greedy() }, 2),
        ];
        let before = Drawn { prompt: &[1], sampled: &[0, 0], sample: 0 };
        for (sampling, expected) in rows {
            let draw = sampling.draw(&logits, before, None).unwrap();
            assert_eq!(draw.token, expected, "{sampling:?}");
            assert_eq!(draw.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1]);
            assert!((draw.top[0].1 - draw.top[1].1 - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let rows = [
            (Sampling::default(), [0.3, 0.1, 0.4, 0.2]),
            (Sampling { temperature: 0.5, ..Sampling::default() }, [9.0 / 30.0, 1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0]),
            (Sampling { top_k: Some(2), ..Sampling::default() }, [3.0 / 7.0, 0.0, 4.0 / 7.0, 0.0]),
        ];
        let n = 20_000;
        for (sampling, expected) in rows {
            let mut counts = [0.0; 4];
            for sample in 0..n {
                counts[sampling.draw(&hand_logits(), Drawn { sample, ..FIRST }, None).unwrap().token as usize] += 1.0;
            }
            let distance = |(count, p): (&f64, &f64)| {
                let mean = p * n as f64;
                if mean == 0.0 { *count } else { (count - mean).powi(2) / mean }
            };
            let chi_square: f64 = counts.iter().zip(&expected).map(distance).sum();
            // 99.9 % quantile with three degrees of freedom.
            assert!(chi_square < 16.27, "{chi_square}: {counts:?}");
        }
    }

    #[test]
    fn a_draw_falls_on_the_token_whose_share_of_the_line_it_hits() {
        // Weight 1 at token 0, 3 at 300, 4 at 511, none elsewhere: eighths.
        let mut weights = vec![0.0; 700];
        (weights[0], weights[300], weights[511]) = (1.0, 3.0, 4.0);
        for (uniform, token) in [(0.0, 0), (0.124, 0), (0.125, 300), (0.499, 300), (0.5, 511), (1.0, 511)] {
            assert_eq!(pick_any(&weights, uniform), token, "{uniform}");
        }
    }

    #[test]
    fn draws_of_neighbouring_tokens_are_independent() {
        let sampling = Sampling::default();
        let logits = [0.0, 0.0];
        let draw = |sample: u64, sampled: &[u32]| {
            sampling.draw(&logits, Drawn { prompt: &[], sampled, sample }, None).unwrap().token
        };
        let agree = (0..4000).filter(|&s| draw(s, &[]) == draw(s, &[0])).count();
        let neighbours = (0..4000).filter(|&s| draw(s, &[]) == draw(s + 1, &[])).count();
        // Five standard deviations of a fair coin are 158.
        assert!(agree.abs_diff(2000) < 158 && neighbours.abs_diff(2000) < 158, "{agree} {neighbours}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let good = Sampling::default;
        let rows = [
            ("temperature", Sampling { temperature: -1.0, ..good() }),
            ("temperature", Sampling { temperature: f32::NAN, ..good() }),
            ("top_k", Sampling { top_k: Some(0), ..good() }),
            ("top_p", Sampling { top_p: 0.0, ..good() }),
            ("min_p", Sampling { min_p: 1.5, ..good() }),
            ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..good() }),
            ("presence_penalty", Sampling { presence_penalty: f32::NAN, ..good() }),
            ("frequency_penalty", Sampling { frequency_penalty: f32::INFINITY, ..good() }),
            ("logit_bias", Sampling { logit_bias: vec![(4, 1.0)], ..good() }),
            ("logit_bias", Sampling { logit_bias: vec![(3, f32::NAN)], ..good() }),
            ("top_logprobs", Sampling { top_logprobs: 21, ..good() }),
            ("max_tokens", Sampling { max_tokens: 0, ..good() }),
        ];
        for (field, sampling) in rows {
            assert_eq!(sampling.fault(4).unwrap().0, field);
        }
        assert_eq!(good().fault(4), None);
    }
}
