//! Where an adapter attaches, and how the factors of a place lie.

use crate::LayerSlot;

/// A linear of a layer that an adapter may modify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum Projection {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Projection {
    /// All of them, in layout order.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Whether it is of the MLP half, and not of the attention half.
    pub fn in_mlp(self) -> bool {
        matches!(self, Self::Gate | Self::Up | Self::Down)
    }

    /// The weight that it names.
    pub fn slot(self) -> LayerSlot {
        match self {
            Self::Q => LayerSlot::Q,
            Self::K => LayerSlot::K,
            Self::V => LayerSlot::V,
            Self::O => LayerSlot::O,
            Self::Gate => LayerSlot::Gate,
            Self::Up => LayerSlot::Up,
            Self::Down => LayerSlot::Down,
        }
    }
}

/// One linear of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Layer, from 0.
    pub layer: usize,
    /// Which linear of it.
    pub projection: Projection,
}

/// The low-rank factors of one site inside θ: `A` is `[rank, inputs]` at `a`, `B` is `[outputs, rank]` at `b`, both row-major.
/// The site computes `y = W x + scale · B (A x)`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "described above")]
pub struct SiteParameters {
    pub site: Site,
    pub rank: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub scale: f32,
    pub a: usize,
    pub b: usize,
}

impl SiteParameters {
    /// `A` inside θ (or a gradient, or an optimiser moment: all share the layout).
    pub fn a_of<'t>(&self, theta: &'t [f32]) -> &'t [f32] {
        &theta[self.a..self.a + self.rank * self.inputs]
    }

    /// `B` inside θ.
    pub fn b_of<'t>(&self, theta: &'t [f32]) -> &'t [f32] {
        &theta[self.b..self.b + self.outputs * self.rank]
    }

    /// `(A, B)` inside a mutable buffer of the same layout.
    pub fn factors_mut<'t>(&self, theta: &'t mut [f32]) -> (&'t mut [f32], &'t mut [f32]) {
        let both = &mut theta[self.a..self.b + self.outputs * self.rank];
        both.split_at_mut(self.b - self.a)
    }
}
