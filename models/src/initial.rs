//! Weights to begin training with, made from a seed; never sees files.

use crate::batch::mix;
use crate::{LayerSlot, ModelError, Slot, Spec, TensorSource};
use candle_core::{Device, Tensor};

/// Initial weights: a function of the architecture and a seed. Matrices are normal with variance `2 / (5 hidden)` ("small init", Nguyen
/// & Salazar 2019, arXiv 1910.05895, as GPT-NeoX has it: 0.079 at 64, GPT-2's 0.02 near 1,000); those that write to the residual stream
/// are divided by `√(halves of layers)` (GPT-2, Radford et al. 2019, §2.3). Norms are 1.
#[derive(Clone, Debug)]
pub struct InitialSource {
    /// Gives the shapes.
    pub spec: Spec,
    /// Gives the values.
    pub seed: u64,
}

impl InitialSource {
    fn values(&self, slot: Slot) -> Vec<f32> {
        let count: usize = self.spec.shape(slot).iter().product();
        let deviation = match slot {
            Slot::FinalNorm | Slot::Layer(_, LayerSlot::AttentionNorm | LayerSlot::MlpNorm) => return vec![1.0; count],
            Slot::Layer(_, LayerSlot::O | LayerSlot::Down) => self.deviation() / (self.halves() as f64).sqrt(),
            _ => self.deviation(),
        };
        let name = slot.hugging_face_name();
        let key = name.bytes().fold(mix(self.seed), |key, byte| mix(key ^ u64::from(byte)));
        let normals = (0..count.div_ceil(2) as u64).flat_map(|i| normals(key, i));
        normals.take(count).map(|normal| (deviation * normal) as f32).collect()
    }

    fn deviation(&self) -> f64 {
        (0.4 / self.spec.hidden as f64).sqrt()
    }

    /// Additions to the residual stream.
    fn halves(&self) -> usize {
        self.spec.layers * if self.spec.has_mlp() { 2 } else { 1 }
    }
}

impl TensorSource for InitialSource {
    fn read(&self, slot: Slot) -> Result<Tensor, ModelError> {
        Ok(Tensor::from_vec(self.values(slot), self.spec.shape(slot), &Device::Cpu)?)
    }
}

/// The `i`-th two independent standard normals of a stream (Box & Muller 1958).
fn normals(key: u64, i: u64) -> [f64; 2] {
    // 53 bits each; the first never 0.
    let uniform = |counter: u64| (mix(key.wrapping_add(counter)) >> 11) as f64 / (1u64 << 53) as f64;
    let radius = (-2.0 * (1.0 - uniform(2 * i)).ln()).sqrt();
    let angle = std::f64::consts::TAU * uniform(2 * i + 1);
    [radius * angle.cos(), radius * angle.sin()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_weights_have_the_variance_that_is_stated_and_differ_by_slot_and_seed() {
        let spec = Spec::small(512, 64, 2, 4);
        let source = InitialSource { spec: spec.clone(), seed: 3 };
        let residual = [LayerSlot::O, LayerSlot::Down];
        for slot in spec.slots().filter(|&slot| spec.shape(slot).len() == 2) {
            let values = source.values(slot);
            let count = values.len() as f64;
            let mean = values.iter().map(|&w| f64::from(w)).sum::<f64>() / count;
            let variance = values.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / count;
            let onto = matches!(slot, Slot::Layer(_, own) if residual.contains(&own));
            let stated = 2.0 / (5.0 * 64.0) / if onto { 4.0 } else { 1.0 };
            // Five standard errors of a mean and of a variance of normals.
            assert!(mean.abs() < 5.0 * (stated / count).sqrt(), "{slot:?}: mean {mean}");
            assert!((variance / stated - 1.0).abs() < 5.0 * (2.0 / count).sqrt(), "{slot:?}: variance {variance}");
        }
        let [q, k] = [LayerSlot::Q, LayerSlot::K].map(|own| source.values(Slot::Layer(0, own)));
        assert!(q != k && q == source.values(Slot::Layer(0, LayerSlot::Q)));
        assert!(q != InitialSource { seed: 4, ..source }.values(Slot::Layer(0, LayerSlot::Q)));
    }
}
