//! An adapter's factors at a linear, packed as the linear's weight is; knows no rows.

use crate::linear::{Packed, PackedLinear, Shape, Slab, WeightType};
use rayon::prelude::*;
use std::sync::Arc;

/// One adapter's factors at one linear, packed.
pub struct Factors {
    pub(super) a: PackedLinear,
    /// Times the scale.
    pub(super) b: PackedLinear,
    pub(super) scale: f32,
}

impl Factors {
    /// Packs `a`, `[rank, in]`, and `b`, `[out, rank]`, both row-major, as `kept`. `scale` is alpha / rank, or alpha / √rank.
    pub fn new(a: &[f32], b: &[f32], rank: usize, scale: f32, kept: WeightType) -> Self {
        assert!(rank > 0 && a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank), "factors of rank {rank}");
        let (inputs, outputs) = (a.len() / rank, b.len() / rank);
        Self {
            a: PackedLinear::new(a, (rank, inputs), kept),
            b: PackedLinear::scaled(b, (outputs, rank), scale, kept),
            scale,
        }
    }

    /// Packs many as [`Factors::new`] does, side by side in large pages: for adapters that decode many steps without a change.
    pub fn together(all: &[Parameters<'_>]) -> Vec<Self> {
        let shapes = |of: &Parameters<'_>| {
            let Parameters { a, b, rank, kept, .. } = *of;
            assert!(rank > 0 && a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank), "factors of rank {rank}");
            let a = Shape { outputs: rank, inputs: a.len() / rank, kept };
            [a, Shape { outputs: b.len() / rank, inputs: rank, kept }]
        };
        let words = |of: &Parameters<'_>| shapes(of).map(Shape::words);
        let Some(mut slab) = Slab::new(all.iter().flat_map(words).sum()) else {
            return all.par_iter().map(|of| Self::new(of.a, of.b, of.rank, of.scale, of.kept)).collect();
        };
        let mut rest = slab.words_mut();
        let mut cut = |len: usize| rest.split_off_mut(..len).expect("room for every factor");
        let pieces: Vec<_> = all.iter().map(|of| (of, words(of).map(&mut cut))).collect();
        pieces.into_par_iter().for_each(|(of, [a, b])| {
            let [of_a, of_b] = shapes(of);
            of_a.fill(a, |output, input| of.a[output * of_a.inputs + input]);
            of_b.fill(b, |output, input| of.scale * of.b[output * of_b.inputs + input]);
        });
        let (slab, mut at) = (Arc::new(slab), 0);
        let mut packed = |shape: Shape| {
            let words = slab.piece(at, shape.words());
            at += shape.words();
            PackedLinear::of_packed(Packed::of_words(shape, words))
        };
        all.iter()
            .map(|of| {
                let [a, b] = shapes(of).map(&mut packed);
                Self { a, b, scale: of.scale }
            })
            .collect()
    }

    /// Packs what the backward pass reads now rather than at its first call.
    pub fn ready_backward(&self) {
        self.a.ready_backward();
        self.b.ready_backward();
    }

    pub(super) fn rank(&self) -> usize {
        self.a.outputs()
    }

    pub(super) fn a(&self) -> &Packed {
        self.a.packed().expect("factors are packed")
    }

    pub(super) fn b(&self) -> &Packed {
        self.b.packed().expect("factors are packed")
    }
}

/// What [`Factors::new`] takes.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// `[rank, in]`.
    pub a: &'a [f32],
    /// `[out, rank]`.
    pub b: &'a [f32],
    /// Rows of A.
    pub rank: usize,
    /// alpha / rank, or alpha / √rank.
    pub scale: f32,
    /// As the linear's weight.
    pub kept: WeightType,
}
