//! What a matrix of accuracies says: accuracy, backward and forward transfer, forgetting. Pure; never sees tasks or models.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The figures of one run. `R[i][j]` is the accuracy on task j after task i, both in the order of the stream; cells that were not
/// measured are none, and so is a figure without a cell to be made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Mean over tasks of the last row.
    pub acc: Option<f64>,
    /// Backward transfer: mean over all but the last task of `R[T][j] − R[j][j]` (Lopez-Paz & Ranzato 2017).
    pub bwt: Option<f64>,
    /// Forward transfer: mean over all but the first task of `R[j−1][j] − b[j]`, b being the untouched base (same paper).
    pub fwt: Option<f64>,
    /// By task, none for the last: `max over l < T of R[l][j], less R[T][j]` (Chaudhry et al. 2018).
    pub forgetting: Vec<Option<f64>>,
    /// Accuracy at the end as a share of what it was just after learning, over all but the last task.
    pub kept: Option<f64>,
}

/// The figures of `r` over the base's accuracies `base`.
///
/// # Panics
/// Unless `r` is square and as wide as `base`.
pub fn metrics(r: &[Vec<Option<f64>>], base: &[f64]) -> Metrics {
    let tasks = base.len();
    assert!(r.len() == tasks && r.iter().all(|row| row.len() == tasks), "R is square over the tasks");
    let Some(last) = r.last() else { return Metrics::default() };
    let difference = |a: Option<f64>, b: Option<f64>| Some(a? - b?);
    let best = |j: usize| r[..tasks - 1].iter().filter_map(|row| row[j]).reduce(f64::max);
    let mut forgetting: Vec<_> = (0..tasks - 1).map(|j| difference(best(j), last[j])).collect();
    forgetting.push(None);
    let pairs: Vec<(f64, f64)> = (0..tasks - 1).filter_map(|j| Some((last[j]?, r[j][j]?))).collect();
    let (at_end, learned) = pairs.iter().fold((0.0, 0.0), |(a, b), (end, then)| (a + end, b + then));
    Metrics {
        acc: mean(last.iter().copied()),
        bwt: mean((0..tasks - 1).map(|j| difference(last[j], r[j][j]))),
        fwt: mean((1..tasks).map(|j| difference(r[j - 1][j], Some(base[j])))),
        forgetting,
        kept: (learned > 0.0).then(|| at_end / learned),
    }
}

/// The mean, if every value is there and there is one.
pub(super) fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values: Vec<f64> = values.collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// A mean over repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// Its 95 % interval by Student's t; none for a single repetition.
    pub ci95: Option<[f64; 2]>,
    /// How many repetitions.
    pub n: usize,
}

/// Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
const T95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// Mean and interval of `values`; none of nothing.
pub fn spread(values: &[f64]) -> Option<Spread> {
    let n = values.len();
    let mean = mean(values.iter().map(|&value| Some(value)))?;
    let ci95 = (n > 1).then(|| {
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
        let half = T95.get(n - 2).copied().unwrap_or(1.96) * (variance / n as f64).sqrt();
        [mean - half, mean + half]
    });
    Some(Spread { mean, ci95, n })
}

/// The same over seeds: what is measured more than once under a seed, in other orders, shares what was learned, and its mean is one value.
pub(super) fn over_seeds(values: impl IntoIterator<Item = (u64, f64)>) -> Option<Spread> {
    let mut seeds = BTreeMap::<u64, Vec<f64>>::new();
    values.into_iter().for_each(|(seed, value)| seeds.entry(seed).or_default().push(value));
    let means = seeds.values().filter_map(|values| mean(values.iter().copied().map(Some)));
    spread(&means.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matrix(rows: &[&[f64]]) -> Vec<Vec<Option<f64>>> {
        // Negative stands for not measured.
        rows.iter().map(|row| row.iter().map(|&value| (value >= 0.0).then_some(value)).collect()).collect()
    }

    fn near(found: Option<f64>, expected: Option<f64>) -> bool {
        match (found, expected) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-12,
            (a, b) => a == b,
        }
    }

    #[test]
    fn the_figures_are_those_computed_by_hand() {
        let rows: [(&[&[f64]], &[f64], [Option<f64>; 4], &[Option<f64>]); 5] = [
            // One that forgets: 0.9 → 0.5 and 0.8 → 0.6, and never helps ahead.
            (
                &[&[0.9, 0.1, -1.0], &[0.7, 0.8, 0.0], &[0.5, 0.6, 1.0]],
                &[0.0, 0.1, 0.2],
                [Some(0.7), Some(-0.3), Some(-0.1), Some(1.1 / 1.7)],
                &[Some(0.4), Some(0.2), None],
            ),
            // One that keeps all.
            (
                &[&[1.0, 0.0], &[1.0, 1.0]],
                &[0.0, 0.0],
                [Some(1.0), Some(0.0), Some(0.0), Some(1.0)],
                &[Some(0.0), None],
            ),
            // A later task helps an earlier one: forgetting is negative.
            (
                &[&[0.5, 0.3], &[0.75, 1.0]],
                &[0.0, 0.1],
                [Some(0.875), Some(0.25), Some(0.2), Some(1.5)],
                &[Some(-0.25), None],
            ),
            // Only the last row was measured.
            (&[&[-1.0, -1.0], &[0.5, 0.7]], &[0.0, 0.0], [Some(0.6), None, None, None], &[None, None]),
            (&[&[0.4]], &[0.0], [Some(0.4), None, None, None], &[None]),
        ];
        for (r, base, [acc, bwt, fwt, kept], forgetting) in rows {
            let found = metrics(&matrix(r), base);
            let figures = [(found.acc, acc), (found.bwt, bwt), (found.fwt, fwt), (found.kept, kept)];
            assert!(figures.iter().all(|&(a, b)| near(a, b)), "{r:?}: {found:?}");
            assert!(found.forgetting.iter().zip(forgetting).all(|(&a, &b)| near(a, b)), "{r:?}: {found:?}");
        }
        assert_eq!(metrics(&[], &[]), Metrics::default());
    }

    #[test]
    fn intervals_are_students() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[0.5]), Some(Spread { mean: 0.5, ci95: None, n: 1 }));
        // Deviation 0.1, so 4.303 · 0.1 / √3.
        let [low, high] = spread(&[0.4, 0.5, 0.6]).unwrap().ci95.unwrap();
        assert!((low - 0.251_565).abs() < 1e-4 && (high - 0.748_435).abs() < 1e-4, "{low} {high}");
    }

    #[test]
    fn orders_of_one_seed_are_one_repetition() {
        assert_eq!(over_seeds([(7, 0.5), (7, 0.5), (7, 0.5)]), Some(Spread { mean: 0.5, ci95: None, n: 1 }));
        let seeds = [(0, 0.25), (0, 0.75), (1, 0.5), (2, 1.0), (2, 0.5)];
        assert_eq!(over_seeds(seeds), spread(&[0.5, 0.5, 0.75]));
        assert_eq!(over_seeds([]), None);
    }

    proptest! {
        #[test]
        fn what_never_changes_forgets_nothing(row in prop::collection::vec(0.0f64..=1.0, 1..7)) {
            let r = vec![row.iter().map(|&value| Some(value)).collect::<Vec<_>>(); row.len()];
            let found = metrics(&r, &row);
            prop_assert!(near(found.acc, Some(row.iter().sum::<f64>() / row.len() as f64)));
            prop_assert!(found.bwt.is_none_or(|bwt| bwt.abs() < 1e-12) && found.fwt.is_none_or(|fwt| fwt.abs() < 1e-12));
            prop_assert!(found.forgetting.iter().flatten().all(|f| f.abs() < 1e-12));
        }

        #[test]
        fn figures_stay_in_their_ranges_and_forgetting_bounds_backward_transfer(
            values in prop::collection::vec(0.0f64..=1.0, 16), base in prop::collection::vec(0.0f64..=1.0, 4)
        ) {
            let r: Vec<Vec<_>> = values.chunks(4).map(|row| row.iter().map(|&value| Some(value)).collect()).collect();
            let found = metrics(&r, &base);
            let (acc, bwt, fwt) = (found.acc.unwrap(), found.bwt.unwrap(), found.fwt.unwrap());
            prop_assert!((0.0..=1.0).contains(&acc) && bwt.abs() <= 1.0 && fwt.abs() <= 1.0);
            // The best of all earlier rows is at least the diagonal's.
            let forgotten = mean(found.forgetting[..3].iter().copied()).unwrap();
            prop_assert!(forgotten >= -bwt - 1e-12);
        }
    }
}
