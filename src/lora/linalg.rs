//! Thin matrices by columns: orthonormal bases and singular values, in f64. Knows nothing of adapters.

/// Columns shorter than this share of what they were before the others were taken out of them add nothing to a basis.
const DEPENDENT: f64 = 1e-10;
/// Columns whose cosine is at most this count as orthogonal.
const ORTHOGONAL: f64 = 1e-13;
/// One-sided Jacobi converges quadratically: a dozen sweeps are plenty, and this is where a malformed matrix ends.
const SWEEPS_MAX: usize = 40;

/// A matrix `[length, count]`, column by column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Columns {
    length: usize,
    values: Vec<f64>,
}

impl Columns {
    /// Of columns of `length` values each, which follow one another in `values`.
    pub(super) fn new(length: usize, values: Vec<f64>) -> Self {
        assert!(length > 0 && values.len().is_multiple_of(length), "whole columns");
        Self { length, values }
    }

    pub(super) fn count(&self) -> usize {
        self.values.len() / self.length
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.values.chunks_exact(self.length)
    }

    pub(super) fn column(&self, j: usize) -> &[f64] {
        &self.values[j * self.length..(j + 1) * self.length]
    }

    /// Columns `i` and `j`, where `i < j`.
    fn pair_mut(&mut self, i: usize, j: usize) -> (&mut [f64], &mut [f64]) {
        let (before, after) = self.values.split_at_mut(j * self.length);
        (&mut before[i * self.length..(i + 1) * self.length], &mut after[..self.length])
    }

    fn identity(length: usize) -> Self {
        let mut values = vec![0.0; length * length];
        values.iter_mut().step_by(length + 1).for_each(|value| *value = 1.0);
        Self { length, values }
    }

    /// `self · small`: `[m, n] · [n, k]`.
    pub(super) fn times(&self, small: &Self) -> Self {
        let mut values = vec![0.0; self.length * small.count()];
        for (out, weights) in values.chunks_exact_mut(self.length).zip(small.iter()) {
            self.iter().zip(weights).for_each(|(column, &weight)| add(out, weight, column));
        }
        Self { length: self.length, values }
    }

    /// `selfᵀ · other`: `[m, n]ᵀ · [m, k]`.
    pub(super) fn transposed_times(&self, other: &Self) -> Self {
        let dots = other.iter().flat_map(|column| self.iter().map(|own| dot(own, column)));
        Self::new(self.count(), dots.collect())
    }

    /// An orthonormal basis of what the columns span, by Gram and Schmidt done twice, which is enough (Giraud et al. 2005). It has
    /// fewer columns where some depend on others.
    pub(super) fn basis(&self) -> Self {
        let mut basis = Self { length: self.length, values: Vec::with_capacity(self.values.len()) };
        for column in self.iter() {
            let mut rest = column.to_vec();
            for _ in 0..2 {
                for axis in basis.iter() {
                    let along = dot(axis, &rest);
                    add(&mut rest, -along, axis);
                }
            }
            let norm = dot(&rest, &rest).sqrt();
            if norm > DEPENDENT * dot(column, column).sqrt() {
                basis.values.extend(rest.iter().map(|value| value / norm));
            }
        }
        basis
    }
}

/// `left · diag(values) · rightᵀ`, of orthonormal columns, values falling.
pub(super) struct Svd {
    pub(super) left: Columns,
    pub(super) values: Vec<f64>,
    pub(super) right: Columns,
}

/// The singular value decomposition of `matrix`, `[m, n]`: its columns are put over a basis of theirs, and what is left, at most
/// `[n, n]`, is turned until its columns are orthogonal (Hestenes 1958). None for a matrix of zeros.
pub(super) fn svd(matrix: &Columns) -> Option<Svd> {
    let basis = matrix.basis();
    if basis.count() == 0 {
        return None;
    }
    let mut small = basis.transposed_times(matrix);
    let mut right = Columns::identity(matrix.count());
    for _ in 0..SWEEPS_MAX {
        if !sweep(&mut small, &mut right) {
            break;
        }
    }
    let norms: Vec<f64> = small.iter().map(|column| dot(column, column).sqrt()).collect();
    let mut order: Vec<usize> = (0..norms.len()).collect();
    order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]));
    order.truncate(basis.count());
    let mut units = Vec::with_capacity(order.len() * small.length);
    for &j in &order {
        units.extend(small.column(j).iter().map(|value| value / norms[j].max(f64::MIN_POSITIVE)));
    }
    let turned = Columns::new(small.length, units);
    Some(Svd {
        left: basis.times(&turned),
        values: order.iter().map(|&j| norms[j]).collect(),
        right: Columns::new(right.length, order.iter().flat_map(|&j| right.column(j).iter().copied()).collect()),
    })
}

/// Makes every pair of columns orthogonal in turn, and turns those of `right` along. False once nothing had to be turned.
fn sweep(small: &mut Columns, right: &mut Columns) -> bool {
    let mut turned = false;
    for i in 0..small.count() {
        for j in i + 1..small.count() {
            let (a, b) = small.pair_mut(i, j);
            let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
            if ab.abs() <= ORTHOGONAL * (aa * bb).sqrt() {
                continue;
            }
            turned = true;
            // The angle that makes the turned columns' product vanish (Golub & Van Loan, Matrix Computations, §8.6.3).
            let zeta = (bb - aa) / (2.0 * ab);
            let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
            let cosine = 1.0 / tangent.hypot(1.0);
            turn(a, b, cosine, cosine * tangent);
            let (a, b) = right.pair_mut(i, j);
            turn(a, b, cosine, cosine * tangent);
        }
    }
    turned
}

fn turn(a: &mut [f64], b: &mut [f64], cosine: f64, sine: f64) {
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}

/// `Σ aᵢ bᵢ` in eight sums, which a compiler can keep in vectors; the order does not depend on the machine.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `out += weight · column`.
pub(super) fn add(out: &mut [f64], weight: f64, column: &[f64]) {
    out.iter_mut().zip(column).for_each(|(out, value)| *out += weight * value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Seed;
    use proptest::prelude::*;

    fn random(length: usize, count: usize, seed: u64) -> Columns {
        let mut rng = Seed::new(seed).rng();
        Columns::new(length, (0..length * count).map(|_| rng.normal()).collect())
    }

    fn orthonormality(columns: &Columns) -> f64 {
        let expected = |i, j| if i == j { 1.0 } else { 0.0 };
        let pairs = (0..columns.count()).flat_map(|i| (0..columns.count()).map(move |j| (i, j)));
        pairs.map(|(i, j)| (dot(columns.column(i), columns.column(j)) - expected(i, j)).abs()).fold(0.0, f64::max)
    }

    /// The largest element of `matrix − left · diag(values) · rightᵀ`.
    fn residual(matrix: &Columns, svd: &Svd) -> f64 {
        let mut worst = 0.0_f64;
        for (j, column) in matrix.iter().enumerate() {
            let mut rest = column.to_vec();
            for k in 0..svd.values.len() {
                add(&mut rest, -svd.values[k] * svd.right.column(k)[j], svd.left.column(k));
            }
            worst = rest.iter().fold(worst, |worst, value| worst.max(value.abs()));
        }
        worst
    }

    proptest! {
        #[test]
        fn a_decomposition_is_orthonormal_sorted_and_gives_the_matrix_back(
            length in 1_usize..24, count in 1_usize..24, rank in 1_usize..8, seed in any::<u64>()
        ) {
            // Of full rank, and of a low one.
            let product = random(length, rank, seed).times(&random(rank, count, seed ^ 1));
            for matrix in [random(length, count, seed), product] {
                let svd = svd(&matrix).unwrap();
                prop_assert!(svd.values.windows(2).all(|pair| pair[0] >= pair[1]));
                prop_assert!(orthonormality(&svd.left) < 1e-9 && orthonormality(&svd.right) < 1e-9);
                prop_assert!(residual(&matrix, &svd) < 1e-9 * svd.values[0].max(1.0));
            }
        }
    }

    #[test]
    fn singular_values_are_those_of_a_matrix_that_is_known() {
        // diag(3, 2, 1) turned by orthonormal bases on both sides.
        let (left, right) = (random(7, 3, 1).basis(), random(5, 3, 2).basis());
        let mut values = vec![0.0; 35];
        for (k, sigma) in [3.0, 2.0, 1.0].into_iter().enumerate() {
            for (column, &along) in values.chunks_exact_mut(7).zip(right.column(k)) {
                add(column, sigma * along, left.column(k));
            }
        }
        let found = svd(&Columns::new(7, values)).unwrap().values;
        assert!(found.len() == 3 && found.iter().zip([3.0, 2.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
    }

    #[test]
    fn zeros_have_no_decomposition_and_repeated_columns_one_axis() {
        assert!(svd(&Columns::new(4, vec![0.0; 12])).is_none());
        let twice = Columns::new(3, vec![1.0, 2.0, 2.0, 2.0, 4.0, 4.0]);
        assert_eq!(twice.basis().count(), 1);
        assert!((svd(&twice).unwrap().values[0] - 45.0_f64.sqrt()).abs() < 1e-12);
    }
}
