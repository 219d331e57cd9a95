//! Sufficient statistics of ridge regression: sums that skills are added to and subtracted from, exactly. Knows rows, not skills.
//!
//! A value of a unit row is a multiple of 2⁻¹⁵ ([`unit`]), so sums are multiples of 2⁻¹⁵ and products of 2⁻³⁰, none above the number
//! of rows: f64 holds them all without rounding up to 2²³ rows. Whatever came and went, in whatever order, the sums of what is there
//! are the same bits, and so is all that is solved from them.

use crate::library::RoutingFeatures;
use rayon::prelude::*;

/// Values of a unit row are multiples of `1 / GRID`.
pub(super) const GRID: f64 = 32768.0;
/// See above.
const ROWS_MAX: f64 = (1 << 23) as f64;

/// Count, sum and Gram matrix of unit feature rows.
#[derive(Clone, Debug)]
pub(super) struct Statistics {
    hidden: usize,
    count: f64,
    sum: Vec<f64>,
    /// `Σ x xᵀ`, `[hidden, hidden]`; only the lower triangle is kept up.
    gram: Vec<f64>,
}

impl Statistics {
    pub(super) fn new(hidden: usize) -> Self {
        Self { hidden, count: 0.0, sum: vec![0.0; hidden], gram: vec![0.0; hidden * hidden] }
    }

    /// Adds every row of `features` `sign` times: 1 when a skill comes, −1 when it goes.
    ///
    /// # Panics
    /// Past 2²³ rows.
    pub(super) fn update(&mut self, features: &RoutingFeatures, sign: f64) {
        let rows: Vec<Vec<f64>> = features.rows().map(|row| unit(row).into_iter().map(f64::from).collect()).collect();
        self.count += sign * rows.len() as f64;
        assert!(self.count <= ROWS_MAX, "sums of more than 2²³ rows are not exact");
        for row in &rows {
            self.sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += sign * value);
        }
        self.gram.par_chunks_exact_mut(self.hidden).enumerate().for_each(|(i, gram)| {
            for row in &rows {
                let factor = sign * row[i];
                gram[..=i].iter_mut().zip(row).for_each(|(gram, value)| *gram += factor * value);
            }
        });
    }

    /// These rows, and `weight` times those of `other`.
    pub(super) fn plus(&self, other: &Self, weight: f64) -> Self {
        let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + weight * b).collect();
        Self {
            hidden: self.hidden,
            count: self.count + weight * other.count,
            sum: add(&self.sum, &other.sum),
            gram: add(&self.gram, &other.gram),
        }
    }

    /// Covariance of the rows around the means of their groups, of each of which `groups` has the sum and the number of rows, plus `lambda`
    /// times its mean variance on the diagonal (lower triangle).
    pub(super) fn within(&self, groups: &[(&[f64], f64)], lambda: f64) -> Vec<f64> {
        let mut matrix = self.gram.clone();
        matrix.par_chunks_exact_mut(self.hidden).enumerate().for_each(|(i, row)| {
            for (sum, rows) in groups {
                let factor = sum[i] / rows;
                row[..=i].iter_mut().zip(*sum).for_each(|(value, other)| *value -= factor * other);
            }
            row.iter_mut().for_each(|value| *value /= self.count);
        });
        add_ridge(&mut matrix, self.hidden, lambda);
        matrix
    }

    pub(super) fn count(&self) -> f64 {
        self.count
    }

    /// Count, sum and Gram matrix, one after the other; see [`Statistics::from_values`].
    pub(super) fn values(&self) -> Vec<f64> {
        [&[self.count][..], &self.sum, &self.gram].concat()
    }

    /// From [`Statistics::values`] of rows of this width; none if there are too few or too many.
    pub(super) fn from_values(hidden: usize, values: &[f64]) -> Option<Self> {
        let (count, rest) = values.split_first()?;
        let (sum, gram) = rest.split_at_checked(hidden)?;
        (gram.len() == hidden * hidden).then(|| Self { hidden, count: *count, sum: sum.to_vec(), gram: gram.to_vec() })
    }

    /// Mean row.
    pub(super) fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.count).collect()
    }

    /// Gram matrix of the centred rows plus `lambda` times its mean eigenvalue on the diagonal (lower triangle).
    pub(super) fn ridged(&self, lambda: f64) -> Vec<f64> {
        let mut matrix = self.gram.clone();
        let mean = self.mean();
        for i in 0..self.hidden {
            let row = &mut matrix[i * self.hidden..][..=i];
            for (value, other) in row.iter_mut().zip(&mean) {
                *value -= self.count * mean[i] * other;
            }
        }
        add_ridge(&mut matrix, self.hidden, lambda);
        matrix
    }
}

/// Adds `lambda` times the mean of the diagonal to it.
fn add_ridge(matrix: &mut [f64], hidden: usize, lambda: f64) {
    let diagonal = (0..hidden).map(|i| i * (hidden + 1));
    let trace: f64 = diagonal.clone().map(|at| matrix[at].max(0.0)).sum();
    // Rows that are all alike have no trace; any positive ridge then gives every skill its share of the rows.
    let ridge = (lambda * trace / hidden as f64).max(f64::EPSILON);
    diagonal.for_each(|at| matrix[at] += ridge);
}

/// `row` at length 1, its values rounded to multiples of 2⁻¹⁵ (the model's own, in bf16, have 8 bits). Transformers have a few
/// dimensions of huge activations (Sun et al. 2024, arXiv 2402.17762), which make a mean's length tell little but how short the
/// prompt was; its direction tells what it is about.
pub(super) fn unit(row: &[f32]) -> Vec<f32> {
    let length = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    // Within i16, as files have it.
    let grid = |value: f64| (value * GRID).round().clamp(1.0 - GRID, GRID - 1.0) / GRID;
    row.iter().map(|&value| grid(f64::from(value) / length) as f32).collect()
}

/// Sum of a skill's unit rows.
pub(super) fn sum(features: &RoutingFeatures) -> Vec<f64> {
    let mut sum = vec![0.0; features.hidden];
    for row in features.rows().map(unit) {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(value));
    }
    sum
}
