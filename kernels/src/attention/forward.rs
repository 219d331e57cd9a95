//! Attention's forward pass: a task is one key/value head of some queries of a row.

use super::narrow::{self, Narrow};
use super::{BLOCK, Entries, Heads, KvCache, Lines, Portion, portions, turn};
use crate::counts::Operation;
use crate::gemm::Gemm;
use crate::linear::WeightType;
use crate::scratch;
use crate::simd::{self, Kernel, LANES, Shared, Simd, Variant};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens of a task: enough that turning the keys is a hundredth of the work.
const TASK_TOKENS: usize = 64;
/// Multiplications below which one thread does it all.
const SERIAL_PRODUCTS_MAX: usize = 1 << 17;

/// A span of keys (rotated) and values.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// `[len, kv · dim]` each.
    Plain {
        /// Keys.
        k: &'a [f32],
        /// Values.
        v: &'a [f32],
    },
    /// The first tokens of a cache.
    Cached(&'a KvCache, usize),
}

impl Keys<'_> {
    /// Tokens; asserts that each has a key and a value.
    fn len(&self, heads: Heads) -> usize {
        match self {
            Self::Plain { k, v } => {
                let len = k.len() / heads.kv_width();
                assert!(k.len() == v.len() && v.len() == len * heads.kv_width(), "a value for each key");
                len
            }
            Self::Cached(cache, len) => {
                assert!(*len <= cache.len(), "{len} tokens of {}", cache.len());
                *len
            }
        }
    }

    /// Bytes of its keys and values.
    fn bytes(&self, heads: Heads) -> usize {
        match self {
            Self::Plain { k, v } => size_of_val(*k) + size_of_val(*v),
            Self::Cached(cache, len) => len * heads.kv * cache.token_bytes(),
        }
    }
}

/// One row's queries and what they attend to.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// Its tokens in the packed queries.
    pub queries: Range<usize>,
    /// Spans in order; the last `queries.len()` keys are the queries' own.
    pub keys: Vec<Keys<'a>>,
}

/// `out = softmax(scale · q kᵀ) v` for every row; `q` and `out` are `[tokens, heads · dim]`. With `logsumexp`
/// (`[tokens, heads]`) also the logarithm of the softmax's denominator, for [`super::backward`].
pub fn forward(heads: Heads, q: &[f32], rows: &[Row<'_>], out: &mut [f32], logsumexp: Option<&mut [f32]>) {
    let scalars = logsumexp.as_ref().map_or(0, |of| of.len());
    forward_as(simd::active(), heads, q, rows, out, logsumexp);
    let (mut pairs, mut read) = (0, 0);
    for Row { queries, keys } in rows {
        let len = keys.iter().map(|keys| keys.len(heads)).sum();
        pairs += super::pairs(queries.len(), len);
        read += keys.iter().map(|keys| keys.bytes(heads)).sum::<usize>();
    }
    // Scores, and their product with the values.
    Operation::Attention.add(4 * heads.q_width() * pairs, read + (q.len() + out.len() + scalars) * size_of::<f32>());
}

pub(super) fn forward_as(
    variant: Variant,
    heads: Heads,
    q: &[f32],
    rows: &[Row<'_>],
    out: &mut [f32],
    logsumexp: Option<&mut [f32]>,
) {
    assert_eq!(heads.query, heads.group() * heads.kv, "key/value heads divide query heads");
    assert_eq!(q.len(), out.len(), "an output for each query");
    let tokens = q.len() / heads.q_width();
    assert!(logsumexp.as_ref().is_none_or(|of| of.len() == tokens * heads.query), "logsumexp is [tokens, heads]");
    let mut tasks = Vec::new();
    let (mut products, mut end) = (0, 0);
    for row in rows {
        assert!(row.queries.start >= end && row.queries.end <= tokens, "rows of {tokens} tokens, in order");
        end = row.queries.end;
        let len: usize = row.keys.iter().map(|keys| keys.len(heads)).sum();
        assert!(len >= row.queries.len(), "the queries' own keys are among the row's");
        products += 2 * row.queries.len() * len * heads.q_width();
        let before = len - row.queries.len();
        for start in row.queries.clone().step_by(TASK_TOKENS) {
            let count = TASK_TOKENS.min(row.queries.end - start);
            let visible = before + start - row.queries.start + 1;
            tasks.extend(
                (0..heads.kv).map(|kv_head| (row, Entries { heads, kv_head, first: start, tokens: count, visible })),
            );
        }
    }
    let (out, logsumexp) = (Shared::new(out), logsumexp.map(Shared::new));
    let run = |&(row, entries): &(&Row<'_>, Entries)| {
        let len = entries.len() * (2 * heads.dim + BLOCK + 2) + BLOCK * heads.dim;
        scratch::with(len, |scratch| {
            simd::run(variant, Task { entries, spans: &row.keys, q, out, logsumexp, scratch });
        });
    };
    if products <= SERIAL_PRODUCTS_MAX {
        tasks.iter().for_each(run);
    } else {
        tasks.par_iter().for_each(run);
    }
}

struct Task<'a> {
    entries: Entries,
    spans: &'a [Keys<'a>],
    q: &'a [f32],
    out: Shared<f32>,
    logsumexp: Option<Shared<f32>>,
    scratch: &'a mut [f32],
}

impl Kernel for Task<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { entries, spans, q, out, logsumexp, scratch } = self;
        let (heads, dim, count) = (entries.heads, entries.heads.dim, entries.len());
        let (queries, rest) = scratch.split_at_mut(count * dim);
        let (sums, rest) = rest.split_at_mut(count * dim);
        let (scores, rest) = rest.split_at_mut(count * BLOCK);
        let (largest, rest) = rest.split_at_mut(count);
        let (total, wide) = rest.split_at_mut(count);
        entries.gather(q, heads.scale, queries);
        sums.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        total.fill(0.0);
        let lens = || spans.iter().map(|keys| keys.len(heads));
        for first in (0..entries.limit_max()).step_by(BLOCK) {
            let keys = BLOCK.min(entries.limit_max() - first);
            let from = entries.first_seeing(first);
            let mut block = Block { entries, from, spans, wide };
            let queries = queries[from * dim..].as_ptr();
            let sums_from = sums[from * dim..].as_mut_ptr();
            let scores_from = scores[from * BLOCK..].as_mut_ptr();
            // SAFETY: every buffer is sized above for `count` entries and 64 keys; portions are inside their spans.
            unsafe {
                for portion in portions(lens(), first, keys) {
                    block.score::<S>(portion, queries, scores_from);
                }
                for e in from..count {
                    let scores = &mut scores[e * BLOCK..][..keys.next_multiple_of(LANES)];
                    scores[keys.min(entries.limit(e) - first)..].fill(f32::NEG_INFINITY);
                    let sums = &mut sums[e * dim..][..dim];
                    soften::<S>(scores, &mut largest[e], &mut total[e], sums);
                }
                for portion in portions(lens(), first, keys) {
                    block.add_values::<S>(portion, scores_from, sums_from);
                }
            }
        }
        for e in 0..count {
            // SAFETY: this row of `out` is this task's alone: tasks differ in token or head.
            let out = unsafe { out.slice(entries.offset(e), dim) };
            let inverse = 1.0 / total[e];
            for (out, sum) in out.iter_mut().zip(&sums[e * dim..]) {
                *out = sum * inverse;
            }
            if let Some(logsumexp) = logsumexp {
                // SAFETY: as above.
                unsafe { *logsumexp.at(entries.scalar(e)) = largest[e] + total[e].ln() };
            }
        }
    }
}

/// Entries `from ..` and a block of 64 of their keys.
struct Block<'a> {
    entries: Entries,
    from: usize,
    spans: &'a [Keys<'a>],
    /// Room for a block of keys or values of one head.
    wide: &'a mut [f32],
}

impl Block<'_> {
    /// Sets the scores, `[entries, 64]`, of one portion. As far as whole vectors go, where the block has room: the next portion or
    /// −∞ is written over what is too much.
    ///
    /// # Safety
    /// As for [`Simd`]; queries are `[entries, dim]`.
    #[inline(always)]
    unsafe fn score<S: Simd>(&mut self, portion: Portion, queries: *const f32, scores: *mut f32) {
        let (index, span, token, tokens) = portion;
        let Entries { heads, kv_head, .. } = self.entries;
        let (m, dim) = (self.entries.len() - self.from, heads.dim);
        let columns = tokens.next_multiple_of(LANES).min(BLOCK - index);
        let scores = scores.wrapping_add(index);
        // SAFETY: lines of 64 columns, of which `index` stand before the portion; the rest is the caller's promise.
        unsafe {
            let b = match self.spans[span] {
                Keys::Plain { k, .. } => {
                    let at = k[token * heads.kv_width() + kv_head * dim..].as_ptr();
                    turn::<S>(Lines { at, row: heads.kv_width() }, tokens, dim, self.wide);
                    self.wide.as_ptr()
                }
                Keys::Cached(cache, _) => {
                    let lines = cache.lines(heads, kv_head, token..token + tokens);
                    assert_eq!(lines.column, index, "keys are cached by blocks of the row");
                    match lines.kept {
                        WeightType::F32 => lines.keys.cast(),
                        WeightType::Bf16 if m <= S::TILE_ROWS => {
                            let few = Narrow { rows: m, dim, tokens, lines, scores };
                            return narrow::scores::<S>(few, queries, columns);
                        }
                        WeightType::Bf16 => {
                            narrow::widen_keys::<S>(lines, (dim, columns), self.wide);
                            self.wide.as_ptr()
                        }
                    }
                }
            };
            S::gemm(Gemm {
                m,
                n: columns,
                k: dim,
                a: queries,
                a_strides: (dim, 1),
                b,
                b_row: BLOCK,
                c: scores,
                c_row: BLOCK,
                accumulate: false,
            });
        }
    }

    /// Adds one portion's values, weighed by `scores`, to `sums`, `[entries, dim]`.
    ///
    /// # Safety
    /// As for [`Self::score`].
    #[inline(always)]
    unsafe fn add_values<S: Simd>(&mut self, portion: Portion, scores: *mut f32, sums: *mut f32) {
        let (index, span, token, tokens) = portion;
        let Entries { heads, kv_head, .. } = self.entries;
        let (m, dim) = (self.entries.len() - self.from, heads.dim);
        let scores = scores.wrapping_add(index);
        // SAFETY: as above.
        unsafe {
            let (b, b_row) = match self.spans[span] {
                Keys::Plain { v, .. } => (v[token * heads.kv_width() + kv_head * dim..].as_ptr(), heads.kv_width()),
                Keys::Cached(cache, _) => {
                    let lines = cache.lines(heads, kv_head, token..token + tokens);
                    match lines.kept {
                        WeightType::F32 => (lines.values.cast(), lines.value_words),
                        WeightType::Bf16 if m <= S::TILE_ROWS => {
                            return narrow::values::<S>(Narrow { rows: m, dim, tokens, lines, scores }, sums);
                        }
                        WeightType::Bf16 => {
                            narrow::widen_values::<S>(lines, (dim, tokens), self.wide);
                            (self.wide.as_ptr(), dim)
                        }
                    }
                }
            };
            S::gemm(Gemm {
                m,
                n: dim,
                k: tokens,
                a: scores,
                a_strides: (BLOCK, 1),
                b,
                b_row,
                c: sums,
                c_row: dim,
                accumulate: true,
            });
        }
    }
}

/// One entry's step of the online softmax: turns `scores` into weights relative to the new maximum, and rescales what was
/// summed relative to the old one.
#[inline(always)]
unsafe fn soften<S: Simd>(scores: &mut [f32], largest: &mut f32, total: &mut f32, sums: &mut [f32]) {
    // SAFETY: lane arithmetic and accesses inside the slices.
    unsafe {
        let (vectors, _) = scores.as_chunks_mut::<LANES>();
        let mut most = S::splat(*largest);
        for vector in vectors.iter() {
            most = S::max(most, S::load(vector.as_ptr()));
        }
        let most = S::max_lane(most);
        let mut sum = S::splat(0.0);
        for vector in vectors {
            let p = S::exp(S::sub(S::load(vector.as_ptr()), S::splat(most)));
            S::store(vector.as_mut_ptr(), p);
            sum = S::add(sum, p);
        }
        if most != *largest {
            let mut factor = [0.0; LANES];
            S::store(factor.as_mut_ptr(), S::exp(S::splat(*largest - most)));
            *total *= factor[0];
            for sum in sums.iter_mut() {
                *sum *= factor[0];
            }
            *largest = most;
        }
        *total += S::sum(sum);
    }
}
