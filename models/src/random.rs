//! Weights made from a seed, for tests, traces and benches that need no checkpoint; never sees files.
//!
//! The generator is small enough to be written again elsewhere, to the bit (all integers are unsigned 64-bit and wrap):
//!
//! ```text
//! fnv1a(bytes):   h = 0xcbf29ce484222325; for b in bytes: h = (h ^ b) * 0x100000001b3; return h
//! splitmix64(x):  z = x + 0x9e3779b97f4a7c15
//!                 z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
//!                 z = (z ^ (z >> 27)) * 0x94d049bb133111eb
//!                 return z ^ (z >> 31)
//! key   = fnv1a(name) ^ seed                               name: the Hugging Face tensor name, as UTF-8
//! u[i]  = (splitmix64(key + i) >> 40) / 2^24 - 0.5         in [-0.5, 0.5), exact; i counts row-major
//! [rows, columns] tensor:  w[i] = f32(2 * sqrt(3 / columns) * u[i])     unit gain: variance 1 / columns
//! [width] tensor (norms):  w[i] = f32(1 + 0.2 * u[i])
//! ```
//!
//! Every operation before the one rounding `f32(…)` is in f64, from left to right.

use crate::batch::mix as splitmix64;
use crate::{Activation, ModelError, RopeScaling, Slot, Spec, TensorSource};
use candle_core::{Device, Tensor};

/// A checkpoint of random weights: a function of the architecture and a seed.
#[derive(Clone, Debug)]
pub struct RandomSource {
    /// Gives the shapes.
    pub spec: Spec,
    /// Gives the values.
    pub seed: u64,
}

impl RandomSource {
    /// The values of the tensor in `slot`, row-major.
    pub fn values(&self, slot: Slot) -> Vec<f32> {
        random_values(&slot.hugging_face_name(), &self.spec.shape(slot), self.seed)
    }
}

/// The values of any named tensor, row-major: also adapters' factors in tests and traces.
pub fn random_values(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let key = fnv1a(name.as_bytes()) ^ seed;
    let count = shape.iter().product::<usize>() as u64;
    let uniform = (0..count).map(|i| uniform(key.wrapping_add(i)));
    match *shape {
        [_, columns] => {
            let scale = 2.0 * (3.0 / columns as f64).sqrt();
            uniform.map(|u| (scale * u) as f32).collect()
        }
        _ => uniform.map(|u| (1.0 + 0.2 * u) as f32).collect(),
    }
}

impl TensorSource for RandomSource {
    fn read(&self, slot: Slot) -> Result<Tensor, ModelError> {
        Ok(Tensor::from_vec(self.values(slot), self.spec.shape(slot), &Device::Cpu)?)
    }
}

impl Spec {
    /// A Llama small enough for finite differences: grouped queries, a tied head and no width that is a power of two.
    pub fn tiny() -> Self {
        Self {
            family: "llama".into(),
            vocab: 97,
            hidden: 36,
            intermediate: 52,
            layers: 3,
            heads: 6,
            kv_heads: 2,
            head_dim: 6,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            activation: Activation::Silu,
            tied_head: true,
            context_max: 256,
        }
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// A value in `[-0.5, 0.5)`, a multiple of 2⁻²⁴.
fn uniform(counter: u64) -> f64 {
    (splitmix64(counter) >> 40) as f64 / f64::from(1 << 24) - 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_building_blocks_give_their_published_values() {
        // FNV's reference vectors; splitmix64's first output from state 0.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(splitmix64(0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn a_linear_has_unit_gain_and_a_norm_is_near_one() {
        let source = RandomSource { spec: Spec::tiny(), seed: 7 };
        let embedding = source.values(Slot::Embedding);
        let variance = embedding.iter().map(|w| w * w).sum::<f32>() / embedding.len() as f32;
        assert!((variance * 36.0 - 1.0).abs() < 0.05, "variance {variance}");
        assert!(source.values(Slot::FinalNorm).iter().all(|w| (0.9..1.1).contains(w)));
    }
}
