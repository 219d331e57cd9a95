//! `y = x·Wᵀ` over a weight that stays quantised as the checkpoint has it, activations in int8; knows neither names nor files.
//!
//! A weight is `scale · (code − offset) + min` (see [`Format`]), exactly the checkpoint's: codes of 4, 6 or 8 bits, repacked so
//! that one vector holds four inputs of sixteen outputs. So one row reads the quantised bytes once, and little else (decode);
//! many rows share an unpacked vector (prefill). An activation is `s·q` with q in int8 and a scale s for each 32 inputs.
//!
//! Codes times q are summed exactly in 32-bit integers over the inputs that share a scale (`vpdpbusd` with AVX-512-VNNI,
//! `vpmaddubsw` with AVX2). An output is summed in one f32 register from 0, block of 32 by block: `+ (scale·s)·Σ(code − offset)q`
//! (two such terms where 16 inputs share a scale), then `+ min·(s·Σq)`; then the old output is added if there is one. Nothing
//! else enters, so a row's bits depend on that row alone.
//!
//! Against exact arithmetic on the same weights and x̂ = s·q: integers are exact and below 2²⁴, so a term is rounded at most
//! three times and the sum once for each of at most in/16 terms, with u = 2⁻²⁴:
//! `|y − exact| ≤ 2(in/16 + 4)·u·(|y₀| + Σ(|scale·(code − offset)| + |min|)·|x̂|)`.
//! Against the activations as they were, |x − x̂| ≤ max|x|/254·(1 + 2⁻¹³) with the maximum of the input's 32, so
//! `|Σ w x̂ − Σ w x| ≤ (1 + 2⁻¹³)·Σ |w|·max|x|/254` besides; blocks whose maximum is below 2⁻¹⁰⁰ count as 0.

mod activation;
mod format;
mod lanes;
mod panel;
#[cfg(test)]
mod reference;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use format::Format;

use crate::counts::Operation;
use crate::linear::Write;
use crate::scratch;
use crate::simd::{self, LANES, Shared, Variant};
use activation::Quants;
use format::BLOCK;
use panel::Panels;
use rayon::prelude::*;
use tile::Tiles;

/// Panels of a task for one tile of rows: some 50 kB of codes, 3 µs from memory.
const TASK_PANELS: usize = 8;
/// Panels of a task where rows make more than one: they share the task's activations.
const TASK_PANELS_WIDE: usize = 4;
/// Rows of a task: 64 × 1536 inputs are 150 kB of activations, in the second-level cache beside the task's panels.
const TASK_ROWS: usize = 64;
/// 32-bit words of a cache line.
const LINE_WORDS: usize = 16;
/// Multiplications below which waking another thread (some 5 µs) costs more than it saves.
const SERIAL_PRODUCTS_MAX: usize = 1 << 17;

/// A frozen `[out, in]` weight in a checkpoint's quantised format, repacked once.
///
/// Memory: what the checkpoint takes, `out` rounded up to 16 and each 16 rows to 64 bytes.
pub struct Quantised {
    format: Format,
    outputs: usize,
    inputs: usize,
    panels: Panels,
}

impl Quantised {
    /// Repacks a weight of `[outputs, inputs]`, where `row(output)` is the stored row: `inputs / format.block()` blocks of
    /// `format.block_bytes()`.
    pub fn new<'a>(format: Format, (outputs, inputs): (usize, usize), row: impl Fn(usize) -> &'a [u8] + Sync) -> Self {
        assert!(inputs.is_multiple_of(format.block()), "rows are whole blocks of {} values", format.block());
        let bytes = inputs / format.block() * format.block_bytes();
        let checked = |output: usize| {
            let row = row(output);
            assert_eq!(row.len(), bytes, "bytes of a row of {inputs} values in {format:?}");
            row
        };
        Self { format, outputs, inputs, panels: Panels::new(format, (outputs, inputs), checked) }
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the weight.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How it is quantised.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// Row `output` of the weight, as the formats' own reader gives it in f32.
    pub fn row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "row {output} of [{}, _]", self.outputs);
        self.panels.row(output, row);
    }

    /// The whole weight in f32, `[out, in]`.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.outputs * self.inputs];
        if self.inputs > 0 {
            values.par_chunks_mut(self.inputs).enumerate().for_each(|(output, row)| self.row(output, row));
        }
        values
    }
}

/// `y = x·Wᵀ` (or `+=`) for every linear of `outputs`, each with its `[rows, out]`; `x` is `[rows, in]`. Sharing a call shares
/// the rounding of `x` and the threads.
pub fn forward(x: &[f32], rows: usize, outputs: &mut [(&Quantised, &mut [f32])], write: Write) {
    forward_as(simd::active(), x, rows, outputs, write);
    let (mut flops, mut bytes) = (0, size_of_val(x));
    for (weight, y) in outputs {
        flops += 2 * rows * weight.inputs * weight.outputs;
        bytes += weight.bytes() + write.touches() * size_of_val(&**y);
    }
    Operation::Linear.add(flops, bytes);
}

pub(crate) fn forward_as(
    variant: Variant,
    x: &[f32],
    rows: usize,
    outputs: &mut [(&Quantised, &mut [f32])],
    write: Write,
) {
    if outputs.is_empty() {
        return;
    }
    for (weight, y) in outputs.iter() {
        assert_eq!(x.len(), rows * weight.inputs, "an input of [{rows}, {}]", weight.inputs);
        assert_eq!(y.len(), rows * weight.outputs, "an output of [{rows}, {}]", weight.outputs);
    }
    scratch::with_words(x.len() / BLOCK * activation::WORDS, |words| {
        let x = activation::quantise(variant, x, (rows, tile::rows_max(variant)), words);
        let jobs: Vec<_> = outputs.iter_mut().map(|(weight, y)| Job { weight, y: Shared::new(y) }).collect();
        run_jobs(Call { variant, x, rows, write }, &jobs);
    });
}

#[derive(Clone, Copy)]
struct Call<'a> {
    variant: Variant,
    x: &'a [Quants],
    rows: usize,
    write: Write,
}

struct Job<'a> {
    weight: &'a Quantised,
    y: Shared<f32>,
}

fn run_jobs(call: Call<'_>, jobs: &[Job<'_>]) {
    let mut tasks = Vec::new();
    let mut products = 0;
    let task_panels = match call.rows.div_ceil(tile::rows_max(call.variant)) {
        _ if call.rows > TASK_ROWS => TASK_PANELS_WIDE,
        tiles => (TASK_PANELS / tiles).max(1),
    };
    for job in jobs {
        products += call.rows * job.weight.inputs * job.weight.outputs;
        for first in (0..job.weight.outputs.div_ceil(LANES)).step_by(task_panels) {
            tasks.extend((0..call.rows).step_by(TASK_ROWS).map(|start| (job, first, start)));
        }
    }
    let run = |&(job, panel, start): &(&Job<'_>, usize, usize)| {
        let Quantised { format, outputs, inputs, ref panels } = *job.weight;
        let blocks = inputs / BLOCK;
        let room = tile::unpacked_bytes(call.variant, format, blocks) / size_of::<u32>();
        scratch::with_words(room + LINE_WORDS, |unpacked| {
            let aligned = unpacked.as_ptr().align_offset(64);
            let tiles = Tiles {
                format,
                rows: TASK_ROWS.min(call.rows - start),
                blocks,
                outputs: (task_panels * LANES).min(outputs - panel * LANES),
                x: call.x[start * blocks..].as_ptr(),
                panels: panels.panel(panel),
                unpacked: unpacked[aligned..].as_mut_ptr().cast(),
                y: job.y.at(start * outputs + panel * LANES),
                y_row: outputs,
                accumulate: call.write == Write::Add,
            };
            // SAFETY: inputs and outputs were measured in `forward_as`; tasks differ in panels or rows.
            unsafe { tile::run(call.variant, tiles) };
        });
    };
    if products <= SERIAL_PRODUCTS_MAX || rayon::current_num_threads() == 1 {
        tasks.iter().for_each(run);
    } else {
        tasks.par_iter().for_each(run);
    }
}

#[cfg(test)]
mod tests;
