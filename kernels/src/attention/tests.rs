//! Attention forward and backward against its formula in f64, and what its bits must not depend on.

use super::backward::backward_as;
use super::forward::forward_as;
use super::*;
use crate::linear::WeightType;
use crate::simd::{Variant, variants};
use crate::testing::{Values, assert_same_bits, assert_within, on_threads};
use std::ops::Range;

/// Rows over one packed buffer of keys: a prefix of 70 with two continuations, a lone row, a row of one token, two rows after keys that no
/// token wrote.
struct Case {
    heads: Heads,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    rows: Vec<Spans>,
}

#[allow(clippy::single_range_in_vec_init, reason = "a row's keys are a list of ranges")]
fn rows() -> Vec<Spans> {
    let row = |queries: Range<usize>, keys: Vec<Range<usize>>| Spans { queries, keys };
    vec![
        row(0..70, vec![0..70]),
        row(70..110, vec![0..70, 70..110]),
        row(110..113, vec![0..70, 110..113]),
        row(113..250, vec![113..250]),
        row(250..251, vec![250..251]),
        row(251..256, vec![TOKENS..KEYS, 251..256]),
        row(256..258, vec![TOKENS..KEYS, 256..258]),
    ]
}

const TOKENS: usize = 258;
const KEYS: usize = TOKENS + 67;

impl Case {
    fn new(query: usize, kv: usize, dim: usize) -> Self {
        let mut values = Values::new(dim as u64);
        let heads = Heads { query, kv, dim, scale: 1.0 / (dim as f32).sqrt() };
        let mut scaled = |len: usize| values.take(len).into_iter().map(|x| 2.0 * x).collect::<Vec<_>>();
        let (q, k, v) = (scaled(TOKENS * query * dim), scaled(KEYS * kv * dim), scaled(KEYS * kv * dim));
        Self { heads, q, k, v, rows: rows() }
    }

    fn forward(&self, variant: Variant) -> (Vec<f32>, Vec<f32>) {
        let of = |at: &Range<usize>| {
            let at = at.start * self.heads.kv_width()..at.end * self.heads.kv_width();
            Keys::Plain { k: &self.k[at.clone()], v: &self.v[at] }
        };
        let row = |row: &Spans| Row { queries: row.queries.clone(), keys: row.keys.iter().map(of).collect() };
        let rows: Vec<Row<'_>> = self.rows.iter().map(row).collect();
        let (mut out, mut logsumexp) = (vec![f32::NAN; self.q.len()], vec![f32::NAN; TOKENS * self.heads.query]);
        forward_as(variant, self.heads, &self.q, &rows, &mut out, Some(&mut logsumexp));
        (out, logsumexp)
    }

    fn backward(&self, variant: Variant, products: WeightType, d_out: &[f32]) -> [Vec<f32>; 3] {
        let (out, logsumexp) = self.forward(variant);
        let [mut q, mut k, mut v] = [vec![f32::NAN; self.q.len()], vec![0.0; self.k.len()], vec![0.0; self.v.len()]];
        let saved = Saved { q: &self.q, k: &self.k, v: &self.v, out: &out, logsumexp: &logsumexp };
        let gradients = Gradients { q: &mut q, k: &mut k, v: &mut v };
        backward_as(variant, (self.heads, products), &self.rows, saved, d_out, gradients);
        [q, k, v]
    }

    /// For every (token, query head): the keys seen and their exact weights.
    fn weights(&self, row: &Spans, token: usize, head: usize) -> (Vec<usize>, Vec<f64>, f64) {
        let Heads { dim, scale, .. } = self.heads;
        let all: Vec<usize> = row.keys.iter().cloned().flatten().collect();
        let seen = all[..all.len() - (row.queries.end - 1 - token)].to_vec();
        let scores: Vec<f64> = seen
            .iter()
            .map(|&key| {
                let terms =
                    (0..dim).map(|d| f64::from(self.q(token, head, d)) * f64::from(self.kv(&self.k, key, head, d)));
                terms.sum::<f64>() * f64::from(scale)
            })
            .collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        (seen, scores.iter().map(|s| (s - most).exp() / total).collect(), most + total.ln())
    }

    fn q(&self, token: usize, head: usize, d: usize) -> f32 {
        self.q[token * self.heads.q_width() + head * self.heads.dim + d]
    }

    fn kv(&self, of: &[f32], key: usize, head: usize, d: usize) -> f32 {
        of[key * self.heads.kv_width() + head / self.heads.group() * self.heads.dim + d]
    }

    /// The bound of the module, relative to the largest value: |q|, |k| ≤ 2.
    fn bound(&self) -> f64 {
        let (dim, u) = (self.heads.dim as f64, 2f64.powi(-24));
        let delta = 2.0 * (dim + 3.0) * u * f64::from(self.heads.scale) * 4.0 * dim;
        let n = TOKENS as f64;
        4.0 * delta + 2.0 * (n + 10.0) * u + (n / 64.0 + 2.0) * 2f64.powi(-21)
    }
}

const SHAPES: [(usize, usize, usize); 4] = [(6, 2, 16), (3, 3, 5), (4, 1, 64), (9, 3, 20)];

#[test]
fn outputs_of_every_variant_are_within_the_bound_of_f64() {
    for (query, kv, dim) in SHAPES {
        let case = Case::new(query, kv, dim);
        for &variant in variants() {
            let (out, logsumexp) = case.forward(variant);
            for row in &case.rows {
                for token in row.queries.clone() {
                    for head in 0..query {
                        let (seen, weights, exact_log) = case.weights(row, token, head);
                        let found = logsumexp[token * query + head];
                        assert_within(found, exact_log, case.bound() * 4.0, format_args!("{variant:?} logsumexp"));
                        for d in 0..dim {
                            let terms = seen
                                .iter()
                                .zip(&weights)
                                .map(|(&key, p)| p * f64::from(case.kv(&case.v, key, head, d)));
                            let found = out[token * case.heads.q_width() + head * dim + d];
                            assert_within(
                                found,
                                terms.sum(),
                                2.0 * case.bound(),
                                format_args!("{variant:?} out[{token}]"),
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn gradients_of_every_variant_are_within_the_bound_of_f64() {
    for (query, kv, dim) in SHAPES {
        let case = Case::new(query, kv, dim);
        let d_out = Values::new(77).take(case.q.len());
        let (group, scale) = (case.heads.group(), f64::from(case.heads.scale));
        let mut exact = [vec![0.0; case.q.len()], vec![0.0; case.k.len()], vec![0.0; case.v.len()]];
        let mut size = exact.clone();
        for row in &case.rows {
            for token in row.queries.clone() {
                for head in 0..query {
                    let (seen, weights, _) = case.weights(row, token, head);
                    let at = |d: usize| token * case.heads.q_width() + head * dim + d;
                    let dp: Vec<f64> = seen
                        .iter()
                        .map(|&key| {
                            (0..dim).map(|d| f64::from(d_out[at(d)]) * f64::from(case.kv(&case.v, key, head, d))).sum()
                        })
                        .collect();
                    let inner: f64 = dp.iter().zip(&weights).map(|(dp, p)| dp * p).sum();
                    for ((&key, p), dp) in seen.iter().zip(&weights).zip(&dp) {
                        let ds = scale * p * (dp - inner);
                        // |do·v| ≤ 2·dim: what rounding of ds is relative to.
                        let ds_size = scale * p * 4.0 * dim as f64;
                        for d in 0..dim {
                            let kv_at = key * case.heads.kv_width() + head / group * dim + d;
                            let mut add = |i: usize, at: usize, value: f64, bound: f64| {
                                exact[i][at] += value;
                                size[i][at] += bound;
                            };
                            let (q, k) = (f64::from(case.q(token, head, d)), f64::from(case.kv(&case.k, key, head, d)));
                            add(0, at(d), ds * k, ds_size * k.abs());
                            add(1, kv_at, ds * q, ds_size * q.abs());
                            let dv = p * f64::from(d_out[at(d)]);
                            add(2, kv_at, dv, dv.abs());
                        }
                    }
                }
            }
        }
        for &variant in variants() {
            // The module's 2.01ε for dv; for dq and dk 2.01ε·(P + |do·v − Σ do∘out|) ≤ 2.01ε·6·dim, sizes being of 4·dim.
            for (products, rounding) in [(WeightType::F32, [0.0; 3]), (WeightType::Bf16, [3.02, 3.02, 2.01])] {
                let found = case.backward(variant, products, &d_out);
                for (i, name) in ["dq", "dk", "dv"].iter().enumerate() {
                    for (at, &found) in found[i].iter().enumerate() {
                        let bound = (4.0 * case.bound() + rounding[i] * 2f64.powi(-8)) * size[i][at];
                        assert_within(found, exact[i][at], bound, format_args!("{variant:?} {dim} {name}[{at}]"));
                    }
                }
            }
        }
    }
}

#[test]
fn decoding_token_by_token_gives_the_bits_of_the_full_pass_however_keys_are_cut() {
    let case = Case::new(6, 2, 24);
    let width = case.heads.kv_width();
    for &variant in variants() {
        let (full, _) = case.forward(variant);
        let row = &case.rows[3];
        for token in [113, 114, 176, 177, 178, 249] {
            let len = token - row.queries.start + 1;
            let start = row.queries.start * width;
            for cut in [0, 1, len / 2, len - 1] {
                let keys = [0..cut, cut..len]
                    .map(|at| start + at.start * width..start + at.end * width)
                    .map(|at| Keys::Plain { k: &case.k[at.clone()], v: &case.v[at] });
                let rows = [Row { queries: 0..1, keys: keys.into() }];
                let at = token * case.heads.q_width()..(token + 1) * case.heads.q_width();
                let mut out = vec![0.0; case.heads.q_width()];
                forward_as(variant, case.heads, &case.q[at.clone()], &rows, &mut out, None);
                assert_same_bits(&out, &full[at], format_args!("{variant:?} token {token} cut at {cut}"));
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads_or_on_other_rows() {
    let mut case = Case::new(6, 2, 16);
    let d_out = Values::new(78).take(case.q.len());
    let products = [WeightType::F32, WeightType::Bf16];
    for (&variant, products) in variants().iter().flat_map(|variant| products.map(|products| (variant, products))) {
        let one = on_threads(1, || case.backward(variant, products, &d_out));
        let three = on_threads(3, || case.backward(variant, products, &d_out));
        assert_eq!(one, three);
        // The family of rows 0 to 2 without the others, and the others without it.
        for (range, kept) in [(0..113, 0..3), (113..TOKENS, 3..7)] {
            let all = std::mem::replace(&mut case.rows, rows()[kept].to_vec());
            let apart = case.backward(variant, products, &d_out);
            case.rows = all;
            for (i, width) in
                [case.heads.q_width(), case.heads.kv_width(), case.heads.kv_width()].into_iter().enumerate()
            {
                let end = if i > 0 && range.end == TOKENS { KEYS } else { range.end };
                let at = range.start * width..end * width;
                assert_same_bits(&apart[i][at.clone()], &one[i][at], format_args!("{variant:?} gradient {i}"));
            }
        }
    }
}

#[test]
fn cached_keys_and_values_give_the_bits_of_plain_ones_however_they_came_in() {
    for ((query, kv, dim), kept) in
        SHAPES.into_iter().flat_map(|shape| [WeightType::F32, WeightType::Bf16].map(|kept| (shape, kept)))
    {
        let mut case = Case::new(query, kv, dim);
        round(kept, &mut case.k);
        round(kept, &mut case.v);
        let (heads, width) = (case.heads, case.heads.kv_width());
        let of = |at: &Range<usize>| at.start * width..at.end * width;
        // By spans, the second of them key by key after a key that is taken back.
        let cache = |spans: &[Range<usize>]| {
            let mut position = 0;
            let mut caches = Vec::new();
            for span in spans {
                let mut cache = KvCache::new(heads, kept);
                cache.extend(position, &case.k[..width], &case.v[..width]);
                cache.truncate(0);
                for key in span.clone() {
                    cache.extend(position, &case.k[of(&(key..key + 1))], &case.v[of(&(key..key + 1))]);
                    position += 1;
                }
                // What another continuation has added.
                cache.extend(position, &case.k[..width], &case.v[..width]);
                caches.push(cache);
            }
            caches
        };
        let last = |row: &Spans| Spans { queries: row.queries.end - 1..row.queries.end, ..row.clone() };
        let mut alone = case.rows.clone();
        alone.iter_mut().for_each(|row| *row = last(row));
        for &variant in variants() {
            let (plain, _) = case.forward(variant);
            let caches: Vec<_> = case.rows.iter().map(|row| cache(&row.keys)).collect();
            // All queries of a row at once, and its last one alone, as in decoding.
            for spans in [&case.rows, &alone] {
                let rows = spans.iter().zip(&caches).map(|(row, caches)| {
                    let keys = row.keys.iter().zip(caches).map(|(at, cache)| Keys::Cached(cache, at.len()));
                    Row { queries: row.queries.clone(), keys: keys.collect() }
                });
                let rows: Vec<_> = rows.collect();
                let mut out = vec![f32::NAN; case.q.len()];
                forward_as(variant, heads, &case.q, &rows, &mut out, None);
                for row in spans {
                    let at = row.queries.start * heads.q_width()..row.queries.end * heads.q_width();
                    assert_same_bits(
                        &out[at.clone()],
                        &plain[at],
                        format_args!("{variant:?} {kept:?} {query} {kv} {dim}"),
                    );
                }
            }
        }
    }
}
