//! The operations that a training step and a decode step are made of, each by itself at a base's shapes. Never measures them.

mod attention;
mod matrix;
mod pointwise;

use socius_kernels::linear::{PackedLinear, WeightType};
use socius_models::{Projection, Slot, Spec};

/// One operation, ready to run again and again on the same buffers.
pub struct Op {
    /// What it computes.
    pub name: String,
    /// How often a step computes it.
    pub calls: usize,
    /// Multiplications and additions of the matrix products in one call; what else is computed is not counted.
    pub operations: f64,
    /// Bytes that one call must read or write at least, if each is moved once.
    pub bytes: f64,
    run: Box<dyn FnMut()>,
}

impl Op {
    fn new(name: impl Into<String>, calls: usize, work: (f64, f64), run: impl FnMut() + 'static) -> Self {
        let (operations, bytes) = work;
        Self { name: name.into(), calls, operations, bytes, run: Box::new(run) }
    }

    /// Runs it once.
    pub fn run(&mut self) {
        (self.run)();
    }
}

/// The shapes of a step.
#[derive(Clone, Copy)]
pub struct Shapes<'a> {
    /// The base; its weights are random here.
    pub spec: &'a Spec,
    /// What weights are kept as.
    pub kept: WeightType,
    /// Rows of the batch.
    pub batch: usize,
    /// Tokens of a row: of a training row, or of what a decoding row has read.
    pub length: usize,
    /// Rank of the adapters, which are on every linear.
    pub rank: usize,
}

/// Linears that read the same input, in the order of a layer.
const LINEARS: [(&str, &[Projection]); 4] = [
    ("q k v", &[Projection::Q, Projection::K, Projection::V]),
    ("o", &[Projection::O]),
    ("gate up", &[Projection::Gate, Projection::Up]),
    ("down", &[Projection::Down]),
];

impl Shapes<'_> {
    /// The operations of a training step of one learner, every position trained.
    pub fn train(self) -> Vec<Op> {
        let rows = self.batch * self.length;
        let forward = LINEARS.map(|linears| matrix::forward(self, linears, rows, 1));
        let backward = LINEARS.map(|linears| matrix::backward(self, linears, rows));
        let rest = [
            attention::forward(self),
            attention::backward(self),
            matrix::scores(self, rows),
            matrix::pack(self),
            pointwise::adamw(self),
        ];
        forward.into_iter().chain(backward).chain(rest).chain(pointwise::all(self, rows)).collect()
    }

    /// The operations of a decode step whose rows share out `adapters` among them, or have none; what only moves a row or two is
    /// left out.
    pub fn decode(self, adapters: usize) -> Vec<Op> {
        let linears = LINEARS.map(|linears| matrix::forward(self, linears, self.batch, adapters));
        linears.into_iter().chain([attention::decode(self), matrix::logits(self, self.batch)]).collect()
    }

    /// `[out, in]` of a linear.
    fn shape(self, slot: Slot) -> (usize, usize) {
        let shape = self.spec.shape(slot);
        (shape[0], shape[1])
    }

    fn of(self, projection: Projection) -> (usize, usize) {
        self.shape(Slot::Layer(0, projection.slot()))
    }

    fn pack(self, (outputs, inputs): (usize, usize)) -> PackedLinear {
        PackedLinear::new(&values(outputs * inputs), (outputs, inputs), self.kept)
    }

    /// Bytes of a weight of `count` values.
    fn weight_bytes(self, count: usize) -> f64 {
        let width = match self.kept {
            WeightType::Bf16 => 2,
            WeightType::F32 => 4,
        };
        (count * width) as f64
    }
}

/// Bytes of `count` f32.
fn bytes(count: usize) -> f64 {
    (count * size_of::<f32>()) as f64
}

/// `count` values within ±0.5.
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37) % 254) as f32 / 254.0 - 0.499).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_a_step_runs_and_says_what_it_costs() {
        let spec = Spec::tiny();
        for kept in [WeightType::Bf16, WeightType::F32] {
            let shapes = Shapes { spec: &spec, kept, batch: 3, length: 5, rank: 2 };
            for mut op in shapes.train().into_iter().chain(shapes.decode(0)).chain(shapes.decode(3)) {
                op.run();
                op.run();
                assert!(op.calls > 0 && op.operations >= 0.0 && op.bytes > 0.0, "{}", op.name);
            }
        }
    }

    #[test]
    fn the_linears_are_every_projection_once_and_cost_two_operations_a_weight_and_row() {
        let spec = Spec::tiny();
        let shapes = Shapes { spec: &spec, kept: WeightType::F32, batch: 1, length: 7, rank: 1 };
        let all: Vec<_> = LINEARS.iter().flat_map(|(_, projections)| projections.iter().copied()).collect();
        assert_eq!(all, Projection::ALL);
        let weights: usize = all.iter().map(|&projection| shapes.of(projection)).map(|(o, i)| o * i).sum();
        let ops = shapes.decode(0);
        let found: f64 = ops.iter().filter(|op| op.name.starts_with("linear")).map(|op| op.operations).sum();
        assert_eq!(found, (2 * weights) as f64);
    }
}
