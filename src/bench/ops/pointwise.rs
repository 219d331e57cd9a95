//! What passes over memory once: norms, rotations, the gate, and AdamW. Never matrix products.

use super::{Op, Shapes, bytes, values};
use crate::train::{AdamW, Learner, optim_step};
use socius_kernels::{
    norm::{self, Norm},
    rope::{self, Turns},
    swiglu,
};
use socius_models::{Layout, Projection};

/// RMSNorm, RoPE and SwiGLU of `rows` tokens, forward and backward.
pub(super) fn all(shapes: Shapes<'_>, rows: usize) -> Vec<Op> {
    [norms(shapes, rows), ropes(shapes, rows), gates(shapes, rows)].into_iter().flatten().collect()
}

fn norms(shapes: Shapes<'_>, rows: usize) -> [Op; 2] {
    let (width, eps, calls) = (shapes.spec.hidden, shapes.spec.norm_eps as f32, 2 * shapes.spec.layers + 1);
    let (weight, x, mut y) = (values(width), values(rows * width), vec![0.0; rows * width]);
    let moved = bytes(2 * x.len());
    let forward =
        Op::new("norm", calls, (0.0, moved), move || norm::forward(Norm { weight: &weight, eps }, &x, &mut y));
    let (weight, x, dy, mut dx) = (values(width), values(rows * width), values(rows * width), vec![0.0; rows * width]);
    let backward = Op::new("norm, backward", calls, (0.0, 2.0 * moved), move || {
        norm::backward(Norm { weight: &weight, eps }, &x, &dy, &mut dx);
    });
    [forward, backward]
}

/// Queries and keys.
fn ropes(shapes: Shapes<'_>, rows: usize) -> [Op; 2] {
    let (dim, widths) = (shapes.spec.head_dim, [shapes.spec.q_dim(), shapes.spec.kv_dim()]);
    let rope = |name, turn: fn(Turns<'_>, &mut [f32], usize)| {
        let (cos, sin) = (vec![0.6; rows * dim / 2], vec![0.8; rows * dim / 2]);
        let mut both = widths.map(|width| values(rows * width));
        let moved = bytes(2 * rows * (widths[0] + widths[1]) + rows * dim);
        Op::new(name, shapes.spec.layers, (0.0, moved), move || {
            for (x, width) in both.iter_mut().zip(widths) {
                turn(Turns { cos: &cos, sin: &sin, dim }, x, width);
            }
        })
    };
    [rope("rope", rope::forward), rope("rope, backward", rope::backward)]
}

fn gates(shapes: Shapes<'_>, rows: usize) -> [Op; 2] {
    let (count, calls) = (rows * shapes.spec.intermediate, shapes.spec.layers);
    let (gate, up, mut y) = (values(count), values(count), vec![0.0; count]);
    let forward = Op::new("swiglu", calls, (0.0, bytes(3 * count)), move || swiglu::forward(&gate, &up, &mut y));
    let (mut gate, mut up, dy) = (values(count), values(count), values(count));
    let backward = Op::new("swiglu, backward", calls, (0.0, bytes(5 * count)), move || {
        swiglu::backward((&mut gate, &mut up), &dy);
    });
    [forward, backward]
}

/// A step of AdamW, with the gradient's norm before and its clearing after.
pub(super) fn adamw(shapes: Shapes<'_>) -> Op {
    let layout = Layout::uniform(shapes.spec, &Projection::ALL, shapes.rank, 2.0);
    let count = layout.len();
    let mut learner = Learner::new(layout, values(count), 0, 0.0);
    // The gradient is read for its norm; then θ, gradient and both moments are read and written.
    Op::new("adamw", 1, (0.0, bytes(9 * count)), move || {
        optim_step(&mut learner, &AdamW::default()).expect("a gradient of zeros is finite");
    })
}
