//! Arrow (Ostapenko et al. 2024, *Towards Modular LLMs by Building and Reusing a Library of LoRAs*, arXiv 2405.11157): routing by the
//! skills' weights alone. A skill's prototype at a site is the direction of input that its update `B A` amplifies most, the top
//! right-singular vector; every token votes at every site for the skills whose prototypes it points along. Pure.

use crate::lora::ActiveAdapter;
use socius_models::{Projection, Site, SiteParameters};
use std::collections::BTreeMap;

/// Power iterations: by then a direction whose singular value is 5 % below the top one has shrunk to a fortieth.
const ITERATIONS: usize = 40;

/// The sites whose inputs are the normed residual stream, which is what tokens are compared by.
pub const SITES: [Projection; 5] = [Projection::Q, Projection::K, Projection::V, Projection::Gate, Projection::Up];

/// A skill's directions by site, each of length 1; none where the update is zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prototypes(BTreeMap<Site, Vec<f32>>);

impl Prototypes {
    /// Of an adapter.
    pub fn of(adapter: &ActiveAdapter) -> Self {
        let sites = adapter.layout.sites().iter().filter(|own| SITES.contains(&own.site.projection));
        Self(sites.filter_map(|own| Some((own.site, top(own, &adapter.theta)?))).collect())
    }

    /// Directions as they are given, each of length 1.
    pub fn from_directions(directions: BTreeMap<Site, Vec<f32>>) -> Self {
        Self(directions)
    }
}

/// The top right-singular vector of `B A`, by power iteration on `Aᵀ BᵀB A`.
fn top(site: &SiteParameters, theta: &[f32]) -> Option<Vec<f32>> {
    let (a, b) = (site.a_of(theta), site.b_of(theta));
    let (rank, inputs) = (site.rank, site.inputs);
    let mut gram = vec![0.0f64; rank * rank];
    for row in b.chunks_exact(rank) {
        for i in 0..rank {
            for j in 0..rank {
                gram[i * rank + j] += f64::from(row[i]) * f64::from(row[j]);
            }
        }
    }
    // Any start that is not orthogonal to the answer will do: the sum of A's rows, unevenly weighed.
    let mut direction = vec![0.0f64; inputs];
    for (i, row) in a.chunks_exact(inputs).enumerate() {
        direction.iter_mut().zip(row).for_each(|(sum, x)| *sum += (1.0 + i as f64 / rank as f64) * f64::from(*x));
    }
    for _ in 0..ITERATIONS {
        let inner: Vec<f64> = a.chunks_exact(inputs).map(|row| dot(row, &direction)).collect();
        let outer: Vec<f64> =
            gram.chunks_exact(rank).map(|row| row.iter().zip(&inner).map(|(g, x)| g * x).sum()).collect();
        direction.fill(0.0);
        for (row, weight) in a.chunks_exact(inputs).zip(&outer) {
            direction.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * f64::from(*x));
        }
        let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length < f64::MIN_POSITIVE {
            return None;
        }
        direction.iter_mut().for_each(|x| *x /= length);
    }
    Some(direction.into_iter().map(|x| x as f32).collect())
}

/// The votes of a prompt's tokens, summed as they come.
pub struct Votes<'a> {
    skills: &'a [&'a Prototypes],
    sums: Vec<f64>,
    count: f64,
}

impl<'a> Votes<'a> {
    /// None yet.
    pub fn new(skills: &'a [&'a Prototypes]) -> Self {
        Self { skills, sums: vec![0.0; skills.len()], count: 0.0 }
    }

    /// Adds those of the tokens whose `inputs` (`[hidden]` each) reach `site`: for each token the softmax over skills of
    /// `|input · prototype|`, as in the paper's equation 5. A skill without a prototype here has no vote.
    pub fn add(&mut self, site: Site, inputs: &[Vec<f32>]) {
        let prototypes: Vec<Option<&Vec<f32>>> = self.skills.iter().map(|skill| skill.0.get(&site)).collect();
        if prototypes.iter().all(Option::is_none) {
            return;
        }
        for input in inputs {
            let scores: Vec<Option<f64>> = prototypes
                .iter()
                .map(|prototype| {
                    prototype.map(|p| p.iter().zip(input).map(|(a, b)| f64::from(a * b)).sum::<f64>().abs())
                })
                .collect();
            let most = scores.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = scores.iter().map(|score| score.map_or(0.0, |score| (score - most).exp())).collect();
            let total: f64 = exps.iter().sum();
            self.sums.iter_mut().zip(exps).for_each(|(sum, exp)| *sum += exp / total);
            self.count += 1.0;
        }
    }

    /// Each skill's part of all votes.
    pub fn parts(self) -> Vec<f64> {
        let count = self.count.max(1.0);
        self.sums.into_iter().map(|sum| sum / count).collect()
    }
}

fn dot(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{common::Seed, lora::LoraConfig, lora::testing::random};
    use socius_models::Spec;

    fn adapter(seed: u64) -> ActiveAdapter {
        let weights = random(LoraConfig::uniform(3, 6.0, &[Projection::Q, Projection::Down]), &Spec::tiny(), seed);
        ActiveAdapter::new("g".into(), weights.layout, weights.theta)
    }

    #[test]
    fn a_prototype_is_amplified_more_than_any_other_direction() {
        let adapter = adapter(1);
        let prototypes = Prototypes::of(&adapter);
        let sites: Vec<Site> = prototypes.0.keys().copied().collect();
        assert!(sites.iter().all(|site| site.projection == Projection::Q) && sites.len() == Spec::tiny().layers);
        for own in adapter.layout.sites().iter().filter(|own| own.site.projection == Projection::Q) {
            let gain = |x: &[f64]| {
                let inner: Vec<f64> = own.a_of(&adapter.theta).chunks_exact(own.inputs).map(|r| dot(r, x)).collect();
                let outer = own.b_of(&adapter.theta).chunks_exact(own.rank).map(|r| dot(r, &inner));
                outer.map(|y| y * y).sum::<f64>().sqrt()
            };
            let prototype: Vec<f64> = prototypes.0[&own.site].iter().map(|x| f64::from(*x)).collect();
            let best = gain(&prototype);
            let mut rng = Seed::new(3).rng();
            for _ in 0..200 {
                // Around the prototype and anywhere.
                let near = f64::from(rng.below(2) as u32);
                let x: Vec<f64> = prototype.iter().map(|p| near * p + 0.1 * rng.normal()).collect();
                let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
                assert!(gain(&x) <= best * length * 1.0001);
            }
        }
    }

    #[test]
    fn tokens_vote_for_the_skill_that_they_point_along() {
        let site = Site { layer: 0, projection: Projection::V };
        let along = |i: usize| {
            let mut direction = vec![0.0; 4];
            direction[i] = 1.0;
            Prototypes::from_directions([(site, direction)].into())
        };
        let skills = [along(0), along(1), Prototypes::default()];
        let skills: Vec<&Prototypes> = skills.iter().collect();
        let mut votes = Votes::new(&skills);
        votes.add(site, &[vec![0.1, -3.0, 9.0, 0.0], vec![0.0, 2.0, 0.0, 0.0]]);
        votes.add(Site { layer: 1, ..site }, &[vec![9.0, 0.0, 0.0, 0.0]]);
        let parts = votes.parts();
        assert!(parts[1] > 0.85 && (parts.iter().sum::<f64>() - 1.0).abs() < 1e-9 && parts[2] == 0.0, "{parts:?}");
        let mut untrained = adapter(1);
        untrained.theta.fill(0.0);
        assert_eq!(Prototypes::of(&untrained), Prototypes::default());
    }
}
