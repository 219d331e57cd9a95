//! Linears of a half with their rows' adapters, forward and backward. Knows sites; never what a half computes between them.

use super::{At, Cpu, Part, Prepared};
use crate::{Adapter, LayerSlot, Projection, Site, Slot};
use rayon::prelude::*;
use socius_kernels::linear::{PackedLinear, WeightGradient, Write, add_weight_gradients};
use socius_kernels::lora::{self, Adapted, Factors, Gradient, Linear, Low, Output, Parameters, Through};
use socius_kernels::norm;
use std::sync::Arc;

impl Cpu {
    pub(super) fn weight(&self, layer: usize, projection: Projection) -> &PackedLinear {
        &self.layers[layer].linears[projection as usize]
    }

    /// The factors of every site of `adapter`, kept as the weights are; what the way back reads too if the pass is `recorded`.
    pub(super) fn pack(&self, adapter: &Adapter<'_>, recorded: bool) -> Arc<[Factors]> {
        let site = |parameters: &crate::SiteParameters| Parameters {
            a: parameters.a_of(adapter.theta),
            b: parameters.b_of(adapter.theta),
            rank: parameters.rank,
            scale: parameters.scale,
            kept: self.weight(parameters.site.layer, parameters.site.projection).weight_type(),
        };
        let sites: Vec<_> = adapter.layout.sites().iter().map(site).collect();
        // Memory of its own is worth its page faults to parameters that stay.
        let factors = match adapter.packed {
            Some(_) => Factors::together(&sites),
            None => sites.par_iter().map(|of| Factors::new(of.a, of.b, of.rank, of.scale, of.kept)).collect(),
        };
        if recorded {
            factors.par_iter().for_each(Factors::ready_backward);
        }
        factors.into()
    }

    /// Sets `ys` to the projections of `x` with the low-rank parts of its rows' adapters.
    pub(super) fn project<const N: usize>(
        &self,
        part: Part<'_>,
        projections: [Projection; N],
        x: &[f32],
        ys: [&mut [f32]; N],
    ) {
        self.with_linears(part, &projections, |linears| {
            let outputs = linears.into_iter().zip(ys).map(|(linear, y)| Output { linear, y });
            lora::forward(x, part.count, &mut outputs.collect::<Vec<_>>(), Write::Set);
        });
    }

    /// Adds the projection of `x` to `y`: the last linear of a half onto the residual stream.
    pub(super) fn project_onto(&self, part: Part<'_>, projection: Projection, x: &[f32], y: &mut [f32]) {
        self.with_linears(part, &[projection], |linears| {
            let outputs = linears.into_iter().zip([y]).map(|(linear, y)| Output { linear, y });
            lora::forward(x, part.count, &mut outputs.collect::<Vec<_>>(), Write::Add);
        });
    }

    /// Sets `dx` to the gradient of the shared input `x` of `projections` from that of each output; returns what
    /// [`Self::add_gradients`] needs.
    pub(super) fn project_back(
        &self,
        part: Part<'_>,
        x: &[f32],
        outputs: &[(Projection, &[f32])],
        dx: &mut [f32],
    ) -> (usize, Low) {
        let projections: Vec<_> = outputs.iter().map(|&(projection, _)| projection).collect();
        self.with_linears(part, &projections, |linears| {
            let through: Vec<_> = linears.iter().zip(outputs).map(|(linear, &(_, dy))| (linear, dy)).collect();
            (part.first, lora::backward_input(x, part.count, &through, dx))
        })
    }

    /// Adds to the gradients of `outputs`, those of their adapters or of the weights if these learn, over the shared input `x`; `parts`
    /// are from [`Self::project_back`], of the same rows.
    pub(super) fn add_gradients<const N: usize>(
        &self,
        at: At<'_, Prepared>,
        x: &[f32],
        parts: &[(usize, Low)],
        outputs: &[(Projection, &[f32]); N],
        gradients: &mut [&mut [f32]],
    ) {
        let whole = Part::whole(at);
        if let Some((layout, gradient)) = at.pass.learned(gradients) {
            let slots = outputs.map(|(projection, _)| Slot::Layer(at.layer, projection.slot()));
            let into = layout.gradients_of(gradient, slots);
            let own = into.into_iter().zip(outputs).map(|(into, &(_, dy))| WeightGradient { x, dy, into });
            return add_weight_gradients(whole.count, &mut own.collect::<Vec<_>>());
        }
        let projections: Vec<_> = outputs.iter().map(|&(projection, _)| projection).collect();
        self.with_linears(whole, &projections, |linears| {
            let through = linears.into_iter().zip(outputs);
            let through = through.map(|(linear, &(_, dy))| Through { linear, dy, gradients: Vec::new() });
            let mut through: Vec<_> = through.collect();
            for (adapter, gradient) in gradients.iter_mut().enumerate() {
                let mut rest = &mut **gradient;
                let mut passed = 0;
                for (through, &(projection, _)) in through.iter_mut().zip(outputs) {
                    let Some(parameters) = site_of(whole, projection, adapter) else { continue };
                    let both =
                        rest.split_off_mut(parameters.a - passed..).expect("a gradient is shaped like its layout");
                    let (a, tail) = both.split_at_mut(parameters.b - parameters.a);
                    let (b, tail) = tail.split_at_mut(parameters.outputs * parameters.rank);
                    through.gradients.push(Gradient { a, b });
                    (rest, passed) = (tail, parameters.b + parameters.outputs * parameters.rank);
                }
            }
            lora::add_gradients(x, whole.count, parts, &mut through);
        });
    }

    /// Adds to the gradient of a layer's norm if it learns; `dy` is of all rows then.
    pub(super) fn add_norm_gradient(
        &self,
        at: At<'_, Prepared>,
        (slot, weight): (LayerSlot, &[f32]),
        x: &[f32],
        dy: &[f32],
        gradients: &mut [&mut [f32]],
    ) {
        if let Some((layout, gradient)) = at.pass.learned(gradients) {
            let into = layout.gradients_of(gradient, [Slot::Layer(at.layer, slot)]);
            into.into_iter().for_each(|into| norm::add_gain_gradient(self.norm(weight), x, dy, into));
        }
    }

    /// Lends `body` the linears of `projections` with the adapters of the part's rows.
    fn with_linears<R>(
        &self,
        part: Part<'_>,
        projections: &[Projection],
        body: impl FnOnce(Vec<Linear<'_>>) -> R,
    ) -> R {
        let has_dropout = part.at.pass.batch.spans().iter().any(|span| span.dropout.is_some());
        let mask = |&projection: &Projection| {
            move |row: usize, factors: &mut [f32]| mask(part.at, projection, part.first + row, factors)
        };
        let masks: Vec<_> = projections.iter().map(mask).collect();
        let linear = |(&projection, mask)| Linear {
            weight: self.weight(part.at.layer, projection),
            adapted: adapted(part, projection),
            dropout: has_dropout.then_some(mask as lora::Mask<'_>),
        };
        body(projections.iter().zip(&masks).map(linear).collect())
    }
}

/// The site of `adapter` at this projection, if it has one and has rows in the pass.
fn site_of(part: Part<'_>, projection: Projection, adapter: usize) -> Option<&crate::SiteParameters> {
    part.groups.binary_search_by_key(&adapter, |group| group.0).ok()?;
    part.at.pass.adapters[adapter].layout.at(Site { layer: part.at.layer, projection })
}

/// The adapters of the part that have this site, with their factors.
fn adapted(Part { at, groups, .. }: Part<'_>, projection: Projection) -> Vec<Adapted<'_>> {
    let site = Site { layer: at.layer, projection };
    let mut all = Vec::with_capacity(groups.len());
    for (adapter, rows) in groups {
        if let Some(index) = at.pass.adapters[*adapter].layout.index_of(site) {
            all.push(Adapted { factors: &at.pass.prepared.factors[*adapter][index], rows });
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
