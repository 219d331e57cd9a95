//! What figures say: fits of cost against size with their intervals, slopes, where two costs cross. Plain numbers in, plain numbers out; never
//! knows what was measured.

mod crossing;
mod fit;

pub use crossing::{Crossing, Line, crossing, queries_until};
pub use fit::{Fit, Fitted, Shape, compare, fit, slopes};

use crate::common::Seed;

/// 95 % interval of a statistic by resampling groups (seeds) with replacement: the 2.5th and 97.5th percentile of its values, without those
/// resamples where it has none. None if fewer than two groups are given or too few resamples have a value.
pub fn bootstrap<T: Clone>(
    groups: &[T],
    resamples: usize,
    seed: Seed,
    statistic: impl Fn(&[T]) -> Option<f64>,
) -> Option<[f64; 2]> {
    if groups.len() < 2 {
        return None;
    }
    let draw = |i: u64| {
        let mut rng = seed.index(i).rng();
        let drawn: Vec<T> = (0..groups.len()).map(|_| rng.pick(groups).clone()).collect();
        statistic(&drawn).filter(|value| value.is_finite())
    };
    let mut values: Vec<f64> = (0..resamples as u64).filter_map(draw).collect();
    if values.len() * 2 < resamples.max(2) {
        return None;
    }
    values.sort_by(f64::total_cmp);
    Some([percentile(&values, 0.025), percentile(&values, 0.975)])
}

/// The value below which a share `p` of ascending `values` lies, on the line between neighbours.
///
/// # Panics
/// If there is none.
pub fn percentile(values: &[f64], p: f64) -> f64 {
    let place = p * (values.len() - 1) as f64;
    let (low, share) = (place.floor() as usize, place.fract());
    let high = (low + 1).min(values.len() - 1);
    values[low] * (1.0 - share) + values[high] * share
}

/// The median of unordered values; none without any.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    (!values.is_empty()).then(|| percentile(&values, 0.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bootstrap_interval_of_a_mean_is_about_four_standard_errors_wide() {
        let mut rng = Seed::new(1).rng();
        let groups: Vec<f64> = (0..50).map(|_| 10.0 + rng.normal()).collect();
        let mean = |values: &[f64]| Some(values.iter().sum::<f64>() / values.len() as f64);
        let [low, high] = bootstrap(&groups, 2000, Seed::new(2), mean).unwrap();
        let width = 2.0 * 1.96 / 50f64.sqrt();
        // The sample's own deviation is within a third of 1 almost surely.
        assert!((high - low - width).abs() < 0.35 * width, "{low} … {high}, expected {width} apart");
        let middle = mean(&groups).unwrap();
        assert!(low < middle && middle < high);
    }

    #[test]
    fn nothing_is_said_of_one_group_or_of_a_statistic_that_mostly_has_no_value() {
        assert_eq!(bootstrap(&[1.0], 100, Seed::new(0), |values| Some(values[0])), None);
        assert_eq!(bootstrap(&[1.0, 2.0], 100, Seed::new(0), |_: &[f64]| None), None);
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        let values = [1.0, 2.0, 4.0];
        for (p, expected) in [(0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (0.75, 3.0), (1.0, 4.0)] {
            assert_eq!(percentile(&values, p), expected);
        }
        assert_eq!((median([3.0, 1.0, 2.0]), median([])), (Some(2.0), None));
    }
}
