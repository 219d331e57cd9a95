//! Adapted linears where every adapter has few rows, as in decoding: what takes time is reading the factors. Never a gradient.

use super::{Linear, Run, low_inputs, split, with_inputs};
use crate::linear::{ABREAST, Job, Operand, Product, WeightType, Write, for_each, run, run_here, with_operands};
use crate::scratch;
use crate::simd::{Shared, Variant};

/// [`super::forward`] where adapters have few rows each, so that their factors' bytes are what it takes: `W x`, then each run's
/// `A x'` and `B h` by one thread, both factors in one stream. The sums are those of the other form.
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
            scratch::with(beside, |mut beside| {
                let mut jobs = Vec::with_capacity(linears.len());
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
                run(variant, &jobs, Write::Set);
                let onto: Vec<_> =
                    linears.iter().zip(&mut ys).map(|(of, y)| is_beside(of).then(|| Shared::new(y))).collect();
                let streams = Streams { variant, linears, kept, width: x.1, sums: &sums, onto: &onto };
                let inputs: Vec<_> = runs.iter().map(|own| xs[inputs.of[own.linear]].rows(&own.rows, x.1)).collect();
                streams.run(runs, &inputs);
                add_bare_rows(linears, runs, (&sums, &mut ys), rows, write);
            });
        });
    });
}

/// What all runs share.
struct Streams<'a> {
    variant: Variant,
    linears: &'a [&'a Linear<'a>],
    kept: WeightType,
    /// Of the linears' input.
    width: usize,
    /// `[rows, outputs]` of each linear, to which its runs' `B h` are added.
    sums: &'a [Shared<f32>],
    /// The output that a linear's sums are added to, if they are not the output.
    onto: &'a [Option<Shared<f32>>],
}

impl Streams<'_> {
    /// Single rows go abreast, runs of several rows alone.
    fn run(&self, runs: &[Run], xs: &[Operand<'_>]) {
        let mut groups: Vec<(&[Run], &[Operand<'_>])> = Vec::with_capacity(runs.len());
        let mut start = 0;
        for group in runs.chunk_by(|a, b| a.rows.len() == 1 && b.rows.len() == 1) {
            for group in group.chunks(ABREAST) {
                groups.push((group, &xs[start..start + group.len()]));
                start += group.len();
            }
        }
        let multiplications = |run: &Run| run.len() * (self.width + self.outputs(run));
        for_each(
            &groups,
            |(runs, _)| runs.iter().map(multiplications).sum(),
            |&(runs, xs), _| self.run_group(runs, xs),
        );
    }

    fn outputs(&self, run: &Run) -> usize {
        self.linears[run.linear].weight.outputs()
    }

    fn run_group(&self, runs: &[Run], xs: &[Operand<'_>]) {
        scratch::with(runs.iter().map(Run::len).sum(), |h| {
            let down = |((own, &x), h): ((&Run, _), &mut [f32])| {
                (own.factors(self.linears).a().of_all(x, own.rows.len()), h.as_mut_ptr())
            };
            let downs: Vec<_> = runs.iter().zip(xs).zip(split(h, runs)).map(down).collect();
            // SAFETY: each has a part of h to itself.
            unsafe { run_here(self.variant, &downs, false) };
            with_operands(self.variant, &low_inputs(h, runs), self.kept, |low| {
                let up = |(own, &x): (&Run, _)| {
                    let weight = own.factors(self.linears).b();
                    let sum = self.sums[own.linear].at(own.rows.start * self.outputs(own));
                    (Product { weight, x, rows: 0..own.rows.len() }, sum)
                };
                let ups: Vec<_> = runs.iter().zip(low).map(up).collect();
                // SAFETY: runs differ in rows or linear, and their rows are inside the sums.
                unsafe { run_here(self.variant, &ups, true) };
            });
            for own in runs {
                let outputs = self.outputs(own);
                let Some(onto) = self.onto[own.linear] else { continue };
                let own_part = |of: Shared<f32>| {
                    // SAFETY: as above, of both.
                    unsafe { of.slice(own.rows.start * outputs, own.rows.len() * outputs) }
                };
                let (y, sum) = (own_part(onto), own_part(self.sums[own.linear]));
                y.iter_mut().zip(sum).for_each(|(y, sum)| *y += *sum);
            }
        });
    }
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
