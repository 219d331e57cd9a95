//! Scores of next-token distributions: logprobs and entropies from final hidden rows, and their gradient, without ever holding
//! all logits; knows no loss.
//!
//! With logits z, p = softmax(z) and entropy H, a target (q over tokens) scores `Σ q (z − logsumexp z)`. Its gradient, for
//! coefficients c = ∂loss/∂score and e = ∂loss/∂H: `dz = c (q − (Σq) p) − e p (log p + H)`.
//!
//! A row's sums over the vocabulary V run in sixteen lanes, then by halves. With logits within δ and u = 2⁻²⁴,
//! `|logsumexp − exact| ≤ δ + (V/16 + 8)u + 2⁻²¹ + 2u·max|z|`, a logprob adds δ, and H is within the spread of z times that.

use crate::counts::Operation;
use crate::linear::{self, Output, PackedLinear, WeightGradient, Write};
use crate::scratch;
use crate::simd::{self, Kernel, LANES, Simd, Variant};
use rayon::prelude::*;

/// Rows whose logits are held at once: 64 × 49,152 × 4 B = 12.6 MB for SmolLM2, read back from the last-level cache.
const CHUNK: usize = 64;
/// Logits that a chunk of more rows may have: 1 MB, so that a small vocabulary does not wake the threads every few microseconds. In
/// tests few rows make several chunks.
const CHUNK_VALUES: usize = if cfg!(test) { 0 } else { 1 << 18 };

/// Something scored after a row: a distribution over tokens (one token of weight 1, as a rule).
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Index of the hidden row. Ascending in a list of targets; several may share one.
    pub row: usize,
    /// Tokens and weights.
    pub tokens: &'a [(u32, f32)],
}

/// Coefficients of [`backward`], parallel to the targets.
#[derive(Clone, Copy, Debug)]
pub struct Coefficients<'a> {
    /// ∂loss/∂logprob.
    pub logprobs: &'a [f32],
    /// ∂loss/∂entropy.
    pub entropies: Option<&'a [f32]>,
}

/// Logits of every row: `[rows, vocab]` from `hidden`, `[rows, width]`.
pub fn logits(head: &PackedLinear, hidden: &[f32], logits: &mut [f32]) {
    let rows = hidden.len() / head.inputs();
    linear::forward_for(Operation::Head, hidden, rows, &mut [Output { weight: head, y: logits }], Write::Set);
}

/// `(Σ q log p, entropy)` of every target in nats. With `by_hidden`, `[rows, width]`, every row must have one target, and its
/// row of `by_hidden` is set to ∂score/∂hidden: for one more product, logits then need not be computed again in a backward pass.
pub fn scores(
    head: &PackedLinear,
    hidden: &[f32],
    targets: &[Target<'_>],
    mut by_hidden: Option<&mut [f32]>,
) -> Vec<(f32, f32)> {
    let (vocab, width) = (head.outputs(), head.inputs());
    if let Some(by_hidden) = &by_hidden {
        assert_eq!(hidden.len(), by_hidden.len(), "a gradient for each row");
        let own = targets.iter().map(|target| target.row);
        assert!(own.eq(0..hidden.len() / width), "a target for each row");
    }
    let mut scores = Vec::with_capacity(targets.len());
    chunks(head, hidden, targets, |first, logits, targets| {
        let stats: Vec<Stats> = logits.par_chunks(vocab).map(Stats::of).collect();
        for target in targets {
            let (stats, logits) = (stats[target.row], &logits[target.row * vocab..][..vocab]);
            let logprob = target.tokens.iter().map(|&(token, q)| q * (logits[token as usize] - stats.logsumexp)).sum();
            scores.push((logprob, stats.entropy));
        }
        if let Some(by_hidden) = &mut by_hidden {
            let rows = logits.par_chunks_mut(vocab).zip(&stats).zip(targets);
            rows.for_each(|((logits, &stats), target)| {
                row_gradient(logits, stats, std::slice::from_ref(target), &[1.0], 0.0);
            });
            let d = &mut by_hidden[first * width..][..targets.len() * width];
            linear::backward_input_for(Operation::Head, &[(head, logits)], targets.len(), d, Write::Set);
        }
    });
    scores
}

/// Sets `d_hidden`, `[rows, width]`, to the gradient of `Σ c · score + e · entropy`, and adds that of the head to `d_head`, `[vocab,
/// width]`, if it learns.
pub fn backward(
    head: &PackedLinear,
    hidden: &[f32],
    targets: &[Target<'_>],
    coefficients: Coefficients<'_>,
    d_hidden: &mut [f32],
    mut d_head: Option<&mut [f32]>,
) {
    assert_eq!(hidden.len(), d_hidden.len(), "a gradient for each row");
    assert_eq!(targets.len(), coefficients.logprobs.len(), "a coefficient for each target");
    assert!(coefficients.entropies.is_none_or(|e| e.len() == targets.len()), "a coefficient for each target");
    let (vocab, width) = (head.outputs(), head.inputs());
    let mut done = 0;
    chunks(head, hidden, targets, |first, logits, targets| {
        let rows = logits.len() / vocab;
        logits.par_chunks_mut(vocab).enumerate().for_each(|(row, logits)| {
            let start = targets.partition_point(|target| target.row < row);
            let end = targets.partition_point(|target| target.row <= row);
            let own = done + start..done + end;
            let c = &coefficients.logprobs[own.clone()];
            let e = coefficients.entropies.map_or(0.0, |e| e[own].iter().sum());
            row_gradient(logits, Stats::of(logits), &targets[start..end], c, e);
        });
        done += targets.len();
        let d = &mut d_hidden[first * width..(first + rows) * width];
        linear::backward_input_for(Operation::Head, &[(head, logits)], rows, d, Write::Set);
        if let Some(into) = d_head.as_deref_mut() {
            let x = &hidden[first * width..(first + rows) * width];
            let gradient = WeightGradient { x, dy: logits, into };
            linear::add_weight_gradients_for(Operation::Head, rows, &mut [gradient]);
        }
    });
}

/// `body(first row, logits, targets with rows counted from the first)` over chunks of rows.
fn chunks(
    head: &PackedLinear,
    hidden: &[f32],
    targets: &[Target<'_>],
    mut body: impl FnMut(usize, &mut [f32], &[Target<'_>]),
) {
    let (vocab, width) = (head.outputs(), head.inputs());
    let rows = hidden.len() / width;
    assert_eq!(hidden.len(), rows * width, "hidden rows of {width}");
    assert!(targets.windows(2).all(|pair| pair[0].row <= pair[1].row), "targets come in the order of rows");
    assert!(targets.last().is_none_or(|target| target.row < rows), "targets are of {rows} rows");
    let mut rest = targets;
    let chunk = CHUNK.max(CHUNK_VALUES / vocab.max(1));
    for first in (0..rows).step_by(chunk) {
        let count = chunk.min(rows - first);
        let (own, later) = rest.split_at(rest.partition_point(|target| target.row < first + count));
        rest = later;
        let own: Vec<_> = own.iter().map(|target| Target { row: target.row - first, ..*target }).collect();
        scratch::with(count * vocab, |buffer| {
            logits(head, &hidden[first * width..(first + count) * width], buffer);
            body(first, buffer, &own);
        });
    }
}

/// Logits to their gradient, in place. `e` is the sum of the targets' entropy coefficients.
fn row_gradient(logits: &mut [f32], stats: Stats, targets: &[Target<'_>], c: &[f32], e: f32) {
    let mass = |target: &Target<'_>| target.tokens.iter().map(|&(_, q)| q).sum::<f32>();
    let c_mass: f32 = targets.iter().zip(c).map(|(target, c)| c * mass(target)).sum();
    simd::run(simd::active(), Gradient { logits, stats, c_mass, e });
    for (target, c) in targets.iter().zip(c) {
        for &(token, q) in target.tokens {
            logits[token as usize] += c * q;
        }
    }
}

/// What a row's logits come to. Where a logit is no number or +∞, or all are −∞, nothing of it is a number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// The greatest logit.
    pub max: f32,
    /// `ln Σ e^z`: the logprob of a token is its logit less this, in training as in sampling.
    pub logsumexp: f32,
    /// In nats.
    pub entropy: f32,
}

/// Lends `body` the weights `e^{(z − max)·scale}` of a row of logits.
pub fn with_weights<R>(logits: &[f32], (max, scale): (f32, f32), body: impl FnOnce(&[f32]) -> R) -> R {
    scratch::with(logits.len(), |weights| {
        simd::run(simd::active(), Weights { logits, max, scale, weights });
        body(weights)
    })
}

struct Weights<'a> {
    logits: &'a [f32],
    max: f32,
    scale: f32,
    weights: &'a mut [f32],
}

impl Kernel for Weights<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (z, weights) in self.logits.chunks(LANES).zip(self.weights.chunks_mut(LANES)) {
            let n = z.len();
            // SAFETY: both chunks hold n values.
            unsafe {
                let below = S::sub(S::load_n(z.as_ptr(), n), S::splat(self.max));
                S::store_n(weights.as_mut_ptr(), S::exp(S::mul(below, S::splat(self.scale))), n);
            }
        }
    }
}

impl Stats {
    /// Of `[vocab]` logits.
    pub fn of(logits: &[f32]) -> Self {
        Self::of_as(simd::active(), logits)
    }

    fn of_as(variant: Variant, logits: &[f32]) -> Self {
        let mut stats = Self::default();
        simd::run(variant, Summary { logits, stats: &mut stats });
        stats
    }
}

struct Summary<'a> {
    logits: &'a [f32],
    stats: &'a mut Stats,
}

impl Kernel for Summary<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (vectors, rest) = self.logits.as_chunks::<LANES>();
        // What is left over, filled up with what adds nothing.
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        // SAFETY: every array holds 16 values.
        unsafe {
            let mut most = S::load(last.as_ptr());
            for z in vectors {
                most = S::max(most, S::load(z.as_ptr()));
            }
            let largest = S::max_lane(most);
            let most = S::splat(largest);
            // Where p is 0 the entropy's term is 0, although the logit may be −∞: so its distance is bounded.
            let far = S::splat(-1e30);
            let (mut total, mut moment) = (S::splat(0.0), S::splat(0.0));
            for z in vectors.iter().chain(std::iter::once(&last)) {
                let below = S::max(far, S::sub(S::load(z.as_ptr()), most));
                let p = S::exp(below);
                total = S::add(total, p);
                moment = S::fma(p, below, moment);
            }
            let (total, moment) = (S::sum(total), S::sum(moment));
            let log = total.ln();
            *self.stats = Stats { max: largest, logsumexp: largest + log, entropy: log - moment / total };
        }
    }
}

/// `z → −c_mass p − e p (log p + H)`.
struct Gradient<'a> {
    logits: &'a mut [f32],
    stats: Stats,
    c_mass: f32,
    e: f32,
}

impl Kernel for Gradient<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Stats { logsumexp, entropy, .. } = self.stats;
        for z in self.logits.chunks_mut(LANES) {
            let n = z.len();
            // SAFETY: the chunk holds n values.
            unsafe {
                let far = S::splat(-1e30);
                let log_p = S::max(far, S::sub(S::load_n(z.as_ptr(), n), S::splat(logsumexp)));
                let factor = S::fma(S::splat(-self.e), S::add(log_p, S::splat(entropy)), S::splat(-self.c_mass));
                S::store_n(z.as_mut_ptr(), S::mul(S::exp(log_p), factor), n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::WeightType;
    use crate::simd::variants;
    use crate::testing::{Values, assert_same_bits, assert_within, on_threads};

    struct Exact {
        log_p: Vec<f64>,
        entropy: f64,
    }

    fn exact(logits: impl Iterator<Item = f64>) -> Exact {
        let z: Vec<f64> = logits.collect();
        let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log = most + z.iter().map(|z| (z - most).exp()).sum::<f64>().ln();
        let log_p: Vec<f64> = z.iter().map(|z| z - log).collect();
        Exact { entropy: -log_p.iter().map(|l| l.exp() * l).sum::<f64>(), log_p }
    }

    #[test]
    fn logsumexp_and_entropy_of_every_variant_are_those_of_f64() {
        for len in [1, 15, 16, 17, 1000, 49_152] {
            let z: Vec<f32> = Values::new(len as u64).take(len).iter().map(|z| z * 12.0).collect();
            let exact = exact(z.iter().map(|&z| f64::from(z)));
            for &variant in variants() {
                let stats = Stats::of_as(variant, &z);
                // V/16 + 8 additions of lanes, exponentials within 2⁻²², one rounding of a value near 12.
                let bound = (len as f64 / 16.0 + 8.0) * 2f64.powi(-24) + 2f64.powi(-21) + 24.0 * 2f64.powi(-24);
                assert_within(
                    stats.logsumexp,
                    f64::from(z[0]) - exact.log_p[0],
                    bound,
                    format_args!("{variant:?} {len}"),
                );
                assert_within(stats.entropy, exact.entropy, 30.0 * bound, format_args!("{variant:?} entropy of {len}"));
            }
        }
        let stats = Stats::of(&[0.0, f32::NEG_INFINITY]);
        assert_eq!((stats.max, stats.logsumexp, stats.entropy), (0.0, 0.0, 0.0));
        for &variant in variants() {
            for at in [0, 20, 39] {
                for none in [f32::NAN, f32::INFINITY] {
                    let mut z = [0.0; 40];
                    z[at] = none;
                    assert!(Stats::of_as(variant, &z).logsumexp.is_nan(), "{variant:?} {none} at {at}");
                }
            }
            assert!(Stats::of_as(variant, &[f32::NEG_INFINITY; 40]).logsumexp.is_nan());
        }
    }

    #[test]
    fn weights_are_those_of_f64_and_nothing_far_below() {
        let z: Vec<f32> = Values::new(8).take(1003).iter().map(|z| z * 60.0).collect();
        let max = z.iter().copied().fold(f32::MIN, f32::max);
        with_weights(&z, (max, 0.7), |weights| {
            for (&z, &found) in z.iter().zip(weights) {
                let exact = ((f64::from(z) - f64::from(max)) * f64::from(0.7f32)).exp();
                // The exponent is rounded twice, and is 84 at most: 2 · 84 · 2⁻²⁴ of the weight, beside 2⁻²².
                assert_within(found, exact, exact * 172.0 * 2f64.powi(-24), format_args!("{z}"));
            }
        });
    }

    const VOCAB: usize = 75;
    const WIDTH: usize = 20;
    const ROWS: usize = 130;

    #[test]
    fn the_gradient_beside_the_scores_is_that_of_the_backward_pass() {
        let mut values = Values::new(5);
        let (weight, hidden) = (values.take(VOCAB * WIDTH), values.take(ROWS * WIDTH));
        let head = PackedLinear::new(&weight, (VOCAB, WIDTH), WeightType::F32);
        let tokens: Vec<[(u32, f32); 2]> = (0..ROWS as u32).map(|i| [(i % 70, 0.25), (i % 71 + 1, 0.5)]).collect();
        let targets: Vec<_> = tokens.iter().enumerate().map(|(row, tokens)| Target { row, tokens }).collect();
        let (mut beside, mut apart) = (vec![f32::NAN; hidden.len()], vec![f32::NAN; hidden.len()]);
        let found = scores(&head, &hidden, &targets, Some(&mut beside));
        let coefficients = Coefficients { logprobs: &[1.0; ROWS], entropies: None };
        backward(&head, &hidden, &targets, coefficients, &mut apart, None);
        assert_eq!(found, scores(&head, &hidden, &targets, None));
        assert_same_bits(&beside, &apart, format_args!("gradient"));
    }

    #[test]
    fn scores_and_gradients_are_those_of_f64_and_do_not_depend_on_chunks_or_threads() {
        let mut values = Values::new(4);
        let (weight, hidden) = (values.take(VOCAB * WIDTH), values.take(ROWS * WIDTH));
        let head = PackedLinear::new(&weight, (VOCAB, WIDTH), WeightType::F32);
        let tokens: Vec<Vec<(u32, f32)>> = (0..ROWS as u32)
            .map(|i| if i.is_multiple_of(3) { vec![(i % 75, 1.0)] } else { vec![(i % 70, 0.25), (i % 71 + 1, 0.5)] })
            .collect();
        let targets: Vec<_> = (0..ROWS).map(|i| Target { row: i / 7 * 7, tokens: &tokens[i] }).collect();
        let (c, e) = (values.take(ROWS), values.take(ROWS));
        let coefficients = Coefficients { logprobs: &c, entropies: Some(&e) };
        let run = |threads| {
            on_threads(threads, || {
                let (mut d, mut d_head) = (vec![f32::NAN; hidden.len()], vec![0.5; weight.len()]);
                backward(&head, &hidden, &targets, coefficients, &mut d, Some(&mut d_head));
                (scores(&head, &hidden, &targets, None), d, d_head)
            })
        };
        let (found, d, d_head) = run(1);
        let (found3, d3, d_head3) = run(3);
        assert_eq!(found, found3);
        assert_same_bits(&d, &d3, format_args!("gradient"));
        assert_same_bits(&d_head, &d_head3, format_args!("gradient of the head"));

        let mut dz = vec![0.0; ROWS * VOCAB];
        for (i, target) in targets.iter().enumerate() {
            let dot = |v: usize| {
                (0..WIDTH).map(|k| f64::from(weight[v * WIDTH + k]) * f64::from(hidden[target.row * WIDTH + k])).sum()
            };
            let exact = exact((0..VOCAB).map(dot));
            let logprob: f64 = target.tokens.iter().map(|&(t, q)| f64::from(q) * exact.log_p[t as usize]).sum();
            assert_within(found[i].0, logprob, 2e-5, format_args!("logprob {i}"));
            assert_within(found[i].1, exact.entropy, 2e-5, format_args!("entropy {i}"));
            let mass: f64 = target.tokens.iter().map(|&(_, q)| f64::from(q)).sum();
            for (v, log_p) in exact.log_p.iter().enumerate() {
                let dz = &mut dz[target.row * VOCAB + v];
                *dz -= log_p.exp() * (f64::from(c[i]) * mass + f64::from(e[i]) * (log_p + exact.entropy));
            }
            for &(t, q) in target.tokens {
                dz[target.row * VOCAB + t as usize] += f64::from(c[i]) * f64::from(q);
            }
        }
        for row in 0..ROWS {
            for k in 0..WIDTH {
                let exact = (0..VOCAB).map(|v| dz[row * VOCAB + v] * f64::from(weight[v * WIDTH + k])).sum();
                assert_within(d[row * WIDTH + k], exact, 1e-4, format_args!("d_hidden[{row}, {k}]"));
            }
        }
        for v in 0..VOCAB {
            for k in 0..WIDTH {
                let term = |row: usize| dz[row * VOCAB + v] * f64::from(hidden[row * WIDTH + k]);
                let exact = 0.5 + (0..ROWS).map(term).sum::<f64>();
                assert_within(d_head[v * WIDTH + k], exact, 1e-4, format_args!("d_head[{v}, {k}]"));
            }
        }
    }
}
