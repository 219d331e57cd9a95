//! Frozen decoder-only transformers: weights in, logprobs out, gradients back; never sees text, tasks or files other than
//! checkpoints.
//!
//! The base is read-only. What learns is an [`Adapter`]: a [`Layout`] (which sites, which ranks; or every weight of a model of its own; or the
//! keys and values of a prefix) and one flat `f32` buffer θ.
//! A [`Batch`] is rows of tokens, each naming its adapter or none; the same walk over half-layers (norm + attention +
//! residual; norm + MLP + residual; the head) serves prefill, decode and training.

#![deny(unsafe_code)]

mod batch;
mod decoder;
mod device;
mod error;
mod families;
mod half;
mod initial;
mod kv;
mod layout;
mod load;
mod model;
mod random;
mod site;
mod spec;

pub use batch::{Batch, Dropout, Row, Span};
pub use decoder::Pause;
pub use device::{DeviceChoice, UnknownDevice, device};
pub use error::ModelError;
pub use half::cpu::give_back;
pub use initial::InitialSource;
pub use kv::KvSequence;
pub use layout::{Layout, ThetaSource};
pub use load::{Checkpoint, Gguf, Metadata, save};
pub use model::{
    Adapter, Dtype, HeadGradient, Model, PackedAdapter, RECORDED_BYTES_MAX, Recording, Scores, Target, TargetTokens,
};
pub use random::{RandomSource, random_values};
pub use site::{Projection, Site, SiteParameters};
pub use spec::{Activation, LayerSlot, RopeScaling, Slot, Spec, TensorSource};
