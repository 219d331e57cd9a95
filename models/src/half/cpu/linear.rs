//! Linears of a half with their rows' adapters, forward and backward. Knows sites; never what a half computes between them.

use super::{At, Cpu, Prepared};
use crate::{Projection, Site};
use socius_kernels::linear::{self, Output, PackedLinear, Write};
use socius_kernels::lora::{self, Adapted, Factors, Gradient, Input};
use std::ops::Range;

impl Cpu {
    pub(super) fn weight(&self, layer: usize, projection: Projection) -> &PackedLinear {
        &self.layers[layer].linears[projection as usize]
    }

    /// The projections of `x` with the low-rank parts of its rows' adapters.
    pub(super) fn project<const N: usize>(
        &self,
        at: At<'_, Prepared>,
        projections: [Projection; N],
        x: &[f32],
    ) -> [Vec<f32>; N] {
        let rows = at.pass.batch.tokens().len();
        let weights = projections.map(|projection| self.weight(at.layer, projection));
        let mut ys = weights.map(|weight| vec![0.0; rows * weight.outputs()]);
        let mut outputs: Vec<_> = weights.iter().zip(&mut ys).map(|(weight, y)| Output { weight, y }).collect();
        linear::forward(x, rows, &mut outputs, Write::Set);
        for (projection, y) in projections.into_iter().zip(&mut ys) {
            self.adapt(at, projection, x, y);
        }
        ys
    }

    /// Adds the projection of `x` to `y`: the last linear of a half onto the residual stream. It is summed up on its own first:
    /// a residual stream of thousands (SmolLM2 has such channels) would round each of the sum's many additions to its own size.
    pub(super) fn project_onto(&self, at: At<'_, Prepared>, projection: Projection, x: &[f32], y: &mut [f32]) {
        let [own] = self.project(at, [projection], x);
        y.iter_mut().zip(&own).for_each(|(y, own)| *y += own);
    }

    fn adapt(&self, at: At<'_, Prepared>, projection: Projection, x: &[f32], y: &mut [f32]) {
        let (_, adapted) = adapted(at, projection);
        if adapted.is_empty() {
            return;
        }
        let weight = self.weight(at.layer, projection);
        let mask = |row: usize, factors: &mut [f32]| mask(at, projection, row, factors);
        let dropout = has_dropout(at).then_some(&mask as lora::Mask<'_>);
        lora::forward(Input { x, width: weight.inputs(), dropout }, &adapted, y, weight.outputs());
    }

    /// The gradient of the shared input `x` of `projections` from that of each output; adds to the adapters' gradients.
    pub(super) fn project_back(
        &self,
        at: At<'_, Prepared>,
        x: &[f32],
        outputs: &[(Projection, &[f32])],
        gradients: &mut [&mut [f32]],
    ) -> Vec<f32> {
        let through: Vec<_> = outputs.iter().map(|&(projection, dy)| (self.weight(at.layer, projection), dy)).collect();
        let mut dx = vec![0.0; x.len()];
        linear::backward_input(&through, at.pass.batch.tokens().len(), &mut dx, Write::Set);
        for &(projection, dy) in outputs {
            let (owners, adapted) = adapted(at, projection);
            if adapted.is_empty() {
                continue;
            }
            let weight = self.weight(at.layer, projection);
            let site = Site { layer: at.layer, projection };
            let mut into = Vec::with_capacity(owners.len());
            for (adapter, gradient) in gradients.iter_mut().enumerate() {
                if owners.contains(&adapter) {
                    let parameters = at.pass.adapters[adapter].layout.at(site).expect("an owner has the site");
                    let (a, b) = parameters.factors_mut(gradient);
                    into.push(Gradient { a, b });
                }
            }
            let mask = |row: usize, factors: &mut [f32]| mask(at, projection, row, factors);
            let dropout = has_dropout(at).then_some(&mask as lora::Mask<'_>);
            let input = Input { x, width: weight.inputs(), dropout };
            lora::backward(input, &adapted, lora::Backward { dy, outputs: weight.outputs(), dx: &mut dx }, &mut into);
        }
        dx
    }
}

/// The adapters that have this site and rows in the pass, ascending, and their factors and rows.
fn adapted(at: At<'_, Prepared>, projection: Projection) -> (Vec<usize>, Vec<Adapted<'_>>) {
    let site = Site { layer: at.layer, projection };
    let mut rows: Vec<Vec<Range<usize>>> = vec![Vec::new(); at.pass.adapters.len()];
    for (tokens, adapter) in &at.pass.segments {
        if let Some(adapter) = *adapter {
            rows[adapter].push(tokens.clone());
        }
    }
    let all = rows.into_iter().zip(at.pass.adapters).enumerate();
    all.filter_map(|(i, (rows, adapter))| {
        let parameters = adapter.layout.at(site).filter(|_| !rows.is_empty())?;
        let (a, b) = (parameters.a_of(adapter.theta), parameters.b_of(adapter.theta));
        Some((i, Adapted { factors: Factors { a, b, rank: parameters.rank, scale: parameters.scale }, rows }))
    })
    .unzip()
}

fn has_dropout(at: At<'_, Prepared>) -> bool {
    at.pass.batch.spans().iter().any(|span| span.dropout.is_some())
}

/// The dropout factors of the input of a packed token, if its row has dropout.
fn mask(at: At<'_, Prepared>, projection: Projection, token: usize, factors: &mut [f32]) -> bool {
    let (row, token) = at.pass.prepared.places[token];
    let Some(dropout) = at.pass.batch.spans()[row].dropout else { return false };
    dropout.factors(Site { layer: at.layer, projection }, token, factors);
    true
}
