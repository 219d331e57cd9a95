//! What a decoder is made of: half-layers, each with a forward and a backward pass, in the form of one device. A half knows
//! its own layer and the batch; never the walk over layers, a loss or a file.
//!
//! The two halves of layer `l`, on the residual stream `x` (`[tokens, hidden]`):
//!
//! ```text
//! attention:  y = x + O(attend(rope(Q n), rope(K n), V n))    n = rms_norm(x, attention norm)
//! MLP:        y = x + Down(silu(Gate n) ⊙ Up n)               n = rms_norm(x, MLP norm)
//! ```
//!
//! where every linear may carry the low-rank factors of the row's adapter: `W n + scale · B(A · dropout(n))`. The head is
//! `softmax(Head · rms_norm(x, final norm))`.

pub(crate) mod cpu;
pub(crate) mod reference;

use crate::kv::LayerKv;
use crate::{
    Adapter, Batch, HeadGradient, KvSequence, Layout, ModelError, Scores, Slot, Span, Spec, Target, TensorSource,
};
use candle_core::Tensor;
use std::borrow::Cow;
use std::ops::Range;

/// What every half of one pass sees. `P` is what the form readied once for all layers.
pub(crate) struct Pass<'a, P> {
    /// The rows.
    pub(crate) batch: &'a Batch,
    /// What rows name.
    pub(crate) adapters: &'a [Adapter<'a>],
    /// Runs of tokens under one adapter, in order, covering the batch. These decide what applies, not the spans.
    pub(crate) segments: Vec<(Range<usize>, Option<usize>)>,
    /// The adapter whose own weights the pass runs on, all of it; the base's if none.
    pub(crate) whole: Option<usize>,
    /// See [`Halves::prepare`].
    pub(crate) prepared: P,
}

impl<'a, P> Pass<'a, P> {
    /// The layout and the gradient of the learner whose own weights the pass runs on, if it does.
    pub(crate) fn learned<'g>(&self, gradients: &'g mut [&mut [f32]]) -> Option<(&'a Layout, &'g mut [f32])> {
        self.whole.map(|learner| (self.adapters[learner].layout, &mut *gradients[learner]))
    }

    /// Positions of the trained prefix that a row runs under; 0 if none, as in a pass under no adapter.
    pub(crate) fn trained_positions(&self, span: &Span) -> usize {
        let adapter = span.adapter.and_then(|adapter| self.adapters.get(adapter));
        adapter.map_or(0, |adapter| adapter.layout.positions())
    }
}

/// A half's place in a pass.
pub(crate) struct At<'a, P> {
    /// Layer, from 0.
    pub(crate) layer: usize,
    /// The pass.
    pub(crate) pass: &'a Pass<'a, P>,
}

impl<P> Clone for At<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for At<'_, P> {}

/// The half-layers of a model in the form of one device. All methods take `&self`: weights do not change during a pass.
///
/// The numbers of a row never depend on the rows beside it (for the reference: within rounding).
pub(crate) trait Halves: Send + Sync + Sized {
    /// The residual stream and its gradient, `[tokens, hidden]`.
    type Hidden: Send;
    /// What a pass readies once for all layers: factors in the form's layout, rotary tables, masks.
    type Prepared: Send;
    /// What the attention half keeps for its backward pass: at least its input.
    type Attention: Send;
    /// What the MLP half keeps for its backward pass: at least its input.
    type Mlp: Send;
    /// What scoring keeps for the head's backward pass.
    type Head: Send;

    /// The same form with the weights of a learner of all of them.
    fn of_learner(&self, adapter: &Adapter<'_>) -> Result<Self, ModelError>;

    /// Readies `adapters` and the tables of `batch`, for the way back too if the pass is `recorded` and may
    /// keep so many bytes for it.
    fn prepare(
        &self,
        batch: &Batch,
        adapters: &[Adapter<'_>],
        recorded: Option<usize>,
    ) -> Result<Self::Prepared, ModelError>;

    /// No tokens' keys and values, in the form that [`Halves::attention`] appends to.
    fn empty_kv(&self) -> LayerKv;

    /// The same of these keys (rotated) and values, `[tokens, kv_dim]`.
    fn kv(&self, k: &[f32], v: &[f32]) -> Result<LayerKv, ModelError>;

    /// A layer's keys (rotated) and values of the residual stream `x` before it: `[tokens, kv_dim]` each.
    fn keys_and_values(&self, at: At<'_, Self::Prepared>, x: &Self::Hidden) -> Result<[Vec<f32>; 2], ModelError>;

    /// The residual stream before layer 0.
    fn embed(&self, tokens: &[u32]) -> Result<Self::Hidden, ModelError>;

    /// Adds ∂loss/∂embedding, as the input, from ∂loss/∂x before layer 0, if the pass runs on a learner's weights.
    fn embed_backward(
        &self,
        pass: &Pass<'_, Self::Prepared>,
        dx: &Self::Hidden,
        gradients: &mut [&mut [f32]],
    ) -> Result<(), ModelError>;

    /// The attention half. With `sequences` (one a row), row `r` attends to all that `sequences[r]` holds in this layer and is
    /// appended to it; what a layer holds past [`KvSequence::len`] is the remains of a failed pass and is dropped. Without,
    /// a row attends to its adapter's trained prefix and to its prefix in the batch, if it has them. Then causally to itself, either way.
    fn attention(
        &self,
        at: At<'_, Self::Prepared>,
        x: Self::Hidden,
        sequences: Option<&mut [&mut KvSequence]>,
    ) -> Result<Self::Hidden, ModelError>;

    /// The attention half without sequences, keeping what [`Halves::attention_backward`] needs.
    fn attention_recorded(
        &self,
        at: At<'_, Self::Prepared>,
        x: Self::Hidden,
    ) -> Result<(Self::Hidden, Self::Attention), ModelError>;

    /// ∂loss/∂x from ∂loss/∂y; adds ∂loss/∂θ of this half's sites, of trained prefixes, or of its own weights if those learn, into
    /// `gradients[adapter]`.
    fn attention_backward(
        &self,
        at: At<'_, Self::Prepared>,
        saved: Self::Attention,
        dy: Self::Hidden,
        gradients: &mut [&mut [f32]],
    ) -> Result<Self::Hidden, ModelError>;

    /// The MLP half.
    fn mlp(&self, at: At<'_, Self::Prepared>, x: Self::Hidden) -> Result<Self::Hidden, ModelError>;

    /// The MLP half, keeping what [`Halves::mlp_backward`] needs.
    fn mlp_recorded(
        &self,
        at: At<'_, Self::Prepared>,
        x: Self::Hidden,
    ) -> Result<(Self::Hidden, Self::Mlp), ModelError>;

    /// See [`Halves::attention_backward`].
    fn mlp_backward(
        &self,
        at: At<'_, Self::Prepared>,
        saved: Self::Mlp,
        dy: Self::Hidden,
        gradients: &mut [&mut [f32]],
    ) -> Result<Self::Hidden, ModelError>;

    /// Logits after each of `positions`: `[positions, vocab]`, row-major.
    fn logits(&self, x: &Self::Hidden, positions: &[usize]) -> Result<Vec<f32>, ModelError>;

    /// Logprobs and entropies of `targets`, never holding the logits of all of them.
    fn scores(&self, x: &Self::Hidden, targets: &[Target]) -> Result<Scores, ModelError>;

    /// The same, keeping what spares [`Halves::head_backward`] the logits.
    fn scores_recorded(
        &self,
        pass: &Pass<'_, Self::Prepared>,
        x: &Self::Hidden,
        targets: &[Target],
    ) -> Result<(Scores, Self::Head), ModelError>;

    /// ∂loss/∂x from ∂loss/∂scores of targets, with what was kept of the same targets. With `p` the next-token distribution, `H` its entropy and `q` the target's weights:
    /// `∂logprob/∂z_v = q_v − p_v Σ q` and `∂H/∂z_v = −p_v (log p_v + H)`. Adds those of the final norm and of the head if the pass
    /// runs on a learner's weights.
    fn head_backward(
        &self,
        pass: &Pass<'_, Self::Prepared>,
        x: &Self::Hidden,
        scored: (&[Target], Option<Self::Head>),
        gradient: HeadGradient<'_>,
        gradients: &mut [&mut [f32]],
    ) -> Result<Self::Hidden, ModelError>;

    /// The normed residual stream that a layer's attention half (or its MLP half) works on: one `[hidden]` a token.
    fn normed(&self, layer: usize, attention: bool, x: &Self::Hidden) -> Result<Vec<Vec<f32>>, ModelError>;

    /// Mean of `x` over each span's tokens: one `[hidden]` a span.
    fn means(&self, x: &Self::Hidden, spans: &[Span]) -> Result<Vec<Vec<f32>>, ModelError>;
}

/// Reads the tensor in `slot` and checks its shape.
pub(crate) fn read(spec: &Spec, source: &dyn TensorSource, slot: Slot) -> Result<Tensor, ModelError> {
    let tensor = source.read(slot)?;
    let expected = spec.shape(slot);
    if tensor.dims() == expected {
        Ok(tensor)
    } else {
        Err(ModelError::Shape { name: slot.hugging_face_name(), found: tensor.dims().to_vec(), expected })
    }
}

/// The values in `slot`, row-major and checked.
pub(crate) fn values<'s>(spec: &Spec, source: &'s dyn TensorSource, slot: Slot) -> Result<Cow<'s, [f32]>, ModelError> {
    match source.held(slot) {
        Some(values) => {
            let expected = spec.shape(slot);
            assert_eq!(values.len(), expected.iter().product::<usize>(), "a tensor in memory is of {expected:?}");
            Ok(Cow::Borrowed(values))
        }
        None => Ok(Cow::Owned(read(spec, source, slot)?.flatten_all()?.to_vec1()?)),
    }
}
