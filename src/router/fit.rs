//! The ridge classifier, solved: scores of a prompt, on a scale of each skill's own. Never sees names.
//!
//! With centred unit rows X, one-hot targets Y, row weights W and `A = XᵀWX + λ·tr(XᵀWX)/d · I`, the raw score of skill c for a row x
//! is `(x − μ)ᵀ A⁻¹ (S_c − n_c μ) + n_c / n`, S_c and n_c being the sum and number of its rows: weighted ridge regression with a
//! free intercept (Hastie, Tibshirani & Friedman, *The Elements of Statistical Learning*, 3.4.1). A prompt costs one solve and one
//! product.
//!
//! What a model without one row would say of it has a closed form, `ŷ = y − (y − s) / (1 − h)` with the row's leverage
//! `h = w (xᵀ A⁻¹ x + 1/n)` (same book, 7.10). From it comes each skill's scale: what its own prompts score when each is left out,
//! or more, if background prompts would otherwise pass for it.

use super::{
    Settings,
    cholesky::{Cholesky, dot},
    statistics::{Statistics, sum, unit},
};
use crate::library::RoutingFeatures;
use rayon::prelude::*;

/// Scales are measured on no more prompts than this, evenly spread over each skill's: some 0.15 ms each at width 576.
const SCALE_PROMPTS_MAX: usize = 4096;

#[derive(Clone, Debug)]
pub(super) struct Fit {
    factor: Cholesky,
    mean: Vec<f64>,
    count: f64,
    /// Of a background row; a skill's row weighs 1.
    weight: f64,
    skills: Vec<Target>,
}

#[derive(Clone, Debug)]
struct Target {
    /// `S_c − n_c μ`.
    centred: Vec<f64>,
    /// `n_c / n`.
    share: f64,
    /// The raw score that counts as 1.
    scale: f64,
}

/// What a fit is made from.
pub(super) struct Data<'a> {
    /// The sum over all skills.
    pub(super) statistics: &'a Statistics,
    pub(super) skills: &'a [&'a RoutingFeatures],
    pub(super) background: &'a RoutingFeatures,
    pub(super) background_statistics: &'a Statistics,
}

impl Fit {
    /// Solves for the skills against the background, which weighs at least as much as they do together: what belongs to no skill
    /// does not become rare because there are many.
    pub(super) fn new(data: &Data<'_>, settings: Settings) -> Self {
        let weight = (data.statistics.count() / data.background_statistics.count()).max(1.0);
        let all = data.statistics.plus(data.background_statistics, weight);
        let (mean, count) = (all.mean(), all.count());
        let target = |features: &&RoutingFeatures| {
            let rows = features.rows().len() as f64;
            let centred = sum(features).iter().zip(&mean).map(|(sum, mean)| sum - rows * mean).collect();
            Target { centred, share: rows / count, scale: 1.0 }
        };
        let skills = data.skills.par_iter().map(target).collect();
        let factor = Cholesky::new(all.ridged(settings.lambda), mean.len());
        let mut fit = Self { factor, mean, count, weight, skills };
        let scales = fit.scales(data, settings);
        fit.skills.iter_mut().zip(scales).for_each(|(skill, scale)| skill.scale = scale);
        fit
    }

    /// One score a skill, in their order.
    pub(super) fn scores(&self, row: &[f32]) -> Vec<f64> {
        let weights = self.factor.solve(&self.centre(row));
        self.skills.iter().map(|skill| skill.raw(&weights) / skill.scale).collect()
    }

    fn centre(&self, row: &[f32]) -> Vec<f64> {
        unit(row).iter().zip(&self.mean).map(|(value, mean)| value - mean).collect()
    }

    /// See [`Settings::strangers`].
    fn scales(&self, data: &Data<'_>, settings: Settings) -> Vec<f64> {
        let rows: Vec<&[f32]> = data.background.rows().collect();
        let strangers: Vec<Vec<f64>> = rows.par_iter().map(|row| self.left_out_background(row)).collect();
        let stride = (data.statistics.count() as usize).div_ceil(SCALE_PROMPTS_MAX).max(1);
        let scale = |(skill, features): (usize, &&RoutingFeatures)| {
            let own = features.rows().step_by(stride).map(|row| self.left_out(skill, row)).collect();
            let strangers = strangers.iter().map(|scores| scores[skill]).collect();
            // A model that knows nothing scores a skill's share.
            let least = self.skills[skill].share;
            quantile(own, 0.5).max(quantile(strangers, 1.0 - settings.strangers) / settings.accept).max(least)
        };
        data.skills.par_iter().enumerate().map(scale).collect()
    }

    /// The raw score that a skill would give a row of its own, had the row not been there.
    fn left_out(&self, skill: usize, row: &[f32]) -> f64 {
        let centred = self.centre(row);
        let weights = self.factor.solve(&centred);
        let leverage = dot(&weights, &centred) + 1.0 / self.count;
        1.0 - (1.0 - self.skills[skill].raw(&weights)) / (1.0 - leverage)
    }

    /// Every skill's raw score of a background row, had the row not been there.
    fn left_out_background(&self, row: &[f32]) -> Vec<f64> {
        let centred = self.centre(row);
        let weights = self.factor.solve(&centred);
        let leverage = self.weight * (dot(&weights, &centred) + 1.0 / self.count);
        self.skills.iter().map(|skill| skill.raw(&weights) / (1.0 - leverage)).collect()
    }
}

impl Target {
    /// The score of a row of which `weights` is `A⁻¹ (x − μ)`.
    fn raw(&self, weights: &[f64]) -> f64 {
        dot(weights, &self.centred) + self.share
    }
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

    fn statistics(all: &[&RoutingFeatures]) -> Statistics {
        let mut statistics = Statistics::new(5);
        all.iter().for_each(|features| statistics.update(features, 1.0));
        statistics
    }

    fn fit(skills: &[&RoutingFeatures], background: &RoutingFeatures, lambda: f64) -> Fit {
        let (own, strangers) = (statistics(skills), statistics(&[background]));
        let data = Data { statistics: &own, skills, background, background_statistics: &strangers };
        Fit::new(&data, Settings { lambda, ..Settings::default() })
    }

    /// Skills of 6 and 5 rows, and a background of 5, which therefore weighs 2.2 a row.
    fn data() -> [RoutingFeatures; 3] {
        [cluster(1, 0, 6, 5), cluster(2, 3, 5, 5), cluster(3, 1, 5, 5)]
    }

    #[test]
    fn a_score_is_that_of_weighted_ridge_regression_by_gradient_descent() {
        let [a, b, background] = data();
        let fit = fit(&[&a, &b], &background, 1.0);
        let all: Vec<Vec<f64>> =
            [&a, &b, &background].iter().flat_map(|f| f.rows()).map(|row| fit.centre(row)).collect();
        let weight = |i: usize| if i < 11 { 1.0 } else { 2.2 };
        let trace: f64 = (0..).zip(&all).map(|(i, row)| weight(i) * dot(row, row)).sum();
        for (class, rows) in [(0, 0..6), (1, 6..11)] {
            let share = rows.len() as f64 / 22.0;
            let mut weights = vec![0.0; 5];
            for _ in 0..20_000 {
                let mut gradient: Vec<f64> = weights.iter().map(|w| trace / 5.0 * w).collect();
                for (i, row) in all.iter().enumerate() {
                    let error = weight(i) * (dot(&weights, row) + share - f64::from(u8::from(rows.contains(&i))));
                    gradient.iter_mut().zip(row).for_each(|(g, x)| *g += error * x);
                }
                weights.iter_mut().zip(&gradient).for_each(|(w, g)| *w -= 0.5 / trace * g);
            }
            let probe = [0.3, -1.0, 2.0, 0.1, 0.7];
            let expected = dot(&weights, &fit.centre(&probe)) + share;
            assert!((fit.scores(&probe)[class] * fit.skills[class].scale - expected).abs() < 1e-9);
        }
    }

    /// `features` without row `i`.
    fn without(features: &RoutingFeatures, i: usize) -> RoutingFeatures {
        let mut rest = features.clone();
        rest.values.drain(5 * i..5 * (i + 1));
        rest
    }

    #[test]
    fn leaving_out_in_closed_form_is_leaving_out_in_fact() {
        let [a, b, background] = data();
        let whole = fit(&[&a, &b], &background, 1.0);
        // The same weight and the same ridge, which would otherwise change a little with the rows.
        let refit = |skills: [&RoutingFeatures; 2], background: &RoutingFeatures| {
            let ridge = |s: &Statistics, lambda| s.ridged(lambda)[0] - s.ridged(0.0)[0];
            let sum = |skills: &[&RoutingFeatures], background: &RoutingFeatures| {
                statistics(skills).plus(&statistics(&[background]), whole.weight)
            };
            let (all, rest) = (sum(&[&a, &b], &data()[2]), sum(&skills, background));
            let lambda = ridge(&all, 1.0) / ridge(&rest, 1.0);
            let (mean, count) = (rest.mean(), rest.count());
            let target = |features: &RoutingFeatures| {
                let rows = features.rows().len() as f64;
                let centred = super::sum(features).iter().zip(&mean).map(|(sum, mean)| sum - rows * mean).collect();
                Target { centred, share: rows / count, scale: 1.0 }
            };
            let skills = skills.map(target).into();
            Fit { factor: Cholesky::new(rest.ridged(lambda), 5), mean, count, weight: whole.weight, skills }
        };
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");

        let row = a.rows().nth(2).unwrap();
        near(whole.left_out(0, row), refit([&without(&a, 2), &b], &background).scores(row)[0]);
        let row = background.rows().nth(4).unwrap();
        let expected = refit([&a, &b], &without(&background, 4)).scores(row);
        for (found, expected) in whole.left_out_background(row).into_iter().zip(expected) {
            near(found, expected);
        }
    }

    #[test]
    fn a_skill_whose_prompts_are_like_the_background_takes_few_of_them() {
        let [a, b, background] = data();
        let alike = cluster(9, 1, 6, 5);
        let fit = fit(&[&a, &b, &alike], &background, 1.0);
        let taken = background.rows().filter(|row| fit.left_out_background(row)[2] > 0.4 * fit.skills[2].scale);
        assert!(taken.count() <= 1);
    }

    #[test]
    fn quantiles_interpolate() {
        for (p, expected) in [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.25, 1.75)] {
            assert_eq!(quantile(vec![4.0, 1.0, 3.0, 2.0], p), expected);
        }
        assert_eq!(quantile(vec![7.0], 0.85), 7.0);
    }
}
