//! The model as everything above sees it: forward over rows with a KV cache, and a recorded pass that gives gradients.

use crate::decoder::{Decode, Decoder, Pause, Recorded};
use crate::half::cpu::Cpu;
use crate::half::reference::Reference;
use crate::kv::Prefix;
use crate::{Batch, KvSequence, Layout, ModelError, Row, Spec, TensorSource};
use candle_core::Device;
use socius_kernels::lora::Factors;
use std::sync::{Arc, OnceLock};

/// What weights and activations of the linears are rounded to; sums are in f32 (f64 for `F64`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// bf16 weights and linear inputs, f32 accumulation and residual stream.
    Bf16,
    /// Weights as the checkpoint quantised them, never unpacked, and linear inputs in int8 with a scale for each 32, in every
    /// forward pass; backward passes take the same weights in bf16, as are weights that the checkpoint has not quantised (or
    /// in a format without a kernel). On the CPU: elsewhere it is [`Dtype::Bf16`].
    Quantised,
    /// f32 throughout.
    F32,
    /// f64 throughout: reference path only, for finite differences.
    F64,
}

/// A learner's parameters as a pass reads them.
#[derive(Clone, Copy, Debug)]
pub struct Adapter<'a> {
    /// What θ holds, and where.
    pub layout: &'a Layout,
    /// θ, of `layout.len()` values.
    pub theta: &'a [f32],
    /// What passes packed of θ before, if θ never changes.
    pub packed: Option<&'a PackedAdapter>,
}

impl<'a> Adapter<'a> {
    /// Parameters that may change between passes: each pass packs them anew.
    pub fn new(layout: &'a Layout, theta: &'a [f32]) -> Self {
        Self { layout, theta, packed: None }
    }
}

/// θ in the form that a pass multiplies by, or attends to, kept beside a θ that never changes from the first pass that ran it.
#[derive(Clone, Default)]
pub struct PackedAdapter {
    factors: OnceLock<Arc<[Factors]>>,
    /// Of a trained prefix.
    begun: OnceLock<Arc<KvSequence>>,
}

impl PackedAdapter {
    /// What was packed, else what `pack` makes.
    pub(crate) fn get_or_pack(&self, pack: impl FnOnce() -> Arc<[Factors]>) -> Arc<[Factors]> {
        // Not inside the lock, as threads of a pool do parts of it: one that waits for the others may take up work that waits for the lock.
        let factors = self.factors.get().cloned().unwrap_or_else(pack);
        self.factors.get_or_init(|| factors).clone()
    }
}

impl std::fmt::Debug for PackedAdapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let packed = self.factors.get().is_some() || self.begun.get().is_some();
        f.write_str(if packed { "PackedAdapter(packed)" } else { "PackedAdapter(none)" })
    }
}

/// What a head score is taken of: `Σ q_i · log p_i` over the next-token distribution p.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetTokens {
    /// One token: its logprob.
    Token(u32),
    /// A distribution (token, probability), as in distillation: the negative cross-entropy.
    Soft(Vec<(u32, f32)>),
}

/// A scored position.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Index in the packed batch of the token *after* which the target stands. Several targets may share a position.
    pub position: usize,
    /// What is scored there.
    pub tokens: TargetTokens,
}

/// Head outputs for a list of targets, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// `Σ q_i log p_i` in nats.
    pub logprobs: Vec<f32>,
    /// Entropy of the next-token distribution in nats.
    pub entropies: Vec<f32>,
}

/// ∂loss/∂scores: what the head's backward starts from. Slices run parallel to the targets.
#[derive(Clone, Copy, Debug)]
pub struct HeadGradient<'a> {
    /// ∂loss/∂logprob.
    pub logprobs: &'a [f32],
    /// ∂loss/∂entropy, if the loss uses it.
    pub entropies: Option<&'a [f32]>,
}

/// Bytes that a recorded pass keeps at most if nobody says otherwise, inputs of half-layers aside. SmolLM2-135M keeps 0.7 MB a
/// token if it keeps everything, and 0.14 MB for the inputs alone.
pub const RECORDED_BYTES_MAX: usize = 2 << 30;

/// A frozen base. Cheap to share behind an `Arc`; all methods take `&self`.
pub struct Model {
    spec: Arc<Spec>,
    decoder: Box<dyn Decode>,
}

impl Model {
    /// Reads every tensor of `source` and readies it for `device`: the fast form on a CPU, the reference form elsewhere or when
    /// `dtype` is `F64`.
    pub fn load(spec: Spec, source: &dyn TensorSource, device: &Device, dtype: Dtype) -> Result<Self, ModelError> {
        if !device.is_cpu() || dtype == Dtype::F64 {
            return Self::load_reference(spec, source, device, dtype);
        }
        let spec = Arc::new(spec);
        let halves = Cpu::load(spec.clone(), source, dtype)?;
        Ok(Self { spec: spec.clone(), decoder: Box::new(Decoder::new(spec, halves)) })
    }

    /// The same weights through the plain tensor-library reference, on any device: the oracle of the tests.
    pub fn load_reference(
        spec: Spec,
        source: &dyn TensorSource,
        device: &Device,
        dtype: Dtype,
    ) -> Result<Self, ModelError> {
        let spec = Arc::new(spec);
        let halves = Reference::load(spec.clone(), source, device, dtype)?;
        Ok(Self { spec: spec.clone(), decoder: Box::new(Decoder::new(spec, halves)) })
    }

    /// The architecture.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// An empty KV sequence for this model.
    pub fn sequence(&self) -> KvSequence {
        self.decoder.sequence()
    }

    /// What a row under `adapter` continues: its trained prefix, if it has one, else nothing. All rows share it in memory if θ is packed.
    ///
    /// # Errors
    /// If the device cannot hold it.
    pub fn begin(&self, adapter: Adapter<'_>) -> Result<KvSequence, ModelError> {
        let positions = adapter.layout.positions();
        if positions == 0 {
            return Ok(self.sequence());
        }
        let begun = match adapter.packed.and_then(|packed| packed.begun.get()) {
            Some(begun) => begun.clone(),
            None => Arc::new(self.decoder.begin(adapter)?),
        };
        let kept = adapter.packed.map_or(&begun, |packed| packed.begun.get_or_init(|| begun.clone()));
        Ok(self.fork(kept, positions))
    }

    /// θ of [`Layout::prefix`] over the first `positions` of `tokens`, as the base reads them from position 0: what was read and is then
    /// trained starts by being worth just that.
    ///
    /// # Panics
    /// If there are fewer tokens, or none.
    pub fn read_prefix(&self, tokens: &[u32], positions: usize) -> Result<Vec<f32>, ModelError> {
        let layout = Layout::prefix(&self.spec, positions);
        let batch = Batch::new([Row::new(&tokens[..positions])]);
        let layers = rayon::scope(|_| self.decoder.keys_and_values(&batch))?;
        let theta = layers.concat().concat();
        assert_eq!(theta.len(), layout.len(), "keys and values of every position");
        Ok(theta)
    }

    /// A new sequence that continues the first `len` tokens of `prefix` without copying them.
    pub fn fork(&self, prefix: &Arc<KvSequence>, len: usize) -> KvSequence {
        assert!(len <= prefix.len(), "{len} tokens of {}", prefix.len());
        // Whoever holds the last of these tokens is continued: what comes after it need not stay in memory.
        let mut of = prefix;
        while let Some(before) = of.prefix.as_ref().filter(|before| len <= before.len) {
            of = &before.of;
        }
        let prefix = (len > 0).then(|| Prefix { of: of.clone(), len });
        KvSequence { prefix, ..self.decoder.sequence() }
    }

    /// The same weights, for work that lets others go first: every pass calls `pause` between half-layers.
    pub fn pausing(&self, pause: Arc<dyn Pause>) -> Self {
        Self { spec: self.spec.clone(), decoder: self.decoder.pausing(pause) }
    }

    /// Prefill and decode: runs `batch`, appending row `r`'s keys and values to `sequences[r]`, and returns the logits after
    /// each packed token listed in `wanted`: `[wanted.len(), vocab]`, row-major, f32, on the host.
    pub fn forward(
        &self,
        batch: &Batch,
        adapters: &[Adapter<'_>],
        sequences: &mut [&mut KvSequence],
        wanted: &[usize],
    ) -> Result<Vec<f32>, ModelError> {
        // Inside the pool for all of the step, here and below: a kernel called from outside would wake a worker and wait for
        // it, 150 times a step, which took an eighth of decoding one row.
        rayon::scope(|_| self.decoder.forward(batch, adapters, sequences, wanted))
    }

    /// Mean over each row's tokens of the residual stream after `layer` layers, under no adapter: one `[hidden]` a row. Runs
    /// only those layers.
    pub fn pooled(&self, batch: &Batch, layer: usize) -> Result<Vec<Vec<f32>>, ModelError> {
        rayon::scope(|_| self.decoder.pooled(batch, layer))
    }

    /// Shows `see` what the linears of every half read, under no adapter: the layer, whether it is the attention half (and not the
    /// MLP half), and the normed residual stream, `[tokens][hidden]`.
    pub fn observe(&self, batch: &Batch, see: &mut dyn FnMut(usize, bool, &[Vec<f32>])) -> Result<(), ModelError> {
        self.decoder.observe(batch, see)
    }

    /// Scores of `targets` without keeping anything for a backward pass. `batch` starts from position 0 (or after prefixes).
    pub fn score(&self, batch: &Batch, adapters: &[Adapter<'_>], targets: &[Target]) -> Result<Scores, ModelError> {
        rayon::scope(|_| self.decoder.score(batch, adapters, targets))
    }

    /// The training forward pass: like [`Model::score`], keeping what the backward pass needs in at most [`RECORDED_BYTES_MAX`].
    pub fn record<'m>(&'m self, batch: &'m Batch, adapters: &'m [Adapter<'m>]) -> Result<Recording<'m>, ModelError> {
        self.record_within(batch, adapters, RECORDED_BYTES_MAX)
    }

    /// The same within a budget: halves whose linear outputs do not fit into `bytes_max` keep their input alone (all do that) and
    /// compute the rest again on the way back, to the same bits.
    pub fn record_within<'m>(
        &'m self,
        batch: &'m Batch,
        adapters: &'m [Adapter<'m>],
        bytes_max: usize,
    ) -> Result<Recording<'m>, ModelError> {
        Ok(Recording { tape: rayon::scope(|_| self.decoder.record(batch, adapters, bytes_max))? })
    }
}

/// A training pass: what the half-layers saved, ready to be scored and differentiated.
pub struct Recording<'m> {
    tape: Box<dyn Recorded + Send + 'm>,
}

impl Recording<'_> {
    /// Scores of `targets`. A backward pass over the same targets is the cheaper for it.
    pub fn scores(&mut self, targets: &[Target]) -> Result<Scores, ModelError> {
        rayon::scope(|_| self.tape.scores(targets))
    }

    /// Adds ∂loss/∂θ of every adapter into `gradients[adapter]` (same layout as its θ, of [`Layout::gradient_len`] values). Each adapter's gradient is summed over
    /// its own tokens in packed order, so it is the same to the byte whatever rows of other adapters stand in the batch, and
    /// however its own rows are cut into consecutive batches.
    pub fn backward(
        self,
        targets: &[Target],
        gradient: HeadGradient<'_>,
        gradients: &mut [&mut [f32]],
    ) -> Result<(), ModelError> {
        rayon::scope(|_| self.tape.backward(targets, gradient, gradients))
    }
}
