//! `y = x·Wᵀ` over a frozen weight, and its gradient to x; knows neither adapters nor layers.
//!
//! A [`PackedLinear`] is cut into panels of 64 outputs, interleaved along the inputs (by pairs in bf16), so that a register
//! tile of 6 rows × 64 outputs reads it in one stream: once from memory for a few rows (decode), from the second-level cache
//! for many (training).
//!
//! In bf16 both the weight and the activation are rounded to bf16 (to nearest, ties to even) and sums are kept in f32. An
//! output is summed over the inputs in ascending order, by pairs, in one f32 register that starts from 0 or from the old
//! output. In f32 it is summed in parts of 128 inputs, each from 0, added in ascending order to the old output if there is
//! one. Nothing else enters, so a row's bits depend on that row alone.
//!
//! Error against exact arithmetic on the rounded operands: every product of two bf16 is exact in f32, each of the `in`
//! additions rounds once, and f32 products round once more, so
//! `|y − exact| ≤ 2(in+2)·2⁻²⁴·(|y₀| + Σ|x||w|) + in·2⁻¹²⁶` (the last term: `vdpbf16ps` flushes subnormals to 0).

mod reference;
mod tile;

pub use reference::reference;

use crate::scratch;
use crate::simd::{self, LANES, Shared, Variant};
use rayon::prelude::*;
use std::sync::OnceLock;
use tile::{Floats, Tiles};

/// Outputs of a panel.
const PANEL: usize = 4 * LANES;
/// Rows of a task: a multiple of every tile's, few enough that two threads share even a narrow linear.
const TASK_ROWS: usize = 96;
/// Multiplications below which waking another thread (some 5 µs) costs more than it saves.
const SERIAL_PRODUCTS_MAX: usize = 1 << 17;

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
    /// `y += …`, the old value being the start of the sum.
    Add,
}

/// A frozen `[out, in]` weight, packed once.
///
/// Memory: `out · in` values of 2 bytes (bf16) or 4 (f32), `out` rounded up to 16. [`backward_input`] needs the transpose too,
/// which is packed at its first call: as much again, only in processes that train.
pub struct PackedLinear {
    forward: Packed,
    transposed: OnceLock<Packed>,
}

impl PackedLinear {
    /// Packs `weight`, `[outputs, inputs]` row-major, rounding it to `kept`.
    pub fn new(weight: &[f32], (outputs, inputs): (usize, usize), kept: WeightType) -> Self {
        assert_eq!(weight.len(), outputs * inputs, "a weight of [{outputs}, {inputs}]");
        let forward = Packed::new((outputs, inputs), kept, |output, input| weight[output * inputs + input]);
        Self { forward, transposed: OnceLock::new() }
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        self.forward.outputs
    }

    /// Columns of the weight.
    pub fn inputs(&self) -> usize {
        self.forward.inputs
    }

    /// What the weight is kept as.
    pub fn weight_type(&self) -> WeightType {
        self.forward.kept()
    }

    /// Row `output` of the (rounded) weight: the embedding of a token when the output head is tied to it.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs() && row.len() == self.inputs(), "row {output} of [{}, _]", self.outputs());
        for (input, value) in row.iter_mut().enumerate() {
            *value = self.forward.at(output, input);
        }
    }

    /// Packs the transpose now rather than at the first backward pass.
    pub fn ready_backward(&self) {
        self.transposed();
    }

    fn transposed(&self) -> &Packed {
        let of = &self.forward;
        self.transposed
            .get_or_init(|| Packed::new((of.inputs, of.outputs), of.kept(), |output, input| of.at(input, output)))
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
    forward_as(simd::active(), x, rows, outputs, write);
}

/// `dx = Σ dy·W` (or `+=`) over `gradients`, each `(weight, dy: [rows, out])`, added in that order; `dx` is `[rows, in]`.
pub fn backward_input(gradients: &[(&PackedLinear, &[f32])], rows: usize, dx: &mut [f32], write: Write) {
    backward_input_as(simd::active(), gradients, rows, dx, write);
}

fn forward_as(variant: Variant, x: &[f32], rows: usize, outputs: &mut [Output<'_>], write: Write) {
    let jobs: Vec<_> =
        outputs.iter_mut().map(|output| Job { products: vec![(&output.weight.forward, x)], y: output.y }).collect();
    multiply(variant, rows, jobs, write);
}

fn backward_input_as(
    variant: Variant,
    gradients: &[(&PackedLinear, &[f32])],
    rows: usize,
    dx: &mut [f32],
    write: Write,
) {
    let products = gradients.iter().map(|&(weight, dy)| (weight.transposed(), dy)).collect();
    multiply(variant, rows, vec![Job { products, y: dx }], write);
}

/// One output: the sum of `products` (weight, input), all of the output's width.
struct Job<'a> {
    products: Vec<(&'a Packed, &'a [f32])>,
    y: &'a mut [f32],
}

/// A job with its inputs readied.
struct Ready<'a> {
    products: Vec<(&'a Packed, &'a Operand<'a>)>,
    y: Shared<f32>,
    outputs: usize,
}

/// The distinct input of some products as tiles read it.
enum Operand<'a> {
    Pairs(&'a [u32]),
    Floats(&'a [f32]),
}

fn multiply(variant: Variant, rows: usize, jobs: Vec<Job<'_>>, write: Write) {
    for job in &jobs {
        for (packed, x) in &job.products {
            assert_eq!(x.len(), rows * packed.inputs, "an input of [{rows}, {}]", packed.inputs);
            assert_eq!(job.y.len(), rows * packed.outputs, "an output of [{rows}, {}]", packed.outputs);
        }
    }
    // Inputs that several products share are rounded once.
    let mut inputs: Vec<(&[f32], usize, WeightType)> = Vec::new();
    for (packed, x) in jobs.iter().flat_map(|job| &job.products) {
        if !inputs.iter().any(|&(y, _, kept)| std::ptr::eq(y, *x) && kept == packed.kept()) {
            inputs.push((x, packed.inputs, packed.kept()));
        }
    }
    let words: usize = inputs.iter().map(|&(_, width, kept)| tile::words(rows, width, kept)).sum();
    scratch::with_words(words, |mut words| {
        let mut operands = Vec::with_capacity(inputs.len());
        for &(x, width, kept) in &inputs {
            operands.push(match kept {
                WeightType::F32 => Operand::Floats(x),
                WeightType::Bf16 => {
                    let (pairs, rest) = words.split_at_mut(tile::words(rows, width, kept));
                    words = rest;
                    tile::round_pairs(variant, x, width, pairs);
                    Operand::Pairs(pairs)
                }
            });
        }
        let find = |x: &[f32], kept| {
            inputs.iter().position(|&(y, _, k)| std::ptr::eq(x, y) && k == kept).expect("readied above")
        };
        let ready = jobs.into_iter().map(|job| Ready {
            outputs: job.products[0].0.outputs,
            products: job.products.iter().map(|&(packed, x)| (packed, &operands[find(x, packed.kept())])).collect(),
            y: Shared::new(job.y),
        });
        run_jobs(variant, rows, &ready.collect::<Vec<_>>(), write);
    });
}

/// Panel-major tasks: neighbours share a panel, which then stays in the cache.
fn run_jobs(variant: Variant, rows: usize, jobs: &[Ready<'_>], write: Write) {
    let blocks = rows.div_ceil(TASK_ROWS);
    let mut tasks = Vec::new();
    let mut products = 0;
    for job in jobs {
        products += rows * job.products.iter().map(|(packed, _)| packed.inputs * packed.outputs).sum::<usize>();
        for panel in 0..job.outputs.div_ceil(PANEL) {
            tasks.extend((0..blocks).map(|block| (job, panel, block)));
        }
    }
    let run = |&(job, panel, block): &(&Ready<'_>, usize, usize)| {
        let (first, columns) = (panel * PANEL, PANEL.min(job.outputs - panel * PANEL));
        let start = block * TASK_ROWS;
        let count = TASK_ROWS.min(rows - start);
        for (i, &(packed, operand)) in job.products.iter().enumerate() {
            let accumulate = i > 0 || write == Write::Add;
            let y = job.y.at(start * job.outputs + first);
            match (&packed.panels, operand) {
                (Panels::Bf16(weights), Operand::Pairs(pairs)) => {
                    let steps = packed.inputs.div_ceil(2);
                    let weights = &weights[first * steps..];
                    let tiles = Tiles {
                        rows: count,
                        columns,
                        steps,
                        x: pairs[start * steps..].as_ptr(),
                        weights: weights.as_ptr(),
                        y,
                        y_row: job.outputs,
                        accumulate,
                    };
                    // SAFETY: inputs and outputs were measured in `multiply`; tasks differ in panel or rows.
                    unsafe { tile::run_pairs(variant, tiles) };
                }
                (Panels::F32(weights), Operand::Floats(x)) => {
                    let floats = Floats {
                        rows: count,
                        columns,
                        steps: packed.inputs,
                        x: x[start * packed.inputs..].as_ptr(),
                        weights: weights[first * packed.inputs..].as_ptr(),
                        y,
                        y_row: job.outputs,
                        accumulate,
                    };
                    // SAFETY: as above.
                    unsafe { tile::run_floats(variant, floats) };
                }
                _ => unreachable!("operands are readied as the weight is kept"),
            }
        }
    };
    if products <= SERIAL_PRODUCTS_MAX || rayon::current_num_threads() == 1 {
        tasks.iter().for_each(run);
    } else {
        tasks.par_iter().for_each(run);
    }
}

/// A weight in panels: panel p holds outputs `64p …`, padded with zeros to a multiple of 16, input by input (bf16: pair of
/// inputs by pair; the first in the low half of a word).
struct Packed {
    outputs: usize,
    inputs: usize,
    panels: Panels,
}

enum Panels {
    Bf16(Vec<u32>),
    F32(Vec<f32>),
}

impl Packed {
    fn new((outputs, inputs): (usize, usize), kept: WeightType, at: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let at = |output: usize, input: usize| {
            if output < outputs && input < inputs { at(output, input) } else { 0.0 }
        };
        let padded = outputs.next_multiple_of(LANES);
        let panels = match kept {
            WeightType::Bf16 => {
                let steps = inputs.div_ceil(2);
                let mut words = vec![0u32; padded * steps];
                fill(&mut words, (padded, steps), |output, step| {
                    tile::pair(at(output, 2 * step), at(output, 2 * step + 1))
                });
                Panels::Bf16(words)
            }
            WeightType::F32 => {
                let mut words = vec![0f32; padded * inputs];
                fill(&mut words, (padded, inputs), at);
                Panels::F32(words)
            }
        };
        Self { outputs, inputs, panels }
    }

    fn kept(&self) -> WeightType {
        match self.panels {
            Panels::Bf16(_) => WeightType::Bf16,
            Panels::F32(_) => WeightType::F32,
        }
    }

    /// The rounded weight at `[output, input]`.
    fn at(&self, output: usize, input: usize) -> f32 {
        let first = output / PANEL * PANEL;
        let width = PANEL.min(self.outputs.next_multiple_of(LANES) - first);
        match &self.panels {
            Panels::Bf16(words) => {
                let word = words[first * self.inputs.div_ceil(2) + input / 2 * width + output - first];
                f32::from_bits(if input.is_multiple_of(2) { word << 16 } else { word & 0xffff_0000 })
            }
            Panels::F32(words) => words[first * self.inputs + input * width + output - first],
        }
    }
}

/// Fills panels from `word(output, step)`.
fn fill<T: Send>(words: &mut [T], (padded, steps): (usize, usize), word: impl Fn(usize, usize) -> T + Sync) {
    if steps == 0 {
        return;
    }
    words.par_chunks_mut(PANEL * steps).enumerate().for_each(|(panel, words)| {
        let width = PANEL.min(padded - panel * PANEL);
        // By 16 inputs at a time, so that a row-major source is read by cache lines.
        for first in (0..steps).step_by(LANES) {
            for column in 0..width {
                for step in first..steps.min(first + LANES) {
                    words[step * width + column] = word(panel * PANEL + column, step);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests;
