//! Sums of products over packed weights, shared out over threads; knows weights and rows, not what they mean.

use super::packed::{Packed, Panels};
use super::tile::{self, ABREAST, Single, Tiles};
use super::{PANEL, TASK_ROWS, WeightType, Write};
use crate::scratch;
use crate::simd::{LANES, Shared, Variant};
use rayon::prelude::*;
use std::ops::Range;

/// Multiplications below which waking another thread (some 5 µs) costs more than it saves.
const SERIAL_PRODUCTS_MAX: usize = 1 << 17;

/// Multiplications that are worth a task of their own: of one row they read 128 kB of bf16, some 10 µs from memory.
const TASK_PRODUCTS: usize = 1 << 16;
/// Tasks that threads share out evenly enough, where there is less to do.
const TASKS_MIN: usize = 16;

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
}

/// Where weights start, never read through.
#[derive(Clone, Copy)]
pub(super) struct Address(pub(super) *const u8);

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
    let is_few = |job: &&Job<'_>| HALVED_ROWS.contains(&job.rows);
    let panels: usize = jobs.iter().filter(is_few).map(|job| job.outputs().div_ceil(PANEL)).sum();
    let mut tasks = Vec::with_capacity(jobs.len() + panels);
    for job in jobs {
        let halved = panels < PANELS_MIN && is_few(&job);
        let count = if halved { job.rows.div_ceil(2) } else { TASK_ROWS };
        for panel in 0..job.outputs().div_ceil(PANEL) {
            let blocks = (0..job.rows).step_by(count);
            tasks.extend(blocks.map(|start| Task { job, panel, rows: start..job.rows.min(start + count) }));
        }
    }
    let work = |task: &Task<'_>| {
        let Task { job, rows, .. } = task;
        rows.len() * job.products[0].weight.inputs * PANEL.min(job.outputs())
    };
    for_each(&tasks, work, |task, next| {
        let first = |task: &Task<'_>| task.job.products[0].weight.panel(task.panel);
        run_task(variant, task, next.map_or(first(task), first), write);
    });
}

/// `run(item, the next one)` for every item, on one thread where there is little to do.
pub(crate) fn for_each<T: Sync>(
    items: &[T],
    multiplications: impl Fn(&T) -> usize,
    run: impl Fn(&T, Option<&T>) + Sync,
) {
    let run = |i: usize| run(&items[i], items.get(i + 1));
    let all = items.iter().map(&multiplications).sum::<usize>();
    if all <= SERIAL_PRODUCTS_MAX || items.len() < 2 || rayon::current_num_threads() == 1 {
        return (0..items.len()).for_each(run);
    }
    // Neighbours of little work, as adapters' factors are, go together; a panel of 32 rows goes by itself. Rayon would share them out by
    // their count.
    let enough = TASK_PRODUCTS.min(all / TASKS_MIN);
    let mut ends = Vec::with_capacity(items.len());
    let mut held = 0;
    for (i, item) in items.iter().enumerate() {
        held += multiplications(item);
        if held >= enough || i + 1 == items.len() {
            ends.push(i + 1);
            held = 0;
        }
    }
    let group = |group: usize| (group.checked_sub(1).map_or(0, |before| ends[before])..ends[group]).for_each(run);
    (0..ends.len()).into_par_iter().with_max_len(1).for_each(group);
}

/// Several products on this thread: each sets `y`, `[rows, outputs]` of its own rows, or is added to what is there.
///
/// # Safety
/// `y` is valid for them, and no other task touches them.
pub(crate) unsafe fn run_here(variant: Variant, products: &[(Product<'_>, *mut f32)], accumulate: bool) {
    let single = |(product, y): &(Product<'_>, *mut f32)| match (&product.weight.panels, product.x) {
        (Panels::Bf16(words), Operand::Pairs(pairs)) if product.rows.len() == 1 => {
            Some(Single { x: pairs.as_ptr(), panels: words.as_ptr(), outputs: product.weight.outputs, y: *y })
        }
        _ => None,
    };
    for (Product { weight, x, rows }, _) in products {
        assert!(x.holds(rows.len(), weight.inputs), "an input of [{}, {}]", rows.len(), weight.inputs);
    }
    for products in products.chunk_by(|(a, _), (b, _)| a.weight.inputs == b.weight.inputs) {
        if let Some(singles) = products.iter().map(single).collect::<Option<Vec<_>>>() {
            let steps = products[0].0.weight.inputs.div_ceil(2);
            for singles in singles.chunks(ABREAST) {
                // SAFETY: operands have been measured; `y` is the caller's promise.
                unsafe { tile::run_singles(variant, singles, steps, accumulate) };
            }
            continue;
        }
        for (product, y) in products {
            let outputs = product.weight.outputs;
            for panel in 0..outputs.div_ceil(PANEL) {
                let place = Place { panel, columns: PANEL.min(outputs - panel * PANEL), y_row: outputs, accumulate };
                let next = product.weight.panel(panel + 1);
                add_product(variant, product, &product.rows, (place, next), y.wrapping_add(panel * PANEL));
            }
        }
    }
}

fn run_task(variant: Variant, Task { job, panel, rows }: &Task<'_>, next: Address, write: Write) {
    let outputs = job.outputs();
    let (first, columns) = (panel * PANEL, PANEL.min(outputs - panel * PANEL));
    let y = job.y.at(rows.start * outputs + first);
    let place = |y_row: usize| Place { panel: *panel, columns, y_row, accumulate: false };
    match write {
        Write::Set => sum(variant, job, rows, (place(outputs), next), y),
        Write::Add => {
            let mut own = tile::Part::new();
            sum(variant, job, rows, (place(PANEL), next), own.at());
            // SAFETY: `y` is the caller's promise: tasks differ in panel or rows; the sum has set its rows and columns of `own`.
            unsafe { own.add_to((y, outputs), rows.len(), columns) };
        }
    }
}

/// A panel of an output.
#[derive(Clone, Copy)]
struct Place {
    panel: usize,
    columns: usize,
    /// Distance of the output's rows.
    y_row: usize,
    /// Whether the sum starts from what the output holds.
    accumulate: bool,
}

/// Sets `y`, rows `block`, to the sum of the job's products; `next` is read after it.
fn sum(variant: Variant, job: &Job<'_>, block: &Range<usize>, (place, next): (Place, Address), y: *mut f32) {
    let inside = |product: &Product<'_>| block.start.max(product.rows.start)..block.end.min(product.rows.end);
    let mut own = job.products.iter().filter(|product| !inside(product).is_empty()).peekable();
    let mut accumulate = false;
    while let Some(product) = own.next() {
        let (rows, next) = (inside(product), own.peek().map_or(next, |product| product.weight.panel(place.panel)));
        let y = y.wrapping_add((rows.start - block.start) * place.y_row);
        add_product(variant, product, &rows, (Place { accumulate, ..place }, next), y);
        accumulate = true;
    }
}

/// One product for `rows`, of which `y` is the first.
fn add_product(
    variant: Variant,
    product: &Product<'_>,
    rows: &Range<usize>,
    (place, next): (Place, Address),
    y: *mut f32,
) {
    let (weight, at) = (product.weight, rows.start - product.rows.start);
    let to = (y, next);
    match (&weight.panels, product.x) {
        (Panels::Bf16(words), Operand::Pairs(pairs)) => {
            let tiles = tiles(place, (&**words, weight.inputs.div_ceil(2)), (pairs, at, rows.len()), to);
            // SAFETY: operands were measured when the product was made; tasks differ in panel or rows.
            unsafe { tile::run_pairs(variant, tiles) };
        }
        (Panels::F32(words), Operand::Floats(x)) => {
            let tiles = tiles(place, (&**words, weight.inputs), (x, at, rows.len()), to);
            // SAFETY: as above.
            unsafe { tile::run_floats(variant, tiles) };
        }
        _ => panic!("operands are readied as the weight is kept"),
    }
}

/// The tiles of one panel of `words` with `rows` rows of `x` from `at`.
fn tiles<X>(
    Place { panel, columns, y_row, accumulate }: Place,
    (words, steps): (&[X], usize),
    (x, at, rows): (&[X], usize, usize),
    (y, next): (*mut f32, Address),
) -> Tiles<X> {
    Tiles {
        rows,
        columns,
        steps,
        x: x[at * steps..].as_ptr(),
        x_strides: (steps, 1),
        weights: words[panel * PANEL * steps..].as_ptr(),
        width: columns.next_multiple_of(LANES),
        y,
        y_row,
        accumulate,
        next: next.0.cast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::on_threads;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_item_runs_once_beside_the_one_that_follows_however_its_work_is_spread() {
        let mixed = [vec![5_000; 50], vec![300_000; 3], vec![1; 20]].concat();
        for work in [vec![9_000; 300], vec![200_000; 7], mixed, vec![100; 5], vec![1_000_000], Vec::new()] {
            let items: Vec<usize> = (0..work.len()).collect();
            for threads in [1, 2, 3] {
                let runs: Vec<AtomicUsize> = items.iter().map(|_| AtomicUsize::new(0)).collect();
                let run = |&item: &usize, next: Option<&usize>| {
                    runs[item].fetch_add(1, Ordering::Relaxed);
                    assert_eq!(next.copied(), items.get(item + 1).copied(), "what is read after {item}");
                };
                on_threads(threads, || for_each(&items, |&item| work[item], run));
                let once = |runs: &AtomicUsize| runs.load(Ordering::Relaxed) == 1;
                assert!(runs.iter().all(once), "{threads} threads: {runs:?} of {work:?}");
            }
        }
    }
}
