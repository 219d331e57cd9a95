//! Activations as int8 with a scale for each 32; knows no weight.
//!
//! `x̂ = s·q` with s = max|x| / 127 and q = round(x / s), so |x − x̂| ≤ s/2·(1 + 2⁻¹³) for each of the block's values (the excess:
//! the reciprocal, the product and s are rounded, each by 127·2⁻²⁴ of a step at most). A block whose max|x| is below 2⁻¹⁰⁰ counts as 0;
//! one with a value that is not finite gives NaN.

use super::TASK_ROWS;
use super::format::BLOCK;
use crate::gemm::balanced;
use crate::simd::{self, Kernel, Shared, Simd, Variant};
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

/// Quantises `x`, `rows` rows of whole blocks, into `words`, [`WORDS`] for each block. The rows of a register tile lie side by side,
/// block by block, in the order of [`row_groups`], so that a tile reads them in one stream.
pub(super) fn quantise<'a>(
    variant: Variant,
    x: &[f32],
    (rows, tile_rows): (usize, usize),
    words: &'a mut [u32],
) -> &'a [Quants] {
    /// Blocks that one thread quantises in about the time that it takes to call another.
    const SERIAL_BLOCKS_MAX: usize = 1 << 8;
    let all = x.len() / BLOCK;
    assert!(x.len() == all * BLOCK && words.len() == all * WORDS, "whole blocks");
    // SAFETY: a block is WORDS words without padding, of their alignment, and any bytes are one.
    let quants = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<Quants>(), all) };
    let (blocks, shared) = (all / rows.max(1), Shared::new(quants));
    assert_eq!(all, rows * blocks, "{rows} rows of whole blocks");
    let task = |(first, count): (usize, usize)| {
        // SAFETY: groups are disjoint and inside `rows`.
        let quants = unsafe { shared.slice(first * blocks, count * blocks) };
        let x = &x[first * blocks * BLOCK..(first + count) * blocks * BLOCK];
        match variant {
            #[cfg(target_arch = "x86_64")]
            Variant::Avx512Bf16 | Variant::Avx512 if super::tile::has_vnni() => {
                // SAFETY: the machine has the instruction set.
                unsafe { super::x86::quantise(x, count, quants) }
            }
            _ => simd::run(variant, Quantise { x, rows: count, quants }),
        }
    };
    if all <= SERIAL_BLOCKS_MAX {
        row_groups(rows, tile_rows).for_each(task);
    } else {
        row_groups(rows, tile_rows).collect::<Vec<_>>().into_par_iter().for_each(task);
    }
    quants
}

/// `(first, count)` of the rows of each register tile, of `tile_rows` at most; every task starts a new tile.
pub(super) fn row_groups(rows: usize, tile_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let left = TASK_ROWS.min(rows - first / TASK_ROWS * TASK_ROWS) - first % TASK_ROWS;
        let count = if first < rows { balanced(left, tile_rows) } else { return None };
        first += count;
        Some((first - count, count))
    })
}

struct Quantise<'a> {
    x: &'a [f32],
    rows: usize,
    quants: &'a mut [Quants],
}

impl Kernel for Quantise<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, rows, quants } = self;
        for (row, x) in x.chunks_exact(x.len() / rows).enumerate() {
            for (index, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
                quants[index * rows + row] = block(x);
            }
        }
    }
}

/// The scale of a block, and what its values are multiplied by, from the greatest of their representations without sign (in which
/// infinity and NaN are above every number).
#[inline(always)]
pub(super) fn scale(largest: u32) -> (f32, f32) {
    let largest = f32::from_bits(largest);
    match largest {
        _ if !largest.is_finite() => (f32::NAN, 0.0),
        _ if largest < TINY => (0.0, 0.0),
        _ => (largest / 127.0, 127.0 / largest),
    }
}

#[inline(always)]
fn block(x: &[f32; BLOCK]) -> Quants {
    /// 1.5·2²³: adding it rounds to an integer, to nearest and ties to even, held in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let (scale, inverse) = scale(x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff)));
    let mut codes = [0; BLOCK];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * inverse + MAGIC).to_bits() as i8;
    }
    let sum = |half: usize| codes[16 * half..16 * half + 16].iter().map(|&code| i32::from(code)).sum::<i32>();
    let sums = [sum(0), sum(1)];
    Quants { codes, scale, total: scale * (sums[0] + sums[1]) as f32, sums }
}
