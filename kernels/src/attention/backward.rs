//! Attention's backward pass: a task is one key/value head of the rows that share keys, so no two tasks add to one key.

use super::rounded::Rounded;
use super::{BLOCK, Entries, Heads, lines, portions, turn};
use crate::counts::Operation;
use crate::gemm::Gemm;
use crate::linear::WeightType;
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
    /// Spans in order, of tokens and of keys beyond them (see [`Saved::k`]); the last is the row's own tokens.
    pub keys: Vec<Range<usize>>,
}

/// What the forward pass read and gave.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// `[tokens, heads · dim]`, rotated.
    pub q: &'a [f32],
    /// `[keys, kv · dim]`, rotated: the tokens', then those that no token of the batch wrote (a trained prefix), if there are any.
    pub k: &'a [f32],
    /// `[keys, kv · dim]`.
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
    let pairs = rows.iter().map(|Spans { queries, keys }| {
        super::pairs(queries.len(), keys.iter().map(ExactSizeIterator::len).sum::<usize>())
    });
    // Queries, outputs, their gradients both ways; keys and values, and both their gradients added to.
    let values = 4 * saved.q.len() + 6 * saved.k.len() + saved.logsumexp.len();
    // The scores again, and four products with them.
    Operation::AttentionBackward.add(10 * heads.q_width() * pairs.sum::<usize>(), values * size_of::<f32>());
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
    let keys = saved.k.len() / heads.kv_width();
    assert!(keys >= tokens, "every token has a key");
    for of in [saved.k.len(), saved.v.len(), gradients.k.len(), gradients.v.len()] {
        assert_eq!(of, keys * heads.kv_width(), "keys and values are [keys, {}]", heads.kv_width());
    }
    assert_eq!(saved.logsumexp.len(), tokens * heads.query, "logsumexp is [tokens, heads]");
    let families = families(rows, (tokens, keys));
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
fn families(rows: &[Spans], (tokens, keys): (usize, usize)) -> Vec<Vec<usize>> {
    let mut owner = vec![usize::MAX; keys];
    let mut queried = vec![false; tokens];
    let mut families: Vec<Vec<usize>> = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let first = row.keys.first().expect("a row sees its own tokens").start;
        if owner[first] == usize::MAX {
            owner[first] = families.len();
            families.push(Vec::new());
        }
        let family = owner[first];
        for key in row.keys.iter().cloned().flatten() {
            assert!(owner[key] == usize::MAX || owner[key] == family, "rows share their first span or none");
            owner[key] = family;
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
