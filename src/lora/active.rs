//! The adapter that a request runs under: one immutable version, shared by whoever holds it.

use socius_models::{Adapter, Layout};

/// One version of an adapter in memory. A request holds it in an `Arc` from its first token to its last, so publishing a newer
/// generation never changes a running request.
#[derive(Clone, Debug, PartialEq)]
pub struct ActiveAdapter {
    /// What every token that it samples is recorded under, and what keys the KV cache: a generation's digest, or the digest of θ
    /// while it is still learning.
    pub generation: String,
    /// Sites, ranks, scales and offsets.
    pub layout: Layout,
    /// θ, of `layout.len()` values.
    pub theta: Vec<f32>,
}

impl ActiveAdapter {
    /// As a pass of the model reads it.
    pub fn adapter(&self) -> Adapter<'_> {
        Adapter { layout: &self.layout, theta: &self.theta }
    }

    /// Memory that θ holds.
    pub fn bytes(&self) -> usize {
        self.theta.len() * size_of::<f32>()
    }
}
