//! Activations as int8 with a scale for each 32; knows no weight.
//!
//! `x̂ = s·q` with s = max|x| / 127 and q = round(x / s), so |x − x̂| ≤ s/2·(1 + 2⁻¹³) for each of the block's values (the excess:
//! the reciprocal, the product and s are rounded, each by 127·2⁻²⁴ of a step at most). A block whose max|x| is below 2⁻¹⁰⁰ counts as 0;
//! one with a value that is not finite gives NaN.

use super::format::BLOCK;
use crate::simd::{self, Kernel, Simd, Variant};
use rayon::prelude::*;

/// Below it the reciprocal of a scale could overflow.
const TINY: f32 = 7.888_609e-31;

/// One block of a row.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Quants {
    pub(super) codes: [i8; BLOCK],
    pub(super) scale: f32,
    /// `scale · Σ codes`.
    pub(super) total: f32,
    /// Σ codes of each 16.
    pub(super) sums: [i32; 2],
}

/// 32-bit words of a block.
pub(super) const WORDS: usize = size_of::<Quants>() / size_of::<u32>();

/// Quantises `x`, whole blocks, into `words`, [`WORDS`] for each block.
pub(super) fn quantise<'a>(variant: Variant, x: &[f32], words: &'a mut [u32]) -> &'a [Quants] {
    const TASK_BLOCKS: usize = 1 << 11;
    let blocks = x.len() / BLOCK;
    assert!(x.len() == blocks * BLOCK && words.len() == blocks * WORDS, "whole blocks");
    // SAFETY: a block is WORDS words without padding, of their alignment, and any bytes are one.
    let quants = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<Quants>(), blocks) };
    if blocks <= TASK_BLOCKS {
        simd::run(variant, Quantise(x, quants));
    } else {
        x.par_chunks(TASK_BLOCKS * BLOCK)
            .zip(quants.par_chunks_mut(TASK_BLOCKS))
            .for_each(|(x, quants)| simd::run(variant, Quantise(x, quants)));
    }
    quants
}

struct Quantise<'a>(&'a [f32], &'a mut [Quants]);

impl Kernel for Quantise<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (x, quants) in self.0.as_chunks::<BLOCK>().0.iter().zip(self.1) {
            *quants = block(x);
        }
    }
}

#[inline(always)]
fn block(x: &[f32; BLOCK]) -> Quants {
    /// 1.5·2²³: adding it rounds to an integer, to nearest and ties to even, held in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    // By representation, in which infinity and NaN are above every number.
    let largest = x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let (scale, inverse) = match largest {
        _ if !largest.is_finite() => (f32::NAN, 0.0),
        _ if largest < TINY => (0.0, 0.0),
        _ => (largest / 127.0, 127.0 / largest),
    };
    let mut codes = [0; BLOCK];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * inverse + MAGIC).to_bits() as i8;
    }
    let sum = |half: usize| codes[16 * half..16 * half + 16].iter().map(|&code| i32::from(code)).sum::<i32>();
    let sums = [sum(0), sum(1)];
    Quants { codes, scale, total: scale * (sums[0] + sums[1]) as f32, sums }
}
