//! What became of answers under a skill, held against what its publication promised. Knows counts, never prompts.

use crate::common::{Rng, Seed};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// A promise counts as this many outcomes.
const PROMISE_COUNTS: f64 = 4.0;

/// Rewards so far: a reward r adds r to one and 1 − r to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Sum of rewards.
    pub good: f64,
    /// Sum of what was missing to reward 1.
    pub bad: f64,
}

/// By generation.
pub type Outcomes = HashMap<crate::common::Digest, Record>;

/// A skill's probability of a right answer, as a Beta posterior whose prior is what it was published with, divided by that: 1 for a
/// skill that keeps its promise (and for one that does better: how well a prompt fits is not for outcomes to say), less for one
/// that is brought back for prompts that it does not answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usefulness {
    pub(super) record: Record,
    pub(super) promise: f64,
}

impl Usefulness {
    /// Kept away from 0 and 1, where no outcome would change it.
    fn promise(self) -> f64 {
        self.promise.clamp(0.05, 0.95)
    }

    /// Parameters of the posterior.
    fn posterior(self) -> (f64, f64) {
        let prior = PROMISE_COUNTS * self.promise();
        (prior + self.record.good, PROMISE_COUNTS - prior + self.record.bad)
    }

    /// In 0 … 1, by the posterior's mean.
    pub(super) fn mean(self) -> f64 {
        let (a, b) = self.posterior();
        (a / (a + b) / self.promise()).min(1.0)
    }

    /// In 0 … 1, by a draw from the posterior: Thompson sampling (Chapelle & Li 2011).
    pub(super) fn draw(self, seed: Seed) -> f64 {
        let (a, b) = self.posterior();
        let rng = &mut seed.rng();
        let (x, y) = (gamma(a, rng), gamma(b, rng));
        (x / (x + y) / self.promise()).min(1.0)
    }
}

/// A draw from Gamma(shape, 1) (Marsaglia & Tsang 2000); below shape 1 through shape + 1.
fn gamma(shape: f64, rng: &mut Rng) -> f64 {
    if shape < 1.0 {
        let boost = (1.0 - rng.uniform()).powf(1.0 / shape);
        return boost * gamma(shape + 1.0, rng);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = rng.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usefulness(good: f64, bad: f64, promise: f64) -> Usefulness {
        Usefulness { record: Record { good, bad }, promise }
    }

    #[test]
    fn a_skill_is_as_useful_as_it_keeps_its_promise() {
        for (good, bad, promise, expected) in [
            (0.0, 0.0, 0.9, 1.0),
            (0.0, 0.0, 0.3, 1.0),
            (90.0, 10.0, 0.9, 1.0),
            (30.0, 70.0, 0.3, 1.0),
            (50.0, 0.0, 0.3, 1.0),
            (0.0, 100.0, 0.9, 0.0385),
            (0.0, 4.0, 0.5, 0.5),
        ] {
            let found = usefulness(good, bad, promise).mean();
            assert!((found - expected).abs() < 1e-3, "{good} {bad} {promise}: {found}");
        }
    }

    #[test]
    fn draws_have_the_posterior_s_mean_and_variance() {
        for (good, bad) in [(0.0, 0.0), (3.0, 1.0), (0.2, 40.0)] {
            let own = usefulness(good, bad, 0.95);
            let (a, b) = own.posterior();
            let draws: Vec<f64> = (0..20_000).map(|i| own.draw(Seed::new(7).index(i)) * 0.95).collect();
            let n = draws.len() as f64;
            let mean = draws.iter().sum::<f64>() / n;
            let expected = a / (a + b);
            // Draws end at the promise, so the mean is a little lower where much of the posterior lies above it.
            let bound = if expected > 0.5 { 0.05 } else { 0.003 };
            assert!((mean - expected).abs() < bound, "{good} {bad}: {mean} {expected}");
        }
    }

    #[test]
    fn gamma_draws_have_their_moments() {
        for shape in [0.2, 1.0, 3.5] {
            let mut rng = Seed::new(1).rng();
            let draws: Vec<f64> = (0..50_000).map(|_| gamma(shape, &mut rng)).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
            assert!(
                (mean / shape - 1.0).abs() < 0.05 && (variance / shape - 1.0).abs() < 0.1,
                "{shape}: {mean} {variance}"
            );
        }
    }
}
