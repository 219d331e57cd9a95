//! The two products of attention for few queries over cached bf16, which is widened on the way into the registers; knows no softmax.
//!
//! Elements are summed as [`crate::gemm`] sums them, so these have the bits of that product over widened keys and values.

use super::BLOCK;
use super::cache::Lines;
use crate::simd::{LANES, Simd};

/// Bytes of a cache line, in words.
const LINE_WORDS: usize = 16;

/// Some queries and the block that they read.
#[derive(Clone, Copy)]
pub(super) struct Narrow {
    /// At most [`Simd::TILE_ROWS`].
    pub(super) rows: usize,
    pub(super) dim: usize,
    /// Keys of the block.
    pub(super) tokens: usize,
    pub(super) lines: Lines,
    /// `[rows, 64]`: of each key's.
    pub(super) scores: *mut f32,
}

/// Sets `columns` scores of each query, `[rows, dim]`.
///
/// # Safety
/// As for [`Simd`]; queries, lines and scores are valid over their shapes.
#[inline(always)]
pub(super) unsafe fn scores<S: Simd>(t: Narrow, queries: *const f32, columns: usize) {
    // SAFETY: passed on.
    unsafe {
        match t.rows {
            1 => scores_of::<S, 1>(t, queries, columns),
            2 => scores_of::<S, 2>(t, queries, columns),
            3 if S::TILE_ROWS > 2 => scores_of::<S, 3>(t, queries, columns),
            4 if S::TILE_ROWS > 2 => scores_of::<S, 4>(t, queries, columns),
            5 if S::TILE_ROWS > 2 => scores_of::<S, 5>(t, queries, columns),
            6 if S::TILE_ROWS > 2 => scores_of::<S, 6>(t, queries, columns),
            _ => unreachable!("a tile has at most {} rows", S::TILE_ROWS),
        }
    }
}

/// Adds the values, weighed by the scores, to `sums`, `[rows, dim]`.
///
/// # Safety
/// As for [`scores`].
#[inline(always)]
pub(super) unsafe fn values<S: Simd>(t: Narrow, sums: *mut f32) {
    // SAFETY: passed on.
    unsafe {
        match t.rows {
            1 => values_of::<S, 1>(t, sums),
            2 => values_of::<S, 2>(t, sums),
            3 if S::TILE_ROWS > 2 => values_of::<S, 3>(t, sums),
            4 if S::TILE_ROWS > 2 => values_of::<S, 4>(t, sums),
            5 if S::TILE_ROWS > 2 => values_of::<S, 5>(t, sums),
            6 if S::TILE_ROWS > 2 => values_of::<S, 6>(t, sums),
            _ => unreachable!("a tile has at most {} rows", S::TILE_ROWS),
        }
    }
}

/// Vectors of sums that each of `R` rows may have in registers.
const fn vectors_max<S: Simd, const R: usize>() -> usize {
    S::TILE_ROWS * S::TILE_VECTORS / R
}

#[inline(always)]
unsafe fn scores_of<S: Simd, const R: usize>(t: Narrow, queries: *const f32, columns: usize) {
    let max = const { vectors_max::<S, R>() };
    let mut column = 0;
    while column < columns {
        let left = columns - column;
        let vectors = left.div_ceil(LANES).min(max);
        // SAFETY: passed on.
        unsafe {
            match vectors {
                4.. if max >= 4 => score_tile::<S, R, 4>(t, queries, (column, left)),
                3 if max >= 3 => score_tile::<S, R, 3>(t, queries, (column, left)),
                2 if max >= 2 => score_tile::<S, R, 2>(t, queries, (column, left)),
                _ => score_tile::<S, R, 1>(t, queries, (column, left)),
            }
        }
        column += vectors.min(4) * LANES;
    }
}

#[inline(always)]
unsafe fn score_tile<S: Simd, const R: usize, const V: usize>(
    t: Narrow,
    queries: *const f32,
    (column, left): (usize, usize),
) {
    let pairs = t.dim.div_ceil(2);
    // SAFETY: whole vectors of a line, its last ones' too, are inside the block, whose values follow the keys; columns below `left` are
    // inside the scores; queries are `dim` wide.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; R];
        // The values come next.
        let mut ahead = t.lines.values.wrapping_add(column / LANES * pairs * LINE_WORDS);
        for pair in 0..pairs {
            let line = t.lines.keys.add(pair * BLOCK + column);
            let query = queries.add(2 * pair);
            for v in 0..V {
                S::prefetch(ahead);
                ahead = ahead.wrapping_add(LINE_WORDS);
                let low = S::low(line.add(v * LANES));
                for r in 0..R {
                    sums[r][v] = S::fma(S::splat(*S::again(query).add(r * t.dim)), low, sums[r][v]);
                }
            }
            if 2 * pair + 1 < t.dim {
                for v in 0..V {
                    let high = S::high(S::again(line).add(v * LANES));
                    for r in 0..R {
                        sums[r][v] = S::fma(S::splat(*S::again(query).add(r * t.dim + 1)), high, sums[r][v]);
                    }
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                let lanes = LANES.min(left - v * LANES);
                S::store_n(t.scores.add(r * BLOCK + column + v * LANES), sums[r][v], lanes);
            }
        }
    }
}

#[inline(always)]
unsafe fn values_of<S: Simd, const R: usize>(t: Narrow, sums: *mut f32) {
    let groups = t.dim.div_ceil(2 * LANES);
    let mut group = 0;
    while group < groups {
        // SAFETY: passed on.
        unsafe {
            if const { vectors_max::<S, R>() } >= 4 && groups - group > 1 {
                value_tile::<S, R, 2>(t, sums, group);
                group += 2;
            } else {
                value_tile::<S, R, 1>(t, sums, group);
                group += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn value_tile<S: Simd, const R: usize, const G: usize>(t: Narrow, sums: *mut f32, group: usize) {
    let first = 2 * LANES * group;
    let lanes = |v: usize| LANES.min((t.dim - first).saturating_sub(v * LANES));
    // SAFETY: lanes are inside `dim`; values are padded to whole groups.
    unsafe {
        let mut all = [[[S::splat(0.0); 2]; G]; R];
        for r in 0..R {
            for g in 0..G {
                for half in 0..2 {
                    let v = 2 * g + half;
                    if lanes(v) > 0 {
                        all[r][g][half] = S::load_n(sums.add(r * t.dim + first + v * LANES), lanes(v));
                    }
                }
            }
        }
        let mut words = t.lines.values.wrapping_add(group * LANES);
        let mut ahead = t.lines.next.wrapping_add(group * t.tokens * LINE_WORDS);
        for token in 0..t.tokens {
            let weights = t.scores.add(token);
            for g in 0..G {
                S::prefetch(ahead);
                ahead = ahead.wrapping_add(LINE_WORDS);
                // One half at a time: beside three rows' sums AVX2 has no registers for both.
                let low = S::low(words.wrapping_add(g * LANES));
                for r in 0..R {
                    all[r][g][0] = S::fma(S::splat(*weights.add(r * BLOCK)), low, all[r][g][0]);
                }
                let (high, weights) = (S::high(S::again(words).wrapping_add(g * LANES)), S::again(weights));
                for r in 0..R {
                    all[r][g][1] = S::fma(S::splat(*weights.add(r * BLOCK)), high, all[r][g][1]);
                }
            }
            words = words.wrapping_add(t.lines.value_words);
        }
        for r in 0..R {
            for g in 0..G {
                for half in 0..2 {
                    let v = 2 * g + half;
                    if lanes(v) > 0 {
                        S::store_n(sums.add(r * t.dim + first + v * LANES), all[r][g][half], lanes(v));
                    }
                }
            }
        }
    }
}

/// Keys as [`crate::gemm`] reads them: `columns` of each line in f32, to `[dim, 64]`.
///
/// # Safety
/// As for [`scores`].
#[inline(always)]
pub(super) unsafe fn widen_keys<S: Simd>(lines: Lines, (dim, columns): (usize, usize), to: &mut [f32]) {
    assert!(to.len() >= dim * BLOCK && columns <= BLOCK);
    for pair in 0..dim.div_ceil(2) {
        for column in (0..columns).step_by(LANES) {
            let lanes = LANES.min(columns - column);
            // SAFETY: as in `score_tile`; columns and dimensions are inside `to`.
            unsafe {
                let words = lines.keys.add(pair * BLOCK + column);
                let to = to.as_mut_ptr().add(2 * pair * BLOCK + column);
                S::store_n(to, S::low(words), lanes);
                if 2 * pair + 1 < dim {
                    S::store_n(to.add(BLOCK), S::high(words), lanes);
                }
            }
        }
    }
}

/// Values in f32, to `[tokens, dim]`.
///
/// # Safety
/// As for [`scores`].
#[inline(always)]
pub(super) unsafe fn widen_values<S: Simd>(lines: Lines, (dim, tokens): (usize, usize), to: &mut [f32]) {
    assert!(to.len() >= dim * tokens);
    for (token, to) in to.chunks_exact_mut(dim).take(tokens).enumerate() {
        for (group, to) in to.chunks_mut(2 * LANES).enumerate() {
            let lanes = LANES.min(to.len());
            // SAFETY: values are padded to whole groups; both halves are inside `to`.
            unsafe {
                let words = lines.values.add(token * lines.value_words + group * LANES);
                S::store_n(to.as_mut_ptr(), S::low(words), lanes);
                if to.len() > LANES {
                    S::store_n(to.as_mut_ptr().add(LANES), S::high(words), to.len() - LANES);
                }
            }
        }
    }
}
