//! Attention's forward pass: a task is one key/value head of some queries of a row.

use super::{BLOCK, Entries, Heads, KeyCache, Lines, lines, portions, turn};
use crate::gemm::Gemm;
use crate::scratch;
use crate::simd::{self, Kernel, LANES, Shared, Simd, Variant};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens of a task: enough that turning the keys is a hundredth of the work.
const TASK_TOKENS: usize = 64;
/// Multiplications below which one thread does it all.
const SERIAL_PRODUCTS_MAX: usize = 1 << 17;

/// A span of keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    /// Rotated.
    pub k: KeyRows<'a>,
    /// `[len, kv · dim]`.
    pub v: &'a [f32],
}

/// The keys of a span.
#[derive(Clone, Copy, Debug)]
pub enum KeyRows<'a> {
    /// `[len, kv · dim]`.
    Plain(&'a [f32]),
    /// Turned when they were cached.
    Cached(&'a KeyCache),
}

impl KeyRows<'_> {
    fn len(self, heads: Heads) -> usize {
        match self {
            Self::Plain(k) => k.len() / heads.kv_width(),
            Self::Cached(cache) => cache.len(),
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
    forward_as(simd::active(), heads, q, rows, out, logsumexp);
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
        let width = heads.kv_width();
        assert!(row.keys.iter().all(|keys| keys.k.len(heads) * width == keys.v.len()), "a value for each key");
        let len: usize = row.keys.iter().map(|keys| keys.v.len() / width).sum();
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
        let spans: (Vec<KeyRows<'_>>, Vec<&[f32]>) = row.keys.iter().map(|keys| (keys.k, keys.v)).unzip();
        let len = entries.len() * (2 * heads.dim + BLOCK + 2) + 2 * BLOCK * heads.dim;
        scratch::with(len, |scratch| {
            simd::run(variant, Task { entries, spans: (&spans.0, &spans.1), q, out, logsumexp, scratch });
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
    spans: (&'a [KeyRows<'a>], &'a [&'a [f32]]),
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
        let (total, rest) = rest.split_at_mut(count);
        let (turned, v_copy) = rest.split_at_mut(BLOCK * dim);
        entries.gather(q, heads.scale, queries);
        sums.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        total.fill(0.0);
        for first in (0..entries.limit_max()).step_by(BLOCK) {
            let keys = BLOCK.min(entries.limit_max() - first);
            let width = keys.next_multiple_of(LANES);
            let from = entries.first_seeing(first);
            let v = lines(spans.1, (first, keys), (heads, entries.kv_head), v_copy);
            let lens = spans.1.iter().map(|v| v.len() / heads.kv_width());
            for (index, span, token, tokens) in portions(lens, first, keys) {
                let k: &[f32] = match spans.0[span] {
                    KeyRows::Cached(cache) => cache.lines(heads, entries.kv_head, token),
                    KeyRows::Plain(k) => {
                        let at = k[token * heads.kv_width() + entries.kv_head * dim..].as_ptr();
                        // SAFETY: `tokens ≤ 64` lines of `dim` values follow in the span.
                        unsafe { turn::<S>(Lines { at, row: heads.kv_width() }, tokens, dim, turned) };
                        turned
                    }
                };
                // As far as whole vectors go, where the block has room: the next portion or −∞ is written over what is too much.
                let columns = tokens.next_multiple_of(LANES).min(BLOCK - index);
                assert!((dim - 1) * BLOCK + columns <= k.len(), "keys are turned by blocks of the row");
                // SAFETY: `scores` holds 64 values for each of `count` entries, `queries` dim; `k` was measured.
                unsafe {
                    S::gemm(Gemm {
                        m: count - from,
                        n: columns,
                        k: dim,
                        a: queries.as_ptr().add(from * dim),
                        a_strides: (dim, 1),
                        b: k.as_ptr(),
                        b_row: BLOCK,
                        c: scores.as_mut_ptr().add(from * BLOCK + index),
                        c_row: BLOCK,
                        accumulate: false,
                    });
                }
            }
            // SAFETY: every buffer is sized above for `count` entries and 64 keys; `keys ≤ 64` lines were found.
            unsafe {
                for e in from..count {
                    let scores = &mut scores[e * BLOCK..][..width];
                    scores[keys.min(entries.limit(e) - first)..].fill(f32::NEG_INFINITY);
                    let sums = &mut sums[e * dim..][..dim];
                    soften::<S>(scores, &mut largest[e], &mut total[e], sums);
                }
                S::gemm(Gemm {
                    m: count - from,
                    n: dim,
                    k: keys,
                    a: scores.as_ptr().add(from * BLOCK),
                    a_strides: (BLOCK, 1),
                    b: v.at,
                    b_row: v.row,
                    c: sums.as_mut_ptr().add(from * dim),
                    c_row: dim,
                    accumulate: true,
                });
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
