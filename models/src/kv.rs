//! Keys and values of one sequence, layer by layer; a fork shares its parent's tokens without copying them.

use candle_core::Tensor;
use socius_kernels::attention::KvCache;
use std::sync::Arc;

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
#[derive(Clone, Debug)]
pub struct KvSequence {
    pub(crate) prefix: Option<Arc<KvSequence>>,
    pub(crate) layers: Vec<LayerKv>,
    pub(crate) own: usize,
}

impl KvSequence {
    /// Tokens cached, the shared prefix included.
    pub fn len(&self) -> usize {
        self.own + self.prefix.as_ref().map_or(0, |prefix| prefix.len())
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
