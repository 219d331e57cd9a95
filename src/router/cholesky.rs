//! Factor of a symmetric positive definite matrix, in f64. Knows nothing of what it is solved for.

use rayon::prelude::*;

/// `A = L Lᵀ`.
#[derive(Clone, Debug)]
pub(super) struct Cholesky {
    size: usize,
    /// Lower triangle, `[size, size]` row-major; what is above the diagonal is not read.
    lower: Vec<f64>,
}

impl Cholesky {
    /// Factors `matrix` (`[size, size]`, of which the lower triangle is read). A pivot that rounding has made smaller than
    /// `f64::EPSILON` times its diagonal is a direction without data; it is taken as that small number.
    pub(super) fn new(mut matrix: Vec<f64>, size: usize) -> Self {
        assert_eq!(matrix.len(), size * size, "a square matrix");
        for row in 0..size {
            let diagonal = matrix[row * size + row];
            let (above, own) = matrix.split_at_mut(row * size);
            let own = &mut own[..=row];
            for column in 0..row {
                let other = &above[column * size..][..=column];
                own[column] = (own[column] - dot(&own[..column], &other[..column])) / other[column];
            }
            let pivot = diagonal - dot(&own[..row], &own[..row]);
            let least = diagonal.abs().max(f64::MIN_POSITIVE / f64::EPSILON) * f64::EPSILON;
            own[row] = pivot.max(least).sqrt();
        }
        Self { size, lower: matrix }
    }

    /// `L⁻¹ x`, whose squared length is `xᵀ A⁻¹ x`.
    fn half_solve(&self, x: &[f64]) -> Vec<f64> {
        let mut y = Vec::with_capacity(self.size);
        for row in 0..self.size {
            let own = &self.lower[row * self.size..][..=row];
            y.push((x[row] - dot(&own[..row], &y)) / own[row]);
        }
        y
    }

    /// `A⁻¹`, `[size, size]`.
    pub(super) fn inverse(&self) -> Vec<f32> {
        let column = |i: usize| {
            let mut unit = vec![0.0; self.size];
            unit[i] = 1.0;
            self.solve(&unit).into_iter().map(|value| value as f32).collect::<Vec<_>>()
        };
        (0..self.size).into_par_iter().flat_map_iter(column).collect()
    }

    /// `A⁻¹ x`.
    fn solve(&self, x: &[f64]) -> Vec<f64> {
        let mut y = self.half_solve(x);
        // Column by column of Lᵀ, so that rows of L are read in order.
        for row in (0..self.size).rev() {
            let own = &self.lower[row * self.size..][..=row];
            y[row] /= own[row];
            let (before, at) = y.split_at_mut(row);
            for (value, factor) in before.iter_mut().zip(own) {
                *value -= at[0] * factor;
            }
        }
        y
    }
}

/// Four partial sums in a fixed order: deterministic, and short enough chains to keep a core busy.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0; 4];
    for (a, b) in a4.zip(b4) {
        for lane in 0..4 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Seed;

    #[test]
    fn solving_undoes_multiplying_at_awkward_sizes() {
        for size in [1, 2, 5, 17, 63] {
            let mut rng = Seed::new(size as u64).rng();
            let rows: Vec<f64> = (0..(size + 3) * size).map(|_| rng.normal()).collect();
            let mut matrix = vec![0.0; size * size];
            for row in rows.chunks_exact(size) {
                for i in 0..size {
                    for j in 0..size {
                        matrix[i * size + j] += row[i] * row[j];
                    }
                }
            }
            let x: Vec<f64> = (0..size).map(|_| rng.normal()).collect();
            let product: Vec<f64> = matrix.chunks_exact(size).map(|row| dot(row, &x)).collect();
            let factor = Cholesky::new(matrix, size);
            let error = factor.solve(&product).iter().zip(&x).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < 1e-8, "size {size}: {error}");
            let half = factor.half_solve(&product);
            let inverse = factor.inverse();
            let again = inverse
                .chunks_exact(size)
                .map(|row| row.iter().zip(&product).map(|(a, b)| f64::from(*a) * b).sum::<f64>());
            let error = again.zip(&x).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < 1e-3, "size {size}: {error} by the inverse in f32");
            let quadratic = dot(&product, &x);
            assert!((dot(&half, &half) - quadratic).abs() < 1e-8 * quadratic.abs().max(1.0), "size {size}");
        }
    }

    #[test]
    fn a_singular_matrix_gives_finite_numbers() {
        for matrix in [vec![0.0; 9], vec![1.0; 9]] {
            assert!(Cholesky::new(matrix, 3).half_solve(&[0.0, 0.0, 0.0]).iter().all(|v| v.is_finite()));
        }
    }
}
