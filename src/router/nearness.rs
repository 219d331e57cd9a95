//! How much nearer a prompt is to a skill than to anything in the background, as planes that fold into the skills' rows of weights.
//! Never sees names.

use super::solve::{Solved, dot, quantile, sampled, some, times};
use super::{
    Settings,
    cholesky::Cholesky,
    ledger::{Known, Ledger},
};
use rayon::prelude::*;
use socius_kernels::linear::{PackedLinear, WeightType};

/// How much nearer a prompt is to a skill's mean than to the nearest background prompt: about 1 for a skill's own prompts. Distances are
/// Mahalanobis', P being the inverse of the prompts' covariance around the means of their skills, shrunk towards its mean variance. What
/// both distances share cancels: `|x − b|² − |x − m|² = g_m(x) − g_b(x)` with `g_z(x) = 2 zᵀPx − zᵀPz`.
pub(super) struct Nearness {
    skills: Planes,
    background: Planes,
    /// What a skill's own prompts have in the median.
    unit: f64,
    /// What each skill's have in the mean, in that unit.
    own: Vec<f64>,
}

/// `g_z` of some points.
struct Planes {
    /// `2 P z`, `[points, hidden]`.
    weights: Vec<f32>,
    packed: PackedLinear,
    /// `−zᵀPz`.
    biases: Vec<f64>,
}

/// How much nearer a skill's own prompts are to its mean than to the background.
struct Sample {
    /// Some of them.
    nearer: Vec<f64>,
    /// All of them in the mean. Were one background prompt the nearest to all, that would be linear and known from their sum; only by how much
    /// another is nearer comes from the sample.
    mean: f64,
}

impl Nearness {
    /// `strangers` are the background's rows, centred, `[rows, hidden]`.
    pub(super) fn new(ledger: &Ledger, solved: &Solved, strangers: &[f32], settings: Settings) -> Self {
        let hidden = solved.mean.len();
        let groups: Vec<_> = ledger.skills.values().map(|known| (&*known.sum, known.rows as f64)).collect();
        let covariance = ledger.statistics.within(&groups, settings.shrinkage);
        let inverse = Cholesky::new(covariance, hidden).inverse();
        let metric = PackedLinear::new(&inverse, (hidden, hidden), WeightType::F32);
        let centroids: Vec<f32> = ledger.skills.values().flat_map(|known| solved.centroid(known)).collect();
        let skills = Planes::new(&metric, &centroids);
        let background = Planes::new(&metric, strangers);
        let samples: Vec<Sample> = skills.own(ledger, solved, &background, &centroids);
        // Skills whose prompts are the background's own are no nearer to anything.
        let unit = quantile(samples.iter().flat_map(|sample| &sample.nearer).copied().collect(), 0.5);
        let unit = if unit > 0.0 { unit } else { f64::INFINITY };
        let own = samples.iter().map(|sample| sample.mean / unit).collect();
        Self { skills, background, unit, own }
    }

    /// What each skill's own prompts have in the mean.
    pub(super) fn own(&self) -> &[f64] {
        &self.own
    }

    /// By how much each background prompt is nearer to every skill than to the nearest of the others.
    pub(super) fn of_background(&self, strangers: &[f32]) -> Vec<Vec<f64>> {
        let count = self.background.biases.len();
        let others = self.background.of(strangers);
        let skills = self.skills.of(strangers);
        let nearest = others
            .chunks_exact(count)
            .enumerate()
            .map(|(own, others)| most(&others[..own]).max(most(&others[own + 1..])));
        let nearer = skills.chunks_exact(self.skills.biases.len()).zip(nearest);
        nearer.map(|(skills, nearest)| skills.iter().map(|skill| (skill - nearest) / self.unit).collect()).collect()
    }

    /// Weights and bias of each skill as they count in a score: half, by `unit`.
    pub(super) fn skills(&self) -> impl Iterator<Item = (impl Iterator<Item = f64>, f64)> {
        self.skills.halves(self.unit)
    }

    /// The same of each background prompt.
    pub(super) fn background(&self) -> impl Iterator<Item = (impl Iterator<Item = f64>, f64)> {
        self.background.halves(self.unit)
    }
}

impl Planes {
    /// Of centred points, `[points, hidden]`.
    fn new(metric: &PackedLinear, points: &[f32]) -> Self {
        let mut weights = times(metric, points);
        let hidden = metric.inputs();
        let biases: Vec<f64> =
            weights.chunks_exact(hidden).zip(points.chunks_exact(hidden)).map(|(a, b)| -dot(a, b)).collect();
        weights.iter_mut().for_each(|weight| *weight *= 2.0);
        let packed = PackedLinear::new(&weights, (biases.len(), hidden), WeightType::F32);
        Self { weights, packed, biases }
    }

    /// Of centred rows, `[rows, hidden]`: `[rows, points]`.
    fn of(&self, rows: &[f32]) -> Vec<f64> {
        let products = times(&self.packed, rows);
        let biases = self.biases.iter().cycle();
        products.iter().zip(biases).map(|(product, bias)| f64::from(*product) + bias).collect()
    }

    /// Of every skill, whose planes these are.
    fn own(&self, ledger: &Ledger, solved: &Solved, background: &Self, centroids: &[f32]) -> Vec<Sample> {
        let hidden = solved.mean.len();
        let count = sampled(ledger.skills.len());
        let planes = self.weights.par_chunks_exact(hidden).zip(&self.biases).zip(centroids.par_chunks_exact(hidden));
        let known: Vec<&Known> = ledger.skills.values().collect();
        let of = |(known, ((weights, bias), centroid)): (&&Known, ((&[f32], &f64), &[f32]))| {
            let rows = solved.centre(&some(known, count, hidden));
            let plane = |row: &[f32]| dot(row, weights) + bias;
            let others = background.of(centroid);
            let nearest = (0..others.len()).reduce(|a, b| if others[b] > others[a] { b } else { a });
            let nearest = nearest.expect("a background has a prompt");
            let strangers = background.of(&rows);
            let strangers = strangers.chunks_exact(others.len());
            let nearer: Vec<f64> =
                rows.chunks_exact(hidden).zip(strangers.clone()).map(|(row, s)| plane(row) - most(s)).collect();
            let beyond: f64 = strangers.map(|s| s[nearest] - most(s)).sum::<f64>() / nearer.len() as f64;
            Sample { mean: plane(centroid) - others[nearest] + beyond, nearer }
        };
        known.par_iter().zip(planes).map(of).collect()
    }

    fn halves(&self, unit: f64) -> impl Iterator<Item = (impl Iterator<Item = f64>, f64)> {
        let half = move |weight: &f32| f64::from(*weight) / (2.0 * unit);
        let biases = self.biases.iter().map(move |bias| bias / (2.0 * unit));
        self.weights.chunks_exact(self.packed.inputs()).map(move |weights| weights.iter().map(half)).zip(biases)
    }
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

#[cfg(test)]
mod tests {
    use super::super::{
        solve::{
            fit,
            tests::{SETTINGS, data, ledger},
        },
        statistics::unit,
    };
    use super::*;
    use crate::library::RoutingFeatures;

    #[test]
    fn nearness_is_the_distance_to_a_background_prompt_less_that_to_the_skills_mean() {
        let [a, b, background] = data();
        let ledger = ledger(&[&a, &b], &background);
        let (solved, _) = fit(&ledger, SETTINGS);
        let strangers: Vec<f32> = background.rows().flat_map(|row| solved.centre(&unit(row))).collect();
        let near = Nearness::new(&ledger, &solved, &strangers, SETTINGS);
        let rows = |features: &RoutingFeatures| features.rows().map(unit).collect::<Vec<_>>();
        let mean = |rows: &[Vec<f32>]| -> Vec<f64> {
            (0..5).map(|i| rows.iter().map(|row| f64::from(row[i])).sum::<f64>() / rows.len() as f64).collect()
        };
        let groups = [rows(&a), rows(&b)];
        let count = groups.concat().len() as f64;
        let mut covariance = vec![0.0; 25];
        for rows in &groups {
            let mean = mean(rows);
            for row in rows {
                let from_mean = |i: usize| f64::from(row[i]) - mean[i];
                (0..25).for_each(|at| covariance[at] += from_mean(at / 5) * from_mean(at % 5) / count);
            }
        }
        let ridge = (0..5).map(|i| covariance[6 * i]).sum::<f64>() / 5.0;
        (0..5).for_each(|i| covariance[6 * i] += ridge);
        let metric = Cholesky::new(covariance, 5).inverse();
        let distance = |x: &[f32], z: &[f64]| -> f64 {
            let apart = |i: usize| f64::from(x[i]) - z[i];
            (0..25).map(|at| apart(at / 5) * f64::from(metric[at]) * apart(at % 5)).sum()
        };
        let probe = unit(&[0.3, -1.0, 2.0, 0.1, 0.7]);
        let centred = solved.centre(&probe);
        for (skill, known) in ledger.skills.values().enumerate() {
            let nearer = known.sample.chunks_exact(5).map(|row| {
                let row = solved.centre(row);
                near.skills.of(&row)[skill] - most(&near.background.of(&row))
            });
            let (found, expected) = (near.own[skill], nearer.sum::<f64>() / known.rows as f64 / near.unit);
            assert!((found - expected).abs() < 1e-4, "{found} is not {expected}, the mean of all");
        }
        let (skills, strangers) = (near.skills.of(&centred), near.background.of(&centred));
        for (skill, rows) in groups.iter().enumerate() {
            for (stranger, row) in background.rows().map(unit).enumerate() {
                let row: Vec<f64> = row.into_iter().map(f64::from).collect();
                let expected = distance(&probe, &row) - distance(&probe, &mean(rows));
                let found = skills[skill] - strangers[stranger];
                // Products are f32, and what both distances share is not small.
                assert!((found - expected).abs() < 1e-4 * (1.0 + distance(&probe, &row)), "{found} is not {expected}");
            }
        }
    }
}
