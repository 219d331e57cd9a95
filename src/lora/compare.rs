//! How far apart two adapters of one base are, site by site. Knows nothing of skills.

use super::LoraWeights;
use socius_models::{Site, SiteParameters};
use std::collections::BTreeSet;

/// Two adapters' deltas `Δ = scale · B A` at one site; a delta of a site that an adapter lacks is zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiteComparison {
    /// Where.
    pub site: Site,
    /// Their Frobenius norms.
    pub norms: [f64; 2],
    /// `⟨Δ₁, Δ₂⟩ / (|Δ₁| |Δ₂|)`; none where one is zero.
    pub cosine: Option<f64>,
    /// `|Δ₁ − Δ₂|`.
    pub distance: f64,
}

/// Every site that at least one of the two adapts, ascending.
pub fn compare(one: &LoraWeights, other: &LoraWeights) -> Vec<SiteComparison> {
    let sites = [one, other].into_iter().flat_map(|lora| lora.layout.sites()).map(|own| own.site);
    let compare_at = |site: Site| {
        let at = |lora: &LoraWeights| lora.layout.at(site).copied();
        let product = |left: &LoraWeights, right: &LoraWeights| match (at(left), at(right)) {
            (Some(own), Some(theirs)) => inner(left, &own, right, &theirs),
            _ => 0.0,
        };
        let (aa, bb, ab) = (product(one, one), product(other, other), product(one, other));
        let norms = [aa, bb].map(|square| square.max(0.0).sqrt());
        let cosine = (norms[0] > 0.0 && norms[1] > 0.0).then(|| (ab / (norms[0] * norms[1])).clamp(-1.0, 1.0));
        SiteComparison { site, norms, cosine, distance: (aa + bb - 2.0 * ab).max(0.0).sqrt() }
    };
    sites.collect::<BTreeSet<_>>().into_iter().map(compare_at).collect()
}

/// `⟨s₁ B₁A₁, s₂ B₂A₂⟩ = s₁ s₂ Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ)`, without spelling a delta out.
fn inner(one: &LoraWeights, own: &SiteParameters, other: &LoraWeights, theirs: &SiteParameters) -> f64 {
    let (a1, b1) = (own.a_of(&one.theta), own.b_of(&one.theta));
    let (a2, b2) = (theirs.a_of(&other.theta), theirs.b_of(&other.theta));
    let product = |(x, y): (&f32, &f32)| f64::from(*x) * f64::from(*y);
    let mut sum = 0.0;
    for (i, row1) in a1.chunks_exact(own.inputs).enumerate() {
        for (j, row2) in a2.chunks_exact(theirs.inputs).enumerate() {
            let inward: f64 = row1.iter().zip(row2).map(product).sum();
            let columns = b1.iter().skip(i).step_by(own.rank).zip(b2.iter().skip(j).step_by(theirs.rank));
            sum += inward * columns.map(product).sum::<f64>();
        }
    }
    f64::from(own.scale) * f64::from(theirs.scale) * sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::testing::{mixed, uniform};
    use socius_models::Spec;

    #[test]
    fn norms_cosines_and_distances_are_those_of_the_deltas_spelled_out() {
        let spec = Spec::tiny();
        let (a, b) = (uniform(&spec), mixed(&spec));
        let rows = compare(&a, &b);
        assert_eq!(rows.len(), b.layout.sites().len() + 1, "every site of b, and the one that only a has");
        for row in rows {
            let delta = |lora: &LoraWeights| match lora.layout.at(row.site) {
                None => Vec::new(),
                Some(own) => (0..own.outputs * own.inputs)
                    .map(|at| {
                        let (o, i) = (at / own.inputs, at % own.inputs);
                        let term =
                            |k| own.b_of(&lora.theta)[o * own.rank + k] * own.a_of(&lora.theta)[k * own.inputs + i];
                        f64::from(own.scale * (0..own.rank).map(term).sum::<f32>())
                    })
                    .collect(),
            };
            let (x, y) = (delta(&a), delta(&b));
            let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
            assert!((row.norms[0] - norm(&x)).abs() < 1e-4 && (row.norms[1] - norm(&y)).abs() < 1e-4, "{row:?}");
            let dot: f64 = x.iter().zip(&y).map(|(x, y)| x * y).sum();
            match row.cosine {
                Some(cosine) => assert!((cosine - dot / norm(&x) / norm(&y)).abs() < 1e-5, "{row:?}"),
                None => assert!(x.is_empty() || y.is_empty(), "{row:?}"),
            }
            let squares = row.norms[0].powi(2) + row.norms[1].powi(2) - 2.0 * dot;
            assert!((row.distance - squares.sqrt()).abs() < 1e-3, "{row:?}");
        }
    }

    #[test]
    fn an_adapter_is_at_no_distance_from_itself() {
        let lora = mixed(&Spec::tiny());
        for row in compare(&lora, &lora) {
            assert!(row.distance < 1e-5 * row.norms[0] && (row.cosine.unwrap() - 1.0).abs() < 1e-12, "{row:?}");
        }
    }
}
