//! The operands of attention's backward products as pairs of bf16; knows no softmax and no task.

use super::{BLOCK, Lines, turn};
use crate::linear::tile::{self, Tiles, interleave, round_row};
use crate::simd::{LANES, Simd, Variant};

/// A step's operands as pairs of bf16, and its products of them. Pairs are of neighbours along the summed dimension: elements of a
/// head, keys, or entries. What would pair with nothing is paired with 0.
pub(super) struct Rounded<'a> {
    variant: Variant,
    dim: usize,
    /// `[entries, dim / 2]`.
    d_outs: &'a mut [u32],
    /// `[entries / 2, dim]`, rows a multiple of 16 apart, as in all below that are `dim` wide.
    d_outs_by_entry: &'a mut [u32],
    queries_by_entry: &'a mut [u32],
    /// `[64, dim / 2]`, and turned: `[dim / 2, 64]`.
    values: &'a mut [u32],
    values_turned: &'a mut [u32],
    /// `[32, dim]`.
    keys_by_key: &'a mut [u32],
    /// `[entries / 2, 64]`.
    p_by_entry: &'a mut [u32],
    ds_by_entry: &'a mut [u32],
    /// `[entries, 32]`.
    ds_by_key: &'a mut [u32],
}

impl<'a> Rounded<'a> {
    fn lengths(entries: usize, dim: usize) -> [usize; 9] {
        let (half, wide, both) = (dim.div_ceil(2), dim.next_multiple_of(LANES), entries.div_ceil(2));
        let by_entry = both * wide;
        let weights = both * BLOCK;
        [
            entries * half,
            by_entry,
            by_entry,
            BLOCK * half,
            BLOCK * half,
            BLOCK / 2 * wide,
            weights,
            weights,
            entries * BLOCK / 2,
        ]
    }

    pub(super) fn words(entries: usize, dim: usize) -> usize {
        Self::lengths(entries, dim).iter().sum()
    }

    /// For a step of `entries`.
    pub(super) fn new(variant: Variant, entries: usize, dim: usize, words: &'a mut [u32]) -> Self {
        let mut rest = words;
        let [
            d_outs,
            d_outs_by_entry,
            queries_by_entry,
            values,
            values_turned,
            keys_by_key,
            p_by_entry,
            ds_by_entry,
            ds_by_key,
        ] = Self::lengths(entries, dim).map(|len| rest.split_off_mut(..len).expect("words for every operand"));
        Self {
            variant,
            dim,
            d_outs,
            d_outs_by_entry,
            queries_by_entry,
            values,
            values_turned,
            keys_by_key,
            p_by_entry,
            ds_by_entry,
            ds_by_key,
        }
    }

    fn wide(&self) -> usize {
        self.dim.next_multiple_of(LANES)
    }

    #[inline(always)]
    pub(super) fn take_entries(&mut self, queries: &[f32], d_outs: &[f32]) {
        let (dim, wide) = (self.dim, self.wide());
        for (row, pairs) in d_outs.chunks_exact(dim).zip(self.d_outs.chunks_exact_mut(dim.div_ceil(2))) {
            round_row(row, pairs);
        }
        for (rows, pairs) in [(d_outs, &mut *self.d_outs_by_entry), (queries, &mut *self.queries_by_entry)] {
            pair_rows(rows, dim, pairs, wide);
        }
    }

    /// `count` lines of keys and of values.
    ///
    /// # Safety
    /// As for [`turn`].
    #[inline(always)]
    pub(super) unsafe fn take_keys<S: Simd>(&mut self, (k, v): (Lines, Lines), count: usize) {
        let (dim, half, wide) = (self.dim, self.dim.div_ceil(2), self.wide());
        // SAFETY: `count` lines of `dim` values.
        let line = |of: Lines, i: usize| unsafe { std::slice::from_raw_parts(of.at.add(i * of.row), dim) };
        for (i, pairs) in self.values.chunks_exact_mut(half).take(count).enumerate() {
            round_row(line(v, i), pairs);
        }
        let values = Lines { at: self.values.as_ptr().cast(), row: half };
        // SAFETY: f32 and u32 have the same size and alignment, every bit pattern is a value of both, and turning only moves them.
        unsafe {
            let turned =
                std::slice::from_raw_parts_mut(self.values_turned.as_mut_ptr().cast(), self.values_turned.len());
            turn::<S>(values, count, half, turned);
        }
        for (i, pairs) in self.keys_by_key.chunks_exact_mut(wide).take(count.div_ceil(2)).enumerate() {
            if 2 * i + 1 < count {
                interleave(line(k, 2 * i), line(k, 2 * i + 1), pairs);
            } else {
                line(k, 2 * i).iter().zip(pairs).for_each(|(&k, out)| *out = tile::pair(k, 0.0));
            }
        }
    }

    /// Weights and scores' gradients of entries `from .. count`, `[entries, 64]`, of which `width` keys count.
    #[inline(always)]
    pub(super) fn take_weights(&mut self, (from, count): (usize, usize), width: usize, (p, ds): (&[f32], &[f32])) {
        let rows = from * BLOCK..count * BLOCK;
        for (ds, pairs) in
            ds[rows].chunks_exact(BLOCK).zip(self.ds_by_key[from * BLOCK / 2..].chunks_exact_mut(BLOCK / 2))
        {
            round_row(&ds[..width], &mut pairs[..width / 2]);
        }
        for (weights, all) in [(p, &mut *self.p_by_entry), (ds, &mut *self.ds_by_entry)] {
            for (both, pairs) in all.chunks_exact_mut(BLOCK).enumerate().skip(from / 2) {
                // An entry before the first that sees these keys, and one after the last, weigh nothing.
                let row = |e: usize| {
                    if (from..count).contains(&e) { &weights[e * BLOCK..][..width] } else { &ZEROS[..width] }
                };
                interleave(row(2 * both), row(2 * both + 1), pairs);
            }
        }
    }

    /// `ds = d_out · vᵀ` for entries `from .. count` and `width` keys.
    ///
    /// # Safety
    /// Of [`crate::simd::Simd`]; `ds` is `[entries, 64]`.
    #[inline(always)]
    pub(super) unsafe fn by_value(&self, (from, count): (usize, usize), width: usize, ds: &mut [f32]) {
        let half = self.dim.div_ceil(2);
        let product = Tiles {
            rows: count - from,
            columns: width,
            steps: half,
            x: self.d_outs[from * half..].as_ptr(),
            x_strides: (half, 1),
            weights: self.values_turned.as_ptr(),
            next: self.values_turned.as_ptr(),
            width: BLOCK,
            y: ds[from * BLOCK..].as_mut_ptr(),
            y_row: BLOCK,
            accumulate: false,
        };
        // SAFETY: all were sized for the step.
        unsafe { tile::run_pairs(self.variant, product) };
    }

    /// `d_queries += ds · k` for entries `from .. count` over `keys` keys.
    ///
    /// # Safety
    /// As for [`Self::by_value`]; `d_queries` is `[entries, dim]`.
    #[inline(always)]
    pub(super) unsafe fn by_key(&self, (from, count): (usize, usize), keys: usize, d_queries: &mut [f32]) {
        let product = Tiles {
            rows: count - from,
            columns: self.dim,
            steps: keys.div_ceil(2),
            x: self.ds_by_key[from * BLOCK / 2..].as_ptr(),
            x_strides: (BLOCK / 2, 1),
            weights: self.keys_by_key.as_ptr(),
            next: self.keys_by_key.as_ptr(),
            width: self.wide(),
            y: d_queries[from * self.dim..].as_mut_ptr(),
            y_row: self.dim,
            accumulate: true,
        };
        // SAFETY: all were sized for the step.
        unsafe { tile::run_pairs(self.variant, product) };
    }

    /// Adds to the gradients of values and of keys, at keys `index .. index + tokens` of the block.
    ///
    /// # Safety
    /// `dv` and `dk` are valid for `tokens` rows of `dim` values, `row` apart, and no other task's.
    #[inline(always)]
    pub(super) unsafe fn add_to_keys(
        &self,
        (from, count): (usize, usize),
        (index, tokens): (usize, usize),
        [dv, dk]: [*mut f32; 2],
        row: usize,
    ) {
        let (first, wide) = (from / 2, self.wide());
        for (weights, rows, c) in
            [(&*self.p_by_entry, &*self.d_outs_by_entry, dv), (&*self.ds_by_entry, &*self.queries_by_entry, dk)]
        {
            let product = Tiles {
                rows: tokens,
                columns: self.dim,
                steps: count.div_ceil(2) - first,
                x: weights[first * BLOCK + index..].as_ptr(),
                x_strides: (1, BLOCK),
                weights: rows[first * wide..].as_ptr(),
                next: rows[first * wide..].as_ptr(),
                width: wide,
                y: c,
                y_row: row,
                accumulate: true,
            };
            // SAFETY: the operands were sized for the step; the gradients are the caller's promise.
            unsafe { tile::run_pairs(self.variant, product) };
        }
    }
}

static ZEROS: [f32; BLOCK] = [0.0; BLOCK];

/// Rows of `dim` by pairs of neighbours, the pairs' rows `wide` apart; an odd last row is paired with 0.
#[inline(always)]
fn pair_rows(rows: &[f32], dim: usize, pairs: &mut [u32], wide: usize) {
    for (two, pairs) in rows.chunks(2 * dim).zip(pairs.chunks_exact_mut(wide)) {
        let (first, second) = two.split_at(dim);
        if second.is_empty() {
            first.iter().zip(pairs).for_each(|(&x, out)| *out = tile::pair(x, 0.0));
        } else {
            interleave(first, second, pairs);
        }
    }
}
