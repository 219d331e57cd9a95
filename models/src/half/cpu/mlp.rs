//! The MLP half on the CPU. Never attention or the head.

use super::{At, Buffer, Cpu, Part, Prepared, in_parts};
use crate::{Activation, LayerSlot, Projection};
use socius_kernels::{norm, swiglu};

/// What the backward pass needs.
pub(crate) struct Saved {
    x: Buffer,
    /// Outputs of the gate and of up.
    inner: Option<[Buffer; 2]>,
}

impl Cpu {
    pub(super) fn feed(&self, at: At<'_, Prepared>, x: Buffer) -> Buffer {
        let mut y = x;
        in_parts(at, [(&mut y, self.spec.hidden)], |part, [y]| {
            let [mut gate, mut up] = [(); 2].map(|()| Buffer::new(part.count * self.spec.intermediate));
            self.feed_inner(part, y, [&mut gate, &mut up]);
            self.feed_onto(part, [&gate, &up], y);
        });
        y
    }

    pub(super) fn feed_recorded(&self, at: At<'_, Prepared>, x: Buffer) -> (Buffer, Saved) {
        if at.pass.prepared.kept_from > 2 * at.layer + 1 {
            return (self.feed(at, x.clone()), Saved { x, inner: None });
        }
        let (hidden, wide) = (self.spec.hidden, self.spec.intermediate);
        let rows = x.len() / hidden;
        let (mut y, mut gate, mut up) = (Buffer::new(x.len()), Buffer::new(rows * wide), Buffer::new(rows * wide));
        in_parts(at, [(&mut y, hidden), (&mut gate, wide), (&mut up, wide)], |part, [y, gate, up]| {
            let x = part.of(&x, hidden);
            self.feed_inner(part, x, [gate, up]);
            y.copy_from_slice(x);
            self.feed_onto(part, [gate, up], y);
        });
        (y, Saved { x, inner: Some([gate, up]) })
    }

    pub(super) fn feed_back(
        &self,
        at: At<'_, Prepared>,
        saved: Saved,
        dy: Buffer,
        gradients: &mut [&mut [f32]],
    ) -> Buffer {
        let Saved { x, inner } = saved;
        let (hidden, wide) = (self.spec.hidden, self.spec.intermediate);
        let rows = x.len() / hidden;
        let is_kept = inner.is_some();
        let [mut gate, mut up] = inner.unwrap_or_else(|| [(); 2].map(|()| Buffer::new(rows * wide)));
        let (mut dx, mut normed, mut gated) = (Buffer::new(x.len()), Buffer::new(x.len()), Buffer::new(gate.len()));
        let weight = &self.layers[at.layer].mlp_norm;
        // Of all rows only where the norm learns.
        let kept = if at.pass.whole.is_some() { hidden } else { 0 };
        let mut d_normed = Buffer::new(rows * kept);
        let [dx_cut, normed_cut] = [&mut dx, &mut normed].map(|buffer| (&mut **buffer, hidden));
        let [gated_cut, gate_cut, up_cut] = [&mut gated, &mut gate, &mut up].map(|buffer| (&mut **buffer, wide));
        let d_normed_cut = (&mut *d_normed, kept);
        let buffers = [dx_cut, normed_cut, gated_cut, gate_cut, up_cut, d_normed_cut];
        let parts = in_parts(at, buffers, |part, [dx, normed, gated, gate, up, d_normed]| {
            let (x, dy) = (part.of(&x, hidden), part.of(&dy, hidden));
            if !is_kept {
                self.feed_inner(part, x, [gate, up]);
            }
            self.gate([gate, up], gated);
            let mut d_gated = Buffer::new(gated.len());
            let down = self.project_back(part, gated, &[(Projection::Down, dy)], &mut d_gated);
            // Gate and up are not needed again: they become their gradients.
            match self.spec.activation {
                Activation::Silu => swiglu::backward((gate, up), &d_gated),
            }
            norm::forward(self.norm(weight), x, normed);
            let mut own = Buffer::new(x.len() - d_normed.len());
            let d_normed = if kept > 0 { d_normed } else { &mut *own };
            let outputs = [(Projection::Gate, &*gate), (Projection::Up, up)];
            let wide = self.project_back(part, normed, &outputs, d_normed);
            dx.copy_from_slice(dy);
            norm::backward(self.norm(weight), x, d_normed, dx);
            (down, wide)
        });
        let (down, wide): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        self.add_norm_gradient(at, (LayerSlot::MlpNorm, weight), &x, &d_normed, gradients);
        self.add_gradients(at, &gated, &down, &[(Projection::Down, &dy)], gradients);
        let outputs = [(Projection::Gate, &*gate), (Projection::Up, &up)];
        self.add_gradients(at, &normed, &wide, &outputs, gradients);
        dx
    }

    /// Outputs of the gate and of up.
    fn feed_inner(&self, part: Part<'_>, x: &[f32], outputs: [&mut [f32]; 2]) {
        let normed = self.normed(&self.layers[part.at.layer].mlp_norm, x);
        self.project(part, [Projection::Gate, Projection::Up], &normed, outputs);
    }

    /// Adds what the half makes of the gate and of up.
    fn feed_onto(&self, part: Part<'_>, inner: [&[f32]; 2], y: &mut [f32]) {
        let mut gated = Buffer::new(inner[0].len());
        self.gate(inner, &mut gated);
        self.project_onto(part, Projection::Down, &gated, y);
    }

    fn gate(&self, [gate, up]: [&[f32]; 2], y: &mut [f32]) {
        match self.spec.activation {
            Activation::Silu => swiglu::forward(gate, up, y),
        }
    }
}
