//! What a call over adapted linears is counted as: the frozen weights' products, and beside them the adapters'. Never computes.

use super::{Adapted, Factors, Linear};
use crate::counts::Operation;
use crate::linear;

const F32: usize = size_of::<f32>();

/// `y = W x + scale · B (A x')`: `values` f32 are read and written beside weights and low-rank values.
pub(super) fn forward<'a>(linears: impl Iterator<Item = &'a Linear<'a>> + Clone, rows: usize, values: usize) {
    linear::count(Operation::Linear, rows, linears.clone().map(|of| (of.weight, of.weight.bytes())), values);
    add_up(linears, |factors, rows| {
        let [rank, inputs, outputs] = shape(factors);
        let bytes = factors.a.bytes() + factors.b.bytes() + 2 * rows * rank * F32;
        (2 * rows * rank * (inputs + outputs), bytes)
    });
}

/// `dx = Σ Wᵀ dy + Σ mask(Aᵀ dh)`, for which `h = A x'` is computed again and `dh = scale · Bᵀ dy`.
pub(super) fn backward_input<'a>(linears: impl Iterator<Item = &'a Linear<'a>> + Clone, rows: usize, values: usize) {
    let weights = linears.clone().map(|of| (of.weight, of.weight.transposed().bytes()));
    linear::count(Operation::Linear, rows, weights, values);
    add_up(linears, |factors, rows| {
        let [rank, inputs, outputs] = shape(factors);
        let read = factors.a.bytes() + factors.a.transposed().bytes() + factors.b.transposed().bytes();
        let bytes = read + (rows * inputs + 3 * rows * rank) * F32;
        (2 * rows * rank * (2 * inputs + outputs), bytes)
    });
}

/// `dA += Σ dh x'ᵀ`, `dB += scale · Σ dy hᵀ`.
pub(super) fn add_gradients<'a>(linears: impl Iterator<Item = &'a Linear<'a>>) {
    add_up(linears, |factors, rows| {
        let [rank, inputs, outputs] = shape(factors);
        let values = rows * (inputs + outputs + 2 * rank) + 2 * rank * (inputs + outputs);
        (2 * rows * rank * (inputs + outputs), values * F32)
    });
}

/// Adds the operations and bytes of every adapter at every linear with its rows, if it has any.
fn add_up<'a>(linears: impl Iterator<Item = &'a Linear<'a>>, of: impl Fn(&Factors, usize) -> (usize, usize)) {
    let (mut flops, mut bytes) = (0, 0);
    for Adapted { factors, rows } in linears.flat_map(|linear| &linear.adapted) {
        let rows = rows.iter().map(ExactSizeIterator::len).sum();
        if rows > 0 {
            let (own_flops, own_bytes) = of(factors, rows);
            flops += own_flops;
            bytes += own_bytes;
        }
    }
    Operation::Lora.add(flops, bytes);
}

/// Rank, inputs and outputs.
fn shape(factors: &Factors) -> [usize; 3] {
    [factors.rank(), factors.a.inputs(), factors.b.outputs()]
}
