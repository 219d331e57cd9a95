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

#[inline(always)]
unsafe fn scores_of<S: Simd, const R: usize>(t: Narrow, queries: *const f32, columns: usize) {
    let mut column = 0;
    while column < columns {
        let left = columns - column;
        let vectors = left.div_ceil(LANES).min(S::TILE_VECTORS);
        // SAFETY: passed on.
        unsafe {
            match vectors {
                4 if S::TILE_VECTORS > 1 => score_tile::<S, R, 4>(t, queries, (column, left)),
                3 if S::TILE_VECTORS > 1 => score_tile::<S, R, 3>(t, queries, (column, left)),
                2 if S::TILE_VECTORS > 1 => score_tile::<S, R, 2>(t, queries, (column, left)),
                _ => score_tile::<S, R, 1>(t, queries, (column, left)),
            }
        }
        column += vectors * LANES;
    }
}

#[inline(always)]
unsafe fn score_tile<S: Simd, const R: usize, const V: usize>(
    t: Narrow,
    queries: *const f32,
    (column, left): (usize, usize),
) {
    // SAFETY: columns below `left` are inside the lines and the scores; queries are `dim` wide.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; R];
        let lanes = |v: usize| LANES.min(left - v * LANES);
        for pair in 0..t.dim.div_ceil(2) {
            let line = t.lines.keys.add(pair * BLOCK + column);
            let mut halves = [(S::splat(0.0), S::splat(0.0)); V];
            for v in 0..V {
                halves[v] = S::halves(line.add(v * LANES), lanes(v));
                // The values come next.
                S::prefetch(t.lines.values.wrapping_add((pair * V + v) * LINE_WORDS));
            }
            for r in 0..R {
                let query = queries.add(r * t.dim + 2 * pair);
                let first = S::splat(*query);
                for v in 0..V {
                    sums[r][v] = S::fma(first, halves[v].0, sums[r][v]);
                }
                if 2 * pair + 1 < t.dim {
                    let second = S::splat(*query.add(1));
                    for v in 0..V {
                        sums[r][v] = S::fma(second, halves[v].1, sums[r][v]);
                    }
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                S::store_n(t.scores.add(r * BLOCK + column + v * LANES), sums[r][v], lanes(v));
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
            if S::TILE_VECTORS > 1 && groups - group > 1 {
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
        let zero = S::splat(0.0);
        let mut all = [[[zero; 2]; G]; R];
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
        for token in 0..t.tokens {
            let words = t.lines.values.add(token * t.lines.value_words + group * LANES);
            let mut halves = [(zero, zero); G];
            for g in 0..G {
                halves[g] = S::halves(words.add(g * LANES), LANES);
                S::prefetch(t.lines.next.wrapping_add((token * G + g) * LINE_WORDS));
            }
            for r in 0..R {
                let weight = S::splat(*t.scores.add(r * BLOCK + token));
                for g in 0..G {
                    all[r][g][0] = S::fma(weight, halves[g].0, all[r][g][0]);
                    all[r][g][1] = S::fma(weight, halves[g].1, all[r][g][1]);
                }
            }
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
            // SAFETY: columns are inside the line, dimensions inside `to`.
            unsafe {
                let (even, odd) = S::halves(lines.keys.add(pair * BLOCK + column), lanes);
                let to = to.as_mut_ptr().add(2 * pair * BLOCK + column);
                S::store_n(to, even, lanes);
                if 2 * pair + 1 < dim {
                    S::store_n(to.add(BLOCK), odd, lanes);
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
                let (low, high) = S::halves(lines.values.add(token * lines.value_words + group * LANES), LANES);
                S::store_n(to.as_mut_ptr(), low, lanes);
                if to.len() > LANES {
                    S::store_n(to.as_mut_ptr().add(LANES), high, to.len() - LANES);
                }
            }
        }
    }
}
