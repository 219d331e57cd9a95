//! What a subagent achieved on a set of items, with intervals: counts in, fractions and bounds out. Never sees text or models.

use crate::{common::Seed, library::Score};
use serde::{Deserialize, Serialize};

/// z of a two-sided 95 % interval.
const Z95: f64 = 1.959_963_984_540_054;
const RESAMPLES: usize = 2_000;

/// Grades of one pass over a fixed list of items.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Grades {
    /// Whether each item's whole reply was right, in item order.
    pub strict: Vec<bool>,
    /// Whether each item's first complete answer span was right.
    pub lenient: Vec<bool>,
}

impl Grades {
    /// Number of items.
    pub fn len(&self) -> usize {
        self.strict.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.strict.is_empty()
    }

    /// As it is reported: fractions, with the 95 % interval of the strict one.
    pub fn score(&self) -> Score {
        let strict = count(&self.strict);
        Score {
            strict: fraction(strict, self.len()),
            lenient: fraction(count(&self.lenient), self.len()),
            items: self.len(),
            ci95: wilson(strict, self.len()),
        }
    }

    /// Those of the items at `places`.
    pub fn only(&self, places: &[usize]) -> Self {
        let pick = |flags: &[bool]| places.iter().map(|&i| flags[i]).collect();
        Self { strict: pick(&self.strict), lenient: pick(&self.lenient) }
    }
}

fn count(flags: &[bool]) -> usize {
    flags.iter().filter(|&&flag| flag).count()
}

fn fraction(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Wilson's 95 % score interval of `successes` in `trials`; `[0, 1]` without trials.
pub fn wilson(successes: usize, trials: usize) -> [f64; 2] {
    if trials == 0 {
        return [0.0, 1.0];
    }
    let n = trials as f64;
    let p = successes as f64 / n;
    let centre = p + Z95 * Z95 / (2.0 * n);
    let spread = Z95 * (p * (1.0 - p) / n + Z95 * Z95 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z95 * Z95 / n;
    [((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0)]
}

/// 95 % interval of the mean improvement `after − before` over the same items, by paired bootstrap (Efron 1979; percentile
/// method, 2,000 resamples drawn from `seed`).
///
/// # Panics
/// If the two lists differ in length or are empty.
pub fn improvement(before: &[bool], after: &[bool], seed: Seed) -> [f64; 2] {
    assert!(before.len() == after.len() && !before.is_empty(), "improvement is measured on the same items");
    let differences: Vec<i32> = before.iter().zip(after).map(|(&b, &a)| i32::from(a) - i32::from(b)).collect();
    let mut rng = seed.purpose("bootstrap").rng();
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let sum: i32 = (0..differences.len()).map(|_| *rng.pick(&differences)).sum();
            f64::from(sum) / differences.len() as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |q: f64| means[((RESAMPLES - 1) as f64 * q).round() as usize];
    [at(0.025), at(0.975)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_agrees_with_published_values() {
        // Newcombe 1998, table I, method 3.
        for (k, n, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let [l, h] = wilson(k, n);
            assert!((l - low).abs() < 1e-4 && (h - high).abs() < 1e-4, "{k}/{n}: {l} {h}");
        }
        assert_eq!(wilson(0, 0), [0.0, 1.0]);
    }

    #[test]
    fn improvement_brackets_the_difference_and_is_zero_for_equal_lists() {
        let before = vec![false; 64];
        let after: Vec<bool> = (0..64).map(|i| i % 4 != 0).collect();
        let [low, high] = improvement(&before, &after, Seed::new(1));
        assert!(low > 0.6 && low < 0.75 && high > 0.75 && high < 0.9, "{low} {high}");
        assert_eq!(improvement(&after, &after, Seed::new(1)), [0.0, 0.0]);
        assert_eq!(improvement(&before, &after, Seed::new(1)), improvement(&before, &after, Seed::new(1)));
    }

    #[test]
    fn a_score_counts_both_grades() {
        let grades = Grades { strict: vec![true, false, false, true], lenient: vec![true, true, false, true] };
        let score = grades.score();
        assert_eq!((score.strict, score.lenient, score.items), (0.5, 0.75, 4));
    }
}
