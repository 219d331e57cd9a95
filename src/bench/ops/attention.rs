//! Causal attention over packed rows, its gradient, and one query a row over a cache. Never linears.

use super::{Op, Shapes, bytes, values};
use socius_kernels::attention::{self, Gradients, Heads, Keys, KvCache, Row, Saved, Spans};
use socius_models::Spec;

fn heads(spec: &Spec) -> Heads {
    let Spec { heads: query, kv_heads: kv, head_dim: dim, .. } = *spec;
    Heads { query, kv, dim, scale: (dim as f32).powf(-0.5) }
}

/// Packed training rows.
struct Packed {
    heads: Heads,
    spans: Vec<Spans>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    out: Vec<f32>,
    logsumexp: Vec<f32>,
}

impl Packed {
    fn new(Shapes { spec, batch, length, .. }: Shapes<'_>) -> Self {
        let (q, kv, tokens) = (spec.q_dim(), spec.kv_dim(), batch * length);
        let span = |row| row * length..(row + 1) * length;
        Self {
            heads: heads(spec),
            spans: (0..batch).map(|row| Spans { queries: span(row), keys: vec![span(row)] }).collect(),
            q: values(tokens * q),
            k: values(tokens * kv),
            v: values(tokens * kv),
            out: vec![0.0; tokens * q],
            logsumexp: vec![0.0; tokens * spec.heads],
        }
    }

    fn forward(&mut self) {
        let width = self.k.len() / (self.logsumexp.len() / self.heads.query);
        let row = |spans: &Spans| {
            let own = spans.queries.start * width..spans.queries.end * width;
            Row { queries: spans.queries.clone(), keys: vec![Keys::Plain { k: &self.k[own.clone()], v: &self.v[own] }] }
        };
        let rows: Vec<_> = self.spans.iter().map(row).collect();
        attention::forward(self.heads, &self.q, &rows, &mut self.out, Some(&mut self.logsumexp));
    }
}

/// Scores and their product with the values, over the lower triangle.
fn forward_operations(Shapes { spec, batch, length, .. }: Shapes<'_>) -> f64 {
    (4 * spec.q_dim() * batch * length * (length + 1) / 2) as f64
}

/// Packed rows.
pub(super) fn forward(shapes: Shapes<'_>) -> Op {
    let mut packed = Packed::new(shapes);
    let moved = bytes(packed.q.len() + packed.k.len() + packed.v.len() + packed.out.len());
    Op::new("attention", shapes.spec.layers, (forward_operations(shapes), moved), move || packed.forward())
}

/// Their gradient: five products where the forward pass has two.
pub(super) fn backward(shapes: Shapes<'_>) -> Op {
    let (mut packed, kept) = (Packed::new(shapes), shapes.kept);
    packed.forward();
    let d_out = values(packed.out.len());
    let [mut dq, mut dk, mut dv] = [&packed.q, &packed.k, &packed.v].map(|of| vec![0.0; of.len()]);
    let moved = bytes(3 * packed.q.len() + dq.len() + 3 * (dk.len() + dv.len()));
    Op::new("attention, backward", shapes.spec.layers, (2.5 * forward_operations(shapes), moved), move || {
        let Packed { heads, spans, q, k, v, out, logsumexp } = &packed;
        let into = Gradients { q: &mut dq, k: &mut dk, v: &mut dv };
        attention::backward((*heads, kept), spans, Saved { q, k, v, out, logsumexp }, &d_out, into);
    })
}

/// One query a row over `length` cached tokens.
pub(super) fn decode(shapes: Shapes<'_>) -> Op {
    let Shapes { spec, batch, length, .. } = shapes;
    let heads = heads(spec);
    let cache = |_| {
        let mut cache = KvCache::new(heads, shapes.kept);
        cache.extend(0, &values(length * spec.kv_dim()), &values(length * spec.kv_dim()));
        cache
    };
    let caches: Vec<_> = (0..batch).map(cache).collect();
    let q = values(batch * spec.q_dim());
    let mut out = vec![0.0; q.len()];
    let kept = shapes.weight_bytes(2 * batch * length * spec.kv_dim());
    let work = ((4 * spec.q_dim() * batch * length) as f64, bytes(2 * q.len()) + kept);
    Op::new("attention", spec.layers, work, move || {
        let mut rows = Vec::with_capacity(caches.len());
        for (row, cache) in caches.iter().enumerate() {
            rows.push(Row { queries: row..row + 1, keys: vec![Keys::Cached(cache, cache.len())] });
        }
        attention::forward(heads, &q, &rows, &mut out, None);
    })
}
