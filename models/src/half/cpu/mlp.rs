//! The MLP half on the CPU. Never attention or the head.

use super::{At, Buffer, Cpu, Prepared};
use crate::{Activation, Projection};
use socius_kernels::{norm, swiglu};

/// What the backward pass needs.
pub(crate) struct Saved {
    x: Buffer,
    /// Outputs of the gate and of up.
    inner: Option<[Buffer; 2]>,
}

impl Cpu {
    pub(super) fn feed(&self, at: At<'_, Prepared>, x: Buffer) -> Buffer {
        let inner = self.feed_inner(at, &x);
        let mut y = x;
        self.project_onto(at, Projection::Down, &self.gated(&inner), &mut y);
        y
    }

    pub(super) fn feed_recorded(&self, at: At<'_, Prepared>, x: Buffer) -> (Buffer, Saved) {
        let inner = self.feed_inner(at, &x);
        let mut y = x.clone();
        self.project_onto(at, Projection::Down, &self.gated(&inner), &mut y);
        (y, Saved { x, inner: at.pass.prepared.keeps.then_some(inner) })
    }

    pub(super) fn feed_back(
        &self,
        at: At<'_, Prepared>,
        saved: Saved,
        dy: Buffer,
        gradients: &mut [&mut [f32]],
    ) -> Buffer {
        let Saved { x, inner } = saved;
        let [gate, up] = inner.unwrap_or_else(|| self.feed_inner(at, &x));
        let gated = self.gated(&[&*gate, &up]);
        let d_gated = self.project_back(at, &gated, &[(Projection::Down, &dy)], gradients);
        // The gated product is not needed again: its buffer takes one of the gradients.
        let (mut d_gate, mut d_up) = (gated, Buffer::new(up.len()));
        match self.spec.activation {
            Activation::Silu => swiglu::backward((&gate, &up), &d_gated, (&mut d_gate, &mut d_up)),
        }
        let weight = &self.layers[at.layer].mlp_norm;
        let outputs = [(Projection::Gate, &*d_gate), (Projection::Up, &d_up)];
        let d_normed = self.project_back(at, &self.normed(weight, &x), &outputs, gradients);
        let mut dx = dy;
        norm::backward(self.norm(weight), &x, &d_normed, &mut dx);
        dx
    }

    fn feed_inner(&self, at: At<'_, Prepared>, x: &[f32]) -> [Buffer; 2] {
        let normed = self.normed(&self.layers[at.layer].mlp_norm, x);
        self.project(at, [Projection::Gate, Projection::Up], &normed)
    }

    fn gated(&self, [gate, up]: &[impl AsRef<[f32]>; 2]) -> Buffer {
        let mut y = Buffer::new(gate.as_ref().len());
        match self.spec.activation {
            Activation::Silu => swiglu::forward(gate.as_ref(), up.as_ref(), &mut y),
        }
        y
    }
}
