//! The gradient of a linear that learns, `dW += dyᵀ·x`; knows rows, not where they come from.
//!
//! In f32 whatever the weight is kept as: an element is summed over the rows in their order, in one register, from what the buffer
//! holds, so cutting the rows into several calls does not change a bit. Rounding of weights and inputs counts as the identity.
//! Error: `2(rows+2)·2⁻²⁴·(|dW₀| + Σ|dy||x|)`.

use crate::counts::Operation;
use crate::gemm::Gemm;
use crate::simd::{self, Kernel, Shared, Simd, Variant};
use rayon::prelude::*;
use std::ops::Range;

/// Outputs of a task: four tiles, so that even narrow linears make work for several threads.
const TASK_OUTPUTS: usize = 24;
/// Inputs of a task: with [`BLOCK_ROWS`] rows, 16 KB that stay in the nearest cache while the outputs' tiles pass over them.
const TASK_INPUTS: usize = 64;
const BLOCK_ROWS: usize = 64;

/// A linear's input and its output's gradient over the same rows, and where the weight's gradient is added.
pub struct WeightGradient<'a> {
    /// `[rows, in]`.
    pub x: &'a [f32],
    /// `[rows, out]`.
    pub dy: &'a [f32],
    /// `[out, in]`.
    pub into: &'a mut [f32],
}

/// `dW += dyᵀ·x` of every linear of `gradients`, over the same number of rows.
pub fn add_weight_gradients(rows: usize, gradients: &mut [WeightGradient<'_>]) {
    add_weight_gradients_for(Operation::WeightGradient, rows, gradients);
}

/// [`add_weight_gradients`], counted as `operation`.
pub(crate) fn add_weight_gradients_for(operation: Operation, rows: usize, gradients: &mut [WeightGradient<'_>]) {
    add_as(simd::active(), rows, gradients);
    for WeightGradient { x, dy, into } in gradients {
        operation.add(2 * rows * into.len(), (x.len() + dy.len() + 2 * into.len()) * size_of::<f32>());
    }
}

/// Some outputs and inputs of one gradient.
struct Task<'a> {
    x: (&'a [f32], usize),
    dy: (&'a [f32], usize),
    into: Shared<f32>,
    outputs: Range<usize>,
    inputs: Range<usize>,
}

pub(super) fn add_as(variant: Variant, rows: usize, gradients: &mut [WeightGradient<'_>]) {
    if rows == 0 {
        return;
    }
    let cut = |of: usize, by: usize| (0..of).step_by(by).map(move |first| first..of.min(first + by));
    let mut tasks = Vec::new();
    for WeightGradient { x, dy, into } in gradients {
        let (inputs, outputs) = (x.len() / rows, dy.len() / rows);
        assert!(x.len() == rows * inputs && dy.len() == rows * outputs, "x and dy are of {rows} rows");
        assert_eq!(into.len(), outputs * inputs, "dW is [{outputs}, {inputs}]");
        let into = Shared::new(into);
        for own in cut(outputs, TASK_OUTPUTS) {
            let task = |of| Task { x: (x, inputs), dy: (dy, outputs), into, outputs: own.clone(), inputs: of };
            tasks.extend(cut(inputs, TASK_INPUTS).map(task));
        }
    }
    let run = |task: &Task<'_>| simd::run(variant, Sum { task, rows });
    if tasks.len() < 2 { tasks.iter().for_each(run) } else { tasks.par_iter().for_each(run) }
}

struct Sum<'a> {
    task: &'a Task<'a>,
    rows: usize,
}

impl Kernel for Sum<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { task: Task { x: (x, x_row), dy: (dy, dy_row), into, outputs, inputs }, rows } = self;
        for first in (0..rows).step_by(BLOCK_ROWS) {
            let product = Gemm {
                m: outputs.len(),
                n: inputs.len(),
                k: BLOCK_ROWS.min(rows - first),
                a: dy[first * dy_row + outputs.start..].as_ptr(),
                a_strides: (1, *dy_row),
                b: x[first * x_row + inputs.start..].as_ptr(),
                b_row: *x_row,
                c: into.at(outputs.start * x_row + inputs.start),
                c_row: *x_row,
                accumulate: true,
            };
            // SAFETY: x, dy and dW were measured over all rows; tasks differ in outputs or inputs.
            unsafe { S::gemm(product) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::variants;
    use crate::testing::{Values, assert_same_bits, assert_within, on_threads};

    fn gradient(variant: Variant, (x, dy): (&[f32], &[f32]), rows: usize, into: &[f32]) -> Vec<f32> {
        let mut into = into.to_vec();
        add_as(variant, rows, &mut [WeightGradient { x, dy, into: &mut into }]);
        into
    }

    #[test]
    fn a_weights_gradient_is_that_of_f64_within_the_bound() {
        for (rows, outputs, inputs) in [(1, 1, 1), (3, 25, 17), (64, 24, 64), (131, 50, 70), (200, 7, 130)] {
            let mut values = Values::new(rows as u64);
            let (x, dy, old) = (values.take(rows * inputs), values.take(rows * outputs), values.take(outputs * inputs));
            for &variant in variants() {
                let found = gradient(variant, (&x, &dy), rows, &old);
                for o in 0..outputs {
                    for i in 0..inputs {
                        let term = |t: usize| f64::from(dy[t * outputs + o]) * f64::from(x[t * inputs + i]);
                        let start = f64::from(old[o * inputs + i]);
                        let exact = start + (0..rows).map(term).sum::<f64>();
                        let size = start.abs() + (0..rows).map(|t| term(t).abs()).sum::<f64>();
                        let bound = 2.0 * (rows + 2) as f64 * 2f64.powi(-24) * size;
                        assert_within(found[o * inputs + i], exact, bound, format_args!("{variant:?} [{o}, {i}]"));
                    }
                }
            }
        }
    }

    #[test]
    fn rows_cut_into_calls_or_shared_out_to_threads_give_the_same_bits() {
        let (rows, outputs, inputs) = (190, 60, 70);
        let mut values = Values::new(9);
        let (x, dy) = (values.take(rows * inputs), values.take(rows * outputs));
        let zeros = vec![0.0; outputs * inputs];
        for &variant in variants() {
            let whole = on_threads(1, || gradient(variant, (&x, &dy), rows, &zeros));
            assert_same_bits(
                &on_threads(3, || gradient(variant, (&x, &dy), rows, &zeros)),
                &whole,
                format_args!("threads"),
            );
            for cut in [1, 63, 64, 100] {
                let first = gradient(variant, (&x[..cut * inputs], &dy[..cut * outputs]), cut, &zeros);
                let both = gradient(variant, (&x[cut * inputs..], &dy[cut * outputs..]), rows - cut, &first);
                assert_same_bits(&both, &whole, format_args!("{variant:?} cut at {cut}"));
            }
        }
    }
}
