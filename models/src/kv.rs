//! Keys and values of one sequence, layer by layer; a fork shares its parent's tokens without copying them.

use candle_core::Tensor;
use socius_kernels::attention::KvCache;
use std::{iter, sync::Arc};

/// One layer's keys and values, `[tokens, kv_heads · head_dim]`, keys rotated.
#[derive(Clone, Debug)]
pub(crate) enum LayerKv {
    /// On the host: in bf16 unless the model is f32.
    Host(KvCache),
    /// On the device of the reference path; `None` until the first token.
    Device(Option<(Tensor, Tensor)>),
}

/// The cached keys and values of one sequence. Appended to by [`crate::Model::forward`]; valid only for the adapter
/// generation that wrote it.
///
/// A sequence continues the first tokens of another, which may itself continue one: sequences with a common beginning form a
/// tree, of which each holds the path from a leaf to the root. What is shared is never written to.
#[derive(Clone, Debug)]
pub struct KvSequence {
    pub(crate) prefix: Option<Prefix>,
    pub(crate) layers: Vec<LayerKv>,
    pub(crate) own: usize,
}

/// What a fork continues.
#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    pub(crate) of: Arc<KvSequence>,
    /// Its tokens that are continued, from the first on: at least one of them is its own.
    pub(crate) len: usize,
}

impl KvSequence {
    /// Tokens cached, the shared prefix included.
    pub fn len(&self) -> usize {
        self.own + self.shared()
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of the shared prefix.
    pub fn shared(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.len)
    }

    /// Tokens that this sequence itself holds in memory.
    pub fn own(&self) -> usize {
        self.own
    }

    /// The sequences whose memory this one keeps alive, nearest first.
    pub fn ancestors(&self) -> impl Iterator<Item = &Arc<KvSequence>> {
        iter::successors(self.prefix.as_ref(), |prefix| prefix.of.prefix.as_ref()).map(|prefix| &prefix.of)
    }

    /// The sequences that hold this one's tokens, from the first token on, with how many of their own tokens belong to it.
    pub(crate) fn spans(&self) -> Vec<(&KvSequence, usize)> {
        let mut end = self.len();
        let mut spans = Vec::new();
        for sequence in iter::once(self).chain(self.ancestors().map(Arc::as_ref)) {
            spans.push((sequence, end - sequence.shared()));
            end = sequence.shared();
        }
        spans.reverse();
        spans
    }
}
