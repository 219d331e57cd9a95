//! `y = x·Wᵀ` over a packed weight, its gradient to x, and to the weight where that learns; knows neither adapters nor layers.
//!
//! A [`PackedLinear`] is cut into panels of 64 outputs, interleaved along the inputs (by pairs in bf16), so that a register
//! tile of 6 rows × 64 outputs reads it in one stream: once from memory for a few rows (decode), from the second-level cache
//! for many (training).
//!
//! In bf16 both the weight and the activation are rounded to bf16 (to nearest, ties to even) and sums are kept in f32. An
//! output is summed over the inputs in ascending order, by pairs, in one f32 register. In f32 it is summed in parts of 128
//! inputs, each from 0, added in ascending order. Several products into one output are summed one after the other, and an old
//! output is added last: it may be thousands (SmolLM2's residual stream is), and each step of the sum would round to its size.
//! Nothing else enters, so a row's bits depend on that row alone.
//!
//! Error against exact arithmetic on the rounded operands: every product of two bf16 is exact in f32, each of the `in`
//! additions rounds once, and f32 products round once more, so
//! `|y − exact| ≤ 2(in+2)·2⁻²⁴·(|y₀| + Σ|x||w|) + in·2⁻¹²⁶` (the last term: `vdpbf16ps` flushes subnormals to 0).
//!
//! A weight may also stay quantised: then `y` is what [`crate::quantised`] says, however many rows there are, and `dx` is taken
//! of the same weights rounded to bf16 (rounding of activations, to bf16 or int8, counts as the identity in both).

mod gradient;
mod multiply;
mod packed;
mod reference;
mod slab;
pub(crate) mod tile;

pub(crate) use gradient::add_weight_gradients_for;
pub use gradient::{WeightGradient, add_weight_gradients};
pub(crate) use multiply::{Job, Operand, Product, for_each, run, run_here, with_operands};
pub(crate) use packed::{Packed, Shape};
pub use reference::reference;
pub(crate) use slab::Slab;
pub(crate) use tile::{ABREAST, pair};

use crate::counts::Operation;
use crate::quantised::{self, Quantised};
use crate::simd::{self, LANES, Variant};
use std::sync::OnceLock;

/// Outputs of a panel.
const PANEL: usize = 4 * LANES;
/// Rows of a task: a multiple of every tile's, few enough that two threads share even a narrow linear.
const TASK_ROWS: usize = 96;
/// What a frozen weight is kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// bf16 weights times activations rounded to bf16, summed in f32.
    Bf16,
    /// f32 throughout.
    F32,
}

/// What becomes of the old output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `y = …`
    Set,
    /// `y += …`, the old value being added last.
    Add,
}

impl Write {
    /// How often an element of the output passes: written, and if there is an old value read.
    pub(crate) fn touches(self) -> usize {
        match self {
            Self::Set => 1,
            Self::Add => 2,
        }
    }
}

/// A frozen `[out, in]` weight, packed once.
///
/// Memory: `out · in` values of 2 bytes (bf16) or 4 (f32), `out` rounded up to 16. [`backward_input`] needs the transpose too,
/// which is packed at its first call: as much again, only in processes that train. A quantised weight takes its quantised bytes
/// instead, and its transpose is bf16.
pub struct PackedLinear {
    forward: Form,
    transposed: OnceLock<Packed>,
}

/// What the forward pass reads.
enum Form {
    Packed(Packed),
    Quantised(Quantised),
}

impl PackedLinear {
    /// Packs `weight`, `[outputs, inputs]` row-major, rounding it to `kept`.
    pub fn new(weight: &[f32], (outputs, inputs): (usize, usize), kept: WeightType) -> Self {
        Self::scaled(weight, (outputs, inputs), 1.0, kept)
    }

    /// Packs `scale · weight`.
    pub(crate) fn scaled(weight: &[f32], (outputs, inputs): (usize, usize), scale: f32, kept: WeightType) -> Self {
        assert_eq!(weight.len(), outputs * inputs, "a weight of [{outputs}, {inputs}]");
        let forward = Packed::new((outputs, inputs), kept, |output, input| scale * weight[output * inputs + input]);
        Self { forward: Form::Packed(forward), transposed: OnceLock::new() }
    }

    /// A weight that has been packed.
    pub(crate) fn of_packed(packed: Packed) -> Self {
        Self { forward: Form::Packed(packed), transposed: OnceLock::new() }
    }

    /// Keeps a weight as the checkpoint quantised it.
    pub fn from_quantised(weight: Quantised) -> Self {
        Self { forward: Form::Quantised(weight), transposed: OnceLock::new() }
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        match &self.forward {
            Form::Packed(packed) => packed.outputs,
            Form::Quantised(weight) => weight.outputs(),
        }
    }

    /// Columns of the weight.
    pub fn inputs(&self) -> usize {
        match &self.forward {
            Form::Packed(packed) => packed.inputs,
            Form::Quantised(weight) => weight.inputs(),
        }
    }

    /// Bytes that the forward pass reads of it.
    pub(crate) fn bytes(&self) -> usize {
        match &self.forward {
            Form::Packed(packed) => packed.bytes(),
            Form::Quantised(weight) => weight.bytes(),
        }
    }

    /// What the weight is kept as; if it is quantised, what its transpose is.
    pub fn weight_type(&self) -> WeightType {
        match &self.forward {
            Form::Packed(packed) => packed.kept(),
            Form::Quantised(_) => WeightType::Bf16,
        }
    }

    /// Row `output` of the (rounded) weight: the embedding of a token when the output head is tied to it.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs() && row.len() == self.inputs(), "row {output} of [{}, _]", self.outputs());
        match &self.forward {
            Form::Quantised(weight) => weight.row(output, row),
            Form::Packed(packed) => packed.row(output, row),
        }
    }

    /// Packs the transpose now rather than at the first backward pass.
    pub fn ready_backward(&self) {
        self.transposed();
    }

    /// As the forward pass reads it, if it is not quantised.
    pub(crate) fn packed(&self) -> Option<&Packed> {
        match &self.forward {
            Form::Packed(packed) => Some(packed),
            Form::Quantised(_) => None,
        }
    }

    /// As the forward pass reads it, if it is quantised.
    pub(crate) fn quantised(&self) -> Option<&Quantised> {
        match &self.forward {
            Form::Packed(_) => None,
            Form::Quantised(weight) => Some(weight),
        }
    }

    /// As [`backward_input`] reads it.
    pub(crate) fn transposed(&self) -> &Packed {
        if let Some(packed) = self.transposed.get() {
            return packed;
        }
        let shape = (self.inputs(), self.outputs());
        // Not inside the lock: whoever waits for others' shares of the packing may take up work that needs the same weight. Of two that pack
        // at once, one packs for nothing.
        let packed = match &self.forward {
            Form::Packed(packed) => Packed::new(shape, packed.kept(), |output, input| packed.at(input, output)),
            Form::Quantised(weight) => {
                let values = weight.values();
                Packed::new(shape, WeightType::Bf16, |output, input| values[input * shape.0 + output])
            }
        };
        self.transposed.get_or_init(|| packed)
    }
}

/// One of several linears over the same input, and where its output goes.
pub struct Output<'a> {
    /// The linear.
    pub weight: &'a PackedLinear,
    /// `[rows, out]`.
    pub y: &'a mut [f32],
}

/// `y = x·Wᵀ` (or `+=`) for every linear of `outputs`; `x` is `[rows, in]`. Sharing a call shares the rounding of `x` and the
/// threads.
pub fn forward(x: &[f32], rows: usize, outputs: &mut [Output<'_>], write: Write) {
    forward_for(Operation::Linear, x, rows, outputs, write);
}

/// [`forward`], counted as `operation`.
pub(crate) fn forward_for(operation: Operation, x: &[f32], rows: usize, outputs: &mut [Output<'_>], write: Write) {
    forward_as(simd::active(), x, rows, outputs, write);
    let written = outputs.iter().map(|output| output.y.len()).sum::<usize>();
    let weights = outputs.iter().map(|output| (output.weight, output.weight.bytes()));
    count(operation, rows, weights, x.len() + write.touches() * written);
}

/// `dx = Σ dy·W` (or `+=`) over `gradients`, each `(weight, dy: [rows, out])`, added in that order; `dx` is `[rows, in]`.
pub fn backward_input(gradients: &[(&PackedLinear, &[f32])], rows: usize, dx: &mut [f32], write: Write) {
    backward_input_for(Operation::Linear, gradients, rows, dx, write);
}

/// [`backward_input`], counted as `operation`.
pub(crate) fn backward_input_for(
    operation: Operation,
    gradients: &[(&PackedLinear, &[f32])],
    rows: usize,
    dx: &mut [f32],
    write: Write,
) {
    backward_input_as(simd::active(), gradients, rows, dx, write);
    let read = gradients.iter().map(|(_, dy)| dy.len()).sum::<usize>();
    let weights = gradients.iter().map(|&(weight, _)| (weight, weight.transposed().bytes()));
    count(operation, rows, weights, read + write.touches() * dx.len());
}

/// Counts a call: products of `rows` rows with weights, each with the bytes that are read of it, and `values` f32 beside them.
pub(crate) fn count<'a>(
    operation: Operation,
    rows: usize,
    weights: impl Iterator<Item = (&'a PackedLinear, usize)>,
    values: usize,
) {
    let (mut flops, mut bytes) = (0, values * size_of::<f32>());
    for (weight, read) in weights {
        flops += 2 * rows * weight.inputs() * weight.outputs();
        bytes += read;
    }
    operation.add(flops, bytes);
}

fn forward_as(variant: Variant, x: &[f32], rows: usize, outputs: &mut [Output<'_>], write: Write) {
    let Some(first) = outputs.first() else { return };
    let (inputs, kept) = (first.weight.inputs(), first.weight.weight_type());
    assert!(outputs.iter().all(|output| output.weight.inputs() == inputs), "linears over one input");
    let (mut packed, mut quantised) = (Vec::new(), Vec::new());
    for Output { weight, y } in outputs {
        match &weight.forward {
            Form::Packed(weight) => packed.push((weight, &mut **y)),
            Form::Quantised(weight) => quantised.push((weight, &mut **y)),
        }
    }
    quantised::forward_as(variant, x, rows, &mut quantised, write);
    if !packed.is_empty() {
        with_operands(variant, &[(x, inputs)], kept, |operands| {
            let mut jobs = Vec::with_capacity(packed.len());
            for (weight, y) in packed {
                jobs.push(Job::new(rows, vec![weight.of_all(operands[0], rows)], y));
            }
            run(variant, &jobs, write);
        });
    }
}

fn backward_input_as(
    variant: Variant,
    gradients: &[(&PackedLinear, &[f32])],
    rows: usize,
    dx: &mut [f32],
    write: Write,
) {
    let Some(&(first, _)) = gradients.first() else { return };
    let inputs: Vec<_> = gradients.iter().map(|&(weight, dy)| (dy, weight.outputs())).collect();
    with_operands(variant, &inputs, first.weight_type(), |operands| {
        let mut products = Vec::with_capacity(gradients.len());
        for (&(weight, _), &x) in gradients.iter().zip(operands) {
            products.push(weight.transposed().of_all(x, rows));
        }
        run(variant, &[Job::new(rows, products, dx)], write);
    });
}

#[cfg(test)]
mod tests;
