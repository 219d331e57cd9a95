//! RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467) over rows: `y = w ∘ x / √(mean(x²) + ε)`.
//!
//! Sums run in sixteen lanes and then by halves, so error grows with n/16 + 4 additions: with u = 2⁻²⁴,
//! `|y − exact| ≤ (n/16 + 12)·u·|y|`. Backward, with r the inverse root: `dx += r (w∘dy) − x r³/n Σ(w∘dy∘x)`, within
//! `(n/8 + 32)·u·(r|w∘dy| + |x| r³/n Σ|w∘dy∘x|)`. Where the weight learns, `dw += Σ r dy∘x` over the rows in their order, on one thread (its columns
//! are few): within `(n/16 + rows + 12)·u·(|dw₀| + Σ r|dy∘x|)`, and the same bits however the rows are cut into calls.

use crate::elementwise;
use crate::simd::{self, Kernel, LANES, Simd, Variant};

/// The norm's constants.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `[width]`.
    pub weight: &'a [f32],
    /// ε.
    pub eps: f32,
}

/// `y = norm(x)`, both `[rows, width]`.
pub fn forward(norm: Norm<'_>, x: &[f32], y: &mut [f32]) {
    forward_as(simd::active(), norm, x, y);
}

/// `dx += ∂norm(x)/∂x · dy`, all `[rows, width]`.
pub fn backward(norm: Norm<'_>, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    backward_as(simd::active(), norm, x, dy, dx);
}

/// `dw += Σ r dy∘x`: adds to the gradient of the norm's own weight, `[width]`, over the rows of `x` and `dy`, `[rows, width]`.
pub fn add_gain_gradient(norm: Norm<'_>, x: &[f32], dy: &[f32], into: &mut [f32]) {
    add_gain_gradient_as(simd::active(), norm, x, dy, into);
}

fn add_gain_gradient_as(variant: Variant, norm: Norm<'_>, x: &[f32], dy: &[f32], into: &mut [f32]) {
    assert!(x.len() == dy.len() && into.len() == norm.weight.len(), "a gradient for each input and each weight");
    simd::run(variant, Gain { norm, x, dy, into });
}

fn forward_as(variant: Variant, norm: Norm<'_>, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "an output for each input");
    let width = norm.weight.len();
    elementwise::rows(y, width, |first, y| {
        simd::run(variant, Forward { norm, x: &x[first * width..first * width + y.len()], y });
    });
}

fn backward_as(variant: Variant, norm: Norm<'_>, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(x.len() == dx.len() && x.len() == dy.len(), "a gradient for each input");
    let width = norm.weight.len();
    elementwise::rows(dx, width, |first, dx| {
        let at = first * width..first * width + dx.len();
        simd::run(variant, Backward { norm, x: &x[at.clone()], dy: &dy[at], dx });
    });
}

struct Forward<'a> {
    norm: Norm<'a>,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Norm { weight, eps } = self.norm;
        let width = weight.len();
        for (x, y) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)) {
            // SAFETY: `each` stays inside rows of `width`.
            unsafe {
                let r = inverse_root::<S>(x, eps);
                let mut at = 0;
                while at < width {
                    let n = LANES.min(width - at);
                    let scaled = S::mul(S::load_n(x.as_ptr().add(at), n), S::splat(r));
                    let w = S::load_n(weight.as_ptr().add(at), n);
                    S::store_n(y.as_mut_ptr().add(at), S::mul(scaled, w), n);
                    at += LANES;
                }
            }
        }
    }
}

struct Backward<'a> {
    norm: Norm<'a>,
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Norm { weight, eps } = self.norm;
        let width = weight.len();
        let rows = self.x.chunks_exact(width).zip(self.dy.chunks_exact(width));
        for ((x, dy), dx) in rows.zip(self.dx.chunks_exact_mut(width)) {
            // SAFETY: accesses stay inside rows of `width`.
            unsafe {
                let r = inverse_root::<S>(x, eps);
                let mut sum = S::splat(0.0);
                let mut at = 0;
                while at < width {
                    let n = LANES.min(width - at);
                    let load = |of: &[f32]| S::load_n(of.as_ptr().add(at), n);
                    sum = S::fma(S::mul(load(weight), load(dy)), load(x), sum);
                    at += LANES;
                }
                let shrink = S::splat(-S::sum(sum) * r * r * r / width as f32);
                let mut at = 0;
                while at < width {
                    let n = LANES.min(width - at);
                    let load = |of: &[f32]| S::load_n(of.as_ptr().add(at), n);
                    let through = S::mul(S::mul(load(weight), load(dy)), S::splat(r));
                    let d = S::fma(load(x), shrink, through);
                    S::store_n(dx.as_mut_ptr().add(at), S::add(load(dx), d), n);
                    at += LANES;
                }
            }
        }
    }
}

struct Gain<'a> {
    norm: Norm<'a>,
    x: &'a [f32],
    dy: &'a [f32],
    into: &'a mut [f32],
}

impl Kernel for Gain<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.into.len();
        for (x, dy) in self.x.chunks_exact(width).zip(self.dy.chunks_exact(width)) {
            // SAFETY: accesses stay inside rows of `width`.
            unsafe {
                let r = S::splat(inverse_root::<S>(x, self.norm.eps));
                for at in (0..width).step_by(LANES) {
                    let n = LANES.min(width - at);
                    let load = |of: &[f32]| S::load_n(of.as_ptr().add(at), n);
                    let sum = S::fma(S::mul(load(dy), r), load(x), load(self.into));
                    S::store_n(self.into.as_mut_ptr().add(at), sum, n);
                }
            }
        }
    }
}

/// `1 / √(mean(x²) + ε)`.
#[inline(always)]
unsafe fn inverse_root<S: Simd>(x: &[f32], eps: f32) -> f32 {
    // SAFETY: chunks are read at their own length.
    unsafe {
        let mut sum = S::splat(0.0);
        for x in x.chunks(LANES) {
            let x = S::load_n(x.as_ptr(), x.len());
            sum = S::fma(x, x, sum);
        }
        1.0 / (S::sum(sum) / x.len() as f32 + eps).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::variants;
    use crate::testing::{Values, assert_same_bits, assert_within, on_threads};

    #[test]
    fn values_and_gradients_are_within_the_bound_of_f64() {
        let u = 2f64.powi(-24);
        for (rows, width) in [(3, 1), (2, 15), (4, 16), (3, 33), (70, 576)] {
            let mut values = Values::new(width as u64);
            let (weight, x) = (values.take(width), values.take(rows * width));
            let (dy, old) = (values.take(rows * width), values.take(rows * width));
            let norm = Norm { weight: &weight, eps: 1e-5 };
            for &variant in variants() {
                let (mut y, mut dx) = (vec![0.0; rows * width], old.clone());
                forward_as(variant, norm, &x, &mut y);
                backward_as(variant, norm, &x, &dy, &mut dx);
                for row in 0..rows {
                    let at = |i: usize| row * width + i;
                    let wide = |of: &[f32], i: usize| f64::from(of[at(i)]);
                    let n = width as f64;
                    let mean = (0..width).map(|i| wide(&x, i).powi(2)).sum::<f64>() / n;
                    let r = 1.0 / (mean + f64::from(1e-5f32)).sqrt();
                    let terms = |i: usize| f64::from(weight[i]) * wide(&dy, i) * wide(&x, i);
                    let sum: f64 = (0..width).map(terms).sum();
                    let size: f64 = (0..width).map(|i| terms(i).abs()).sum();
                    for i in 0..width {
                        let exact = f64::from(weight[i]) * wide(&x, i) * r;
                        let bound = (n / 16.0 + 12.0) * u * exact.abs();
                        assert_within(y[at(i)], exact, bound, format_args!("{variant:?} y"));
                        let through = r * f64::from(weight[i]) * wide(&dy, i);
                        let exact = wide(&old, i) + through - wide(&x, i) * r.powi(3) / n * sum;
                        let size = through.abs() + wide(&x, i).abs() * r.powi(3) / n * size + wide(&old, i).abs();
                        assert_within(dx[at(i)], exact, (n / 8.0 + 32.0) * u * size, format_args!("{variant:?} dx"));
                    }
                }
            }
        }
    }

    #[test]
    fn a_gains_gradient_is_that_of_f64_and_the_same_bits_in_two_calls() {
        for (rows, width) in [(1, 1), (5, 33), (90, 70)] {
            let mut values = Values::new(width as u64);
            let [weight, old] = [(); 2].map(|()| values.take(width));
            let [x, dy] = [(); 2].map(|()| values.take(rows * width));
            let norm = Norm { weight: &weight, eps: 1e-5 };
            for &variant in variants() {
                let (mut found, mut cut) = (old.clone(), old.clone());
                add_gain_gradient_as(variant, norm, &x, &dy, &mut found);
                let at = rows / 3 * width;
                add_gain_gradient_as(variant, norm, &x[..at], &dy[..at], &mut cut);
                add_gain_gradient_as(variant, norm, &x[at..], &dy[at..], &mut cut);
                assert_same_bits(&cut, &found, format_args!("{variant:?} in two calls"));
                for i in 0..width {
                    let (mut exact, mut size) = (f64::from(old[i]), f64::from(old[i]).abs());
                    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
                        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                        let term = f64::from(dy[i]) * f64::from(x[i]) / (mean + f64::from(1e-5f32)).sqrt();
                        (exact, size) = (exact + term, size + term.abs());
                    }
                    let bound = (width as f64 / 16.0 + rows as f64 + 12.0) * 2f64.powi(-24) * size;
                    assert_within(found[i], exact, bound, format_args!("{variant:?} [{i}] of {rows}"));
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_many_whatever_the_threads() {
        let (rows, width) = (300, 200);
        let mut values = Values::new(1);
        let (weight, x) = (values.take(width), values.take(rows * width));
        let norm = Norm { weight: &weight, eps: 1e-6 };
        let all = |threads| {
            let mut y = vec![0.0; x.len()];
            on_threads(threads, || forward(norm, &x, &mut y));
            y
        };
        let y = all(1);
        assert_same_bits(&y, &all(3), format_args!("threads"));
        for row in [0, 163, 164, 299] {
            let mut alone = vec![0.0; width];
            forward(norm, &x[row * width..][..width], &mut alone);
            assert_same_bits(&alone, &y[row * width..][..width], format_args!("row {row}"));
        }
    }
}
