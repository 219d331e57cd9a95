//! The CPU form of every half: f32 buffers, packed weights, kernels, and a backward pass written out. Never a tensor once the
//! weights are read.
//!
//! What a half keeps for its backward pass is its input and, as far as the pass's budget goes, the outputs of its linears;
//! what is not kept is computed again, to the same bits.

mod attention;
mod buffer;
mod head;
mod linear;
mod mlp;
mod part;
#[cfg(test)]
mod tests;

use super::{At, Halves, Pass, values};
use crate::kv::LayerKv;
use crate::{
    Adapter, Batch, Dtype, HeadGradient, KvSequence, LayerSlot, ModelError, Projection, Scores, Site, Slot, Span, Spec,
    Target, TensorSource, ThetaSource,
};
use buffer::Buffer;
pub use buffer::give_back;
use part::{Grouped, Part, in_parts};
use rayon::prelude::*;
use socius_kernels::attention::{Heads, KvCache, Spans};
use socius_kernels::linear::{PackedLinear, WeightType};
use socius_kernels::lora::Factors;
use socius_kernels::norm::Norm;
use socius_kernels::rope::Turns;
use std::ops::Range;
use std::sync::Arc;

/// All weights, packed.
pub(crate) struct Cpu {
    spec: Arc<Spec>,
    kept: WeightType,
    /// The embedding; the head too when tied.
    embedding: PackedLinear,
    head: Option<PackedLinear>,
    final_norm: Vec<f32>,
    layers: Vec<Layer>,
}

struct Layer {
    attention_norm: Vec<f32>,
    /// Empty where there is no MLP.
    mlp_norm: Vec<f32>,
    /// In the order of [`Projection::ALL`], as far as the architecture has them.
    linears: Vec<PackedLinear>,
}

/// What a pass readies: packed factors, the rotary tables of its tokens, where each token stands in its row, and what rows attend to.
pub(crate) struct Prepared {
    /// Of every adapter, by the index of the site in its layout.
    factors: Vec<Arc<[Factors]>>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// `(row, token in the row)` of every packed token.
    places: Vec<(usize, usize)>,
    grouped: Grouped,
    /// Without sequences.
    spans: Vec<Spans>,
    /// Adapters with a trained prefix that have rows, and where its keys stand among the pass's: after those of all tokens.
    prefixes: Vec<(usize, Range<usize>)>,
    /// The first recorded half that keeps the outputs of its linears, as do all after it: those go back first.
    kept_from: usize,
}

impl Cpu {
    /// Reads and packs all weights.
    ///
    /// # Errors
    /// What the source says; a wrong shape; a `SOCIUS_SIMD` that this machine cannot run.
    pub(crate) fn load(spec: Arc<Spec>, source: &dyn TensorSource, dtype: Dtype) -> Result<Self, ModelError> {
        socius_kernels::selected()
            .map_err(|error| ModelError::Config { key: "SOCIUS_SIMD".into(), what: error.to_string() })?;
        let kept = match dtype {
            Dtype::Bf16 | Dtype::Quantised => WeightType::Bf16,
            Dtype::F32 => WeightType::F32,
            Dtype::F64 => panic!("f64 runs in the reference form"),
        };
        let linear = |slot| {
            let shape = spec.shape(slot);
            let quantised = if dtype == Dtype::Quantised { source.read_quantised(slot)? } else { None };
            if let Some(weight) = quantised {
                assert_eq!([weight.outputs(), weight.inputs()], *shape, "a source's tensors are of the spec's shapes");
                return Ok(PackedLinear::from_quantised(weight));
            }
            Ok(PackedLinear::new(&values(&spec, source, slot)?, (shape[0], shape[1]), kept))
        };
        Self::build(&spec, source, kept, linear)
    }

    /// Packs all weights, each matrix by `linear`.
    fn build(
        spec: &Arc<Spec>,
        source: &dyn TensorSource,
        kept: WeightType,
        linear: impl Fn(Slot) -> Result<PackedLinear, ModelError>,
    ) -> Result<Self, ModelError> {
        let norm = |slot| Ok::<_, ModelError>(values(spec, source, slot)?.into_owned());
        let layer = |layer| {
            let own = Projection::ALL.into_iter().filter(|&projection| spec.has(Site { layer, projection }));
            Ok::<_, ModelError>(Layer {
                attention_norm: norm(Slot::Layer(layer, LayerSlot::AttentionNorm))?,
                mlp_norm: if spec.has_mlp() { norm(Slot::Layer(layer, LayerSlot::MlpNorm))? } else { Vec::new() },
                linears: own
                    .map(|projection| linear(Slot::Layer(layer, projection.slot())))
                    .collect::<Result<_, _>>()?,
            })
        };
        Ok(Self {
            embedding: linear(Slot::Embedding)?,
            head: if spec.tied_head { None } else { Some(linear(Slot::Head)?) },
            final_norm: norm(Slot::FinalNorm)?,
            layers: (0..spec.layers).map(layer).collect::<Result<_, _>>()?,
            spec: spec.clone(),
            kept,
        })
    }

    /// Packs what the way back reads, now: threads that wait for one another inside a pass must not do it.
    fn ready_backward(&self) {
        let linears = self.layers.iter().flat_map(|layer| &layer.linears);
        let all: Vec<_> = linears.chain(self.head.as_ref().or(Some(&self.embedding))).collect();
        all.into_par_iter().for_each(PackedLinear::ready_backward);
    }

    fn heads(&self) -> Heads {
        let Spec { heads, kv_heads, head_dim, .. } = *self.spec;
        Heads { query: heads, kv: kv_heads, dim: head_dim, scale: (head_dim as f64).powf(-0.5) as f32 }
    }

    /// What keys and values are kept as.
    fn kv_type(&self) -> WeightType {
        self.kept
    }

    fn norm<'a>(&self, weight: &'a [f32]) -> Norm<'a> {
        Norm { weight, eps: self.spec.norm_eps as f32 }
    }

    /// `norm(x)`.
    fn normed(&self, weight: &[f32], x: &[f32]) -> Buffer {
        let mut y = Buffer::new(x.len());
        socius_kernels::norm::forward(self.norm(weight), x, &mut y);
        y
    }

    fn turns<'a>(&self, part: Part<'a>) -> Turns<'a> {
        let Prepared { cos, sin, .. } = &part.at.pass.prepared;
        let [cos, sin] = [cos, sin].map(|table| part.of(table, self.spec.head_dim / 2));
        Turns { cos, sin, dim: self.spec.head_dim }
    }

    /// The first half of which, beside the inputs of all, the outputs of linears fit into `bytes`, with those of all halves after
    /// it.
    fn kept_from(&self, tokens: usize, bytes: usize) -> usize {
        let Spec { layers, hidden, intermediate, heads, .. } = *self.spec;
        let halves = 2 * layers;
        let of_attention = 2 * (self.spec.q_dim() + self.spec.kv_dim()) + heads;
        let mut left = (bytes / size_of::<f32>()).saturating_sub(tokens * halves * hidden);
        for half in (0..halves).rev() {
            let values = tokens * if half % 2 == 0 { of_attention } else { 2 * intermediate };
            if values > left {
                return half + 1;
            }
            left -= values;
        }
        0
    }
}

/// See [`Prepared::prefixes`].
fn prefixes(batch: &Batch, adapters: &[Adapter<'_>]) -> Vec<(usize, Range<usize>)> {
    let mut end = batch.tokens().len();
    let mut all = Vec::new();
    for (index, adapter) in adapters.iter().enumerate() {
        let positions = adapter.layout.positions();
        if positions > 0 && batch.spans().iter().any(|span| span.adapter == Some(index)) {
            all.push((index, end..end + positions));
            end += positions;
        }
    }
    all
}

impl Halves for Cpu {
    type Hidden = Buffer;
    type Prepared = Prepared;
    type Attention = attention::Saved;
    type Mlp = mlp::Saved;
    type Head = head::Saved;

    fn of_learner(&self, adapter: &Adapter<'_>) -> Result<Self, ModelError> {
        let source = ThetaSource { spec: &self.spec, layout: adapter.layout, theta: adapter.theta };
        let linear = |slot| {
            let shape = self.spec.shape(slot);
            Ok(PackedLinear::new(&values(&self.spec, &source, slot)?, (shape[0], shape[1]), self.kept))
        };
        Self::build(&self.spec, &source, self.kept, linear)
    }

    fn prepare(
        &self,
        batch: &Batch,
        adapters: &[Adapter<'_>],
        recorded: Option<usize>,
    ) -> Result<Prepared, ModelError> {
        if recorded.is_some() {
            self.ready_backward();
        }
        let factors = adapters.par_iter().map(|adapter| match adapter.packed {
            Some(packed) => packed.get_or_pack(|| self.pack(adapter, recorded.is_some())),
            None => self.pack(adapter, recorded.is_some()),
        });
        let frequencies = self.spec.rope_frequencies();
        let table = |of: fn(f64) -> f64| {
            let turn = |&p: &u32| frequencies.iter().map(move |f| of(f64::from(p) * f) as f32);
            batch.positions().iter().flat_map(turn).collect()
        };
        let places =
            batch.spans().iter().enumerate().flat_map(|(row, span)| (0..span.tokens.len()).map(move |t| (row, t)));
        let prefixes = prefixes(batch, adapters);
        let spans = batch.spans().iter().enumerate().map(|(row, span)| {
            let trained = prefixes.iter().find(|(adapter, _)| span.adapter == Some(*adapter));
            let keys = trained.map(|(_, keys)| keys.clone()).into_iter().chain(batch.seen(row));
            Spans { queries: span.tokens.clone(), keys: keys.collect() }
        });
        Ok(Prepared {
            factors: factors.collect(),
            cos: table(f64::cos),
            sin: table(f64::sin),
            places: places.collect(),
            grouped: Grouped::new(batch, adapters.len()),
            spans: spans.collect(),
            prefixes,
            kept_from: recorded.map_or(usize::MAX, |bytes| self.kept_from(batch.tokens().len(), bytes)),
        })
    }

    fn empty_kv(&self) -> LayerKv {
        LayerKv::Host(KvCache::new(self.heads(), self.kv_type()))
    }

    fn kv(&self, k: &[f32], v: &[f32]) -> Result<LayerKv, ModelError> {
        let mut cache = KvCache::new(self.heads(), self.kv_type());
        cache.extend(0, k, v);
        Ok(LayerKv::Host(cache))
    }

    fn keys_and_values(&self, at: At<'_, Prepared>, x: &Buffer) -> Result<[Vec<f32>; 2], ModelError> {
        let [_, k, v] = self.rotated(at, x, 0);
        Ok([k.to_vec(), v.to_vec()])
    }

    fn embed(&self, tokens: &[u32]) -> Result<Buffer, ModelError> {
        let mut x = Buffer::new(tokens.len() * self.spec.hidden);
        for (&token, row) in tokens.iter().zip(x.chunks_exact_mut(self.spec.hidden)) {
            self.embedding.row(token as usize, row);
        }
        Ok(x)
    }

    fn embed_backward(
        &self,
        pass: &Pass<'_, Prepared>,
        dx: &Buffer,
        gradients: &mut [&mut [f32]],
    ) -> Result<(), ModelError> {
        if let Some((layout, gradient)) = pass.learned(gradients) {
            let width = self.spec.hidden;
            let [embedding] = layout.gradients_of(gradient, [Slot::Embedding]);
            for (&token, dx) in pass.batch.tokens().iter().zip(dx.chunks_exact(width)) {
                let row = &mut embedding[token as usize * width..][..width];
                row.iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx);
            }
        }
        Ok(())
    }

    fn attention(
        &self,
        at: At<'_, Prepared>,
        x: Buffer,
        sequences: Option<&mut [&mut KvSequence]>,
    ) -> Result<Buffer, ModelError> {
        Ok(self.attend(at, x, sequences))
    }

    fn attention_recorded(&self, at: At<'_, Prepared>, x: Buffer) -> Result<(Buffer, attention::Saved), ModelError> {
        Ok(self.attend_recorded(at, x))
    }

    fn attention_backward(
        &self,
        at: At<'_, Prepared>,
        saved: attention::Saved,
        dy: Buffer,
        gradients: &mut [&mut [f32]],
    ) -> Result<Buffer, ModelError> {
        Ok(self.attend_back(at, saved, dy, gradients))
    }

    fn mlp(&self, at: At<'_, Prepared>, x: Buffer) -> Result<Buffer, ModelError> {
        Ok(self.feed(at, x))
    }

    fn mlp_recorded(&self, at: At<'_, Prepared>, x: Buffer) -> Result<(Buffer, mlp::Saved), ModelError> {
        Ok(self.feed_recorded(at, x))
    }

    fn mlp_backward(
        &self,
        at: At<'_, Prepared>,
        saved: mlp::Saved,
        dy: Buffer,
        gradients: &mut [&mut [f32]],
    ) -> Result<Buffer, ModelError> {
        Ok(self.feed_back(at, saved, dy, gradients))
    }

    fn logits(&self, x: &Buffer, positions: &[usize]) -> Result<Vec<f32>, ModelError> {
        Ok(self.head_logits(x, positions))
    }

    fn scores(&self, x: &Buffer, targets: &[Target]) -> Result<Scores, ModelError> {
        Ok(self.head_scores(x, targets))
    }

    fn scores_recorded(
        &self,
        pass: &Pass<'_, Prepared>,
        x: &Buffer,
        targets: &[Target],
    ) -> Result<(Scores, head::Saved), ModelError> {
        Ok(self.head_scores_recorded(x, targets, pass.whole.is_none()))
    }

    fn head_backward(
        &self,
        pass: &Pass<'_, Prepared>,
        x: &Buffer,
        scored: (&[Target], Option<head::Saved>),
        gradient: HeadGradient<'_>,
        gradients: &mut [&mut [f32]],
    ) -> Result<Buffer, ModelError> {
        let learned = pass.learned(gradients);
        let learned = learned.map(|(layout, gradient)| layout.gradients_of(gradient, [Slot::FinalNorm, Slot::Head]));
        Ok(self.head_gradient(x, scored, gradient, learned))
    }

    fn normed(&self, layer: usize, attention: bool, x: &Buffer) -> Result<Vec<Vec<f32>>, ModelError> {
        let Layer { attention_norm, mlp_norm, .. } = &self.layers[layer];
        let normed = Self::normed(self, if attention { attention_norm } else { mlp_norm }, x);
        Ok(normed.chunks_exact(self.spec.hidden).map(<[f32]>::to_vec).collect())
    }

    fn means(&self, x: &Buffer, spans: &[Span]) -> Result<Vec<Vec<f32>>, ModelError> {
        let width = self.spec.hidden;
        let mean = |span: &Span| {
            let mut sum = vec![0.0; width];
            for row in x[span.tokens.start * width..span.tokens.end * width].chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            let count = span.tokens.len() as f32;
            sum.iter_mut().for_each(|sum| *sum /= count);
            sum
        };
        Ok(spans.iter().map(mean).collect())
    }
}
