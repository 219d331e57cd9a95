//! Linears whose rows run under low-rank adapters: `y = W x + scale · B (A x')` for the adapter of each row, or `y = W x` for
//! rows under none; knows no sites or layers.
//!
//! LoRA (Hu et al. 2021): `A` is `[rank, in]`, `B` `[out, rank]`. The adapters of a batch may differ in rank; x' is x, or x
//! under dropout. The factors are kept as the frozen weight is (bf16 or f32) with the scale inside B, and so run through the
//! same tiles: `h = A x'` is one more product over the input, `B h` one more into the output, added after `W x` while the
//! output is in the nearest cache. What a linear rounds (in bf16: x, h and both factors) is rounded here too. Over a weight that
//! stays quantised the factors are bf16, and `B h` is added to the finished output.
//!
//! Backward: `dh = scale · Bᵀ dy`, `dx = Σ Wᵀ dy + Σ mask(Aᵀ dh)`, `dA += Σ_t dh_t x'_tᵀ`, `dB += scale · Σ_t dy_t h_tᵀ`. The last
//! two are in f32; they run over an adapter's tokens in order, one at a time, starting from what the gradient buffer holds:
//! cutting the tokens into several calls, or having other adapters beside, gives the same bytes.
//!
//! Error: each of the products is within the bound of a linear, 2(k+2)·2⁻²⁴ relative to the sum of absolute terms, k being in,
//! rank, out or the number of tokens; in chains the bounds add. In bf16 each rounded operand of a chain adds 2⁻⁸ of it: 4 in
//! `y` (x, A, h, B) and in `dx`, 2 in the factors' gradients.

mod counting;
mod factors;
mod gradient;
mod stream;

pub use factors::{Factors, Parameters};

use crate::linear::{Job, Operand, Packed, PackedLinear, Product, WeightType, Write, run, with_operands};
use crate::quantised;
use crate::scratch;
use crate::simd::{self, Variant};
use std::ops::Range;

/// Rows of an adapter that one register tile takes on every machine that has wide ones: its factors are then read once, whatever
/// the order of the products.
const STREAM_ROWS_MAX: usize = 6;

/// An adapter and the rows that run under it.
#[derive(Clone, Copy)]
pub struct Adapted<'a> {
    /// The adapter.
    pub factors: &'a Factors,
    /// Its rows of the batch, ascending; no row belongs to two adapters.
    pub rows: &'a [Range<usize>],
}

/// A linear and what its rows add to it.
pub struct Linear<'a> {
    /// The frozen weight.
    pub weight: &'a PackedLinear,
    /// The adapters that have rows in the batch.
    pub adapted: Vec<Adapted<'a>>,
    /// Dropout on the adapters' input; none in serving.
    pub dropout: Option<Mask<'a>>,
}

/// Writes the factors of a row's input (0 where dropped, `1 / (1 − p)` where kept) and says true, or says false where nothing
/// is dropped. A pure function of the row: the backward pass asks again.
pub type Mask<'a> = &'a (dyn Fn(usize, &mut [f32]) -> bool + Sync);

/// One of several linears over the same input, and where its output goes.
pub struct Output<'a> {
    /// The linear.
    pub linear: Linear<'a>,
    /// `[rows, out]`.
    pub y: &'a mut [f32],
}

/// Where an adapter's gradients are added.
#[derive(Debug)]
pub struct Gradient<'a> {
    /// `[rank, in]`.
    pub a: &'a mut [f32],
    /// `[out, rank]`.
    pub b: &'a mut [f32],
}

/// One of several linears over the same input on the way back.
pub struct Through<'a> {
    /// The linear.
    pub linear: Linear<'a>,
    /// `[rows, out]`.
    pub dy: &'a [f32],
    /// One for each of the linear's adapters.
    pub gradients: Vec<Gradient<'a>>,
}

/// Every linear's output of `x`, `[rows, in]`.
pub fn forward(x: &[f32], rows: usize, outputs: &mut [Output<'_>], write: Write) {
    forward_as(simd::active(), x, rows, outputs, write);
    let written = outputs.iter().map(|output| output.y.len()).sum::<usize>();
    counting::forward(outputs.iter().map(|output| &output.linear), rows, x.len() + write.touches() * written);
}

/// Sets `dx`, `[rows, in]`, to the gradient of the linears' input `x`, and adds to the adapters' gradients.
pub fn backward(x: &[f32], rows: usize, through: &mut [Through<'_>], dx: &mut [f32]) {
    backward_as(simd::active(), x, rows, through, dx);
    let read = through.iter().map(|through| through.dy.len()).sum::<usize>();
    counting::backward_input(through.iter().map(|through| &through.linear), rows, read + dx.len());
    counting::add_gradients(through.iter().map(|through| &through.linear));
}

/// The first half of [`backward`], for rows of a pass that may be taken in parts: sets `dx`, `[rows, in]`, from each linear's
/// `dy`, `[rows, out]`. Returns what [`add_gradients`] needs of these rows.
pub fn backward_input(x: &[f32], rows: usize, through: &[(&Linear<'_>, &[f32])], dx: &mut [f32]) -> Low {
    let low = backward_input_as(simd::active(), x, rows, through, dx);
    let read = through.iter().map(|(_, dy)| dy.len()).sum::<usize>();
    counting::backward_input(through.iter().map(|&(linear, _)| linear), rows, read + dx.len());
    low
}

/// The second half: adds to the adapters' gradients over all rows of a pass. `parts` are its parts in order, each with its first
/// row; every linear of a part lists the adapters that `through` lists, whether or not they have rows in it.
pub fn add_gradients(x: &[f32], rows: usize, parts: &[(usize, Low)], through: &mut [Through<'_>]) {
    add_gradients_as(simd::active(), x, rows, parts, through);
    counting::add_gradients(through.iter().map(|through| &through.linear));
}

/// Low-rank values of some rows, from which their adapters' gradients are made.
pub struct Low {
    runs: Vec<Run>,
    /// `A x'`, by run.
    h: Vec<f32>,
    /// `scale · Bᵀ dy`, by run.
    dh: Vec<f32>,
}

fn forward_as(variant: Variant, x: &[f32], rows: usize, outputs: &mut [Output<'_>], write: Write) {
    let (linears, mut ys): (Vec<&Linear<'_>>, Vec<&mut [f32]>) =
        outputs.iter_mut().map(|Output { linear, y }| (&*linear, &mut **y)).unzip();
    let Some((width, kept)) = shape(&linears, x, rows) else { return };
    let runs = runs(&linears);
    let quantised = linears.iter().zip(&mut ys).filter_map(|(linear, y)| Some((linear.weight.quantised()?, &mut **y)));
    let mut quantised: Vec<_> = quantised.collect();
    quantised::forward_as(variant, x, rows, &mut quantised, write);
    if quantised.len() == linears.len() && runs.is_empty() {
        return;
    }
    if !runs.is_empty() && runs.iter().all(|run| run.rows.len() <= STREAM_ROWS_MAX) {
        return stream::forward(variant, ((x, width), rows), (&linears, &runs, kept), ys, write);
    }
    with_inputs((x, width), &linears, |inputs| {
        with_operands(variant, &inputs.all, kept, |xs| {
            scratch::with(runs.iter().map(Run::len).sum(), |h| {
                let downs = split(h, &runs).into_iter().zip(&runs).map(|(h, own)| {
                    let x = xs[inputs.of[own.linear]].rows(&own.rows, width);
                    own.job(own.factors(&linears).a(), x, h)
                });
                run(variant, &downs.collect::<Vec<_>>(), Write::Set);
                with_operands(variant, &low_inputs(h, &runs), kept, |low| {
                    let (mut sums, mut added) = (Vec::new(), Vec::new());
                    for (i, (linear, y)) in linears.iter().zip(ys).enumerate() {
                        let own = runs.iter().zip(low).filter(|(own, _)| own.linear == i);
                        let own = own.map(|(own, &x)| (own, own.factors(&linears).b(), x));
                        if let Some(weight) = linear.weight.packed() {
                            let base = [weight.of_all(xs[0], rows)].into_iter();
                            let own = own.map(|(own, weight, x)| Product { weight, x, rows: own.rows.clone() });
                            sums.push(Job::new(rows, base.chain(own).collect(), y));
                        } else {
                            let width = linear.weight.outputs();
                            let part = |rows: &Range<usize>| rows.start * width..rows.end * width;
                            added.extend(own.map(|(own, weight, x)| own.job(weight, x, &mut y[part(&own.rows)])));
                        }
                    }
                    run(variant, &sums, write);
                    run(variant, &added, Write::Add);
                });
            });
        });
    });
}

fn backward_as(variant: Variant, x: &[f32], rows: usize, through: &mut [Through<'_>], dx: &mut [f32]) {
    let pairs: Vec<_> = through.iter().map(|through| (&through.linear, through.dy)).collect();
    let low = backward_input_as(variant, x, rows, &pairs, dx);
    add_gradients_as(variant, x, rows, &[(0, low)], through);
}

fn backward_input_as(
    variant: Variant,
    x: &[f32],
    rows: usize,
    through: &[(&Linear<'_>, &[f32])],
    dx: &mut [f32],
) -> Low {
    let linears: Vec<_> = through.iter().map(|&(linear, _)| linear).collect();
    let dys: Vec<_> = through.iter().map(|&(linear, dy)| (dy, linear.weight.outputs())).collect();
    assert!(dys.iter().all(|(dy, outputs)| dy.len() == rows * outputs), "dy is [{rows}, out]");
    let runs = runs(&linears);
    let values: usize = runs.iter().map(Run::len).sum();
    let mut low = Low { runs, h: vec![0.0; values], dh: vec![0.0; values] };
    let Some((width, kept)) = shape(&linears, x, rows) else { return low };
    with_operands(variant, &dys, kept, |dys| {
        let Low { runs, h, dh } = &mut low;
        if !runs.is_empty() {
            with_inputs((x, width), &linears, |inputs| {
                with_operands(variant, &inputs.all, kept, |xs| {
                    let parts = split(h, runs).into_iter().zip(split(dh, runs)).zip(&*runs);
                    let jobs = parts.flat_map(|((h, dh), own)| {
                        let factors = own.factors(&linears);
                        let x = xs[inputs.of[own.linear]].rows(&own.rows, width);
                        let dy = dys[own.linear].rows(&own.rows, factors.b.outputs());
                        [own.job(factors.a(), x, h), own.job(factors.b.transposed(), dy, dh)]
                    });
                    run(variant, &jobs.collect::<Vec<_>>(), Write::Set);
                });
            });
        }
        add_up_input_gradient(variant, &linears, dys, (runs, dh, kept), (dx, rows));
    });
    low
}

fn add_gradients_as(variant: Variant, x: &[f32], rows: usize, parts: &[(usize, Low)], through: &mut [Through<'_>]) {
    let (mut linears, mut dys, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
    for Through { linear, dy, gradients: own } in through {
        assert_eq!(dy.len(), rows * linear.weight.outputs(), "dy is [{rows}, {}]", linear.weight.outputs());
        assert_eq!(linear.adapted.len(), own.len(), "a gradient for each adapter");
        linears.push(&*linear);
        dys.push((*dy, linear.weight.outputs()));
        gradients.push(own.as_mut_slice());
    }
    let Some((width, _)) = shape(&linears, x, rows) else { return };
    with_inputs((x, width), &linears, |inputs| {
        gradient::add(variant, &linears, gradient::Tokens { inputs, dys: &dys, parts }, &mut gradients);
    });
}

/// `dx = Σ Wᵀ dy + Σ mask(Aᵀ dh)`.
fn add_up_input_gradient(
    variant: Variant,
    linears: &[&Linear<'_>],
    dys: &[Operand<'_>],
    (runs, dh, kept): (&[Run], &[f32], WeightType),
    (dx, rows): (&mut [f32], usize),
) {
    let width = dx.len() / rows;
    with_operands(variant, &low_inputs(dh, runs), kept, |low| {
        let base = linears.iter().zip(dys);
        let mut products: Vec<_> = base.map(|(linear, &dy)| linear.weight.transposed().of_all(dy, rows)).collect();
        let mut dropped = Vec::new();
        scratch::with(width, |factors| {
            for (own, &x) in runs.iter().zip(low) {
                let weight = own.factors(linears).a.transposed();
                let Some(mask) = linears[own.linear].dropout else {
                    products.push(Product { weight, x, rows: own.rows.clone() });
                    continue;
                };
                for (i, row) in own.rows.clone().enumerate() {
                    let product = Product { weight, x: x.rows(&(i..i + 1), own.rank), rows: row..row + 1 };
                    if mask(row, factors) {
                        dropped.push((mask, product));
                    } else {
                        // As in a batch without dropout: a row's bits must not depend on its company.
                        products.push(product);
                    }
                }
            }
        });
        run(variant, &[Job::new(rows, products, dx)], Write::Set);
        scratch::with(2 * width, |buffer| {
            let (d, factors) = buffer.split_at_mut(width);
            for (mask, Product { weight, x, rows }) in dropped {
                run(variant, &[Job::new(1, vec![weight.of_all(x, 1)], d)], Write::Set);
                mask(rows.start, factors);
                let dx = &mut dx[rows.start * width..rows.end * width];
                dx.iter_mut().zip(&*d).zip(&*factors).for_each(|((dx, d), factor)| *dx += d * factor);
            }
        });
    });
}

/// Neighbouring rows of one adapter at one linear, and where their low-rank values lie: `[rows, rank]` at `at`.
struct Run {
    linear: usize,
    adapter: usize,
    rows: Range<usize>,
    rank: usize,
    at: usize,
}

impl Run {
    fn len(&self) -> usize {
        self.rows.len() * self.rank
    }

    fn factors<'a>(&self, linears: &[&'a Linear<'a>]) -> &'a Factors {
        linears[self.linear].adapted[self.adapter].factors
    }

    /// `low = x · weightᵀ` over the run's own rows.
    fn job<'a>(&self, weight: &'a Packed, x: Operand<'a>, low: &mut [f32]) -> Job<'a> {
        Job::new(self.rows.len(), vec![weight.of_all(x, self.rows.len())], low)
    }
}

fn runs(linears: &[&Linear<'_>]) -> Vec<Run> {
    let most = linears.iter().flat_map(|linear| &linear.adapted).map(|own| own.rows.len()).sum();
    let (mut runs, mut at) = (Vec::with_capacity(most), 0);
    for (linear, Linear { adapted, .. }) in linears.iter().enumerate() {
        for (adapter, Adapted { factors, rows }) in adapted.iter().enumerate() {
            for rows in rows.iter().filter(|rows| !rows.is_empty()) {
                runs.push(Run { linear, adapter, rows: rows.clone(), rank: factors.rank(), at });
                at += rows.len() * factors.rank();
            }
        }
    }
    runs
}

/// Cuts low-rank values by run.
fn split<'a>(mut values: &'a mut [f32], runs: &[Run]) -> Vec<&'a mut [f32]> {
    let cut = |run: &Run| values.split_off_mut(..run.len()).expect("room for every run");
    runs.iter().map(cut).collect()
}

/// The runs' low-rank values as inputs of the next product; `values` start with those of the first.
fn low_inputs<'a>(values: &'a [f32], runs: &[Run]) -> Vec<(&'a [f32], usize)> {
    let first = runs.first().map_or(0, |run| run.at);
    runs.iter().map(|run| (&values[run.at - first..][..run.len()], run.rank)).collect()
}

/// What the adapters of some linears read.
struct Inputs<'a> {
    /// x itself, then masked copies, with their width.
    all: Vec<(&'a [f32], usize)>,
    /// Of each linear, into `all`.
    of: Vec<usize>,
}

fn with_inputs<R>((x, width): (&[f32], usize), linears: &[&Linear<'_>], body: impl FnOnce(&Inputs<'_>) -> R) -> R {
    let masks = linears.iter().filter(|linear| linear.dropout.is_some() && !linear.adapted.is_empty()).count();
    scratch::with(masks * x.len(), |buffer| {
        let mut copies = buffer.chunks_exact_mut(x.len().max(1));
        let (mut all, mut of) = (vec![(x, width)], Vec::with_capacity(linears.len()));
        for linear in linears {
            let Some(mask) = linear.dropout.filter(|_| !linear.adapted.is_empty()) else {
                of.push(0);
                continue;
            };
            let copy = copies.next().expect("a copy for each mask");
            for (row, (copy, x)) in copy.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                if mask(row, copy) {
                    copy.iter_mut().zip(x).for_each(|(copy, x)| *copy *= x);
                } else {
                    copy.copy_from_slice(x);
                }
            }
            of.push(all.len());
            all.push((copy, width));
        }
        body(&Inputs { all, of })
    })
}

/// Checks shapes; the width of the input and what all weights are kept as, if there is any linear.
fn shape(linears: &[&Linear<'_>], x: &[f32], rows: usize) -> Option<(usize, WeightType)> {
    let first = linears.first()?;
    let (width, kept) = (first.weight.inputs(), first.weight.weight_type());
    assert_eq!(x.len(), rows * width, "x is [{rows}, {width}]");
    for Linear { weight, adapted, .. } in linears {
        assert_eq!((weight.inputs(), weight.weight_type()), (width, kept), "linears over one input, kept alike");
        for Adapted { factors, .. } in adapted {
            assert_eq!(factors.a.inputs(), width, "A is [{}, {width}]", factors.rank());
            assert_eq!(factors.b.outputs(), weight.outputs(), "B is [{}, {}]", weight.outputs(), factors.rank());
            assert_eq!(factors.a.weight_type(), kept, "factors are kept as the weight is");
        }
        let ranges = || adapted.iter().flat_map(|own| own.rows);
        assert!(ranges().all(|range| range.start <= range.end && range.end <= rows), "ranges of {rows} rows");
        let is_apart = |a: &&Range<usize>, b: &&Range<usize>| a.end <= b.start;
        // Mostly they come in order, and then need no list of their own.
        if !ranges().is_sorted_by(is_apart) {
            let mut sorted: Vec<_> = ranges().collect();
            sorted.sort_by_key(|range| range.start);
            assert!(sorted.is_sorted_by(is_apart), "a row belongs to one adapter");
        }
    }
    Some((width, kept))
}

#[cfg(test)]
mod tests;
