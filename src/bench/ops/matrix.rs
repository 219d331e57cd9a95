//! Products with weights: linears, low-rank adapters and the head. Never attention.

use super::{Op, Shapes, bytes, values};
use socius_kernels::{
    head::{self, Coefficients, Target},
    linear::{self, Output, PackedLinear, Write},
    lora::{self, Adapted, Factors, Gradient, Linear, Through},
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
    weight: PackedLinear,
    x: Vec<f32>,
    y: Vec<f32>,
    /// Of every adapter.
    factors: Vec<Factors>,
}

impl Site {
    /// The seven of a layer.
    fn all(shapes: Shapes<'_>, rows: usize, adapters: usize) -> Vec<Self> {
        let site = |projection| {
            let (outputs, inputs) = shapes.of(projection);
            let weight = shapes.pack((outputs, inputs));
            let [a, b] = [inputs, outputs].map(|width| values(shapes.rank * width));
            let factors = |_| Factors::new(&a, &b, shapes.rank, 2.0, weight.weight_type());
            let factors = (0..adapters).map(factors).collect();
            Self { weight, x: values(rows * inputs), y: values(rows * outputs), factors }
        };
        Projection::ALL.map(site).into()
    }

    fn rows(&self) -> usize {
        self.x.len() / self.weight.inputs()
    }

    /// The linear, each adapter with its share of the rows.
    fn linear(&self) -> Linear<'_> {
        let share = self.rows() / self.factors.len();
        let adapted = self.factors.iter().enumerate();
        let adapted = adapted.map(|(i, factors)| Adapted { factors, rows: vec![i * share..(i + 1) * share] });
        Linear { weight: &self.weight, adapted: adapted.collect(), dropout: None }
    }
}

/// Operations and bytes of a layer's adapted linears: of the weights, and of the adapters.
fn adapted_work(shapes: Shapes<'_>, sites: &[Site]) -> [(f64, f64); 2] {
    let both = |site: &Site| site.weight.inputs() + site.weight.outputs();
    let products = |site: &Site| site.weight.inputs() * site.weight.outputs();
    let sum = |of: &dyn Fn(&Site) -> f64| sites.iter().map(of).sum::<f64>();
    let base = sum(&|site| (2 * site.rows() * products(site)) as f64);
    let base_moved = sum(&|site| shapes.weight_bytes(products(site)) + bytes(site.x.len() + site.y.len()));
    let low = sum(&|site| (2 * shapes.rank * site.rows() * both(site)) as f64);
    let low_moved = sum(&|site| shapes.weight_bytes(site.factors.len() * shapes.rank * both(site)));
    [(base, base_moved), (low, low_moved)]
}

/// A layer's seven linears, the rows shared out among `adapters`.
pub(super) fn lora_forward(shapes: Shapes<'_>, rows: usize, adapters: usize) -> Op {
    let mut sites = Site::all(shapes, rows, adapters);
    let [(base, base_moved), (low, low_moved)] = adapted_work(shapes, &sites);
    Op::new("adapted linears", shapes.spec.layers, (base + low, base_moved + low_moved), move || {
        for site in &mut sites {
            let mut y = std::mem::take(&mut site.y);
            lora::forward(&site.x, site.rows(), &mut [lora::Output { linear: site.linear(), y: &mut y }], Write::Set);
            site.y = y;
        }
    })
}

/// Their gradient: of the input and of the adapter's factors.
pub(super) fn lora_backward(shapes: Shapes<'_>, rows: usize) -> Op {
    let sites = Site::all(shapes, rows, 1);
    let [(base, base_moved), (low, low_moved)] = adapted_work(shapes, &sites);
    let mut dxs: Vec<_> = sites.iter().map(|site| vec![0.0; site.x.len()]).collect();
    let gradient =
        |site: &Site| [site.weight.inputs(), site.weight.outputs()].map(|width| vec![0.0; shapes.rank * width]);
    let mut gradients: Vec<_> = sites.iter().map(gradient).collect();
    // Of an adapter h again, dh, dA, dB and dx: five products where the forward pass has two.
    let work = (base + 2.5 * low, base_moved + 1.5 * low_moved);
    Op::new("adapted linears, backward", shapes.spec.layers, work, move || {
        for ((site, dx), [a, b]) in sites.iter().zip(&mut dxs).zip(&mut gradients) {
            let through = Through { linear: site.linear(), dy: &site.y, gradients: vec![Gradient { a, b }] };
            lora::backward(&site.x, site.rows(), &mut [through], dx);
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
        std::hint::black_box(head::scores(&weight, &hidden, &targets, None));
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
