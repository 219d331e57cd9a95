//! Adapted linears where every adapter has few rows, as in decoding: what takes time is reading the factors. Never a gradient.

use super::{Linear, Run, low_inputs, split, with_inputs};
use crate::linear::{Job, Product, Stream, WeightType, Write, run, run_streams, with_operands};
use crate::scratch;
use crate::simd::{Shared, Variant};

/// [`super::forward`] where adapters have few rows each, so that their factors' bytes are what it takes: `W x` beside all the `A x'`, then
/// each B in one stream. The sums are those of the other form.
pub(super) fn forward(
    variant: Variant,
    (x, rows): ((&[f32], usize), usize),
    (linears, runs, kept): (&[&Linear<'_>], &[Run], WeightType),
    mut ys: Vec<&mut [f32]>,
    write: Write,
) {
    // What is added to an old output is summed up beside it. Over quantised weights that is B h alone.
    let is_beside = |linear: &Linear<'_>| write == Write::Add || linear.weight.quantised().is_some();
    let beside = linears.iter().zip(&ys).filter(|(linear, _)| is_beside(linear)).map(|(_, y)| y.len()).sum();
    with_inputs(x, linears, |inputs| {
        with_operands(variant, &inputs.all, kept, |xs| {
            scratch::with(runs.iter().map(Run::len).sum(), |h| {
                scratch::with(beside, |mut beside| {
                    let mut jobs = Vec::with_capacity(runs.len() + linears.len());
                    let mut sums: Vec<Shared<f32>> = Vec::with_capacity(linears.len());
                    for (linear, y) in linears.iter().zip(&mut ys) {
                        let sum = match is_beside(linear) {
                            true => beside.split_off_mut(..y.len()).expect("room for every sum"),
                            false => &mut **y,
                        };
                        sums.push(Shared::new(sum));
                        match linear.weight.packed() {
                            Some(weight) => jobs.push(Job::new(rows, vec![weight.of_all(xs[0], rows)], sum)),
                            None => sum.fill(0.0),
                        }
                    }
                    jobs.extend(split(h, runs).into_iter().zip(runs).map(|(h, own)| {
                        let x = xs[inputs.of[own.linear]].rows(&own.rows, x.1);
                        own.job(own.factors(linears).a(), x, h)
                    }));
                    run(variant, &jobs, Write::Set);
                    with_operands(variant, &low_inputs(h, runs), kept, |low| {
                        let streams = runs.iter().zip(low).map(|(own, &x)| Stream {
                            product: Product { weight: own.factors(linears).b(), x, rows: own.rows.clone() },
                            sums: sums[own.linear],
                            onto: is_beside(linears[own.linear]).then(|| Shared::new(ys[own.linear])),
                        });
                        run_streams(variant, &streams.collect::<Vec<_>>());
                    });
                    add_bare_rows(linears, runs, (&sums, &mut ys), rows, write);
                });
            });
        });
    });
}

/// Rows under no adapter: nothing has added their sums to an old output yet.
fn add_bare_rows(
    linears: &[&Linear<'_>],
    runs: &[Run],
    (sums, ys): (&[Shared<f32>], &mut [&mut [f32]]),
    rows: usize,
    write: Write,
) {
    for (i, (linear, y)) in linears.iter().zip(ys).enumerate() {
        if write == Write::Set || linear.weight.quantised().is_some() {
            continue;
        }
        let mut bare = vec![true; rows];
        runs.iter().filter(|run| run.linear == i).for_each(|run| bare[run.rows.clone()].fill(false));
        let width = linear.weight.outputs();
        for row in (0..rows).filter(|&row| bare[row]) {
            // SAFETY: the sums are `[rows, width]`, and nobody else has them now.
            let sum = unsafe { sums[i].slice(row * width, width) };
            y[row * width..][..width].iter_mut().zip(sum).for_each(|(y, sum)| *y += *sum);
        }
    }
}
