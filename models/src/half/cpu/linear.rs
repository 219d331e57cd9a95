//! Linears of a half with their rows' adapters, forward and backward. Knows sites; never what a half computes between them.

use super::{At, Buffer, Cpu, Prepared};
use crate::{Adapter, Projection, Site};
use rayon::prelude::*;
use socius_kernels::linear::{PackedLinear, Write};
use socius_kernels::lora::{self, Adapted, Factors, Gradient, Linear, Output, Through};
use std::ops::Range;
use std::sync::Arc;

impl Cpu {
    pub(super) fn weight(&self, layer: usize, projection: Projection) -> &PackedLinear {
        &self.layers[layer].linears[projection as usize]
    }

    /// The factors of every site of `adapter`, kept as the weights are; what the way back reads too if the pass is `recorded`.
    pub(super) fn pack(&self, adapter: &Adapter<'_>, recorded: bool) -> Arc<[Factors]> {
        let site = |parameters: &crate::SiteParameters| {
            let kept = self.weight(parameters.site.layer, parameters.site.projection).weight_type();
            let (a, b) = (parameters.a_of(adapter.theta), parameters.b_of(adapter.theta));
            let factors = Factors::new(a, b, parameters.rank, parameters.scale, kept);
            if recorded {
                factors.ready_backward();
            }
            factors
        };
        adapter.layout.sites().par_iter().map(site).collect::<Vec<_>>().into()
    }

    /// The projections of `x` with the low-rank parts of its rows' adapters.
    pub(super) fn project<const N: usize>(
        &self,
        at: At<'_, Prepared>,
        projections: [Projection; N],
        x: &[f32],
    ) -> [Buffer; N] {
        let rows = at.pass.batch.tokens().len();
        let mut ys = projections.map(|projection| Buffer::new(rows * self.weight(at.layer, projection).outputs()));
        let masks =
            projections.map(|projection| move |row: usize, factors: &mut [f32]| mask(at, projection, row, factors));
        let all = projections.iter().zip(&masks).zip(&mut ys);
        let outputs = all.map(|((&projection, mask), y)| Output { linear: self.linear(at, projection, mask), y });
        lora::forward(x, rows, &mut outputs.collect::<Vec<_>>(), Write::Set);
        ys
    }

    /// Adds the projection of `x` to `y`: the last linear of a half onto the residual stream.
    pub(super) fn project_onto(&self, at: At<'_, Prepared>, projection: Projection, x: &[f32], y: &mut [f32]) {
        let mask = move |row: usize, factors: &mut [f32]| mask(at, projection, row, factors);
        let output = Output { linear: self.linear(at, projection, &mask), y };
        lora::forward(x, at.pass.batch.tokens().len(), &mut [output], Write::Add);
    }

    /// The gradient of the shared input `x` of `projections` from that of each output; adds to the adapters' gradients.
    pub(super) fn project_back(
        &self,
        at: At<'_, Prepared>,
        x: &[f32],
        outputs: &[(Projection, &[f32])],
        gradients: &mut [&mut [f32]],
    ) -> Buffer {
        let masks: Vec<_> = outputs
            .iter()
            .map(|&(projection, _)| move |row: usize, factors: &mut [f32]| mask(at, projection, row, factors))
            .collect();
        let mut through: Vec<_> = outputs
            .iter()
            .zip(&masks)
            .map(|(&(projection, dy), mask)| Through {
                linear: self.linear(at, projection, mask),
                dy,
                gradients: Vec::new(),
            })
            .collect();
        for (adapter, gradient) in gradients.iter_mut().enumerate() {
            let mut rest = &mut **gradient;
            let mut passed = 0;
            for (through, &(projection, _)) in through.iter_mut().zip(outputs) {
                let Some(parameters) = site_of(at, projection, adapter) else { continue };
                let both = rest.split_off_mut(parameters.a - passed..).expect("a gradient is shaped like its layout");
                let (a, tail) = both.split_at_mut(parameters.b - parameters.a);
                let (b, tail) = tail.split_at_mut(parameters.outputs * parameters.rank);
                through.gradients.push(Gradient { a, b });
                (rest, passed) = (tail, parameters.b + parameters.outputs * parameters.rank);
            }
        }
        let mut dx = Buffer::new(x.len());
        lora::backward(x, at.pass.batch.tokens().len(), &mut through, &mut dx);
        dx
    }

    fn linear<'a>(&'a self, at: At<'a, Prepared>, projection: Projection, mask: lora::Mask<'a>) -> Linear<'a> {
        let has_dropout = at.pass.batch.spans().iter().any(|span| span.dropout.is_some());
        Linear {
            weight: self.weight(at.layer, projection),
            adapted: adapted(at, projection),
            dropout: has_dropout.then_some(mask),
        }
    }
}

/// The site of `adapter` at this projection, if it has one and has rows in the pass.
fn site_of<'a>(at: At<'a, Prepared>, projection: Projection, adapter: usize) -> Option<&'a crate::SiteParameters> {
    let has_rows = at.pass.segments.iter().any(|(_, of)| *of == Some(adapter));
    at.pass.adapters[adapter].layout.at(Site { layer: at.layer, projection }).filter(|_| has_rows)
}

/// The adapters that have this site and rows in the pass, ascending, with their factors and rows.
fn adapted(at: At<'_, Prepared>, projection: Projection) -> Vec<Adapted<'_>> {
    let site = Site { layer: at.layer, projection };
    let mut rows: Vec<Vec<Range<usize>>> = vec![Vec::new(); at.pass.adapters.len()];
    for (tokens, adapter) in &at.pass.segments {
        if let Some(adapter) = *adapter {
            rows[adapter].push(tokens.clone());
        }
    }
    let mut all = Vec::new();
    for (adapter, rows) in rows.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        if let Some(index) = at.pass.adapters[adapter].layout.index_of(site) {
            all.push(Adapted { factors: &at.pass.prepared.factors[adapter][index], rows });
        }
    }
    all
}

/// The dropout factors of the input of a packed token, if its row has dropout.
fn mask(at: At<'_, Prepared>, projection: Projection, token: usize, factors: &mut [f32]) -> bool {
    let (row, token) = at.pass.prepared.places[token];
    let Some(dropout) = at.pass.batch.spans()[row].dropout else { return false };
    dropout.factors(Site { layer: at.layer, projection }, token, factors);
    true
}
