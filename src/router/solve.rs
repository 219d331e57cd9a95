//! The ridge classifier, solved: from exact sums to one weight row a skill, on a scale of the skill's own. Never sees names.
//!
//! With centred unit rows X, one-hot targets Y, row weights W and `A = XᵀWX + λ·tr(XᵀWX)/d · I`, the raw score of skill c for a row x
//! is `(x − μ)ᵀ A⁻¹ (S_c − n_c μ) + n_c / n`, S_c and n_c being the sum and number of its rows: weighted ridge regression with a
//! free intercept (Hastie, Tibshirani & Friedman, *The Elements of Statistical Learning*, 3.4.1). `A` is factored in f64; what is
//! multiplied by its inverse is f32, in kernels of which a row's bits depend on that row alone.
//!
//! What a model without one row would say of it has a closed form, `ŷ = y − (y − s) / (1 − h)` with the row's leverage
//! `h = w (xᵀ A⁻¹ x + 1/n)` (same book, 7.10). From it comes each skill's scale: what its own prompts score when each is left out,
//! or more, if background prompts would otherwise pass for it.
//!
//! A linear score knows directions and no distances: what lies far from everything may still score high. So half of a score is how
//! much nearer the prompt is to the skill than to any background prompt ([`Nearness`]), which is linear in the prompt too.

use super::{
    Settings,
    cholesky::Cholesky,
    index::{Index, Row},
    ledger::{Known, Ledger, SAMPLE},
    statistics::unit,
    text::Bm25,
};
use crate::router::BACKGROUND;
use rayon::prelude::*;
use socius_kernels::linear::{Output, PackedLinear, WeightType, Write, forward};

/// Scales are measured on about this many prompts in all, but at least two of each skill: some 10 µs each at width 576.
const SCALE_PROMPTS: usize = 16384;

/// `A`, inverted, and the origin of the space that it is of.
struct Solved {
    inverse: PackedLinear,
    mean: Vec<f64>,
    count: f64,
    /// Of a background row; a skill's row weighs 1.
    weight: f64,
}

/// The skills' scores before they are scaled: a row each of `A⁻¹ (S_c − n_c μ)`, and `n_c / n`.
struct Raw {
    weights: Vec<f32>,
    shares: Vec<f64>,
}

pub(super) fn solve(ledger: &Ledger, settings: Settings) -> Index {
    let (solved, raw) = fit(ledger, settings);
    let skills: Vec<&Known> = ledger.skills.values().collect();
    let hidden = solved.mean.len();
    let background = background(ledger, &solved, &raw);
    let of = |(skill, known): (usize, &&Known)| {
        let weights = &raw.weights[skill * hidden..][..hidden];
        let own = left_out(&solved, known, weights, raw.shares[skill], sampled(skills.len()));
        let strangers = background.iter().map(|scores| scores[skill]).collect();
        // A model that knows nothing scores a skill's share.
        let least = raw.shares[skill];
        quantile(own, 0.5).max(quantile(strangers, 1.0 - settings.strangers) / settings.accept).max(least)
    };
    let scales: Vec<f64> = skills.par_iter().enumerate().map(of).collect();
    let near = (!skills.is_empty()).then(|| Nearness::new(ledger, &solved, settings));
    let taken = near.as_ref().map_or(0.0, |near| {
        let nearer = near.of_background(ledger, &solved);
        let best = background.iter().zip(&nearer).map(|(scores, nearer)| {
            let both =
                scores.iter().zip(&scales).zip(nearer).map(|((score, scale), nearer)| (score / scale + nearer) / 2.0);
            both.fold(f64::NEG_INFINITY, f64::max)
        });
        quantile(best.collect(), 1.0 - settings.strangers_of_all)
    });
    let rows = ledger.skills.iter().zip(near.iter().flat_map(|near| near.skills.halves(near.unit, hidden))).enumerate();
    let rows = rows.map(|(skill, ((name, known), (nearness, bias)))| {
        let scale = 2.0 * scales[skill];
        let weights = raw.weights[skill * hidden..][..hidden].iter().zip(nearness);
        let weights: Vec<f32> = weights.map(|(w, near)| (f64::from(*w) / scale + near) as f32).collect();
        let bias = (raw.shares[skill] / scale + bias - solved.offset(&weights)) as f32;
        Row { name: name.clone(), generation: known.generation, promise: known.promise, bias, weights }
    });
    let strangers = near.iter().flat_map(|near| near.background.halves(near.unit, hidden)).map(|(weights, bias)| {
        let weights: Vec<f32> = weights.map(|weight| weight as f32).collect();
        ((bias - solved.offset(&weights)) as f32, weights)
    });
    let text = Bm25::new(&skills.iter().map(|known| &known.terms).collect::<Vec<_>>());
    let text_threshold = text_threshold(&text, settings);
    Index::new(
        rows.collect(),
        strangers.collect(),
        text,
        super::index::Thresholds {
            features: settings.accept.max(taken),
            text: text_threshold,
            margin: settings.margin,
        },
    )
}

/// Solves for the skills against the background, which weighs at least as much as they do together: what belongs to no skill does
/// not become rare because there are many.
fn fit(ledger: &Ledger, settings: Settings) -> (Solved, Raw) {
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

/// How much nearer a prompt is to a skill's mean than to the nearest background prompt: about 1 for a skill's own prompts. Distances are
/// Mahalanobis', P being the inverse of the prompts' covariance around the means of their skills, shrunk towards its mean variance. What
/// both distances share cancels: `|x − b|² − |x − m|² = g_m(x) − g_b(x)` with `g_z(x) = 2 zᵀPx − zᵀPz`.
struct Nearness {
    skills: Planes,
    background: Planes,
    /// What a skill's own prompts have in the median.
    unit: f64,
}

/// `g_z` of some points.
struct Planes {
    /// `2 P z`, `[points, hidden]`.
    weights: Vec<f32>,
    /// `−zᵀPz`.
    biases: Vec<f64>,
}

impl Nearness {
    fn new(ledger: &Ledger, solved: &Solved, settings: Settings) -> Self {
        let hidden = solved.mean.len();
        let groups: Vec<_> = ledger.skills.values().map(|known| (&*known.sum, known.rows as f64)).collect();
        let covariance = ledger.statistics.within(&groups, settings.shrinkage);
        let inverse = Cholesky::new(covariance, hidden).inverse();
        let metric = PackedLinear::new(&inverse, (hidden, hidden), WeightType::F32);
        let mean = |(sum, rows): &(&[f64], f64)| {
            sum.iter().zip(&solved.mean).map(|(sum, mean)| (sum / rows - mean) as f32).collect::<Vec<_>>()
        };
        let skills = Planes::new(&metric, &groups.iter().flat_map(mean).collect::<Vec<_>>());
        let background = Planes::new(&metric, &solved.centre(&background_rows(ledger)));
        let own = skills.own(ledger, solved);
        let rows: Vec<f32> = own.iter().flat_map(|(row, _)| row.iter().copied()).collect();
        let nearest = background.of(&rows, hidden);
        let nearer =
            own.iter().zip(nearest.chunks_exact(background.biases.len())).map(|((_, own), others)| own - most(others));
        // Skills whose prompts are the background's own are no nearer to anything.
        let unit = quantile(nearer.collect(), 0.5);
        Self { skills, background, unit: if unit > 0.0 { unit } else { f64::INFINITY } }
    }

    /// By how much each background prompt is nearer to every skill than to the nearest of the others.
    fn of_background(&self, ledger: &Ledger, solved: &Solved) -> Vec<Vec<f64>> {
        let (count, hidden) = (self.background.biases.len(), solved.mean.len());
        let rows = solved.centre(&background_rows(ledger));
        let others = self.background.of(&rows, hidden);
        let skills = self.skills.of(&rows, hidden);
        let nearest = others
            .chunks_exact(count)
            .enumerate()
            .map(|(own, others)| most(&others[..own]).max(most(&others[own + 1..])));
        let nearer = skills.chunks_exact(self.skills.biases.len()).zip(nearest);
        nearer.map(|(skills, nearest)| skills.iter().map(|skill| (skill - nearest) / self.unit).collect()).collect()
    }
}

impl Planes {
    /// Of centred points, `[points, hidden]`.
    fn new(metric: &PackedLinear, points: &[f32]) -> Self {
        let mut weights = times(metric, points);
        let hidden = metric.inputs();
        let biases = weights.chunks_exact(hidden).zip(points.chunks_exact(hidden)).map(|(a, b)| -dot(a, b)).collect();
        weights.iter_mut().for_each(|weight| *weight *= 2.0);
        Self { weights, biases }
    }

    /// Of centred rows, `[rows, hidden]`: `[rows, points]`.
    fn of(&self, rows: &[f32], hidden: usize) -> Vec<f64> {
        let weights = PackedLinear::new(&self.weights, (self.biases.len(), hidden), WeightType::F32);
        let products = times(&weights, rows);
        let biases = self.biases.iter().cycle();
        products.iter().zip(biases).map(|(product, bias)| f64::from(*product) + bias).collect()
    }

    /// Some prompts of every skill, centred, each with what the skill's own plane says of it.
    fn own(&self, ledger: &Ledger, solved: &Solved) -> Vec<(Vec<f32>, f64)> {
        let hidden = solved.mean.len();
        let count = sampled(ledger.skills.len());
        let planes = self.weights.chunks_exact(hidden).zip(&self.biases);
        let of = |(known, (weights, bias)): (&Known, (&[f32], &f64))| {
            let rows = solved.centre(&some(known, count, hidden));
            rows.chunks_exact(hidden).map(|row| (row.to_vec(), dot(row, weights) + bias)).collect::<Vec<_>>()
        };
        ledger.skills.values().zip(planes).flat_map(of).collect()
    }

    /// Weights and bias of each as they count in a score: half, by `unit`.
    fn halves(&self, unit: f64, hidden: usize) -> impl Iterator<Item = (impl Iterator<Item = f64>, f64)> {
        let half = move |weight: &f32| f64::from(*weight) / (2.0 * unit);
        let biases = self.biases.iter().map(move |bias| bias / (2.0 * unit));
        self.weights.chunks_exact(hidden).map(move |weights| weights.iter().map(half)).zip(biases)
    }
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Unit rows of the background, `[rows, hidden]`.
fn background_rows(ledger: &Ledger) -> Vec<f32> {
    ledger.background.rows().flat_map(unit).collect()
}

/// `count` unit rows of a skill, or all that are kept.
fn some(known: &Known, count: usize, hidden: usize) -> Vec<f32> {
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
    fn centre(&self, rows: &[f32]) -> Vec<f32> {
        let centre =
            |row: &[f32]| row.iter().zip(&self.mean).map(|(x, mean)| (f64::from(*x) - mean) as f32).collect::<Vec<_>>();
        rows.chunks_exact(self.mean.len()).flat_map(centre).collect()
    }

    /// `xᵀ A⁻¹ x + 1/n` of centred rows.
    fn leverages(&self, centred: &[f32]) -> Vec<f64> {
        let solved = times(&self.inverse, centred);
        let hidden = self.mean.len();
        let pairs = solved.chunks_exact(hidden).zip(centred.chunks_exact(hidden));
        pairs.map(|(a, b)| dot(a, b) + 1.0 / self.count).collect()
    }
}

/// Every skill's raw score of each background row, had the row not been there.
fn background(ledger: &Ledger, solved: &Solved, raw: &Raw) -> Vec<Vec<f64>> {
    if raw.shares.is_empty() {
        return Vec::new();
    }
    let centred = solved.centre(&background_rows(ledger));
    let skills = PackedLinear::new(&raw.weights, (raw.shares.len(), solved.mean.len()), WeightType::F32);
    let products = times(&skills, &centred);
    let leverages = solved.leverages(&centred);
    let left_out = |(row, leverage): (&[f32], f64)| {
        let scores = row.iter().zip(&raw.shares);
        scores.map(|(score, share)| (f64::from(*score) + share) / (1.0 - solved.weight * leverage)).collect()
    };
    products.chunks_exact(raw.shares.len()).zip(leverages).map(left_out).collect()
}

/// The raw scores that a skill would give `count` rows of its own, had each not been there.
fn left_out(solved: &Solved, known: &Known, weights: &[f32], share: f64, count: usize) -> Vec<f64> {
    let hidden = solved.mean.len();
    let centred = solved.centre(&some(known, count, hidden));
    let scores = centred.chunks_exact(hidden).map(|row| dot(row, weights) + share);
    scores.zip(solved.leverages(&centred)).map(|(score, leverage)| 1.0 - (1.0 - score) / (1.0 - leverage)).collect()
}

/// Prompts of a skill by which its scale is measured, where there are `skills`.
fn sampled(skills: usize) -> usize {
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

fn dot(a: &[f32], b: &[f32]) -> f64 {
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
fn quantile(mut values: Vec<f64>, p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = p * (values.len() - 1) as f64;
    let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::super::{Newcomer, Terms, statistics::Statistics, testing::cluster};
    use super::*;
    use crate::{
        common::Digest,
        library::{BaseId, RoutingFeatures},
    };

    const SETTINGS: Settings =
        Settings { lambda: 1.0, accept: 0.4, margin: 0.05, strangers: 0.15, strangers_of_all: 0.05, shrinkage: 1.0 };

    fn ledger(skills: &[&RoutingFeatures], background: &RoutingFeatures) -> Ledger {
        let base = BaseId { name: "tiny".into(), digest: Digest::of("w"), tokenizer: Digest::of("t") };
        let mut ledger = Ledger::new(base, background.clone()).unwrap();
        for (i, features) in skills.iter().enumerate() {
            let newcomer = Newcomer { generation: Digest::of("g"), features, words: &Terms::default(), promise: 0.5 };
            ledger.add(format!("s{i}").parse().unwrap(), newcomer).unwrap();
        }
        ledger
    }

    /// Skills of 6 and 5 rows, and a background of 5, which therefore weighs 2.2 a row.
    fn data() -> [RoutingFeatures; 3] {
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
        let own = left_out(&solved, known, &raw.weights[..5], raw.shares[0], SAMPLE);
        let (rest, of_rest) = refit([&without(&a, 2), &b], &background);
        near(own[2], raw_score(&rest, &of_rest, 0, a.rows().nth(2).unwrap()));
        let (rest, of_rest) = refit([&a, &b], &without(&background, 4));
        let strangers = super::background(&whole, &solved, &raw);
        for skill in 0..2 {
            let expected = raw_score(&rest, &of_rest, skill, background.rows().nth(4).unwrap());
            near(strangers[4][skill], expected);
        }
    }

    #[test]
    fn nearness_is_the_distance_to_a_background_prompt_less_that_to_the_skills_mean() {
        let [a, b, background] = data();
        let ledger = ledger(&[&a, &b], &background);
        let (solved, _) = fit(&ledger, SETTINGS);
        let near = Nearness::new(&ledger, &solved, SETTINGS);
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
        let (skills, strangers) = (near.skills.of(&centred, 5), near.background.of(&centred, 5));
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
