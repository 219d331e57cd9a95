//! Adapters: their configuration, initialisation, merging and outside formats (PEFT, GGUF); never sees tokens, tasks or the library.

mod active;
mod compare;
mod config;
mod error;
mod gguf;
mod linalg;
mod merge;
mod names;
mod peft;
#[cfg(test)]
pub(crate) mod testing;

pub use active::ActiveAdapter;
pub use compare::{SiteComparison, compare};
pub use config::{LoraConfig, SiteConfig, init};
pub use error::LoraError;
pub use gguf::{from_gguf, to_gguf};
pub use merge::{Merge, MergeSettings, Merged, Part, merge};
pub use names::projection_named;
pub use peft::{PeftFiles, WEIGHTS_FILE as PEFT_WEIGHTS_FILE};

use crate::common::Digest;
use socius_models::{Layout, Spec};

/// The base that an adapter belongs to, as outside formats can tell.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// The architecture.
    pub spec: &'a Spec,
    /// The name that is written into what we export: a hub id where there is one.
    pub name: &'a str,
    /// Other names under which the same checkpoint is known (a card's name, a local path).
    pub aliases: &'a [String],
}

impl Base<'_> {
    /// Whether an adapter that names `found` as its base means this one. Owners and folders differ between mirrors of one
    /// checkpoint, so only the last component counts, whatever its case.
    fn is_named(&self, found: &str) -> bool {
        let last = |name: &str| name.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
        std::iter::once(self.name).chain(self.aliases.iter().map(String::as_str)).any(|name| last(name) == last(found))
    }
}

/// An adapter with its values: what is read from and written to files.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraWeights {
    /// Ranks, scales and sites, as the outside formats state them.
    pub config: LoraConfig,
    /// The same, resolved over a base.
    pub layout: Layout,
    /// θ, of `layout.len()` values.
    pub theta: Vec<f32>,
}

impl LoraWeights {
    /// Pairs `config` with `theta`.
    ///
    /// # Errors
    /// If `config` does not fit `spec`.
    ///
    /// # Panics
    /// If `theta` has not the length that the layout gives.
    pub fn new(config: LoraConfig, spec: &Spec, theta: Vec<f32>) -> Result<Self, LoraError> {
        let layout = config.layout(spec)?;
        assert_eq!(layout.len(), theta.len(), "θ belongs to another layout");
        Ok(Self { config, layout, theta })
    }

    /// Of the tensors as they are stored: PEFT's `adapter_model.safetensors`.
    pub fn digest(&self) -> Digest {
        Digest::of(peft::tensors(self))
    }
}
