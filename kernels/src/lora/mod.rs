//! Batched low-rank adapters on one linear: every adapter adds `scale · B (A x)` to its own rows; knows no sites or layers.
//!
//! LoRA (Hu et al. 2021): `A` is `[rank, in]`, `B` `[out, rank]`, both row-major f32. The adapters of a batch may differ in
//! rank. `h = scale · A x'` where x' is x, or x under dropout; then `y += B h`.
//!
//! Backward: `dh = scale · Bᵀ dy`, `dx += mask(Aᵀ dh)`, `dA += Σ_t dh_t x'_tᵀ`, `dB += Σ_t dy_t h_tᵀ`. The two sums run over an
//! adapter's tokens in order, one at a time, starting from what the gradient buffer holds: cutting the tokens into several
//! calls, or having other adapters beside, gives the same bytes.
//!
//! Error: each of the products is within the bound of the small matrix product, 2(k+2)·2⁻²⁴ relative to the sum of absolute
//! terms, k being in, rank, out or the number of tokens; in chains the bounds add.

use crate::gemm::{Gemm, transpose};
use crate::scratch;
use crate::simd::{self, Kernel, Shared, Simd, Variant};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a task.
const TASK_ROWS: usize = 64;
/// Columns of a gradient's task.
const TASK_COLUMNS: usize = 64;

/// One adapter's factors at this linear.
#[derive(Clone, Copy, Debug)]
pub struct Factors<'a> {
    /// `[rank, in]`.
    pub a: &'a [f32],
    /// `[out, rank]`.
    pub b: &'a [f32],
    /// Rows of `a`.
    pub rank: usize,
    /// alpha / rank, or alpha / √rank.
    pub scale: f32,
}

/// An adapter and the rows that run under it.
#[derive(Clone, Debug)]
pub struct Adapted<'a> {
    /// The adapter.
    pub factors: Factors<'a>,
    /// Its rows of the batch, ascending; no row belongs to two adapters.
    pub rows: Vec<Range<usize>>,
}

/// What the linear reads.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// `[rows, in]`.
    pub x: &'a [f32],
    /// Width of `x`.
    pub width: usize,
    /// Dropout on the adapters' input; none in serving.
    pub dropout: Option<Mask<'a>>,
}

/// Writes the factors of a row's input (0 where dropped, `1 / (1 − p)` where kept) and says true, or says false where nothing
/// is dropped. A pure function of the row: the backward pass asks again.
pub type Mask<'a> = &'a (dyn Fn(usize, &mut [f32]) -> bool + Sync);

/// Where an adapter's gradients are added.
#[derive(Debug)]
pub struct Gradient<'a> {
    /// `[rank, in]`.
    pub a: &'a mut [f32],
    /// `[out, rank]`.
    pub b: &'a mut [f32],
}

/// `y += B h` for every adapter; `y` is `[rows, outputs]`.
pub fn forward(input: Input<'_>, adapted: &[Adapted<'_>], y: &mut [f32], outputs: usize) {
    forward_as(simd::active(), input, adapted, y, outputs);
}

/// Output gradients and where the input's are added.
pub struct Backward<'a> {
    /// `[rows, outputs]`.
    pub dy: &'a [f32],
    /// Width of `dy`.
    pub outputs: usize,
    /// `[rows, in]`, added to.
    pub dx: &'a mut [f32],
}

/// Adds `dx`, and every adapter's `dA` and `dB` to `gradients`, which run parallel to `adapted`.
pub fn backward(input: Input<'_>, adapted: &[Adapted<'_>], through: Backward<'_>, gradients: &mut [Gradient<'_>]) {
    backward_as(simd::active(), input, adapted, through, gradients);
}

fn check(input: Input<'_>, adapted: &[Adapted<'_>], outputs: usize) {
    let rows = input.x.len() / input.width;
    assert_eq!(input.x.len(), rows * input.width, "x is [rows, {}]", input.width);
    let mut all: Vec<&Range<usize>> = Vec::new();
    for Adapted { factors, rows } in adapted {
        assert_eq!(factors.a.len(), factors.rank * input.width, "A is [{}, {}]", factors.rank, input.width);
        assert_eq!(factors.b.len(), outputs * factors.rank, "B is [{outputs}, {}]", factors.rank);
        all.extend(rows);
    }
    all.sort_by_key(|range| range.start);
    assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start), "a row belongs to one adapter");
    assert!(all.iter().all(|range| range.start <= range.end && range.end <= rows), "ranges of {rows} rows");
}

/// Pieces of at most [`TASK_ROWS`] rows: `(adapter, rows)`.
fn pieces(adapted: &[Adapted<'_>]) -> Vec<(usize, Range<usize>)> {
    let mut pieces = Vec::new();
    for (i, adapted) in adapted.iter().enumerate() {
        for range in &adapted.rows {
            let starts = range.clone().step_by(TASK_ROWS);
            pieces.extend(starts.map(|start| (i, start..range.end.min(start + TASK_ROWS))));
        }
    }
    pieces
}

/// Runs `task` on every piece; on one thread where that is all there is.
fn each<T: Sync>(tasks: &[T], task: impl Fn(&T) + Sync + Send) {
    if tasks.len() < 2 {
        tasks.iter().for_each(task);
    } else {
        tasks.par_iter().for_each(task);
    }
}

/// `rows` of the adapters' input: x itself, or the masked copy in `buffer`.
fn masked<'a>(input: Input<'a>, rows: &Range<usize>, buffer: &'a mut [f32]) -> &'a [f32] {
    let of = |row: usize| &input.x[row * input.width..(row + 1) * input.width];
    let Some(mask) = input.dropout else { return &input.x[rows.start * input.width..rows.end * input.width] };
    for (row, out) in rows.clone().zip(buffer.chunks_exact_mut(input.width)) {
        if mask(row, out) {
            out.iter_mut().zip(of(row)).for_each(|(out, x)| *out *= x);
        } else {
            out.copy_from_slice(of(row));
        }
    }
    buffer
}

/// Scratch values that [`masked`] needs.
fn masked_len(input: Input<'_>, rows: usize) -> usize {
    if input.dropout.is_some() { rows * input.width } else { 0 }
}

fn forward_as(variant: Variant, input: Input<'_>, adapted: &[Adapted<'_>], y: &mut [f32], outputs: usize) {
    check(input, adapted, outputs);
    assert_eq!(y.len() * input.width, input.x.len() * outputs, "y is [rows, {outputs}]");
    let y = Shared::new(y);
    each(&pieces(adapted), |(i, rows)| {
        let factors = adapted[*i].factors;
        let rank = factors.rank;
        scratch::with(rank * (input.width + outputs + rows.len()) + masked_len(input, rows.len()), |buffer| {
            let (packed, rest) = buffer.split_at_mut(rank * input.width.max(outputs));
            let (h, rest) = rest.split_at_mut(rows.len() * rank);
            let x = masked(input, rows, &mut rest[..masked_len(input, rows.len())]);
            down(variant, x, factors, packed, h);
            // SAFETY: `check`: pieces are disjoint rows of y.
            let y = unsafe { y.slice(rows.start * outputs, rows.len() * outputs) };
            up(variant, h, factors, packed, y);
        });
    });
}

/// `h = scale · x Aᵀ`, `[rows, rank]`; `packed` is scratch of at least A's size.
fn down(variant: Variant, x: &[f32], factors: Factors<'_>, packed: &mut [f32], h: &mut [f32]) {
    let width = factors.a.len() / factors.rank;
    let (m, rank) = (h.len() / factors.rank, factors.rank);
    turn(variant, factors.a, rank, packed);
    multiply(variant, (x, (width, 1)), (packed, rank), (h, m, rank), width, false);
    h.iter_mut().for_each(|h| *h *= factors.scale);
}

/// `y += h Bᵀ`; `packed` is scratch of at least B's size.
fn up(variant: Variant, h: &[f32], factors: Factors<'_>, packed: &mut [f32], y: &mut [f32]) {
    let (m, rank) = (h.len() / factors.rank, factors.rank);
    let outputs = factors.b.len() / rank;
    turn(variant, factors.b, outputs, packed);
    multiply(variant, (h, (rank, 1)), (packed, outputs), (y, m, outputs), rank, true);
}

fn backward_as(
    variant: Variant,
    input: Input<'_>,
    adapted: &[Adapted<'_>],
    through: Backward<'_>,
    gradients: &mut [Gradient<'_>],
) {
    let Backward { dy, outputs, dx } = through;
    check(input, adapted, outputs);
    assert_eq!(dy.len() * input.width, input.x.len() * outputs, "dy is [rows, {outputs}]");
    assert_eq!(dx.len(), input.x.len(), "dx is [rows, {}]", input.width);
    assert_eq!(adapted.len(), gradients.len(), "a gradient for each adapter");
    // Of all rows: h and dh, of an adapter's rank each, and the masked input.
    let rows = input.x.len() / input.width;
    let rank = adapted.iter().map(|adapted| adapted.factors.rank).max().unwrap_or(0);
    scratch::with(2 * rows * rank + masked_len(input, rows), |buffer| {
        let (h, rest) = buffer.split_at_mut(rows * rank);
        let (dh, rest) = rest.split_at_mut(rows * rank);
        let kept = &mut rest[..masked_len(input, rows)];
        let shared = (Shared::new(h), Shared::new(dh), Shared::new(kept), Shared::new(dx));
        each(&pieces(adapted), |(i, rows)| {
            let factors = adapted[*i].factors;
            let count = rows.len();
            // SAFETY: pieces are disjoint rows, and each has room for the largest rank.
            let h = unsafe { shared.0.slice(rows.start * rank, count * factors.rank) };
            // SAFETY: as above.
            let dh = unsafe { shared.1.slice(rows.start * rank, count * factors.rank) };
            // SAFETY: as above.
            let kept = unsafe { shared.2.slice(rows.start * input.width, masked_len(input, count)) };
            // SAFETY: as above.
            let dx = unsafe { shared.3.slice(rows.start * input.width, count * input.width) };
            scratch::with(factors.a.len(), |packed| down(variant, masked(input, rows, kept), factors, packed, h));
            let dy = &dy[rows.start * outputs..rows.end * outputs];
            multiply(variant, (dy, (outputs, 1)), (factors.b, factors.rank), (dh, count, factors.rank), outputs, false);
            dh.iter_mut().for_each(|dh| *dh *= factors.scale);
            add_input_gradient(variant, input, rows, (dh, factors), dx);
        });
        let (h, dh, kept) = (&*h, &*dh, &*kept);
        let x = if input.dropout.is_some() { kept } else { input.x };
        add_factor_gradients(variant, adapted, gradients, Tokens { x, width: input.width, dy, outputs, h, dh, rank });
    });
}

/// `dx += mask(dh A)`.
fn add_input_gradient(
    variant: Variant,
    input: Input<'_>,
    rows: &Range<usize>,
    (dh, factors): (&[f32], Factors<'_>),
    dx: &mut [f32],
) {
    let (width, rank) = (input.width, factors.rank);
    let a = (factors.a, width);
    let Some(mask) = input.dropout else {
        return multiply(variant, (dh, (rank, 1)), a, (dx, rows.len(), width), rank, true);
    };
    scratch::with(2 * width, |buffer| {
        let (d, factors) = buffer.split_at_mut(width);
        for ((row, dh), dx) in rows.clone().zip(dh.chunks_exact(rank)).zip(dx.chunks_exact_mut(width)) {
            if mask(row, factors) {
                multiply(variant, (dh, (rank, 1)), a, (d, 1, width), rank, false);
                dx.iter_mut().zip(&*d).zip(&*factors).for_each(|((dx, d), factor)| *dx += d * factor);
            } else {
                // As in a batch without dropout: a row's bits must not depend on its company.
                multiply(variant, (dh, (rank, 1)), a, (dx, 1, width), rank, true);
            }
        }
    });
}

/// What the factors' gradients are sums over, for every row of the batch. `h` and `dh` have a piece of rows together, rows of
/// the adapter's own rank, each piece starting at `row · rank`.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    x: &'a [f32],
    width: usize,
    dy: &'a [f32],
    outputs: usize,
    h: &'a [f32],
    dh: &'a [f32],
    rank: usize,
}

/// Which columns of which gradient a task sums.
enum Part {
    A(Range<usize>),
    B(Range<usize>),
}

fn add_factor_gradients(variant: Variant, adapted: &[Adapted<'_>], gradients: &mut [Gradient<'_>], tokens: Tokens<'_>) {
    let targets: Vec<_> =
        gradients.iter_mut().map(|g| (Shared::new(g.a), Shared::new(g.b), g.a.len(), g.b.len())).collect();
    let mut tasks = Vec::new();
    for (i, (adapted, target)) in adapted.iter().zip(&targets).enumerate() {
        let factors = adapted.factors;
        assert_eq!((factors.a.len(), factors.b.len()), (target.2, target.3), "gradients are shaped like their factors");
        let cut = |of: usize| (0..of).step_by(TASK_COLUMNS).map(move |first| first..of.min(first + TASK_COLUMNS));
        tasks.extend(cut(tokens.width).map(|columns| (i, Part::A(columns))));
        tasks.extend(cut(tokens.outputs).map(|columns| (i, Part::B(columns))));
    }
    each(&tasks, |(i, part)| {
        let (Adapted { factors, .. }, target) = (&adapted[*i], targets[*i]);
        let rank = factors.rank;
        let runs = pieces(&adapted[*i..=*i]).into_iter().map(|(_, rows)| rows);
        scratch::with(rank * TASK_COLUMNS, |sum| match part {
            Part::A(columns) => {
                // Columns of dA are gathered into one block and put back, so that tasks share no row of it.
                let n = columns.len();
                for (r, sum) in sum.chunks_exact_mut(n).take(rank).enumerate() {
                    // SAFETY: inside dA, and this task's columns.
                    sum.copy_from_slice(unsafe { target.0.slice(r * tokens.width + columns.start, n) });
                }
                for rows in runs {
                    let dh = &tokens.dh[rows.start * tokens.rank..];
                    let x = &tokens.x[rows.start * tokens.width + columns.start..];
                    multiply(variant, (dh, (1, rank)), (x, tokens.width), (sum, rank, n), rows.len(), true);
                }
                for (r, sum) in sum.chunks_exact(n).take(rank).enumerate() {
                    // SAFETY: as above.
                    unsafe { target.0.slice(r * tokens.width + columns.start, n) }.copy_from_slice(sum);
                }
            }
            Part::B(columns) => {
                let n = columns.len();
                // SAFETY: rows of dB that are this task's.
                let db = unsafe { target.1.slice(columns.start * rank, n * rank) };
                turn(variant, db, n, sum);
                for rows in runs {
                    let h = &tokens.h[rows.start * tokens.rank..];
                    let dy = &tokens.dy[rows.start * tokens.outputs + columns.start..];
                    multiply(variant, (h, (1, rank)), (dy, tokens.outputs), (sum, rank, n), rows.len(), true);
                }
                turn(variant, &sum[..rank * n], rank, db);
            }
        });
    });
}

/// `dst = srcᵀ`, `src` having `rows` rows.
fn turn(variant: Variant, src: &[f32], rows: usize, dst: &mut [f32]) {
    struct Turn<'a>(&'a [f32], usize, &'a mut [f32]);
    impl Kernel for Turn<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Self(src, rows, dst) = self;
            let columns = src.len() / rows;
            // SAFETY: `turn` measured both.
            unsafe { transpose::<S>((src.as_ptr(), columns), (rows, columns), (dst.as_mut_ptr(), rows)) }
        }
    }
    assert!(src.len() <= dst.len() && src.len().is_multiple_of(rows), "a matrix of {rows} rows");
    simd::run(variant, Turn(src, rows, dst));
}

/// `C[m, n] (+)= A[m, k] B[k, n]`: A with its two strides, B with its row distance, C dense.
fn multiply(
    variant: Variant,
    (a, a_strides): (&[f32], (usize, usize)),
    (b, b_row): (&[f32], usize),
    (c, m, n): (&mut [f32], usize, usize),
    k: usize,
    accumulate: bool,
) {
    struct Product(Gemm);
    impl Kernel for Product {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            // SAFETY: `multiply` measured the operands.
            unsafe { S::gemm(self.0) }
        }
    }
    if m == 0 || n == 0 {
        return;
    }
    assert!(c.len() >= m * n, "C is [{m}, {n}]");
    assert!(k == 0 || a.len() > (m - 1) * a_strides.0 + (k - 1) * a_strides.1, "A is [{m}, {k}]");
    assert!(k == 0 || b.len() >= (k - 1) * b_row + n, "B is [{k}, {n}]");
    let gemm =
        Gemm { m, n, k, a: a.as_ptr(), a_strides, b: b.as_ptr(), b_row, c: c.as_mut_ptr(), c_row: n, accumulate };
    simd::run(variant, Product(gemm));
}

#[cfg(test)]
mod tests;
