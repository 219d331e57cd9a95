//! The reference form of every half: plain differentiable tensor operations on any device, and the tape over one half alone
//! as its backward pass. The oracle of the tests, and the path wherever a half has no kernels. Never a fused operation: several of
//! candle's cut the tape silently.

mod head;
mod ops;
#[cfg(test)]
mod tests;

use super::{At, Halves, Pass, read};
use crate::kv::LayerKv;
use crate::{
    Adapter, Batch, Dtype, HeadGradient, KvSequence, LayerSlot, ModelError, Projection, Scores, Site, SiteParameters,
    Slot, Span, Spec, Target, TensorSource, ThetaSource,
};
use candle_core::{DType, Device, Result, Tensor, Var};
use ops::{Linear, Rope};
use std::ops::Range;
use std::sync::Arc;

const ATTENTION: [Projection; 4] = [Projection::Q, Projection::K, Projection::V, Projection::O];
const MLP: [Projection; 3] = [Projection::Gate, Projection::Up, Projection::Down];

/// All weights, on one device.
pub(crate) struct Reference {
    spec: Arc<Spec>,
    device: Device,
    kept: Dtype,
    /// Type of the residual stream and of everything but linears: F32, or F64.
    dtype: DType,
    /// Whether keys and values are rounded to bf16, as the CPU form's cache keeps them.
    rounds: bool,
    embedding: Tensor,
    final_norm: Tensor,
    head: Linear,
    layers: Vec<Layer>,
}

struct Layer {
    attention_norm: Tensor,
    /// None where there is no MLP.
    mlp_norm: Option<Tensor>,
    /// In the order of [`Projection::ALL`], as far as the architecture has them.
    linears: Vec<Linear>,
}

/// What a pass readies: θ of each adapter on the device, the rotary tables of its tokens, a causal mask a row.
pub(crate) struct Prepared {
    theta: Vec<Tensor>,
    rope: Rope,
    /// `[tokens of the row, position + tokens of the row]`; `None` for a row of one token, which sees everything.
    masks: Vec<Option<Tensor>>,
}

/// The factors of one site of one adapter, as leaves of a tape or as plain views of θ.
pub(crate) struct Factors<'a> {
    adapter: usize,
    parameters: &'a SiteParameters,
    a: Tensor,
    b: Tensor,
}

impl Factors<'_> {
    /// The same factors as leaves of a tape.
    fn watched(self) -> Result<Self> {
        Ok(Self { a: watch(&self.a)?, b: watch(&self.b)?, ..self })
    }
}

/// One layer of an adapter's trained prefix, as leaves of a tape or as plain views of θ: `[positions, kv_heads, head_dim]` each.
pub(crate) struct Prefix {
    adapter: usize,
    keys: Tensor,
    values: Tensor,
}

impl Prefix {
    /// The same prefix as leaves of a tape.
    fn watched(self) -> Result<Self> {
        Ok(Self { keys: watch(&self.keys)?, values: watch(&self.values)?, ..self })
    }
}

/// What a half computes with of adapters.
pub(crate) struct Learned<'a> {
    factors: Vec<Factors<'a>>,
    /// Of the attention half.
    prefixes: Vec<Prefix>,
}

impl Learned<'_> {
    /// The same as leaves of a tape.
    fn watched(self) -> Result<Self> {
        let factors = self.factors.into_iter().map(Factors::watched).collect::<Result<_>>()?;
        Ok(Self { factors, prefixes: self.prefixes.into_iter().map(Prefix::watched).collect::<Result<_>>()? })
    }
}

/// A leaf of a tape with the values of `tensor`.
fn watch(tensor: &Tensor) -> Result<Tensor> {
    Ok(Var::from_tensor(&tensor.detach())?.as_tensor().clone())
}

impl Reference {
    /// Reads all weights. On a CPU, `Bf16` is simulated in f32: weights, the inputs of linears, keys and values are rounded.
    pub(crate) fn load(
        spec: Arc<Spec>,
        source: &dyn TensorSource,
        device: &Device,
        dtype: Dtype,
    ) -> std::result::Result<Self, ModelError> {
        Self::build(spec, source, device, dtype, Ok)
    }

    /// Reads all weights and has `leaf` make what is computed with of each.
    fn build(
        spec: Arc<Spec>,
        source: &dyn TensorSource,
        device: &Device,
        dtype: Dtype,
        leaf: fn(Tensor) -> Result<Tensor>,
    ) -> std::result::Result<Self, ModelError> {
        let float = if dtype == Dtype::F64 { DType::F64 } else { DType::F32 };
        let plain = |slot| Ok::<_, ModelError>(leaf(read(&spec, source, slot)?.to_device(device)?.to_dtype(float)?)?);
        let linear =
            |slot| Ok::<_, ModelError>(Linear::new(read(&spec, source, slot)?.to_device(device)?, dtype)?.with(leaf)?);
        let layer = |layer| {
            let own = Projection::ALL.into_iter().filter(|&projection| spec.has(Site { layer, projection }));
            let linears = own.map(|projection| linear(Slot::Layer(layer, projection.slot())));
            Ok::<_, ModelError>(Layer {
                attention_norm: plain(Slot::Layer(layer, LayerSlot::AttentionNorm))?,
                mlp_norm: spec.has_mlp().then(|| plain(Slot::Layer(layer, LayerSlot::MlpNorm))).transpose()?,
                linears: linears.collect::<std::result::Result<_, _>>()?,
            })
        };
        let embedding = linear(Slot::Embedding)?;
        Ok(Self {
            embedding: embedding.weight().clone(),
            final_norm: plain(Slot::FinalNorm)?,
            head: if spec.tied_head { embedding } else { linear(Slot::Head)? },
            layers: (0..spec.layers).map(layer).collect::<std::result::Result<_, _>>()?,
            device: device.clone(),
            kept: dtype,
            dtype: float,
            rounds: matches!(dtype, Dtype::Bf16 | Dtype::Quantised),
            spec,
        })
    }

    /// What this half has of every adapter that the batch uses.
    fn learned<'a>(&self, at: At<'a, Prepared>, projections: &[Projection]) -> Result<Learned<'a>> {
        let mut used: Vec<usize> = at.pass.segments.iter().filter_map(|&(_, adapter)| adapter).collect();
        used.sort_unstable();
        used.dedup();
        let mut factors = Vec::new();
        let mut prefixes = Vec::new();
        for adapter in used {
            if projections == ATTENTION {
                prefixes.extend(self.prefix(at, adapter)?);
            }
            for &projection in projections {
                let site = Site { layer: at.layer, projection };
                let Some(parameters) = at.pass.adapters[adapter].layout.at(site) else { continue };
                let SiteParameters { rank, inputs, outputs, a, b, .. } = *parameters;
                let theta = &at.pass.prepared.theta[adapter];
                let a = theta.narrow(0, a, rank * inputs)?.reshape((rank, inputs))?;
                let b = theta.narrow(0, b, outputs * rank)?.reshape((outputs, rank))?;
                factors.push(Factors { adapter, parameters, a, b });
            }
        }
        Ok(Learned { factors, prefixes })
    }

    /// This layer of an adapter's trained prefix, if it has one.
    fn prefix(&self, at: At<'_, Prepared>, adapter: usize) -> Result<Option<Prefix>> {
        let layout = at.pass.adapters[adapter].layout;
        if layout.positions() == 0 {
            return Ok(None);
        }
        let part = |range: &Range<usize>| {
            let values = at.pass.prepared.theta[adapter].narrow(0, range.start, range.len())?;
            self.by_heads(&values)
        };
        let [keys, values] = layout.keys_and_values(at.layer);
        Ok(Some(Prefix { adapter, keys: part(&keys)?, values: part(&values)? }))
    }

    /// Keys or values as `[tokens, kv_heads, head_dim]`.
    fn by_heads(&self, values: &Tensor) -> Result<Tensor> {
        let Spec { kv_heads, head_dim, .. } = *self.spec;
        values.reshape((values.elem_count() / self.spec.kv_dim(), kv_heads, head_dim))
    }

    /// What row `row`, without a sequence, attends to of keys or values `t`, one a token of the batch, and of its trained prefix.
    fn seen(&self, at: At<'_, Prepared>, (prefix, t): (Option<&Tensor>, &Tensor), row: usize) -> Result<Tensor> {
        let own = at.pass.batch.seen(row).into_iter().map(|tokens| t.narrow(0, tokens.start, tokens.len()));
        let trained = prefix.map(|prefix| if self.rounds { ops::round(prefix) } else { Ok(prefix.clone()) });
        Tensor::cat(&trained.into_iter().chain(own).collect::<Result<Vec<_>>>()?, 0)
    }

    /// A linear with the low-rank part of each segment's adapter: `W x + scale · B(A · dropout(x))`.
    fn linear(
        &self,
        at: At<'_, Prepared>,
        projection: Projection,
        factors: &[Factors<'_>],
        x: &Tensor,
    ) -> Result<Tensor> {
        let y = self.layers[at.layer].linears[projection as usize].apply(x)?;
        let of = |adapter: Option<usize>| {
            let here = |f: &&Factors<'_>| Some(f.adapter) == adapter && f.parameters.site.projection == projection;
            factors.iter().find(here)
        };
        if at.pass.segments.iter().all(|&(_, adapter)| of(adapter).is_none()) {
            return Ok(y);
        }
        let dropped = ops::dropout(x, at.pass.batch.spans(), Site { layer: at.layer, projection })?;
        let mut parts = Vec::with_capacity(at.pass.segments.len());
        for (tokens, adapter) in &at.pass.segments {
            let y = y.narrow(0, tokens.start, tokens.len())?;
            parts.push(match of(*adapter) {
                None => y,
                Some(Factors { parameters, a, b, .. }) => {
                    let x = dropped.narrow(0, tokens.start, tokens.len())?;
                    (y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * f64::from(parameters.scale))?)?
                }
            });
        }
        Tensor::cat(&parts, 0)
    }

    /// Keys, rotated, and values, `[tokens, kv_heads, head_dim]`, as a cache holds them.
    fn rotated(&self, at: At<'_, Prepared>, factors: &[Factors<'_>], normed: &Tensor) -> Result<(Tensor, Tensor)> {
        let k = self.by_heads(&self.linear(at, Projection::K, factors, normed)?)?;
        let v = self.by_heads(&self.linear(at, Projection::V, factors, normed)?)?;
        let k = at.pass.prepared.rope.apply(&k)?;
        if self.rounds { Ok((ops::round(&k)?, ops::round(&v)?)) } else { Ok((k, v)) }
    }

    /// The attention half with what adapters have in it. `[tokens, hidden]` → the same.
    fn attend(
        &self,
        at: At<'_, Prepared>,
        Learned { factors, prefixes }: &Learned<'_>,
        x: &Tensor,
        sequences: Option<&mut [&mut KvSequence]>,
    ) -> Result<Tensor> {
        let Spec { heads, head_dim, norm_eps, .. } = *self.spec;
        let tokens = x.dim(0)?;
        let normed = ops::rms_norm(x, self.norm(at.layer, true), norm_eps)?;
        let rope = &at.pass.prepared.rope;
        let q = self.linear(at, Projection::Q, factors, &normed)?.reshape((tokens, heads, head_dim))?;
        let q = rope.apply(&q)?;
        let (k, v) = self.rotated(at, factors, &normed)?;
        let rows = at.pass.batch.spans().iter().zip(&at.pass.prepared.masks).enumerate();
        let mut sequences = sequences;
        let mut attended = Vec::with_capacity(rows.len());
        for (r, (span, mask)) in rows {
            let own = |t: &Tensor| t.narrow(0, span.tokens.start, span.tokens.len());
            let (keys, values) = match sequences.as_deref_mut() {
                Some(sequences) => extend(sequences[r], at.layer, own(&k)?, own(&v)?)?,
                None => {
                    let prefix = prefixes.iter().find(|prefix| span.adapter == Some(prefix.adapter));
                    let seen = |prefix, t| self.seen(at, (prefix, t), r);
                    (seen(prefix.map(|prefix| &prefix.keys), &k)?, seen(prefix.map(|prefix| &prefix.values), &v)?)
                }
            };
            attended.push(ops::attention(&own(&q)?, &keys, &values, mask.as_ref())?);
        }
        x + self.linear(at, Projection::O, factors, &Tensor::cat(&attended, 0)?)?
    }

    /// The norm before a layer's attention, or before its MLP.
    fn norm(&self, layer: usize, attention: bool) -> &Tensor {
        let Layer { attention_norm, mlp_norm, .. } = &self.layers[layer];
        if attention { attention_norm } else { mlp_norm.as_ref().expect("the layer has an MLP") }
    }

    /// The weights of a layer's attention half, or of its MLP half, with their slots in the order of a layout.
    fn weights(&self, layer: usize, projections: &[Projection]) -> Vec<(Slot, &Tensor)> {
        let is_attention = projections == ATTENTION;
        let norm = if is_attention { LayerSlot::AttentionNorm } else { LayerSlot::MlpNorm };
        let linear =
            |&projection: &Projection| (projection.slot(), self.layers[layer].linears[projection as usize].weight());
        let all = std::iter::once((norm, self.norm(layer, is_attention))).chain(projections.iter().map(linear));
        all.map(|(slot, weight)| (Slot::Layer(layer, slot), weight)).collect()
    }

    /// The MLP half with what adapters have in it. `[tokens, hidden]` → the same.
    fn feed(&self, at: At<'_, Prepared>, Learned { factors, .. }: &Learned<'_>, x: &Tensor) -> Result<Tensor> {
        let normed = ops::rms_norm(x, self.norm(at.layer, false), self.spec.norm_eps)?;
        let gate = ops::activate(self.spec.activation, &self.linear(at, Projection::Gate, factors, &normed)?)?;
        let inner = (gate * self.linear(at, Projection::Up, factors, &normed)?)?;
        x + self.linear(at, Projection::Down, factors, &inner)?
    }

    /// The backward pass of a half: its forward again on a tape whose leaves are its input and what adapters have in it, or its
    /// weights.
    fn back(
        &self,
        at: At<'_, Prepared>,
        projections: &[Projection],
        (x, dy): (&Tensor, &Tensor),
        gradients: &mut [&mut [f32]],
        half: impl Fn(&Learned<'_>, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let learned = self.learned(at, projections)?.watched()?;
        let x = watch(x)?;
        let tape = (half(&learned, &x)? * dy)?.sum_all()?.backward()?;
        // A missing gradient is a cut tape, which candle would pass over in silence.
        let gradient = |leaf: &Tensor| tape.get(leaf).expect("every leaf of a half has a gradient");
        for Factors { adapter, parameters, a, b } in &learned.factors {
            let (into_a, into_b) = parameters.factors_mut(gradients[*adapter]);
            add(into_a, gradient(a))?;
            add(into_b, gradient(b))?;
        }
        for Prefix { adapter, keys, values } in &learned.prefixes {
            let [into_keys, into_values] = at.pass.adapters[*adapter].layout.keys_and_values(at.layer);
            add(&mut gradients[*adapter][into_keys], gradient(keys))?;
            add(&mut gradients[*adapter][into_values], gradient(values))?;
        }
        if let Some((layout, into)) = at.pass.learned(gradients) {
            for (slot, weight) in self.weights(at.layer, projections) {
                add(&mut into[layout.tensor(slot)], gradient(weight))?;
            }
        }
        Ok(gradient(&x).clone())
    }
}

/// Appends a row's keys and values to a sequence's layer and returns all that the row attends to.
fn extend(sequence: &mut KvSequence, layer: usize, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
    let own = sequence.own;
    let LayerKv::Device(stored) = &mut sequence.layers[layer] else {
        panic!("a KV sequence belongs to the form of the model that made it");
    };
    let append = |old: Option<&Tensor>, new: &Tensor| match old {
        Some(old) if own > 0 => Tensor::cat(&[&old.narrow(0, 0, own)?, new], 0),
        _ => new.contiguous(),
    };
    let k = append(stored.as_ref().map(|(k, _)| k), &k)?;
    let v = append(stored.as_ref().map(|(_, v)| v), &v)?;
    *stored = Some((k.clone(), v.clone()));
    let (mut all_k, mut all_v) = (Vec::new(), Vec::new());
    let mut spans = sequence.spans();
    spans.pop();
    for (of, tokens) in spans {
        match &of.layers[layer] {
            LayerKv::Device(Some((k, v))) => {
                all_k.push(k.narrow(0, 0, tokens)?);
                all_v.push(v.narrow(0, 0, tokens)?);
            }
            LayerKv::Device(None) => unreachable!("a shared span holds a token"),
            LayerKv::Host(_) => panic!("a KV sequence belongs to the form of the model that made it"),
        }
    }
    if all_k.is_empty() {
        return Ok((k, v));
    }
    all_k.push(k);
    all_v.push(v);
    Ok((Tensor::cat(&all_k, 0)?, Tensor::cat(&all_v, 0)?))
}

/// Adds a gradient's values into `into`, row-major.
fn add(into: &mut [f32], gradient: &Tensor) -> Result<()> {
    let values = gradient.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    assert_eq!(into.len(), values.len(), "a gradient has its parameter's shape");
    into.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    Ok(())
}

impl Halves for Reference {
    type Hidden = Tensor;
    type Prepared = Prepared;
    type Attention = Tensor;
    type Mlp = Tensor;
    type Head = ();

    fn of_learner(&self, adapter: &Adapter<'_>) -> std::result::Result<Self, ModelError> {
        let source = ThetaSource { spec: &self.spec, layout: adapter.layout, theta: adapter.theta };
        Self::build(self.spec.clone(), &source, &self.device, self.kept, |weight| watch(&weight))
    }

    fn prepare(
        &self,
        batch: &Batch,
        adapters: &[Adapter<'_>],
        _: Option<usize>,
    ) -> std::result::Result<Prepared, ModelError> {
        let theta = |adapter: &Adapter<'_>| {
            Tensor::from_slice(adapter.theta, adapter.theta.len(), &self.device)?.to_dtype(self.dtype)
        };
        let mask = |span: &Span| ops::causal_mask(span, &self.device)?.map(|m| m.to_dtype(self.dtype)).transpose();
        Ok(Prepared {
            theta: adapters.iter().map(theta).collect::<Result<_>>()?,
            rope: Rope::new(&self.spec, batch.positions(), &self.device, self.dtype)?,
            masks: batch.spans().iter().map(mask).collect::<Result<_>>()?,
        })
    }

    fn empty_kv(&self) -> LayerKv {
        LayerKv::Device(None)
    }

    fn kv(&self, k: &[f32], v: &[f32]) -> std::result::Result<LayerKv, ModelError> {
        let stored = |values: &[f32]| {
            let values = Tensor::from_slice(values, values.len(), &self.device)?.to_dtype(self.dtype)?;
            let values = self.by_heads(&values)?;
            if self.rounds { ops::round(&values) } else { Ok(values) }
        };
        Ok(LayerKv::Device(Some((stored(k)?, stored(v)?))))
    }

    fn keys_and_values(&self, at: At<'_, Prepared>, x: &Tensor) -> std::result::Result<[Vec<f32>; 2], ModelError> {
        let normed = ops::rms_norm(x, self.norm(at.layer, true), self.spec.norm_eps)?;
        let (k, v) = self.rotated(at, &[], &normed)?;
        let values = |t: Tensor| t.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
        Ok([values(k)?, values(v)?])
    }

    fn embed(&self, tokens: &[u32]) -> std::result::Result<Tensor, ModelError> {
        let ids = Tensor::from_slice(tokens, tokens.len(), &self.device)?;
        Ok(self.embedding.index_select(&ids, 0)?.to_dtype(self.dtype)?.detach())
    }

    fn embed_backward(
        &self,
        pass: &Pass<'_, Prepared>,
        dx: &Tensor,
        gradients: &mut [&mut [f32]],
    ) -> std::result::Result<(), ModelError> {
        if let Some((layout, into)) = pass.learned(gradients) {
            let tokens = pass.batch.tokens();
            let ids = Tensor::from_slice(tokens, tokens.len(), &self.device)?;
            let zeros = Tensor::zeros((self.spec.vocab, self.spec.hidden), self.dtype, &self.device)?;
            add(&mut into[layout.tensor(Slot::Embedding)], &zeros.index_add(&ids, dx, 0)?)?;
        }
        Ok(())
    }

    fn attention(
        &self,
        at: At<'_, Prepared>,
        x: Tensor,
        sequences: Option<&mut [&mut KvSequence]>,
    ) -> std::result::Result<Tensor, ModelError> {
        Ok(self.attend(at, &self.learned(at, &ATTENTION)?, &x, sequences)?.detach())
    }

    fn attention_recorded(&self, at: At<'_, Prepared>, x: Tensor) -> std::result::Result<(Tensor, Tensor), ModelError> {
        Ok((self.attention(at, x.clone(), None)?, x))
    }

    fn attention_backward(
        &self,
        at: At<'_, Prepared>,
        x: Tensor,
        dy: Tensor,
        gradients: &mut [&mut [f32]],
    ) -> std::result::Result<Tensor, ModelError> {
        let half = |learned: &Learned<'_>, x: &Tensor| self.attend(at, learned, x, None);
        Ok(self.back(at, &ATTENTION, (&x, &dy), gradients, half)?)
    }

    fn mlp(&self, at: At<'_, Prepared>, x: Tensor) -> std::result::Result<Tensor, ModelError> {
        Ok(self.feed(at, &self.learned(at, &MLP)?, &x)?.detach())
    }

    fn mlp_recorded(&self, at: At<'_, Prepared>, x: Tensor) -> std::result::Result<(Tensor, Tensor), ModelError> {
        Ok((self.mlp(at, x.clone())?, x))
    }

    fn mlp_backward(
        &self,
        at: At<'_, Prepared>,
        x: Tensor,
        dy: Tensor,
        gradients: &mut [&mut [f32]],
    ) -> std::result::Result<Tensor, ModelError> {
        let half = |learned: &Learned<'_>, x: &Tensor| self.feed(at, learned, x);
        Ok(self.back(at, &MLP, (&x, &dy), gradients, half)?)
    }

    fn logits(&self, x: &Tensor, positions: &[usize]) -> std::result::Result<Vec<f32>, ModelError> {
        Ok(self.head_logits(x, positions)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
    }

    fn scores(&self, x: &Tensor, targets: &[Target]) -> std::result::Result<Scores, ModelError> {
        Ok(self.head_scores(x, targets)?)
    }

    fn scores_recorded(
        &self,
        _: &Pass<'_, Prepared>,
        x: &Tensor,
        targets: &[Target],
    ) -> std::result::Result<(Scores, ()), ModelError> {
        Ok((self.head_scores(x, targets)?, ()))
    }

    fn head_backward(
        &self,
        pass: &Pass<'_, Prepared>,
        x: &Tensor,
        (targets, _): (&[Target], Option<()>),
        gradient: HeadGradient<'_>,
        gradients: &mut [&mut [f32]],
    ) -> std::result::Result<Tensor, ModelError> {
        let learned = pass.learned(gradients);
        let learned = learned.map(|(layout, gradient)| layout.gradients_of(gradient, [Slot::FinalNorm, Slot::Head]));
        Ok(self.head_gradient(x, targets, gradient, learned)?)
    }

    fn normed(&self, layer: usize, attention: bool, x: &Tensor) -> std::result::Result<Vec<Vec<f32>>, ModelError> {
        Ok(ops::rms_norm(x, self.norm(layer, attention), self.spec.norm_eps)?.to_dtype(DType::F32)?.to_vec2::<f32>()?)
    }

    fn means(&self, x: &Tensor, spans: &[Span]) -> std::result::Result<Vec<Vec<f32>>, ModelError> {
        let mean = |span: &Span| {
            let own = x.narrow(0, span.tokens.start, span.tokens.len())?;
            own.mean(0)?.to_dtype(DType::F32)?.to_vec1::<f32>()
        };
        Ok(spans.iter().map(mean).collect::<Result<_>>()?)
    }
}
