//! Attention's backward pass: a task is one key/value head of the rows that share keys, so no two tasks add to one key.

use super::{BLOCK, Entries, Heads, Lines, lines, portions, turn};
use crate::gemm::Gemm;
use crate::linear::WeightType;
use crate::linear::tile::{self, Tiles, interleave, round_row};
use crate::scratch;
use crate::simd::{self, Kernel, LANES, Shared, Simd, Variant};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens whose scores are held at a time.
const STEP_TOKENS: usize = 32;

/// One row of a training batch: its queries and the key spans that it sees, as tokens of the packed batch.
#[derive(Clone, Debug)]
pub struct Spans {
    /// The row's tokens.
    pub queries: Range<usize>,
    /// Spans in order; the last is the row's own tokens.
    pub keys: Vec<Range<usize>>,
}

/// What the forward pass read and gave.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// `[tokens, heads · dim]`, rotated.
    pub q: &'a [f32],
    /// `[tokens, kv · dim]`, rotated.
    pub k: &'a [f32],
    /// `[tokens, kv · dim]`.
    pub v: &'a [f32],
    /// `[tokens, heads · dim]`.
    pub out: &'a [f32],
    /// `[tokens, heads]`.
    pub logsumexp: &'a [f32],
}

/// Where gradients go.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Set for every row's tokens.
    pub q: &'a mut [f32],
    /// Added to.
    pub k: &'a mut [f32],
    /// Added to.
    pub v: &'a mut [f32],
}

/// Gradients of `q`, `k` and `v` from `d_out`, `[tokens, heads · dim]`; `products` is what the operands of all products but the
/// scores are rounded to.
pub fn backward(
    (heads, products): (Heads, WeightType),
    rows: &[Spans],
    saved: Saved<'_>,
    d_out: &[f32],
    gradients: Gradients<'_>,
) {
    backward_as(simd::active(), (heads, products), rows, saved, d_out, gradients);
}

pub(super) fn backward_as(
    variant: Variant,
    (heads, products): (Heads, WeightType),
    rows: &[Spans],
    saved: Saved<'_>,
    d_out: &[f32],
    gradients: Gradients<'_>,
) {
    let tokens = saved.q.len() / heads.q_width();
    for of in [saved.q.len(), saved.out.len(), d_out.len(), gradients.q.len()] {
        assert_eq!(of, tokens * heads.q_width(), "queries are [tokens, {}]", heads.q_width());
    }
    for of in [saved.k.len(), saved.v.len(), gradients.k.len(), gradients.v.len()] {
        assert_eq!(of, tokens * heads.kv_width(), "keys and values are [tokens, {}]", heads.kv_width());
    }
    assert_eq!(saved.logsumexp.len(), tokens * heads.query, "logsumexp is [tokens, heads]");
    let families = families(rows, tokens);
    let tasks: Vec<_> =
        families.iter().flat_map(|family| (0..heads.kv).map(move |kv_head| (family, kv_head))).collect();
    let gradients = Shares { q: Shared::new(gradients.q), k: Shared::new(gradients.k), v: Shared::new(gradients.v) };
    let entries = STEP_TOKENS * heads.group();
    let len = entries * (3 * heads.dim + 2 * BLOCK + 1) + 3 * BLOCK * heads.dim;
    let words = if products == WeightType::Bf16 { Rounded::words(entries, heads.dim) } else { 0 };
    tasks.par_iter().for_each(|&(family, kv_head)| {
        let work = |scratch: &mut [f32], words: &mut [u32]| {
            for &row in family {
                let (keys, queries) = (&rows[row].keys, &rows[row].queries);
                let before = keys.iter().map(ExactSizeIterator::len).sum::<usize>() - queries.len();
                for first in queries.clone().step_by(STEP_TOKENS) {
                    let tokens = STEP_TOKENS.min(queries.end - first);
                    let visible = before + first - queries.start + 1;
                    let entries = Entries { heads, kv_head, first, tokens, visible };
                    let rounded = (!words.is_empty()).then(|| Rounded::new(variant, entries.len(), heads.dim, words));
                    simd::run(variant, Step { entries, keys, saved, d_out, gradients, scratch, rounded });
                }
            }
        };
        scratch::with(len, |scratch| scratch::with_words(words, |words| work(scratch, words)));
    });
}

/// Rows by the span that they share: every row in the family of its first span's owner. Asserts that no span is in two.
fn families(rows: &[Spans], tokens: usize) -> Vec<Vec<usize>> {
    let mut owner = vec![usize::MAX; tokens];
    let mut queried = vec![false; tokens];
    let mut families: Vec<Vec<usize>> = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let first = row.keys.first().expect("a row sees its own tokens").start;
        if owner[first] == usize::MAX {
            owner[first] = families.len();
            families.push(Vec::new());
        }
        let family = owner[first];
        for token in row.keys.iter().cloned().flatten() {
            assert!(owner[token] == usize::MAX || owner[token] == family, "rows share their first span or none");
            owner[token] = family;
        }
        for token in row.queries.clone() {
            assert!(!std::mem::replace(&mut queried[token], true), "token {token} is in two rows");
        }
        families[family].push(i);
    }
    families
}

#[derive(Clone, Copy)]
struct Shares {
    q: Shared<f32>,
    k: Shared<f32>,
    v: Shared<f32>,
}

struct Step<'a> {
    entries: Entries,
    keys: &'a [Range<usize>],
    saved: Saved<'a>,
    d_out: &'a [f32],
    gradients: Shares,
    scratch: &'a mut [f32],
    /// If products are of bf16.
    rounded: Option<Rounded<'a>>,
}

impl Kernel for Step<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { entries, keys, saved, d_out, gradients, scratch, mut rounded } = self;
        let (heads, dim, count) = (entries.heads, entries.heads.dim, entries.len());
        let (kv_width, head) = (heads.kv_width(), entries.kv_head * heads.dim);
        let (queries, rest) = scratch.split_at_mut(count * dim);
        let (d_outs, rest) = rest.split_at_mut(count * dim);
        let (d_queries, rest) = rest.split_at_mut(count * dim);
        let (p, rest) = rest.split_at_mut(count * BLOCK);
        let (ds, rest) = rest.split_at_mut(count * BLOCK);
        let (inner, rest) = rest.split_at_mut(count);
        let (turned, rest) = rest.split_at_mut(BLOCK * dim);
        let (k_copy, v_copy) = rest.split_at_mut(BLOCK * dim);
        let k_spans: Vec<&[f32]> = keys.iter().map(|at| &saved.k[at.start * kv_width..at.end * kv_width]).collect();
        let v_spans: Vec<&[f32]> = keys.iter().map(|at| &saved.v[at.start * kv_width..at.end * kv_width]).collect();
        entries.gather(saved.q, heads.scale, queries);
        entries.gather(d_out, 1.0, d_outs);
        d_queries.fill(0.0);
        if let Some(rounded) = &mut rounded {
            rounded.take_entries(queries, d_outs);
        }
        for e in 0..count {
            // SAFETY: both rows are `dim` long.
            inner[e] = unsafe { dot::<S>(&d_outs[e * dim..][..dim], &saved.out[entries.offset(e)..][..dim]) };
        }
        for first in (0..entries.limit_max()).step_by(BLOCK) {
            let count_keys = BLOCK.min(entries.limit_max() - first);
            let width = count_keys.next_multiple_of(LANES);
            let from = entries.first_seeing(first);
            let m = count - from;
            let k = lines(&k_spans, (first, count_keys), (heads, entries.kv_head), k_copy);
            let v = lines(&v_spans, (first, count_keys), (heads, entries.kv_head), v_copy);
            let scores = |a: &[f32], turned: &[f32], c: &mut [f32]| Gemm {
                m,
                n: width,
                k: dim,
                a: a[from * dim..].as_ptr(),
                a_strides: (dim, 1),
                b: turned.as_ptr(),
                b_row: BLOCK,
                c: c[from * BLOCK..].as_mut_ptr(),
                c_row: BLOCK,
                accumulate: false,
            };
            // SAFETY: every buffer is sized above for `count` entries and 64 keys; `count_keys ≤ 64` lines were found.
            unsafe {
                turn::<S>(k, count_keys, dim, turned);
                S::gemm(scores(queries, turned, p));
                if let Some(rounded) = &mut rounded {
                    rounded.take_keys::<S>((k, v), count_keys);
                    rounded.by_value((from, count), width, ds);
                } else {
                    turn::<S>(v, count_keys, dim, turned);
                    S::gemm(scores(d_outs, turned, ds));
                }
                for e in from..count {
                    let (p, ds) = (&mut p[e * BLOCK..][..width], &mut ds[e * BLOCK..][..width]);
                    p[count_keys.min(entries.limit(e) - first)..].fill(f32::NEG_INFINITY);
                    weigh::<S>(p, ds, saved.logsumexp[entries.scalar(e)], inner[e]);
                }
                if let Some(rounded) = &mut rounded {
                    rounded.take_weights((from, count), width, (p, ds));
                    rounded.by_key((from, count), count_keys, d_queries);
                } else {
                    S::gemm(Gemm {
                        m,
                        n: dim,
                        k: count_keys,
                        a: ds.as_ptr().add(from * BLOCK),
                        a_strides: (BLOCK, 1),
                        b: k.at,
                        b_row: k.row,
                        c: d_queries.as_mut_ptr().add(from * dim),
                        c_row: dim,
                        accumulate: true,
                    });
                }
            }
            for (index, span, token, tokens) in portions(keys.iter().map(ExactSizeIterator::len), first, count_keys) {
                let at = (keys[span].start + token) * kv_width + head;
                if let Some(rounded) = &rounded {
                    let into = [gradients.v.at(at), gradients.k.at(at)];
                    // SAFETY: the tokens are inside the batch; only this task adds to this head of this family's keys.
                    unsafe { rounded.add_to_keys((from, count), (index, tokens), into, kv_width) };
                    continue;
                }
                for (weights, rows, gradient) in [(&*p, &*d_outs, gradients.v), (&*ds, &*queries, gradients.k)] {
                    let add = Gemm {
                        m: tokens,
                        n: dim,
                        k: m,
                        a: weights[from * BLOCK + index..].as_ptr(),
                        a_strides: (1, BLOCK),
                        b: rows[from * dim..].as_ptr(),
                        b_row: dim,
                        c: gradient.at(at),
                        c_row: kv_width,
                        accumulate: true,
                    };
                    // SAFETY: the tokens are inside the batch; only this task adds to this head of this family's keys.
                    unsafe { S::gemm(add) };
                }
            }
        }
        for e in 0..count {
            // SAFETY: this head of this token is this task's alone.
            let dq = unsafe { gradients.q.slice(entries.offset(e), dim) };
            for (dq, sum) in dq.iter_mut().zip(&d_queries[e * dim..]) {
                *dq = sum * heads.scale;
            }
        }
    }
}

/// A step's operands as pairs of bf16, and its products of them. Pairs are of neighbours along the summed dimension: elements of a
/// head, keys, or entries. What would pair with nothing is paired with 0.
struct Rounded<'a> {
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

    fn words(entries: usize, dim: usize) -> usize {
        Self::lengths(entries, dim).iter().sum()
    }

    /// For a step of `entries`.
    fn new(variant: Variant, entries: usize, dim: usize, words: &'a mut [u32]) -> Self {
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
    fn take_entries(&mut self, queries: &[f32], d_outs: &[f32]) {
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
    unsafe fn take_keys<S: Simd>(&mut self, (k, v): (Lines, Lines), count: usize) {
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
    fn take_weights(&mut self, (from, count): (usize, usize), width: usize, (p, ds): (&[f32], &[f32])) {
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
    unsafe fn by_value(&self, (from, count): (usize, usize), width: usize, ds: &mut [f32]) {
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
    unsafe fn by_key(&self, (from, count): (usize, usize), keys: usize, d_queries: &mut [f32]) {
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
    unsafe fn add_to_keys(
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

/// Scores to weights, and the weights' gradients to the scores': `p = e^{p − logsumexp}`, `ds = p (ds − inner)`.
#[inline(always)]
unsafe fn weigh<S: Simd>(p: &mut [f32], ds: &mut [f32], logsumexp: f32, inner: f32) {
    let (p, _) = p.as_chunks_mut::<LANES>();
    let (ds, _) = ds.as_chunks_mut::<LANES>();
    for (p, ds) in p.iter_mut().zip(ds) {
        // SAFETY: lane arithmetic, and 16 values at each end.
        unsafe {
            let weight = S::exp(S::sub(S::load(p.as_ptr()), S::splat(logsumexp)));
            S::store(p.as_mut_ptr(), weight);
            S::store(ds.as_mut_ptr(), S::mul(weight, S::sub(S::load(ds.as_ptr()), S::splat(inner))));
        }
    }
}

/// Sixteen partial sums, then by halves.
#[inline(always)]
unsafe fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: lane arithmetic.
    let mut sum = unsafe { S::splat(0.0) };
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        // SAFETY: reads as many values as both chunks hold.
        unsafe { sum = S::fma(S::load_n(a.as_ptr(), a.len()), S::load_n(b.as_ptr(), b.len()), sum) };
    }
    // SAFETY: lane arithmetic.
    unsafe { S::sum(sum) }
}
