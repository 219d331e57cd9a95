//! Rotary positions (Su et al. 2021, arXiv 2104.09864) in the half-split order of the Hugging Face Llama; knows tables, not
//! frequencies.
//!
//! Element i of a head turns with element i + d/2: `(a, b) → (a cos − b sin, b cos + a sin)`. Backward is the inverse turn.
//! Two products and a sum: `|y − exact| ≤ 2·2⁻²³·(|a| + |b|)`.

use crate::elementwise;
use crate::simd::{self, Kernel, Simd, Variant};

/// Cosines and sines, `[tokens, dim / 2]` each.
#[derive(Clone, Copy, Debug)]
pub struct Turns<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Width of a head.
    pub dim: usize,
}

/// Turns `x`, `[tokens, width]` with whole heads in `width`, in place.
pub fn forward(turns: Turns<'_>, x: &mut [f32], width: usize) {
    turn(simd::active(), turns, x, width, 1.0);
}

/// Turns back: the gradient of [`forward`], in place.
pub fn backward(turns: Turns<'_>, dx: &mut [f32], width: usize) {
    turn(simd::active(), turns, dx, width, -1.0);
}

fn turn(variant: Variant, turns: Turns<'_>, x: &mut [f32], width: usize, sign: f32) {
    let half = turns.dim / 2;
    assert!(turns.dim.is_multiple_of(2) && width.is_multiple_of(turns.dim), "heads of {} in {width}", turns.dim);
    assert!(turns.cos.len() == turns.sin.len() && turns.cos.len() * width == x.len() * half, "turns for each token");
    elementwise::rows(x, width, |first, x| {
        let at = first * half..first * half + x.len() / width * half;
        let turns = Turns { cos: &turns.cos[at.clone()], sin: &turns.sin[at], ..turns };
        simd::run(variant, Turn { turns, x, width, sign });
    });
}

struct Turn<'a> {
    turns: Turns<'a>,
    x: &'a mut [f32],
    width: usize,
    sign: f32,
}

impl Kernel for Turn<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Turns { cos, sin, dim } = self.turns;
        let tables = cos.chunks_exact(dim / 2).zip(sin.chunks_exact(dim / 2));
        for (x, (cos, sin)) in self.x.chunks_exact_mut(self.width).zip(tables) {
            for head in x.chunks_exact_mut(dim) {
                let (a, b) = head.split_at_mut(dim / 2);
                for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(cos.iter().zip(sin)) {
                    let sin = sin * self.sign;
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
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
    fn halves_turn_by_the_tables_and_back() {
        for (tokens, heads, dim) in [(1, 1, 2), (5, 3, 6), (9, 2, 64), (700, 2, 34)] {
            let mut values = Values::new(dim as u64);
            let angles: Vec<f64> = values.take(tokens * dim / 2).iter().map(|&a| f64::from(a) * 40.0).collect();
            let table = |of: fn(f64) -> f64| angles.iter().map(|&a| of(a) as f32).collect::<Vec<_>>();
            let (cos, sin) = (table(f64::cos), table(f64::sin));
            let turns = Turns { cos: &cos, sin: &sin, dim };
            let x = values.take(tokens * heads * dim);
            for &variant in variants() {
                let mut y = x.clone();
                turn(variant, turns, &mut y, heads * dim, 1.0);
                for (i, &found) in y.iter().enumerate() {
                    let (token, head, at) = (i / dim / heads, i / dim * dim, i % dim);
                    let pair = |at: usize| f64::from(x[head + at]);
                    let (half, of) = (dim / 2, token * (dim / 2) + at % (dim / 2));
                    let (c, s) = (f64::from(cos[of]), f64::from(sin[of]));
                    let exact =
                        if at < half { pair(at) * c - pair(at + half) * s } else { pair(at) * c + pair(at - half) * s };
                    let size = pair(at % half).abs() + pair(at % half + half).abs();
                    assert_within(found, exact, 2.0 * 2f64.powi(-23) * size, format_args!("{variant:?} {i}"));
                }
                turn(variant, turns, &mut y, heads * dim, -1.0);
                for (found, &given) in y.iter().zip(&x) {
                    assert_within(*found, f64::from(given), 1e-6, format_args!("{variant:?} back"));
                }
            }
        }
    }
}
