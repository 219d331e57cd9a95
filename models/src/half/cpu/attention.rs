//! The attention half on the CPU. Knows keys, values and caches of one layer; never the MLP or the head.

use super::{At, Buffer, Cpu, Prepared, in_parts};
use crate::kv::LayerKv;
use crate::{KvSequence, LayerSlot, Projection};
use rayon::prelude::*;
use socius_kernels::attention::{self, Gradients, Keys, Row};
use socius_kernels::{norm, rope};
use std::ops::Range;

/// What the backward pass needs.
pub(crate) struct Saved {
    x: Buffer,
    inner: Option<Inner>,
}

/// What lies between the half's norm and its last linear.
struct Inner {
    /// Rotated.
    q: Buffer,
    /// Rotated.
    k: Buffer,
    v: Buffer,
    out: Buffer,
    logsumexp: Buffer,
}

impl Cpu {
    pub(super) fn attend(&self, at: At<'_, Prepared>, x: Buffer, sequences: Option<&mut [&mut KvSequence]>) -> Buffer {
        let out = match sequences {
            None => self.attend_inner(at, &x).out,
            Some(sequences) => {
                let [q, k, v] = self.rotated(at, &x, 0);
                let spans = at.pass.batch.spans();
                let width = self.spec.kv_dim();
                spans.par_iter().zip(&mut *sequences).for_each(|(span, sequence)| {
                    let own = span.tokens.start * width..span.tokens.end * width;
                    extend(sequence, at.layer, (&k[own.clone()], &v[own]));
                });
                let rows = spans.iter().zip(&*sequences);
                let rows: Vec<_> = rows
                    .map(|(span, sequence)| Row { queries: span.tokens.clone(), keys: keys(sequence, at.layer) })
                    .collect();
                let mut out = Buffer::new(q.len());
                attention::forward(self.heads(), &q, &rows, &mut out, None);
                out
            }
        };
        let mut y = x;
        in_parts(at, [(&mut y, self.spec.hidden)], |part, [y]| {
            self.project_onto(part, Projection::O, part.of(&out, self.spec.q_dim()), y);
        });
        y
    }

    pub(super) fn attend_recorded(&self, at: At<'_, Prepared>, x: Buffer) -> (Buffer, Saved) {
        let inner = self.attend_inner(at, &x);
        let mut y = Buffer::new(x.len());
        in_parts(at, [(&mut y, self.spec.hidden)], |part, [y]| {
            y.copy_from_slice(part.of(&x, self.spec.hidden));
            self.project_onto(part, Projection::O, part.of(&inner.out, self.spec.q_dim()), y);
        });
        (y, Saved { x, inner: (at.pass.prepared.kept_from <= 2 * at.layer).then_some(inner) })
    }

    pub(super) fn attend_back(
        &self,
        at: At<'_, Prepared>,
        saved: Saved,
        dy: Buffer,
        gradients: &mut [&mut [f32]],
    ) -> Buffer {
        let Saved { x, inner } = saved;
        let Inner { q, k, v, out, logsumexp } = inner.unwrap_or_else(|| self.attend_inner(at, &x));
        let (hidden, q_dim, kv_dim) = (self.spec.hidden, self.spec.q_dim(), self.spec.kv_dim());
        let mut d_out = Buffer::new(out.len());
        let through_o = in_parts(at, [(&mut d_out, q_dim)], |part, [d_out]| {
            self.project_back(part, part.of(&out, q_dim), &[(Projection::O, part.of(&dy, hidden))], d_out)
        });
        self.add_gradients(at, &out, &through_o, &[(Projection::O, &dy)], gradients);
        let (mut dq, mut dk, mut dv) = (Buffer::new(q.len()), Buffer::zeros(k.len()), Buffer::zeros(v.len()));
        // Their sums go on from where they are, so that they do not depend on how rows are cut into passes.
        self.each_prefix(at, |adapter, own, rows| {
            let sums = own.map(|range| &gradients[adapter][range]);
            dk[rows.clone()].copy_from_slice(sums[0]);
            dv[rows].copy_from_slice(sums[1]);
        });
        let saved = attention::Saved { q: &q, k: &k, v: &v, out: &out, logsumexp: &logsumexp };
        let into = Gradients { q: &mut dq, k: &mut dk, v: &mut dv };
        let products = self.weight(at.layer, Projection::O).weight_type();
        attention::backward((self.heads(), products), &at.pass.prepared.spans, saved, &d_out, into);
        self.each_prefix(at, |adapter, [keys, values], rows| {
            gradients[adapter][keys].copy_from_slice(&dk[rows.clone()]);
            gradients[adapter][values].copy_from_slice(&dv[rows]);
        });
        let weight = &self.layers[at.layer].attention_norm;
        let (mut dx, mut normed) = (dy, Buffer::new(x.len()));
        // Of all rows only where the norm learns.
        let kept = if at.pass.whole.is_some() { hidden } else { 0 };
        let mut d_normed = Buffer::new(x.len() / hidden * kept);
        let buffers = [
            (&mut *dx, hidden),
            (&mut *normed, hidden),
            (&mut *d_normed, kept),
            (&mut *dq, q_dim),
            (&mut *dk, kv_dim),
            (&mut *dv, kv_dim),
        ];
        let parts = in_parts(at, buffers, |part, [dx, normed, d_normed, dq, dk, dv]| {
            let (x, turns) = (part.of(&x, hidden), self.turns(part));
            rope::backward(turns, dq, q_dim);
            rope::backward(turns, dk, kv_dim);
            norm::forward(self.norm(weight), x, normed);
            let outputs = [(Projection::Q, &*dq), (Projection::K, dk), (Projection::V, dv)];
            let mut own = Buffer::new(x.len() - d_normed.len());
            let d_normed = if kept > 0 { d_normed } else { &mut *own };
            let low = self.project_back(part, normed, &outputs, d_normed);
            norm::backward(self.norm(weight), x, d_normed, dx);
            low
        });
        let own = x.len() / hidden * kv_dim;
        let outputs = [(Projection::Q, &*dq), (Projection::K, &dk[..own]), (Projection::V, &dv[..own])];
        self.add_norm_gradient(at, (LayerSlot::AttentionNorm, weight), &x, &d_normed, gradients);
        self.add_gradients(at, &normed, &parts, &outputs, gradients);
        dx
    }

    /// Queries and keys, rotated, and values; keys and values as the cache holds them, so that what is sampled from it and what is
    /// computed again without it have the same bits. Keys and values have room for `more` rows beyond the tokens'.
    pub(super) fn rotated(&self, at: At<'_, Prepared>, x: &[f32], more: usize) -> [Buffer; 3] {
        let (hidden, q_dim, kv_dim) = (self.spec.hidden, self.spec.q_dim(), self.spec.kv_dim());
        let rows = x.len() / hidden;
        let [mut q, mut k, mut v] = [rows * q_dim, (rows + more) * kv_dim, (rows + more) * kv_dim].map(Buffer::new);
        in_parts(at, [(&mut q, q_dim), (&mut k, kv_dim), (&mut v, kv_dim)], |part, [q, k, v]| {
            let normed = self.normed(&self.layers[at.layer].attention_norm, part.of(x, hidden));
            self.project(part, [Projection::Q, Projection::K, Projection::V], &normed, [q, k, v]);
            rope::forward(self.turns(part), q, q_dim);
            rope::forward(self.turns(part), k, kv_dim);
            attention::round(self.kv_type(), k);
            attention::round(self.kv_type(), v);
        });
        [q, k, v]
    }

    /// Calls `body` for every trained prefix of the pass: its adapter, where the layer's keys and values lie in θ, and where they stand
    /// among the values of the pass's keys.
    fn each_prefix(&self, at: At<'_, Prepared>, mut body: impl FnMut(usize, [Range<usize>; 2], Range<usize>)) {
        let width = self.spec.kv_dim();
        for (adapter, rows) in &at.pass.prepared.prefixes {
            let own = at.pass.adapters[*adapter].layout.keys_and_values(at.layer);
            body(*adapter, own, rows.start * width..rows.end * width);
        }
    }

    /// Everything up to the last linear, for rows without sequences.
    fn attend_inner(&self, at: At<'_, Prepared>, x: &[f32]) -> Inner {
        let more = at.pass.prepared.prefixes.iter().map(|(_, rows)| rows.len()).sum();
        let [q, mut k, mut v] = self.rotated(at, x, more);
        self.each_prefix(at, |adapter, own, rows| {
            let [keys, values] = own.map(|range| &at.pass.adapters[adapter].theta[range]);
            k[rows.clone()].copy_from_slice(keys);
            v[rows.clone()].copy_from_slice(values);
            attention::round(self.kv_type(), &mut k[rows.clone()]);
            attention::round(self.kv_type(), &mut v[rows]);
        });
        let width = self.spec.kv_dim();
        let rows = at.pass.prepared.spans.iter().map(|spans| {
            let keys = spans.keys.iter().map(|tokens| tokens.start * width..tokens.end * width);
            let keys = keys.map(|range| Keys::Plain { k: &k[range.clone()], v: &v[range] }).collect();
            Row { queries: spans.queries.clone(), keys }
        });
        let rows: Vec<_> = rows.collect();
        let mut out = Buffer::new(q.len());
        let mut logsumexp = Buffer::new(x.len() / self.spec.hidden * self.spec.heads);
        attention::forward(self.heads(), &q, &rows, &mut out, Some(&mut logsumexp));
        Inner { q, k, v, out, logsumexp }
    }
}

/// Appends keys and values, `[tokens, kv_dim]`, to a sequence's layer, in place of what a failed pass left there.
fn extend(sequence: &mut KvSequence, layer: usize, (k, v): (&[f32], &[f32])) {
    let (own, position) = (sequence.own, sequence.len());
    let LayerKv::Host(cache) = &mut sequence.layers[layer] else {
        panic!("a KV sequence belongs to the form of the model that made it")
    };
    cache.truncate(own);
    cache.extend(position, k, v);
}

/// A sequence's spans at one layer, its new tokens (of which it does not know yet) in the last.
fn keys(sequence: &KvSequence, layer: usize) -> Vec<Keys<'_>> {
    let mut spans = sequence.spans();
    let last = spans.pop();
    let shared = spans.into_iter().map(|(of, tokens)| host(&of.layers[layer], Some(tokens)));
    shared.chain(last.map(|(own, _)| host(&own.layers[layer], None))).collect()
}

/// The first `tokens` of a layer; all without.
fn host(kv: &LayerKv, tokens: Option<usize>) -> Keys<'_> {
    match kv {
        LayerKv::Host(cache) => Keys::Cached(cache, tokens.unwrap_or(cache.len())),
        LayerKv::Device(_) => panic!("a KV sequence belongs to the form of the model that made it"),
    }
}
