//! The attention half on the CPU. Knows keys, values and caches of one layer; never the MLP or the head.

use super::{At, Buffer, Cpu, Prepared};
use crate::kv::LayerKv;
use crate::{KvSequence, Projection};
use rayon::prelude::*;
use socius_kernels::attention::{self, Gradients, Heads, KeyRows, Keys, Row};
use socius_kernels::{norm, rope};

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
                let [q, k, v] = self.rotated(at, &x);
                let spans = at.pass.batch.spans();
                let width = self.spec.kv_dim();
                spans.par_iter().zip(&mut *sequences).for_each(|(span, sequence)| {
                    let own = span.tokens.start * width..span.tokens.end * width;
                    extend(sequence, at.layer, self.heads(), (&k[own.clone()], &v[own]));
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
        self.project_onto(at, Projection::O, &out, &mut y);
        y
    }

    pub(super) fn attend_recorded(&self, at: At<'_, Prepared>, x: Buffer) -> (Buffer, Saved) {
        let inner = self.attend_inner(at, &x);
        let mut y = x.clone();
        self.project_onto(at, Projection::O, &inner.out, &mut y);
        (y, Saved { x, inner: at.pass.prepared.keeps.then_some(inner) })
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
        let d_out = self.project_back(at, &out, &[(Projection::O, &dy)], gradients);
        let (mut dq, mut dk, mut dv) = (Buffer::new(q.len()), Buffer::zeros(k.len()), Buffer::zeros(v.len()));
        let saved = attention::Saved { q: &q, k: &k, v: &v, out: &out, logsumexp: &logsumexp };
        let into = Gradients { q: &mut dq, k: &mut dk, v: &mut dv };
        attention::backward(self.heads(), &at.pass.prepared.spans, saved, &d_out, into);
        let turns = self.turns(&at.pass.prepared);
        rope::backward(turns, &mut dq, self.spec.q_dim());
        rope::backward(turns, &mut dk, self.spec.kv_dim());
        let weight = &self.layers[at.layer].attention_norm;
        let outputs = [(Projection::Q, &*dq), (Projection::K, &dk), (Projection::V, &dv)];
        let d_normed = self.project_back(at, &self.normed(weight, &x), &outputs, gradients);
        let mut dx = dy;
        norm::backward(self.norm(weight), &x, &d_normed, &mut dx);
        dx
    }

    /// Queries and keys, rotated, and values.
    fn rotated(&self, at: At<'_, Prepared>, x: &[f32]) -> [Buffer; 3] {
        let normed = self.normed(&self.layers[at.layer].attention_norm, x);
        let [mut q, mut k, v] = self.project(at, [Projection::Q, Projection::K, Projection::V], &normed);
        let turns = self.turns(&at.pass.prepared);
        rope::forward(turns, &mut q, self.spec.q_dim());
        rope::forward(turns, &mut k, self.spec.kv_dim());
        [q, k, v]
    }

    /// Everything up to the last linear, for rows without sequences.
    fn attend_inner(&self, at: At<'_, Prepared>, x: &[f32]) -> Inner {
        let [q, k, v] = self.rotated(at, x);
        let width = self.spec.kv_dim();
        let rows = at.pass.prepared.spans.iter().map(|spans| {
            let keys = spans.keys.iter().map(|tokens| tokens.start * width..tokens.end * width);
            let keys = keys.map(|range| Keys { k: KeyRows::Plain(&k[range.clone()]), v: &v[range] }).collect();
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
fn extend(sequence: &mut KvSequence, layer: usize, heads: Heads, (k, v): (&[f32], &[f32])) {
    let (own, position) = (sequence.own, sequence.len());
    let LayerKv::Host { k: own_k, v: own_v } = &mut sequence.layers[layer] else {
        panic!("a KV sequence belongs to the form of the model that made it")
    };
    own_k.truncate(own);
    own_k.extend(heads, position, k);
    own_v.truncate(own * heads.kv * heads.dim);
    own_v.extend_from_slice(v);
}

/// A sequence's spans at one layer: its prefix, if any, and its own tokens.
fn keys(sequence: &KvSequence, layer: usize) -> Vec<Keys<'_>> {
    let spans = sequence.prefix.as_deref().into_iter().chain([sequence]);
    spans.map(|sequence| host(&sequence.layers[layer])).collect()
}

fn host(kv: &LayerKv) -> Keys<'_> {
    match kv {
        LayerKv::Host { k, v } => Keys { k: KeyRows::Cached(k), v },
        LayerKv::Device(_) => panic!("a KV sequence belongs to the form of the model that made it"),
    }
}
