//! The ridge classifier, solved: from exact sums to one weight row a skill, on a scale of the skill's own. Never sees names.
//!
//! With centred unit rows X, one-hot targets Y, row weights W and `A = XᵀWX + λ·tr(XᵀWX)/d · I`, the raw score of skill c for a row x
//! is `(x − μ)ᵀ A⁻¹ (S_c − n_c μ) + n_c / n`, S_c and n_c being the sum and number of its rows: weighted ridge regression with a
//! free intercept (Hastie, Tibshirani & Friedman, *The Elements of Statistical Learning*, 3.4.1). `A` is factored in f64; what is
//! multiplied by its inverse is f32, in kernels of which a row's bits depend on that row alone.
//!
//! What a model without one row would say of it has a closed form, `ŷ = y − (y − s) / (1 − h)` with the row's leverage
//! `h = w (xᵀ A⁻¹ x + 1/n)` (same book, 7.10). By it a raw score is measured in what the skill's own prompts have when each is left out.
//!
//! A linear score knows directions and no distances: what lies far from everything may still score high. So half of a score is how
//! much nearer the prompt is to the skill than to any background prompt ([`Nearness`]), which is linear in the prompt too. Both halves
//! together are in units of the skill's scale: what its own prompts have, or more, if background prompts would otherwise pass for it.

use super::{
    Settings,
    cholesky::Cholesky,
    index::{Index, Row, Thresholds},
    ledger::{Known, Ledger, SAMPLE},
    nearness::Nearness,
    statistics::unit,
    text::Bm25,
};
use crate::router::BACKGROUND;
use rayon::prelude::*;
use socius_kernels::linear::{Output, PackedLinear, WeightType, Write, forward};

/// Scales are measured on about this many prompts in all, but at least two of each skill: some 10 µs each at width 576.
const SCALE_PROMPTS: usize = 16384;

/// Scales are no less than this: a skill whose own prompts are the background's has next to none.
const SCALE_MIN: f64 = 0.2;

/// `A`, inverted, and the origin of the space that it is of.
pub(super) struct Solved {
    inverse: PackedLinear,
    pub(super) mean: Vec<f64>,
    count: f64,
    /// Of a background row; a skill's row weighs 1.
    weight: f64,
}

/// The skills' scores before they are scaled: a row each of `A⁻¹ (S_c − n_c μ)`, and `n_c / n`.
pub(super) struct Raw {
    weights: Vec<f32>,
    shares: Vec<f64>,
}

pub(super) fn solve(ledger: &Ledger, settings: Settings) -> Index {
    let (solved, raw) = fit(ledger, settings);
    let skills: Vec<&Known> = ledger.skills.values().collect();
    let text = Bm25::new(&skills.iter().map(|known| &known.terms).collect::<Vec<_>>());
    let mut thresholds =
        Thresholds { features: settings.accept, text: text_threshold(&text, settings), margin: settings.margin };
    if skills.is_empty() {
        return Index::new(Vec::new(), Vec::new(), text, thresholds);
    }
    let hidden = solved.mean.len();
    let weights = |skill: usize| &raw.weights[skill * hidden..][..hidden];
    let count = sampled(skills.len());
    let own = |(skill, known): (usize, &&Known)| left_out(&solved, known, weights(skill), raw.shares[skill], count);
    let own: Vec<f64> = skills.par_iter().enumerate().map(own).collect();
    // A model that knows nothing scores a skill's share.
    let units: Vec<f64> = own.iter().zip(&raw.shares).map(|(own, share)| own.max(*share)).collect();
    let background = solved.centre(&ledger.background.rows().flat_map(unit).collect::<Vec<_>>());
    let near = Nearness::new(ledger, &solved, &background, settings);

    let both = |(scores, nearer): (Vec<f64>, Vec<f64>)| -> Vec<f64> {
        let halves = scores.iter().zip(&units).zip(&nearer);
        halves.map(|((score, unit), nearer)| (score / unit + nearer) / 2.0).collect()
    };
    let strangers = strangers(&solved, &raw, &background);
    let strangers: Vec<Vec<f64>> = strangers.into_iter().zip(near.of_background(&background)).map(both).collect();
    let scale = |skill: usize| {
        let own = (own[skill] / units[skill] + near.own()[skill]) / 2.0;
        let taken = strangers.iter().map(|scores| scores[skill]).collect();
        own.max(quantile(taken, 1.0 - settings.strangers) / settings.accept).max(SCALE_MIN)
    };
    let scales: Vec<f64> = (0..skills.len()).into_par_iter().map(scale).collect();
    let best = |scores: &Vec<f64>| {
        scores.iter().zip(&scales).map(|(score, scale)| score / scale).fold(f64::NEG_INFINITY, f64::max)
    };
    let taken = quantile(strangers.iter().map(best).collect(), 1.0 - settings.strangers_of_all);
    thresholds.features = settings.accept.max(taken);

    let rows = ledger.skills.iter().zip(near.skills()).enumerate().map(|(skill, ((name, known), (nearness, bias)))| {
        let unit = 2.0 * units[skill];
        let weights: Vec<f32> =
            weights(skill).iter().zip(nearness).map(|(w, near)| (f64::from(*w) / unit + near) as f32).collect();
        let bias = (raw.shares[skill] / unit + bias - solved.offset(&weights)) as f32;
        let &Known { generation, promise, .. } = known;
        Row { name: name.clone(), generation, promise, bias, scale: scales[skill] as f32, weights }
    });
    let away = near.background().map(|(weights, bias)| {
        let weights: Vec<f32> = weights.map(|weight| weight as f32).collect();
        ((bias - solved.offset(&weights)) as f32, weights)
    });
    Index::new(rows.collect(), away.collect(), text, thresholds)
}

/// Solves for the skills against the background, which weighs at least as much as they do together: what belongs to no skill does
/// not become rare because there are many.
pub(super) fn fit(ledger: &Ledger, settings: Settings) -> (Solved, Raw) {
    let weight = (ledger.statistics.count() / ledger.background_statistics.count()).max(1.0);
    let all = ledger.statistics.plus(&ledger.background_statistics, weight);
    let (mean, count) = (all.mean(), all.count());
    let hidden = mean.len();
    let inverse = Cholesky::new(all.ridged(settings.lambda), hidden).inverse();
    let inverse = PackedLinear::new(&inverse, (hidden, hidden), WeightType::F32);
    let centred = |known: &Known| {
        let rows = known.rows as f64;
        known.sum.iter().zip(&mean).map(|(sum, mean)| (sum - rows * mean) as f32).collect::<Vec<_>>()
    };
    let centred: Vec<f32> = ledger.skills.values().flat_map(centred).collect();
    let weights = times(&inverse, &centred);
    let shares = ledger.skills.values().map(|known| known.rows as f64 / count).collect();
    (Solved { inverse, mean, count, weight }, Raw { weights, shares })
}

/// `x · Wᵀ`, `x` being `[rows, inputs]`.
pub(super) fn times(weight: &PackedLinear, x: &[f32]) -> Vec<f32> {
    let rows = x.len() / weight.inputs();
    let mut y = vec![0.0; rows * weight.outputs()];
    forward(x, rows, &mut [Output { weight, y: &mut y }], Write::Set);
    y
}

/// `count` unit rows of a skill, or all that are kept.
pub(super) fn some(known: &Known, count: usize, hidden: usize) -> Vec<f32> {
    let rows = known.sample.len() / hidden;
    let count = count.min(rows);
    (0..count).flat_map(|i| &known.sample[i * rows / count * hidden..][..hidden]).copied().collect()
}

impl Solved {
    /// What a row of weights makes of the mean.
    fn offset(&self, weights: &[f32]) -> f64 {
        weights.iter().zip(&self.mean).map(|(w, mean)| f64::from(*w) * mean).sum()
    }

    /// Of unit rows, `[rows, hidden]`.
    pub(super) fn centre(&self, rows: &[f32]) -> Vec<f32> {
        let centre =
            |row: &[f32]| row.iter().zip(&self.mean).map(|(x, mean)| (f64::from(*x) - mean) as f32).collect::<Vec<_>>();
        rows.chunks_exact(self.mean.len()).flat_map(centre).collect()
    }

    /// The mean of a skill's rows, centred.
    pub(super) fn centroid(&self, known: &Known) -> Vec<f32> {
        let rows = known.rows as f64;
        known.sum.iter().zip(&self.mean).map(|(sum, mean)| (sum / rows - mean) as f32).collect()
    }

    /// `xᵀ A⁻¹ x + 1/n` of centred rows.
    fn leverages(&self, centred: &[f32]) -> Vec<f64> {
        let solved = times(&self.inverse, centred);
        let hidden = self.mean.len();
        let pairs = solved.chunks_exact(hidden).zip(centred.chunks_exact(hidden));
        pairs.map(|(a, b)| dot(a, b) + 1.0 / self.count).collect()
    }
}

/// Every skill's raw score of each centred background row, had the row not been there.
fn strangers(solved: &Solved, raw: &Raw, background: &[f32]) -> Vec<Vec<f64>> {
    let skills = PackedLinear::new(&raw.weights, (raw.shares.len(), solved.mean.len()), WeightType::F32);
    let products = times(&skills, background);
    let leverages = solved.leverages(background);
    let left_out = |(row, leverage): (&[f32], f64)| {
        let scores = row.iter().zip(&raw.shares);
        scores.map(|(score, share)| (f64::from(*score) + share) / (1.0 - solved.weight * leverage)).collect()
    };
    products.chunks_exact(raw.shares.len()).zip(leverages).map(left_out).collect()
}

/// The mean raw score that a skill would give rows of its own, had each not been there: of `count` of them, corrected by how the mean of
/// all, which the sums know, differs from theirs. Twins differ by less than what another sample makes of a scale.
fn left_out(solved: &Solved, known: &Known, weights: &[f32], share: f64, count: usize) -> f64 {
    let hidden = solved.mean.len();
    let centred = solved.centre(&some(known, count, hidden));
    let scores: Vec<f64> = centred.chunks_exact(hidden).map(|row| dot(row, weights) + share).collect();
    let leverages = solved.leverages(&centred);
    let without = scores.iter().zip(&leverages).map(|(score, leverage)| 1.0 - (1.0 - score) / (1.0 - leverage));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let apart = dot(&solved.centroid(known), weights) + share - mean(&scores);
    mean(&without.collect::<Vec<_>>()) + apart / (1.0 - mean(&leverages))
}

/// Prompts of a skill by which its scale is measured, where there are `skills`.
pub(super) fn sampled(skills: usize) -> usize {
    (SCALE_PROMPTS / skills.max(1)).clamp(2, SAMPLE)
}

/// Words have no class of strangers; few of the background's prompts may pass for any skill's.
fn text_threshold(text: &Bm25, settings: Settings) -> f64 {
    let best = |prompt: &str| text.scores(prompt).into_iter().fold(0.0, f64::max);
    let prompts: Vec<&str> = BACKGROUND.lines().collect();
    let taken = quantile(prompts.into_par_iter().map(best).collect(), 1.0 - settings.strangers_of_all);
    // A prompt without a word in common is nobody's, however few the words are.
    taken.max(f64::MIN_POSITIVE)
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| f64::from(a * b)).sum();
    let mut sums = [0.0f64; 8];
    for (a, b) in a8.zip(b8) {
        for lane in 0..8 {
            sums[lane] += f64::from(a[lane] * b[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Linear interpolation between order statistics.
pub(super) fn quantile(mut values: Vec<f64>, p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = p * (values.len() - 1) as f64;
    let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Newcomer, Terms, statistics::Statistics, testing::cluster};
    use super::*;
    use crate::{
        common::Digest,
        library::{BaseId, RoutingFeatures},
    };

    pub(in crate::router) const SETTINGS: Settings =
        Settings { lambda: 1.0, accept: 0.4, margin: 0.05, strangers: 0.15, strangers_of_all: 0.05, shrinkage: 1.0 };

    pub(in crate::router) fn ledger(skills: &[&RoutingFeatures], background: &RoutingFeatures) -> Ledger {
        let base = BaseId { name: "tiny".into(), digest: Digest::of("w"), tokenizer: Digest::of("t") };
        let mut ledger = Ledger::new(base, background.clone()).unwrap();
        for (i, features) in skills.iter().enumerate() {
            let newcomer = Newcomer { generation: Digest::of("g"), features, words: &Terms::default(), promise: 0.5 };
            ledger.add(format!("s{i}").parse().unwrap(), newcomer).unwrap();
        }
        ledger
    }

    /// Skills of 6 and 5 rows, and a background of 5, which therefore weighs 2.2 a row.
    pub(in crate::router) fn data() -> [RoutingFeatures; 3] {
        [cluster(1, 0, 6, 5), cluster(2, 3, 5, 5), cluster(3, 1, 5, 5)]
    }

    fn raw_score(solved: &Solved, raw: &Raw, skill: usize, row: &[f32]) -> f64 {
        dot(&solved.centre(&unit(row)), &raw.weights[5 * skill..5 * (skill + 1)]) + raw.shares[skill]
    }

    #[test]
    fn a_score_is_that_of_weighted_ridge_regression_by_gradient_descent() {
        let [a, b, background] = data();
        let (solved, raw) = fit(&ledger(&[&a, &b], &background), SETTINGS);
        let all: Vec<Vec<f32>> =
            [&a, &b, &background].iter().flat_map(|f| f.rows()).map(|row| solved.centre(&unit(row))).collect();
        let weight = |i: usize| if i < 11 { 1.0 } else { 2.2 };
        let trace: f64 = (0..).zip(&all).map(|(i, row)| weight(i) * dot(row, row)).sum();
        for (class, rows) in [(0, 0..6), (1, 6..11)] {
            let share = rows.len() as f64 / 22.0;
            let mut weights = vec![0.0f64; 5];
            let product = |w: &[f64], row: &[f32]| w.iter().zip(row).map(|(w, x)| w * f64::from(*x)).sum::<f64>();
            for _ in 0..20_000 {
                let mut gradient: Vec<f64> = weights.iter().map(|w| trace / 5.0 * w).collect();
                for (i, row) in all.iter().enumerate() {
                    let error = weight(i) * (product(&weights, row) + share - f64::from(u8::from(rows.contains(&i))));
                    gradient.iter_mut().zip(row).for_each(|(g, x)| *g += error * f64::from(*x));
                }
                weights.iter_mut().zip(&gradient).for_each(|(w, g)| *w -= 0.5 / trace * g);
            }
            let probe = [0.3, -1.0, 2.0, 0.1, 0.7];
            let expected = product(&weights, &solved.centre(&unit(&probe))) + share;
            let found = raw_score(&solved, &raw, class, &probe);
            // Products are f32.
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }

    #[test]
    fn leaving_out_in_closed_form_is_leaving_out_in_fact() {
        let [a, b, background] = data();
        let whole = ledger(&[&a, &b], &background);
        let (solved, raw) = fit(&whole, SETTINGS);
        // The same weight and the same ridge, which would otherwise change a little with the rows.
        let refit = |skills: [&RoutingFeatures; 2], background: &RoutingFeatures| {
            let sum = |ledger: &Ledger| ledger.statistics.plus(&ledger.background_statistics, solved.weight);
            let ridge = |s: &Statistics, lambda| s.ridged(lambda)[0] - s.ridged(0.0)[0];
            let rest = ledger(&skills, background);
            let lambda = ridge(&sum(&whole), 1.0) / ridge(&sum(&rest), 1.0);
            let (mean, count) = (sum(&rest).mean(), sum(&rest).count());
            let inverse = Cholesky::new(sum(&rest).ridged(lambda), 5).inverse();
            let inverse = PackedLinear::new(&inverse, (5, 5), WeightType::F32);
            let centred = rest.skills.values().flat_map(|known| {
                known
                    .sum
                    .iter()
                    .zip(&mean)
                    .map(|(sum, mean)| (sum - known.rows as f64 * mean) as f32)
                    .collect::<Vec<_>>()
            });
            let weights = times(&inverse, &centred.collect::<Vec<_>>());
            let shares = rest.skills.values().map(|known| known.rows as f64 / count).collect();
            (Solved { inverse, mean, count, weight: solved.weight }, Raw { weights, shares })
        };
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        let without = |features: &RoutingFeatures, i: usize| {
            let mut rest = features.clone();
            rest.values.drain(5 * i..5 * (i + 1));
            rest
        };
        let known = &whole.skills.values().next().unwrap();
        let own = |count| left_out(&solved, known, &raw.weights[..5], raw.shares[0], count);
        let each = |i: usize| {
            let (rest, of_rest) = refit([&without(&a, i), &b], &background);
            raw_score(&rest, &of_rest, 0, a.rows().nth(i).unwrap())
        };
        let expected = (0..6).map(each).sum::<f64>() / 6.0;
        near(own(SAMPLE), expected);
        // Of a sample it is nearly that.
        assert!((own(3) - expected).abs() < 0.1, "{} is not nearly {expected}", own(3));
        let (rest, of_rest) = refit([&a, &b], &without(&background, 4));
        let centred: Vec<f32> = background.rows().flat_map(|row| solved.centre(&unit(row))).collect();
        let strangers = super::strangers(&solved, &raw, &centred);
        for skill in 0..2 {
            let expected = raw_score(&rest, &of_rest, skill, background.rows().nth(4).unwrap());
            near(strangers[4][skill], expected);
        }
    }

    #[test]
    fn a_skill_whose_prompts_are_like_the_background_takes_few_of_them() {
        let [a, b, background] = data();
        let alike = cluster(9, 1, 6, 5);
        let index = ledger(&[&a, &b, &alike], &background).solve(SETTINGS);
        let taken = background.rows().filter(|row| {
            let scores = index.by_features(row).unwrap();
            scores[2] > index.thresholds.features
        });
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
