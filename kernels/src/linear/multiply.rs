//! Sums of products over packed weights, shared out over threads; knows weights and rows, not what they mean.

use super::packed::{Packed, Panels};
use super::tile::{self, Floats, Tiles};
use super::{PANEL, TASK_ROWS, WeightType, Write};
use crate::scratch;
use crate::simd::{Shared, Variant};
use rayon::prelude::*;
use std::ops::Range;

/// Multiplications below which waking another thread (some 5 µs) costs more than it saves.
const SERIAL_PRODUCTS_MAX: usize = 1 << 17;

/// Input rows as tiles read them: pairs of bf16, or f32 as they are.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    Pairs(&'a [u32]),
    Floats(&'a [f32]),
}

impl<'a> Operand<'a> {
    /// Rows `rows` of an operand whose rows are `width` wide.
    pub(crate) fn rows(self, rows: &Range<usize>, width: usize) -> Self {
        match self {
            Self::Pairs(pairs) => {
                let steps = width.div_ceil(2);
                Self::Pairs(&pairs[rows.start * steps..rows.end * steps])
            }
            Self::Floats(x) => Self::Floats(&x[rows.start * width..rows.end * width]),
        }
    }

    fn holds(self, rows: usize, width: usize) -> bool {
        match self {
            Self::Pairs(pairs) => pairs.len() == rows * width.div_ceil(2),
            Self::Floats(x) => x.len() == rows * width,
        }
    }
}

/// Lends `body` the inputs, each `(x, width of its rows)`, as tiles of `kept` weights read them.
pub(crate) fn with_operands<R>(
    variant: Variant,
    inputs: &[(&[f32], usize)],
    kept: WeightType,
    body: impl FnOnce(&[Operand<'_>]) -> R,
) -> R {
    let words = |&(x, width): &(&[f32], usize)| match kept {
        WeightType::Bf16 if width > 0 => x.len() / width * width.div_ceil(2),
        _ => 0,
    };
    scratch::with_words(inputs.iter().map(words).sum(), |mut buffer| {
        let mut operands = Vec::with_capacity(inputs.len());
        for input in inputs {
            operands.push(match kept {
                WeightType::F32 => Operand::Floats(input.0),
                WeightType::Bf16 => {
                    let (pairs, rest) = buffer.split_at_mut(words(input));
                    buffer = rest;
                    tile::round_pairs(variant, input.0, input.1, pairs);
                    Operand::Pairs(pairs)
                }
            });
        }
        body(&operands)
    })
}

/// `x · weightᵀ`, for some rows of a job's output.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a Packed,
    /// Of `rows` alone.
    pub(crate) x: Operand<'a>,
    pub(crate) rows: Range<usize>,
}

/// One output, `[rows, outputs]`: each of its rows is the sum of the products that name it, in their order. The first names
/// them all.
pub(crate) struct Job<'a> {
    pub(crate) rows: usize,
    pub(crate) products: Vec<Product<'a>>,
    pub(crate) y: Shared<f32>,
}

impl<'a> Job<'a> {
    pub(crate) fn new(rows: usize, products: Vec<Product<'a>>, y: &mut [f32]) -> Self {
        let outputs = products[0].weight.outputs;
        assert_eq!(y.len(), rows * outputs, "an output of [{rows}, {outputs}]");
        assert_eq!(products[0].rows, 0..rows, "the first product is of all rows");
        for Product { weight, x, rows: own } in &products {
            assert!(own.end <= rows && weight.outputs == outputs, "a product inside [{rows}, {outputs}]");
            assert!(x.holds(own.len(), weight.inputs), "an input of [{}, {}]", own.len(), weight.inputs);
        }
        Self { rows, products, y: Shared::new(y) }
    }

    fn outputs(&self) -> usize {
        self.products[0].weight.outputs
    }

    fn multiplications(&self) -> usize {
        self.products.iter().map(|p| p.rows.len() * p.weight.inputs * p.weight.outputs).sum()
    }
}

/// Panels of which two threads have unequal shares; below it, tasks are halves of a panel's rows.
const PANELS_MIN: usize = 24;
/// Rows of which half are still two tiles, and no more than a decoding step has.
const HALVED_ROWS: Range<usize> = 14..65;

/// The outputs of one panel for some rows of a job.
struct Task<'a> {
    job: &'a Job<'a>,
    panel: usize,
    rows: Range<usize>,
}

/// Runs all jobs at once. Tasks are panel-major: neighbours share a panel, which then stays in the cache.
pub(crate) fn run(variant: Variant, jobs: &[Job<'_>], write: Write) {
    let panels: usize = jobs.iter().map(|job| job.outputs().div_ceil(PANEL)).sum();
    let mut tasks = Vec::with_capacity(panels);
    for job in jobs {
        let halved = panels < PANELS_MIN && HALVED_ROWS.contains(&job.rows);
        let count = if halved { job.rows.div_ceil(2) } else { TASK_ROWS };
        for panel in 0..job.outputs().div_ceil(PANEL) {
            let blocks = (0..job.rows).step_by(count);
            tasks.extend(blocks.map(|start| Task { job, panel, rows: start..job.rows.min(start + count) }));
        }
    }
    let task = |task: &Task<'_>| run_task(variant, task, write);
    let work: usize = jobs.iter().map(Job::multiplications).sum();
    if work <= SERIAL_PRODUCTS_MAX || tasks.len() < 2 || rayon::current_num_threads() == 1 {
        tasks.iter().for_each(task);
    } else {
        tasks.par_iter().for_each(task);
    }
}

fn run_task(variant: Variant, Task { job, panel, rows }: &Task<'_>, write: Write) {
    let outputs = job.outputs();
    let (first, columns) = (panel * PANEL, PANEL.min(outputs - panel * PANEL));
    let y = job.y.at(rows.start * outputs + first);
    match write {
        Write::Set => sum(variant, job, (*panel, columns), rows, (y, outputs)),
        Write::Add => {
            let mut own = tile::Part::new();
            sum(variant, job, (*panel, columns), rows, (own.at(), PANEL));
            // SAFETY: `y` is the caller's promise: tasks differ in panel or rows; the sum has set its rows and columns of `own`.
            unsafe { own.add_to((y, outputs), rows.len(), columns) };
        }
    }
}

/// Sets `y` (address of the first, distance of rows) to the sum of the job's products.
fn sum(
    variant: Variant,
    job: &Job<'_>,
    (panel, columns): (usize, usize),
    block: &Range<usize>,
    (y, y_row): (*mut f32, usize),
) {
    let first = panel * PANEL;
    for (i, product) in job.products.iter().enumerate() {
        let rows = block.start.max(product.rows.start)..block.end.min(product.rows.end);
        if rows.is_empty() {
            continue;
        }
        let (weight, at) = (product.weight, rows.start - product.rows.start);
        let y = y.wrapping_add((rows.start - block.start) * y_row);
        let accumulate = i > 0;
        let last = rows.end == product.rows.end;
        match (&weight.panels, product.x) {
            (Panels::Bf16(words), Operand::Pairs(pairs)) => {
                let steps = weight.inputs.div_ceil(2);
                let weights = words[first * steps..].as_ptr();
                let x = pairs[at * steps..].as_ptr();
                // SAFETY: operands were measured in `Job::new`; tasks differ in panel or rows.
                unsafe {
                    tile::run_pairs(
                        variant,
                        Tiles {
                            rows: rows.len(),
                            columns,
                            steps,
                            x,
                            x_row: steps,
                            weights,
                            y,
                            y_row,
                            accumulate,
                            last,
                        },
                    )
                };
            }
            (Panels::F32(words), Operand::Floats(x)) => {
                let steps = weight.inputs;
                let (weights, x) = (words[first * steps..].as_ptr(), x[at * steps..].as_ptr());
                // SAFETY: as above.
                unsafe {
                    tile::run_floats(
                        variant,
                        Floats {
                            rows: rows.len(),
                            columns,
                            steps,
                            x,
                            x_row: steps,
                            weights,
                            y,
                            y_row,
                            accumulate,
                            last,
                        },
                    )
                };
            }
            _ => panic!("operands are readied as the weight is kept"),
        }
    }
}
