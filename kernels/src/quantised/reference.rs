//! The quantised linear in f64 on the stored blocks: what every variant answers to; never called by a model.

use super::activation::Quants;
use super::format::{BLOCK, Format};

/// Of one output over quantised activations: `(Σ w x̂, Σ size(w)·|x̂|)`, where size is `|scale·(code − offset)| + |min|`.
pub(super) fn reference(format: Format, row: &[u8], x: &[Quants]) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for (index, quants) in x.iter().enumerate() {
        let weights = format.read(row, index).exact(format.offset());
        for ((w, size), code) in weights.into_iter().zip(quants.codes) {
            let x = f64::from(quants.scale) * f64::from(code);
            sum = (sum.0 + w * x, sum.1 + size * x.abs());
        }
    }
    sum
}

/// Of one output over the activations as they were: `(Σ w x, Σ |w|·max|x| / 254)`, the maximum that of each 32.
pub(super) fn unrounded(format: Format, row: &[u8], x: &[f32]) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for (index, x) in x.chunks_exact(BLOCK).enumerate() {
        let step = f64::from(x.iter().fold(0f32, |most, x| most.max(x.abs()))) / 254.0;
        for ((w, _), &x) in format.read(row, index).exact(format.offset()).into_iter().zip(x) {
            sum = (sum.0 + w * f64::from(x), sum.1 + w.abs() * step);
        }
    }
    sum
}
