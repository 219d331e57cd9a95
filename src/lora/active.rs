//! The adapter that a request runs under: one immutable version, shared by whoever holds it.

use crate::common::Digest;
use socius_models::{Adapter, Layout, PackedAdapter};

/// One version of an adapter in memory. A request holds it in an `Arc` from its first token to its last, so publishing a newer
/// generation never changes a running request.
#[derive(Clone, Debug)]
pub struct ActiveAdapter {
    /// What every token that it samples is recorded under, and what keys the KV cache: a generation's digest, or the digest of θ
    /// while it is still learning.
    pub generation: String,
    /// Sites, ranks, scales and offsets.
    pub layout: Layout,
    /// θ, of `layout.len()` values.
    pub theta: Vec<f32>,
    packed: PackedAdapter,
}

impl ActiveAdapter {
    /// `theta`, of `layout.len()` values, as `generation`.
    pub fn new(generation: String, layout: Layout, theta: Vec<f32>) -> Self {
        Self { generation, layout, theta, packed: PackedAdapter::default() }
    }

    /// As a pass of the model reads it.
    pub fn adapter(&self) -> Adapter<'_> {
        Adapter { packed: Some(&self.packed), ..Adapter::new(&self.layout, &self.theta) }
    }

    /// Of everything that its answers depend on: sites, ranks, scales and θ, whatever it is called.
    pub fn digest(&self) -> Digest {
        let site = |s: &socius_models::SiteParameters| {
            let place = [s.site.layer, s.site.projection as usize, s.rank].map(|n| (n as u64).to_le_bytes());
            [&place.concat()[..], &s.scale.to_le_bytes()].concat()
        };
        let sites: Vec<u8> = self.layout.sites().iter().flat_map(site).collect();
        let theta: Vec<u8> = self.theta.iter().flat_map(|value| value.to_le_bytes()).collect();
        Digest::of_parts([&sites[..], &theta])
    }

    /// Memory that it holds once it has run: θ in f32, and packed in bf16.
    pub fn bytes(&self) -> usize {
        self.theta.len() * (size_of::<f32>() + size_of::<u16>())
    }
}
