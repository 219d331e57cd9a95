//! The gate of an MLP (Shazeer 2020, arXiv 2002.05202): `y = silu(gate) ∘ up`, silu(g) = g·σ(g); element by element.
//!
//! σ is `1 / (1 + e^{−g})` with the exponential within 2⁻²² and clamped to |g| ≤ 87: `|y − exact| ≤ 2⁻²⁰·|y| + 88·2⁻¹²⁰·|up|`.
//! Backward: `d_up = silu(g)·dy`, `d_gate = σ(g)(1 + g(1 − σ(g)))·up·dy`, within `2⁻¹⁹·(1 + |g|)·|up·dy|`.

use crate::elementwise;
use crate::simd::{self, Kernel, LANES, Simd, Variant};

/// `y = silu(gate) ∘ up`, all of one length.
pub fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    forward_as(simd::active(), gate, up, y);
}

/// Turns `gate` and `up` into their gradients from `dy`, all of one length.
pub fn backward((gate, up): (&mut [f32], &mut [f32]), dy: &[f32]) {
    backward_as(simd::active(), (gate, up), dy);
}

fn forward_as(variant: Variant, gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.len() == y.len(), "gate, up and output are of one length");
    elementwise::rows(y, 1, |first, y| {
        let at = first..first + y.len();
        simd::run(variant, Forward { gate: &gate[at.clone()], up: &up[at], y });
    });
}

fn backward_as(variant: Variant, (gate, up): (&mut [f32], &mut [f32]), dy: &[f32]) {
    assert!(gate.len() == dy.len() && up.len() == dy.len(), "all are of one length");
    elementwise::rows_of_two((gate, up), 1, |first, gate, up| {
        simd::run(variant, Backward { dy: &dy[first..first + gate.len()], gate, up });
    });
}

/// σ(g).
#[inline(always)]
unsafe fn sigmoid<S: Simd>(g: S::F) -> S::F {
    // SAFETY: lane arithmetic; the caller is compiled for `S`.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, S::exp(S::sub(S::splat(0.0), g))))
    }
}

struct Forward<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for ((gate, up), y) in self.gate.chunks(LANES).zip(self.up.chunks(LANES)).zip(self.y.chunks_mut(LANES)) {
            let n = y.len();
            // SAFETY: the three chunks hold n values.
            unsafe {
                let g = S::load_n(gate.as_ptr(), n);
                let silu = S::mul(g, sigmoid::<S>(g));
                S::store_n(y.as_mut_ptr(), S::mul(silu, S::load_n(up.as_ptr(), n)), n);
            }
        }
    }
}

struct Backward<'a> {
    gate: &'a mut [f32],
    up: &'a mut [f32],
    dy: &'a [f32],
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for ((gate, up), dy) in self.gate.chunks_mut(LANES).zip(self.up.chunks_mut(LANES)).zip(self.dy.chunks(LANES)) {
            let n = dy.len();
            // SAFETY: the three chunks hold n values.
            unsafe {
                let one = S::splat(1.0);
                let (g, dy) = (S::load_n(gate.as_ptr(), n), S::load_n(dy.as_ptr(), n));
                let s = sigmoid::<S>(g);
                let slope = S::mul(s, S::fma(g, S::sub(one, s), one));
                let u = S::load_n(up.as_ptr(), n);
                S::store_n(up.as_mut_ptr(), S::mul(S::mul(g, s), dy), n);
                S::store_n(gate.as_mut_ptr(), S::mul(slope, S::mul(u, dy)), n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::variants;
    use crate::testing::{Values, assert_within};

    #[test]
    fn values_and_gradients_are_within_the_bound_of_f64() {
        for len in [1, 15, 16, 17, 1000, 70_000] {
            let mut values = Values::new(len as u64);
            let gate: Vec<f32> = values.take(len).iter().map(|g| g * g * g * 120.0).collect();
            let (up, dy) = (values.take(len), values.take(len));
            for &variant in variants() {
                let (mut y, mut d_gate, mut d_up) = (vec![f32::NAN; len], gate.clone(), up.clone());
                forward_as(variant, &gate, &up, &mut y);
                backward_as(variant, (&mut d_gate, &mut d_up), &dy);
                for i in 0..len {
                    let (g, u, d) = (f64::from(gate[i]), f64::from(up[i]), f64::from(dy[i]));
                    let s = 1.0 / (1.0 + (-g).exp());
                    let tail = 88.0 * 2f64.powi(-120);
                    let what = format_args!("{variant:?} at {g}").to_string();
                    assert_within(y[i], g * s * u, 2f64.powi(-20) * (g * s * u).abs() + tail, format_args!("{what} y"));
                    assert_within(
                        d_up[i],
                        g * s * d,
                        2f64.powi(-20) * (g * s * d).abs() + tail,
                        format_args!("{what} d_up"),
                    );
                    let exact = s * (1.0 + g * (1.0 - s)) * u * d;
                    let bound = 2f64.powi(-19) * (1.0 + g.abs()) * (u * d).abs();
                    assert_within(d_gate[i], exact, bound, format_args!("{what} d_gate"));
                }
            }
        }
    }
}
