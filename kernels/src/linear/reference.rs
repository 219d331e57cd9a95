//! The linear in f64 on rounded operands: what every variant answers to; never called by a model.

use super::WeightType;
use half::bf16;

/// `(x·wᵀ, |x|·|w|ᵀ)` of one output in f64, operands rounded as `kept` says: the exact value and the size that error bounds
/// are taken of.
pub fn reference(x: &[f32], w: &[f32], kept: WeightType) -> (f64, f64) {
    let rounded = |v: f32| match kept {
        WeightType::Bf16 => bf16::from_f32(v).to_f64(),
        WeightType::F32 => f64::from(v),
    };
    x.iter().zip(w).map(|(&x, &w)| rounded(x) * rounded(w)).fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
}
