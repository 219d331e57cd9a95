//! The gradients of an adapter's factors: sums over its tokens, in f32 and in order. Knows low-rank values, not how they came.

use super::{Gradient, Inputs, Linear, Low};
use crate::gemm::{Gemm, transpose};
use crate::scratch;
use crate::simd::{self, Kernel, Shared, Simd, Variant};
use rayon::prelude::*;
use std::ops::Range;

/// Columns of a task.
const TASK_COLUMNS: usize = 64;
/// Tokens of a product: 64 × 64 inputs stay in the nearest cache while the rank's tiles pass over them.
const BLOCK_TOKENS: usize = 64;

/// What the sums are over.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    pub(super) inputs: &'a Inputs<'a>,
    /// Of each linear: `[rows, out]`, and out.
    pub(super) dys: &'a [(&'a [f32], usize)],
    /// In order, each with its first row.
    pub(super) parts: &'a [(usize, Low)],
}

/// Which columns of which gradient a task sums.
enum Part {
    A(Range<usize>),
    B(Range<usize>),
}

/// Neighbouring tokens of one adapter at one linear, with their low-rank values.
struct Piece<'a> {
    /// `(linear, adapter)`.
    of: (usize, usize),
    rows: Range<usize>,
    h: &'a [f32],
    dh: &'a [f32],
}

/// One adapter at one linear: its tokens, and the addresses of its gradients.
struct Target<'a> {
    linear: usize,
    pieces: &'a [Piece<'a>],
    scale: f32,
    rank: usize,
    a: Shared<f32>,
    b: Shared<f32>,
}

/// `dA += Σ dh x'ᵀ`, `dB += scale · Σ dy hᵀ` for every adapter of every linear.
pub(super) fn add(
    variant: Variant,
    linears: &[&Linear<'_>],
    tokens: Tokens<'_>,
    gradients: &mut [&mut [Gradient<'_>]],
) {
    let pieces = tokens.parts.iter().flat_map(|(first, Low { runs, h, dh })| {
        runs.iter().map(move |run| {
            let at = run.at..run.at + run.len();
            let rows = first + run.rows.start..first + run.rows.end;
            Piece { of: (run.linear, run.adapter), rows, h: &h[at.clone()], dh: &dh[at] }
        })
    });
    let mut pieces: Vec<_> = pieces.collect();
    // Stable: a target's tokens stay in their order.
    pieces.sort_by_key(|piece| piece.of);
    let targets: Vec<_> = pieces
        .chunk_by(|a, b| a.of == b.of)
        .map(|pieces| {
            let (linear, adapter) = pieces[0].of;
            let factors = linears[linear].adapted[adapter].factors;
            let gradient = &mut gradients[linear][adapter];
            assert_eq!(gradient.a.len(), factors.a.outputs() * factors.a.inputs(), "dA is shaped like A");
            assert_eq!(gradient.b.len(), factors.b.outputs() * factors.b.inputs(), "dB is shaped like B");
            let (a, b) = (Shared::new(gradient.a), Shared::new(gradient.b));
            Target { linear, pieces, scale: factors.scale, rank: factors.rank(), a, b }
        })
        .collect();
    let cut = |of: usize| (0..of).step_by(TASK_COLUMNS).map(move |first| first..of.min(first + TASK_COLUMNS));
    let mut tasks = Vec::new();
    for target in &targets {
        let (_, inputs) = tokens.inputs.all[0];
        tasks.extend(cut(inputs).map(|columns| (target, Part::A(columns))));
        tasks.extend(cut(tokens.dys[target.linear].1).map(|columns| (target, Part::B(columns))));
    }
    let task = |(target, part): &(&Target<'_>, Part)| match part {
        Part::A(columns) => add_a(variant, target, columns, tokens),
        Part::B(columns) => add_b(variant, target, columns, tokens),
    };
    if tasks.len() < 2 { tasks.iter().for_each(task) } else { tasks.par_iter().for_each(task) }
}

/// Blocks of a target's tokens: their first row, how many they are, and their `h` and `dh`.
fn blocks<'a>(target: &'a Target<'_>) -> impl Iterator<Item = (usize, usize, &'a [f32], &'a [f32])> {
    target.pieces.iter().flat_map(|piece| {
        piece.rows.clone().step_by(BLOCK_TOKENS).map(|row| {
            let count = BLOCK_TOKENS.min(piece.rows.end - row);
            let at = (row - piece.rows.start) * target.rank;
            let at = at..at + count * target.rank;
            (row, count, &piece.h[at.clone()], &piece.dh[at])
        })
    })
}

/// Columns of dA, gathered into one block and put back, so that tasks share no row of it.
fn add_a(variant: Variant, target: &Target<'_>, columns: &Range<usize>, tokens: Tokens<'_>) {
    let (x, width) = tokens.inputs.all[tokens.inputs.of[target.linear]];
    let (rank, n) = (target.rank, columns.len());
    scratch::with(rank * n, |sum| {
        // SAFETY: inside dA, and this task's columns.
        let row = |r: usize| unsafe { target.a.slice(r * width + columns.start, n) };
        for (r, sum) in sum.chunks_exact_mut(n).enumerate() {
            sum.copy_from_slice(row(r));
        }
        for (first, count, _, dh) in blocks(target) {
            let x = &x[first * width + columns.start..];
            multiply(variant, (dh, (1, rank)), (x, width), (sum, rank, n), count);
        }
        for (r, sum) in sum.chunks_exact(n).enumerate() {
            row(r).copy_from_slice(sum);
        }
    });
}

fn add_b(variant: Variant, target: &Target<'_>, columns: &Range<usize>, tokens: Tokens<'_>) {
    let (dy, outputs) = tokens.dys[target.linear];
    let (rank, n) = (target.rank, columns.len());
    scratch::with(rank * (n + BLOCK_TOKENS), |buffer| {
        let (sum, scaled) = buffer.split_at_mut(rank * n);
        // SAFETY: rows of dB that are this task's.
        let db = unsafe { target.b.slice(columns.start * rank, n * rank) };
        turn(variant, db, n, sum);
        for (first, count, h, _) in blocks(target) {
            scaled.iter_mut().zip(h).for_each(|(scaled, h)| *scaled = h * target.scale);
            let dy = &dy[first * outputs + columns.start..];
            multiply(variant, (scaled, (1, rank)), (dy, outputs), (sum, rank, n), count);
        }
        turn(variant, sum, rank, db);
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

/// `C[m, n] += A[m, k] B[k, n]`: A with its two strides, B with its row distance, C dense.
fn multiply(
    variant: Variant,
    (a, a_strides): (&[f32], (usize, usize)),
    (b, b_row): (&[f32], usize),
    (c, m, n): (&mut [f32], usize, usize),
    k: usize,
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
        Gemm { m, n, k, a: a.as_ptr(), a_strides, b: b.as_ptr(), b_row, c: c.as_mut_ptr(), c_row: n, accumulate: true };
    simd::run(variant, Product(gemm));
}
