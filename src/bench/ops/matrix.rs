//! Products with weights: linears, low-rank adapters and the head. Never attention.

use super::{Op, Shapes, bytes, values};
use socius_kernels::{
    head::{self, Coefficients, Target},
    linear::{self, Output, PackedLinear, Write},
    lora::{self, Adapted, Factors, Gradient, Input},
};
use socius_models::{Projection, Slot};

/// Operations and bytes of products of `rows` rows with weights `[out, in]` that share their input.
fn work(shapes: Shapes<'_>, rows: usize, weights: &[(usize, usize)]) -> (f64, f64) {
    let products: usize = weights.iter().map(|(outputs, inputs)| outputs * inputs).sum();
    let outputs: usize = weights.iter().map(|(outputs, _)| outputs).sum();
    let moved = shapes.weight_bytes(products) + bytes(rows * (weights[0].1 + outputs));
    ((2 * rows * products) as f64, moved)
}

/// Linears of one input.
pub(super) fn forward(shapes: Shapes<'_>, name: &str, projections: &[Projection], rows: usize) -> Op {
    let sizes: Vec<_> = projections.iter().map(|&projection| shapes.of(projection)).collect();
    let weights: Vec<PackedLinear> = sizes.iter().map(|&size| shapes.pack(size)).collect();
    let x = values(rows * sizes[0].1);
    let mut ys: Vec<_> = sizes.iter().map(|(outputs, _)| vec![0.0; rows * outputs]).collect();
    Op::new(format!("linear {name}"), shapes.spec.layers, work(shapes, rows, &sizes), move || {
        let mut outputs: Vec<_> = weights.iter().zip(&mut ys).map(|(weight, y)| Output { weight, y }).collect();
        linear::forward(&x, rows, &mut outputs, Write::Set);
    })
}

/// The gradient of that input.
pub(super) fn backward(shapes: Shapes<'_>, name: &str, projections: &[Projection], rows: usize) -> Op {
    let sizes: Vec<_> = projections.iter().map(|&projection| shapes.of(projection)).collect();
    let weights: Vec<PackedLinear> = sizes.iter().map(|&size| shapes.pack(size)).collect();
    let dys: Vec<_> = sizes.iter().map(|(outputs, _)| values(rows * outputs)).collect();
    let mut dx = vec![0.0; rows * sizes[0].1];
    Op::new(format!("linear {name}, backward"), shapes.spec.layers, work(shapes, rows, &sizes), move || {
        let through: Vec<_> = weights.iter().zip(&dys).map(|(weight, dy)| (weight, dy.as_slice())).collect();
        linear::backward_input(&through, rows, &mut dx, Write::Set);
    })
}

/// One adapted linear of a layer.
struct Site {
    inputs: usize,
    outputs: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    /// A and B of every adapter.
    factors: Vec<[Vec<f32>; 2]>,
}

impl Site {
    /// The seven of a layer.
    fn all(shapes: Shapes<'_>, rows: usize, adapters: usize) -> Vec<Self> {
        let site = |projection| {
            let (outputs, inputs) = shapes.of(projection);
            let factors = (0..adapters).map(|_| [inputs, outputs].map(|width| values(shapes.rank * width)));
            Self { inputs, outputs, x: values(rows * inputs), y: values(rows * outputs), factors: factors.collect() }
        };
        Projection::ALL.map(site).into()
    }

    fn input(&self) -> Input<'_> {
        Input { x: &self.x, width: self.inputs, dropout: None }
    }

    /// Each adapter with its share of the rows.
    fn adapted<'s>(&'s self, rank: usize) -> Vec<Adapted<'s>> {
        let share = self.x.len() / self.inputs / self.factors.len();
        let adapted = |(i, [a, b]): (usize, &'s [Vec<f32>; 2])| {
            let own = i * share..(i + 1) * share;
            Adapted { factors: Factors { a, b, rank, scale: 2.0 }, rows: vec![own] }
        };
        self.factors.iter().enumerate().map(adapted).collect()
    }
}

/// Operations and bytes of the low-rank products of a layer.
fn lora_work(sites: &[Site], rank: usize) -> (f64, f64) {
    let both = |site: &Site| site.inputs + site.outputs;
    let operations: usize = sites.iter().map(|site| 2 * rank * site.x.len() / site.inputs * both(site)).sum();
    let moved: usize = sites.iter().map(|s| s.factors.len() * rank * both(s) + s.x.len() + 2 * s.y.len()).sum();
    (operations as f64, bytes(moved))
}

/// The adapters' part of a layer's seven linears, the rows shared out among `adapters`.
pub(super) fn lora_forward(shapes: Shapes<'_>, rows: usize, adapters: usize) -> Op {
    let (mut sites, rank) = (Site::all(shapes, rows, adapters), shapes.rank);
    Op::new("lora", shapes.spec.layers, lora_work(&sites, rank), move || {
        for site in &mut sites {
            let mut y = std::mem::take(&mut site.y);
            lora::forward(site.input(), &site.adapted(rank), &mut y, site.outputs);
            site.y = y;
        }
    })
}

/// Its gradient: of the input and of both factors.
pub(super) fn lora_backward(shapes: Shapes<'_>, rows: usize) -> Op {
    let (sites, rank) = (Site::all(shapes, rows, 1), shapes.rank);
    let (operations, moved) = lora_work(&sites, rank);
    let mut dxs: Vec<_> = sites.iter().map(|site| vec![0.0; site.x.len()]).collect();
    let mut gradients: Vec<_> = sites.iter().map(|site| site.factors[0].clone()).collect();
    // h again, dh, dA, dB and dx: five products where the forward pass has two.
    Op::new("lora, backward", shapes.spec.layers, (2.5 * operations, 1.5 * moved), move || {
        for ((site, dx), [a, b]) in sites.iter().zip(&mut dxs).zip(&mut gradients) {
            let through = lora::Backward { dy: &site.y, outputs: site.outputs, dx };
            lora::backward(site.input(), &site.adapted(rank), through, &mut [Gradient { a, b }]);
        }
    })
}

/// The head's weight and `rows` hidden rows.
fn head(shapes: Shapes<'_>, rows: usize) -> (PackedLinear, Vec<f32>, (f64, f64)) {
    let size @ (vocab, width) = shapes.shape(Slot::Head);
    let work = ((2 * rows * vocab * width) as f64, shapes.weight_bytes(vocab * width) + bytes(rows * width));
    (shapes.pack(size), values(rows * width), work)
}

/// Logits of every row.
pub(super) fn head_logits(shapes: Shapes<'_>, rows: usize) -> Op {
    let (weight, hidden, (operations, moved)) = head(shapes, rows);
    let mut logits = vec![0.0; rows * weight.outputs()];
    Op::new("head, logits", 1, (operations, moved + bytes(logits.len())), move || {
        head::logits(&weight, &hidden, &mut logits);
    })
}

/// Logprobs and entropies of every row.
pub(super) fn head_scores(shapes: Shapes<'_>, rows: usize) -> Op {
    let (weight, hidden, work) = head(shapes, rows);
    let tokens = [(0, 1.0)];
    Op::new("head, logprobs", 1, work, move || {
        let targets: Vec<_> = (0..rows).map(|row| Target { row, tokens: &tokens }).collect();
        std::hint::black_box(head::scores(&weight, &hidden, &targets));
    })
}

/// The gradient of every row: logits again, and back.
pub(super) fn head_backward(shapes: Shapes<'_>, rows: usize) -> Op {
    let (weight, hidden, (operations, moved)) = head(shapes, rows);
    let (tokens, logprobs) = ([(0, 1.0)], vec![1.0; rows]);
    let mut d_hidden = vec![0.0; hidden.len()];
    Op::new("head, backward", 1, (2.0 * operations, 2.0 * moved), move || {
        let targets: Vec<_> = (0..rows).map(|row| Target { row, tokens: &tokens }).collect();
        let coefficients = Coefficients { logprobs: &logprobs, entropies: None };
        head::backward(&weight, &hidden, &targets, coefficients, &mut d_hidden);
    })
}
