//! Sufficient statistics of ridge regression: sums that skills are added to and subtracted from, exactly up to rounding. Knows
//! rows, not skills.

use crate::library::RoutingFeatures;
use rayon::prelude::*;

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
    pub(super) fn update(&mut self, features: &RoutingFeatures, sign: f64) {
        let rows: Vec<Vec<f64>> = features.rows().map(unit).collect();
        self.count += sign * rows.len() as f64;
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

    pub(super) fn count(&self) -> f64 {
        self.count
    }

    /// Mean row.
    pub(super) fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.count).collect()
    }

    /// Gram matrix of the centred rows plus `lambda` times its mean eigenvalue on the diagonal (lower triangle).
    pub(super) fn ridged(&self, lambda: f64) -> Vec<f64> {
        let mut matrix = self.gram.clone();
        let mean = self.mean();
        let mut trace = 0.0;
        for i in 0..self.hidden {
            let row = &mut matrix[i * self.hidden..][..=i];
            for (value, other) in row.iter_mut().zip(&mean) {
                *value -= self.count * mean[i] * other;
            }
            trace += row[i].max(0.0);
        }
        // Rows that are all alike have no trace; any positive ridge then gives every skill its share of the rows.
        let ridge = (lambda * trace / self.hidden as f64).max(f64::EPSILON);
        for i in 0..self.hidden {
            matrix[i * self.hidden + i] += ridge;
        }
        matrix
    }
}

/// `row` at length 1. Transformers have a few dimensions of huge activations (Sun et al. 2024, arXiv 2402.17762), which make a
/// mean's length tell little but how short the prompt was; its direction tells what it is about.
pub(super) fn unit(row: &[f32]) -> Vec<f64> {
    let length = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    row.iter().map(|&value| f64::from(value) / length).collect()
}

/// Sum of a skill's unit rows.
pub(super) fn sum(features: &RoutingFeatures) -> Vec<f64> {
    let mut sum = vec![0.0; features.hidden];
    for row in features.rows().map(unit) {
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    sum
}
