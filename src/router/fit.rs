//! The ridge classifier, solved: scores for a prompt, and the threshold below which the base is better. Never sees names.
//!
//! With centred unit rows X, one-hot targets Y and `A = XᵀX + λ·tr(XᵀX)/d · I`, the score of skill c for a row x is
//! `(x − μ)ᵀ A⁻¹ (S_c − n_c μ) + n_c / n`, S_c and n_c being the sum and number of its rows: ridge regression with a free intercept
//! (Hastie, Tibshirani & Friedman, *The Elements of Statistical Learning*, 3.4.1). A prompt costs one solve and one product.
//!
//! What a model without some rows g would say of them has a closed form too, `ŷ = y − (I − H_gg)⁻¹ (y − Hy)` with the hat matrix
//! H (same book, 7.10). Without one row it calibrates a prompt's own skill and the background; without all rows of a skill it
//! says how prompts of a task that nobody has learned would score.

use super::{
    Settings,
    cholesky::{Cholesky, dot},
    statistics::{Statistics, sum, unit},
};
use crate::library::RoutingFeatures;
use rayon::prelude::*;

/// Calibration looks at no more skills than this, evenly spread, so that its cost stays linear in the size of the catalogue.
const CALIBRATION_SKILLS_MAX: usize = 256;

#[derive(Clone, Debug)]
pub(super) struct Fit {
    factor: Cholesky,
    mean: Vec<f64>,
    count: f64,
    skills: Vec<Target>,
    pub(super) threshold: f64,
}

#[derive(Clone, Debug)]
struct Target {
    /// `S_c − n_c μ`.
    centred: Vec<f64>,
    /// `n_c / n`.
    share: f64,
}

impl Fit {
    /// Solves for `skills` against `background`, of both of which `statistics` is the sum.
    pub(super) fn new(
        statistics: &Statistics,
        skills: &[&RoutingFeatures],
        background: &RoutingFeatures,
        settings: Settings,
    ) -> Self {
        let (mean, count) = (statistics.mean(), statistics.count());
        let target = |features: &&RoutingFeatures| {
            let rows = features.rows().len() as f64;
            let centred = sum(features).iter().zip(&mean).map(|(sum, mean)| sum - rows * mean).collect();
            Target { centred, share: rows / count }
        };
        let targets = skills.par_iter().map(target).collect();
        let factor = Cholesky::new(statistics.ridged(settings.lambda), mean.len());
        let mut fit = Self { factor, mean, count, skills: targets, threshold: 1.0 };
        if !skills.is_empty() {
            fit.threshold = fit.calibrate(skills, background, settings);
        }
        fit
    }

    /// One score a skill, in their order.
    pub(super) fn scores(&self, row: &[f32]) -> Vec<f64> {
        self.scores_of(&self.centre(row))
    }

    fn centre(&self, row: &[f32]) -> Vec<f64> {
        unit(row).iter().zip(&self.mean).map(|(value, mean)| value - mean).collect()
    }

    fn scores_of(&self, centred: &[f64]) -> Vec<f64> {
        let weights = self.factor.solve(centred);
        self.skills.iter().map(|skill| dot(&weights, &skill.centred) + skill.share).collect()
    }

    /// See [`Settings::abstain`] and [`Settings::own_min`].
    fn calibrate(&self, skills: &[&RoutingFeatures], background: &RoutingFeatures, settings: Settings) -> f64 {
        let stride = skills.len().div_ceil(CALIBRATION_SKILLS_MAX);
        let sampled: Vec<usize> = (0..skills.len()).step_by(stride).collect();
        let left_out: Vec<LeftOut> = sampled.par_iter().map(|&skill| self.leave_out(skill, skills[skill])).collect();
        let rows: Vec<&[f32]> = background.rows().collect();
        let mut strangers: Vec<f64> = rows.par_iter().map(|row| self.leave_out_background(row)).collect();
        strangers.extend(left_out.iter().flat_map(|left_out| &left_out.best_others));
        let own = left_out.into_iter().flat_map(|left_out| left_out.own).collect();
        quantile(strangers, settings.abstain).max(settings.own_min * quantile(own, 0.5))
    }

    fn leave_out(&self, skill: usize, features: &RoutingFeatures) -> LeftOut {
        let centred: Vec<Vec<f64>> = features.rows().map(|row| self.centre(row)).collect();
        let halves: Vec<Vec<f64>> = centred.iter().map(|row| self.factor.half_solve(row)).collect();
        let scores: Vec<Vec<f64>> = centred.iter().map(|row| self.scores_of(row)).collect();
        let size = centred.len();
        let hat = |i: usize, j: usize| dot(&halves[i], &halves[j]) + 1.0 / self.count;
        let own = (0..size).map(|i| 1.0 - (1.0 - scores[i][skill]) / (1.0 - hat(i, i))).collect();

        let mut matrix = vec![0.0; size * size];
        for i in 0..size {
            for j in 0..=i {
                matrix[i * size + j] = f64::from(u8::from(i == j)) - hat(i, j);
            }
        }
        let without = Cholesky::new(matrix, size);
        let mut best = vec![f64::NEG_INFINITY; size];
        for other in (0..self.skills.len()).filter(|&other| other != skill) {
            let column: Vec<f64> = scores.iter().map(|row| row[other]).collect();
            for (best, score) in best.iter_mut().zip(without.solve(&column)) {
                *best = best.max(score);
            }
        }
        best.retain(|score| score.is_finite()); // A lone skill has no others.
        LeftOut { own, best_others: best }
    }

    /// The best skill's score for a background row, had the row not been there.
    fn leave_out_background(&self, row: &[f32]) -> f64 {
        let centred = self.centre(row);
        let half = self.factor.half_solve(&centred);
        let hat = dot(&half, &half) + 1.0 / self.count;
        self.scores_of(&centred).into_iter().fold(f64::NEG_INFINITY, f64::max) / (1.0 - hat)
    }
}

/// What the model would say of a skill's rows without them.
struct LeftOut {
    /// The skill's own score of each row, without that row.
    own: Vec<f64>,
    /// The best of the other skills' scores of each row, without all of the skill's rows.
    best_others: Vec<f64>,
}

/// Linear interpolation between order statistics.
fn quantile(mut values: Vec<f64>, p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = p * (values.len() - 1) as f64;
    let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::super::testing::cluster;
    use super::*;

    fn fit(skills: &[&RoutingFeatures], background: &RoutingFeatures) -> Fit {
        let mut statistics = Statistics::new(background.hidden);
        skills.iter().chain([&background]).for_each(|features| statistics.update(features, 1.0));
        Fit::new(&statistics, skills, background, Settings::default())
    }

    #[test]
    fn a_score_is_that_of_ridge_regression_by_gradient_descent() {
        let (a, b, background) = (cluster(1, 0, 6, 5), cluster(2, 3, 5, 5), cluster(3, 1, 9, 5));
        let fit = fit(&[&a, &b], &background);
        let all: Vec<Vec<f64>> =
            [&a, &b, &background].iter().flat_map(|f| f.rows()).map(|row| fit.centre(row)).collect();
        let trace: f64 = all.iter().flatten().map(|value| value * value).sum();
        for (class, rows) in [(0, 0..6), (1, 6..11)] {
            let share = rows.len() as f64 / 20.0;
            let mut weights = vec![0.0; 5];
            for _ in 0..20_000 {
                let mut gradient: Vec<f64> = weights.iter().map(|w| trace / 5.0 * w).collect();
                for (i, row) in all.iter().enumerate() {
                    let error = dot(&weights, row) + share - f64::from(u8::from(rows.contains(&i)));
                    gradient.iter_mut().zip(row).for_each(|(g, x)| *g += error * x);
                }
                weights.iter_mut().zip(&gradient).for_each(|(w, g)| *w -= 0.5 / trace * g);
            }
            let probe = [0.3, -1.0, 2.0, 0.1, 0.7];
            let expected = dot(&weights, &fit.centre(&probe)) + share;
            assert!((fit.scores(&probe)[class] - expected).abs() < 1e-9);
        }
    }

    #[test]
    fn leaving_out_in_closed_form_is_leaving_out_in_fact() {
        let (a, b, background) = (cluster(1, 0, 6, 5), cluster(2, 3, 5, 5), cluster(3, 1, 9, 5));
        let whole = fit(&[&a, &b], &background);
        // The same ridge, which would otherwise change a little with the rows.
        let refit = |statistics: &Statistics, skills: &[&RoutingFeatures]| {
            let mut all = Statistics::new(5);
            [&a, &b, &background].iter().for_each(|features| all.update(features, 1.0));
            let ridge = |s: &Statistics, lambda| s.ridged(lambda)[0] - s.ridged(0.0)[0];
            let lambda = ridge(&all, 1.0) / ridge(statistics, 1.0);
            Fit::new(statistics, skills, &background, Settings { lambda, ..Settings::default() })
        };
        let row = |features: &RoutingFeatures, i: usize| {
            let values = features.rows().nth(i).unwrap().to_vec();
            RoutingFeatures { layer: features.layer, hidden: features.hidden, values }
        };
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");

        let mut without_a = Statistics::new(5);
        [&b, &background].iter().for_each(|features| without_a.update(features, 1.0));
        let left_out = whole.leave_out(0, &a);
        for (i, best) in left_out.best_others.iter().enumerate() {
            near(*best, refit(&without_a, &[&b]).scores(&row(&a, i).values)[0]);
        }
        let mut without_row = Statistics::new(5);
        [&a, &b, &background].iter().for_each(|features| without_row.update(features, 1.0));
        without_row.update(&row(&a, 2), -1.0);
        let rest = RoutingFeatures { values: [&a.values[..10], &a.values[15..]].concat(), ..a.clone() };
        near(left_out.own[2], refit(&without_row, &[&rest, &b]).scores(&row(&a, 2).values)[0]);

        let mut without_row = Statistics::new(5);
        [&a, &b, &background].iter().for_each(|features| without_row.update(features, 1.0));
        without_row.update(&row(&background, 4), -1.0);
        let probe = row(&background, 4).values;
        let best = refit(&without_row, &[&a, &b]).scores(&probe).into_iter().fold(f64::MIN, f64::max);
        near(whole.leave_out_background(&probe), best);
    }

    #[test]
    fn quantiles_interpolate() {
        for (p, expected) in [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.25, 1.75)] {
            assert_eq!(quantile(vec![4.0, 1.0, 3.0, 2.0], p), expected);
        }
        assert_eq!(quantile(vec![7.0], 0.85), 7.0);
    }
}
