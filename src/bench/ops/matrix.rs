//! Products with weights: linears with their rows' adapters, the packing of an adapter, and the head. Never attention.

use super::{Op, Shapes, bytes, values};
use rayon::prelude::*;
use socius_kernels::{
    head::{self, Target},
    linear::{PackedLinear, Write},
    lora::{self, Adapted, Factors, Gradient, Linear, Output, Through},
};
use socius_models::{Projection, Slot};
use std::{ops::Range, slice};

/// Linears that read the same input, and the adapters that share out its rows.
struct Group {
    rows: usize,
    x: Vec<f32>,
    linears: Vec<(PackedLinear, Vec<Factors>)>,
    /// Of `n` adapters, each has one of `n` equal shares of the rows.
    shares: Vec<Range<usize>>,
}

impl Group {
    fn new(shapes: Shapes<'_>, projections: &[Projection], rows: usize, adapters: usize) -> Self {
        let linear = |&projection| {
            let weight = shapes.pack(shapes.of(projection));
            let factors = (0..adapters).map(|_| factors(shapes, projection)).collect();
            (weight, factors)
        };
        let linears: Vec<_> = projections.iter().map(linear).collect();
        let share = rows / adapters.max(1);
        let shares = (0..adapters).map(|i| i * share..(i + 1) * share).collect();
        Self { rows, x: values(rows * linears[0].0.inputs()), linears, shares }
    }

    /// Each linear with its adapters.
    fn linears(&self) -> impl Iterator<Item = Linear<'_>> {
        self.linears.iter().map(|(weight, factors)| {
            let shares = self.shares.iter().map(slice::from_ref);
            let adapted = factors.iter().zip(shares).map(|(factors, rows)| Adapted { factors, rows });
            Linear { weight, adapted: adapted.collect(), dropout: None }
        })
    }

    /// A buffer for each output.
    fn outputs(&self) -> Vec<Vec<f32>> {
        self.linears.iter().map(|(weight, _)| values(self.rows * weight.outputs())).collect()
    }

    /// Operations of the weights and of the adapters, and bytes of all weights and rows.
    fn work(&self, shapes: Shapes<'_>) -> (f64, f64, f64) {
        let (mut base, mut low, mut kept, mut moved) = (0, 0, 0, self.x.len());
        for (weight, factors) in &self.linears {
            let (inputs, outputs) = (weight.inputs(), weight.outputs());
            base += 2 * self.rows * inputs * outputs;
            low += if factors.is_empty() { 0 } else { 2 * self.rows * shapes.rank * (inputs + outputs) };
            kept += inputs * outputs + factors.len() * shapes.rank * (inputs + outputs);
            moved += self.rows * outputs;
        }
        (base as f64, low as f64, shapes.weight_bytes(kept) + bytes(moved))
    }
}

fn factors(shapes: Shapes<'_>, projection: Projection) -> Factors {
    let (outputs, inputs) = shapes.of(projection);
    let [a, b] = [inputs, outputs].map(|width| values(shapes.rank * width));
    Factors::new(&a, &b, shapes.rank, 2.0, shapes.kept)
}

/// Linears of one input, under adapters or none.
pub(super) fn forward(
    shapes: Shapes<'_>,
    (name, projections): (&str, &[Projection]),
    rows: usize,
    adapters: usize,
) -> Op {
    let group = Group::new(shapes, projections, rows, adapters);
    let (base, low, moved) = group.work(shapes);
    let mut ys = group.outputs();
    Op::new(format!("linear {name}"), shapes.spec.layers, (base + low, moved), move || {
        let outputs = group.linears().zip(&mut ys).map(|(linear, y)| Output { linear, y });
        lora::forward(&group.x, rows, &mut outputs.collect::<Vec<_>>(), Write::Set);
    })
}

/// The gradient of that input and of the adapter's factors.
pub(super) fn backward(shapes: Shapes<'_>, (name, projections): (&str, &[Projection]), rows: usize) -> Op {
    let group = Group::new(shapes, projections, rows, 1);
    let (base, low, moved) = group.work(shapes);
    let (dys, mut dx) = (group.outputs(), vec![0.0; group.x.len()]);
    let widths = |(weight, _): &(PackedLinear, _)| [weight.inputs(), weight.outputs()];
    let gradients = group.linears.iter().map(widths).map(|widths| widths.map(|width| vec![0.0; shapes.rank * width]));
    let mut gradients: Vec<_> = gradients.collect();
    // Of an adapter h again, dh, dA, dB and dx: five products where the forward pass has two.
    let work = (base + 2.5 * low, moved + bytes(group.x.len()));
    Op::new(format!("linear {name}, backward"), shapes.spec.layers, work, move || {
        let through = group.linears().zip(&dys).zip(&mut gradients);
        let through = through.map(|((linear, dy), [a, b])| Through { linear, dy, gradients: vec![Gradient { a, b }] });
        lora::backward(&group.x, rows, &mut through.collect::<Vec<_>>(), &mut dx);
    })
}

/// Packing a layer of an adapter whose parameters have changed, for the way there and the way back.
pub(super) fn pack(shapes: Shapes<'_>) -> Op {
    let Shapes { rank, kept, .. } = shapes;
    let site = |projection| {
        let (outputs, inputs) = shapes.of(projection);
        [values(rank * inputs), values(rank * outputs)]
    };
    let sites = Projection::ALL.map(site);
    let count = sites.iter().flatten().map(Vec::len).sum();
    let moved = bytes(count) + 2.0 * shapes.weight_bytes(count);
    Op::new("adapter, packed", shapes.spec.layers, (0.0, moved), move || {
        sites.par_iter().for_each(|[a, b]| Factors::new(a, b, rank, 2.0, kept).ready_backward());
    })
}

/// The head's weight and `rows` hidden rows, with the work of their logits.
fn head(shapes: Shapes<'_>, rows: usize) -> (PackedLinear, Vec<f32>, (f64, f64)) {
    let size @ (vocab, width) = shapes.shape(Slot::Head);
    let work = ((2 * rows * vocab * width) as f64, shapes.weight_bytes(vocab * width) + bytes(rows * width));
    (shapes.pack(size), values(rows * width), work)
}

/// Logits of every row.
pub(super) fn logits(shapes: Shapes<'_>, rows: usize) -> Op {
    let (weight, hidden, (operations, moved)) = head(shapes, rows);
    let mut logits = vec![0.0; rows * weight.outputs()];
    Op::new("head, logits", 1, (operations, moved + bytes(logits.len())), move || {
        head::logits(&weight, &hidden, &mut logits);
    })
}

/// Logprob, entropy and gradient of every row, its logits never kept.
pub(super) fn scores(shapes: Shapes<'_>, rows: usize) -> Op {
    let (weight, hidden, (operations, moved)) = head(shapes, rows);
    let (tokens, mut by_hidden) = ([(0, 1.0)], vec![0.0; hidden.len()]);
    Op::new("head, logprobs and gradient", 1, (2.0 * operations, 2.0 * moved), move || {
        let targets: Vec<_> = (0..rows).map(|row| Target { row, tokens: &tokens }).collect();
        std::hint::black_box(head::scores(&weight, &hidden, &targets, Some(&mut by_hidden)));
    })
}
