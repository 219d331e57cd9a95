//! Several adapters as one: a row of a batch runs under one adapter, so a row under a weighted mix runs under one that is the mix.
//! Weights are a request's, the same for all of its tokens and sites; Arrow's own, which differ by both, are not a low-rank update.

use crate::{common::Digest, lora::ActiveAdapter};
use socius_models::{Layout, Site, SiteParameters, Spec};
use std::collections::BTreeMap;

/// `Σ weight · B A` of `parts`, exactly: the rows of their A one under another, the columns of their B, scaled, side by side. Its rank at
/// a site is the sum of theirs.
///
/// # Panics
/// If there are no parts, or one's layout is not over `spec`.
pub fn mix(parts: &[(&ActiveAdapter, f32)], spec: &Spec) -> ActiveAdapter {
    let mut ranks: BTreeMap<Site, usize> = BTreeMap::new();
    for own in parts.iter().flat_map(|(part, _)| part.layout.sites()) {
        *ranks.entry(own.site).or_default() += own.rank;
    }
    let layout = Layout::new(spec, ranks.into_iter().map(|(site, rank)| (site, rank, 1.0)));
    let mut theta = vec![0.0; layout.len()];
    for whole in layout.sites() {
        let (a, b) = whole.factors_mut(&mut theta);
        let mut before = 0;
        for (part, weight) in parts {
            let Some(own) = part.layout.at(whole.site) else { continue };
            place(own, part, *weight, before, (&mut *a, &mut *b, whole.rank));
            before += own.rank;
        }
    }
    ActiveAdapter::new(named(parts), layout, theta)
}

/// Copies one part's factors behind those of the `before` ranks that are there.
fn place(
    own: &SiteParameters,
    part: &ActiveAdapter,
    weight: f32,
    before: usize,
    into: (&mut [f32], &mut [f32], usize),
) {
    let (a, b, rank) = into;
    a[before * own.inputs..][..own.rank * own.inputs].copy_from_slice(own.a_of(&part.theta));
    for (to, from) in b.chunks_exact_mut(rank).zip(own.b_of(&part.theta).chunks_exact(own.rank)) {
        to[before..before + own.rank].iter_mut().zip(from).for_each(|(to, from)| *to = weight * own.scale * from);
    }
}

/// A name that no other mix has, for what is cached by it.
fn named(parts: &[(&ActiveAdapter, f32)]) -> String {
    let weights: Vec<[u8; 4]> = parts.iter().map(|(_, weight)| weight.to_le_bytes()).collect();
    let named = parts.iter().zip(&weights).flat_map(|((part, _), weight)| [part.generation.as_bytes(), &weight[..]]);
    Digest::of_parts(named).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::{LoraConfig, testing::random};
    use socius_models::Projection::{Down, Q, V};

    #[test]
    fn a_mix_changes_a_linear_as_its_parts_do_together() {
        let spec = Spec::tiny();
        let part = |seed, rank, projections: &[_]| {
            let weights = random(LoraConfig::uniform(rank, 8.0, projections), &spec, seed);
            ActiveAdapter::new(format!("g{seed}"), weights.layout, weights.theta)
        };
        let (first, second) = (part(1, 2, &[Q, V]), part(2, 3, &[Q, Down]));
        let parts = [(&first, 0.25), (&second, 0.75)];
        let mixed = mix(&parts, &spec);
        let update = |adapter: &ActiveAdapter, site: Site, output: usize, input: usize| {
            adapter.layout.at(site).map_or(0.0, |own| {
                let (a, b) = (own.a_of(&adapter.theta), own.b_of(&adapter.theta));
                let product = |r: usize| b[output * own.rank + r] * a[r * own.inputs + input];
                own.scale * (0..own.rank).map(product).sum::<f32>()
            })
        };
        for (projection, rank) in [(Q, 5), (V, 2), (Down, 3)] {
            let site = Site { layer: 1, projection };
            assert_eq!(mixed.layout.at(site).unwrap().rank, rank);
            for (output, input) in [(0, 0), (3, 5), (7, 1)] {
                let expected: f32 = parts.iter().map(|(part, weight)| weight * update(part, site, output, input)).sum();
                let found = update(&mixed, site, output, input);
                assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{found} is not {expected}");
            }
        }
        assert_ne!(mixed.generation, mix(&[(&first, 0.5), (&second, 0.5)], &spec).generation);
    }
}
