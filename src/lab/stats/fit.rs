//! How a cost grows: `c₀ + aN + bN²` against a power law `c·N^p`, both by least squares on relative errors. Never extrapolates.

/// What is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `c₀ + aN`, no coefficient below 0.
    Linear,
    /// `c₀ + aN + bN²`, no coefficient below 0.
    Quadratic,
    /// `c·N^p`.
    Power,
}

/// A fit and how good it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// What was fitted.
    pub shape: Shape,
    /// c₀, a, b; or c and p.
    pub coefficients: Vec<f64>,
    /// Akaike's criterion with the correction for few points (Hurvich & Tsai 1989); lower is better. None with too few sizes for it.
    pub aicc: Option<f64>,
    /// Root mean square of relative errors.
    pub error: f64,
}

impl Fit {
    /// What it says at `n`.
    pub fn at(&self, n: f64) -> f64 {
        match (self.shape, &self.coefficients[..]) {
            (Shape::Power, [c, p]) => c * n.powf(*p),
            (_, coefficients) => coefficients.iter().rev().fold(0.0, |sum, c| sum * n + c),
        }
    }

    /// The share of what it says at `n` that the term in N² makes.
    pub fn quadratic_share(&self, n: f64) -> f64 {
        self.coefficients.get(2).map_or(0.0, |b| b * n * n / self.at(n))
    }
}

/// Both shapes of the same points, and the simpler linear one.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// `c₀ + aN`.
    pub linear: Fit,
    /// `c₀ + aN + bN²`.
    pub quadratic: Fit,
    /// `c·N^p`.
    pub power: Fit,
}

impl Fitted {
    /// The one with the lowest criterion; none with too few points.
    pub fn best(&self) -> Option<&Fit> {
        let all = [&self.linear, &self.quadratic, &self.power];
        let judged = all.into_iter().filter(|fit| fit.aicc.is_some());
        judged.min_by(|a, b| a.aicc.unwrap_or(f64::INFINITY).total_cmp(&b.aicc.unwrap_or(f64::INFINITY)))
    }
}

/// All shapes of the same points; none if a shape cannot be fitted.
pub fn compare(points: &[(f64, f64)]) -> Option<Fitted> {
    Some(Fitted {
        linear: fit(Shape::Linear, points)?,
        quadratic: fit(Shape::Quadratic, points)?,
        power: fit(Shape::Power, points)?,
    })
}

/// The fit of `shape` to points (N, cost), all above 0, that has the least sum of squared relative errors: costs over decades weigh alike. None
/// with fewer points of different N than coefficients.
pub fn fit(shape: Shape, points: &[(f64, f64)]) -> Option<Fit> {
    let points: Vec<(f64, f64)> = points.iter().copied().filter(|&(n, cost)| n > 0.0 && cost > 0.0).collect();
    let mut sizes: Vec<f64> = points.iter().map(|point| point.0).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    let count = match shape {
        Shape::Linear | Shape::Power => 2,
        Shape::Quadratic => 3,
    };
    if sizes.len() < count {
        return None;
    }
    let coefficients = match shape {
        Shape::Power => power(&points),
        _ => polynomial(&points, count),
    };
    let mut fit = Fit { shape, coefficients, aicc: None, error: 0.0 };
    let squares: f64 = points.iter().map(|&(n, cost)| (fit.at(n) / cost).ln().powi(2)).sum();
    let mean_square = squares / points.len() as f64;
    // Seeds repeat a size, many costs to the last digit: what tells shapes apart are sizes.
    let samples = sizes.len() as f64;
    // The variance is a parameter too.
    let parameters = count as f64 + 1.0;
    fit.error = mean_square.sqrt();
    fit.aicc = (samples > parameters + 1.0).then(|| {
        // Costs that are counted exactly leave no error at all: one of a millionth stands for it.
        samples * mean_square.max(1e-12).ln()
            + 2.0 * parameters
            + 2.0 * parameters * (parameters + 1.0) / (samples - parameters - 1.0)
    });
    Some(fit)
}

/// Slope and offset of log cost over log N.
fn power(points: &[(f64, f64)]) -> Vec<f64> {
    let logs: Vec<(f64, f64)> = points.iter().map(|&(n, cost)| (n.ln(), cost.ln())).collect();
    let count = logs.len() as f64;
    let (x, y) = logs.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
    let (over, under) = logs
        .iter()
        .fold((0.0, 0.0), |(over, under), point| (over + (point.0 - x) * (point.1 - y), under + (point.0 - x).powi(2)));
    let slope = over / under;
    vec![(y - slope * x).exp(), slope]
}

/// Least squares of relative errors under the bound that no coefficient is below 0, by trying every set of terms: there are at most
/// seven.
fn polynomial(points: &[(f64, f64)], count: usize) -> Vec<f64> {
    let error = |coefficients: &[f64]| -> f64 {
        let value = |n: f64| coefficients.iter().rev().fold(0.0, |sum, c| sum * n + c);
        points.iter().map(|&(n, cost)| (value(n) / cost - 1.0).powi(2)).sum()
    };
    let sets = (1..1usize << count).map(|set| (0..count).filter(|i| set >> i & 1 == 1).collect::<Vec<_>>());
    let fitted = sets.filter_map(|terms| {
        let solved = least_squares(points, &terms)?;
        let mut coefficients = vec![0.0; count];
        terms.iter().zip(solved).for_each(|(&term, value)| coefficients[term] = value);
        coefficients.iter().all(|&c| c >= 0.0).then_some(coefficients)
    });
    // A single term always has a coefficient above 0.
    fitted.min_by(|a, b| error(a).total_cmp(&error(b))).expect("costs are above 0")
}

/// The coefficients of N^term for every term, by the normal equations with columns scaled to 1 at the largest N. None if they have no single
/// solution.
fn least_squares(points: &[(f64, f64)], terms: &[usize]) -> Option<Vec<f64>> {
    let largest = points.iter().map(|point| point.0).fold(0.0, f64::max);
    let size = terms.len();
    let mut rows = vec![vec![0.0; size + 1]; size];
    for &(n, cost) in points {
        let x: Vec<f64> = terms.iter().map(|&term| (n / largest).powi(term as i32) / cost).collect();
        for i in 0..size {
            for j in 0..size {
                rows[i][j] += x[i] * x[j];
            }
            rows[i][size] += x[i];
        }
    }
    for i in 0..size {
        let pivot = (i..size).max_by(|&a, &b| rows[a][i].abs().total_cmp(&rows[b][i].abs()))?;
        rows.swap(i, pivot);
        if rows[i][i].abs() < 1e-300 {
            return None;
        }
        for j in i + 1..size {
            let factor = rows[j][i] / rows[i][i];
            for k in i..=size {
                rows[j][k] -= factor * rows[i][k];
            }
        }
    }
    let mut solution = vec![0.0; size];
    for i in (0..size).rev() {
        let known: f64 = (i + 1..size).map(|j| rows[i][j] * solution[j]).sum();
        solution[i] = (rows[i][size] - known) / rows[i][i];
    }
    Some(terms.iter().zip(solution).map(|(&term, value)| value / largest.powi(term as i32)).collect())
}

/// Slope of log cost over log N between neighbours: (the geometric mean of both N, slope). Points ascend in N.
pub fn slopes(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let slope = |pair: &[(f64, f64)]| {
        let ((n, a), (m, b)) = (pair[0], pair[1]);
        ((n * m).sqrt(), (b / a).ln() / (m / n).ln())
    };
    points.windows(2).filter(|pair| pair[0].0 < pair[1].0).map(slope).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [f64; 7] = [16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

    fn points(cost: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        SIZES.iter().map(|&n| (n, cost(n))).collect()
    }

    #[test]
    fn the_coefficients_that_made_the_points_are_found() {
        for (c, a, b) in [(5.0, 2.0, 0.1), (0.0, 1.0, 0.0), (100.0, 0.0, 3.0), (0.0, 1e6, 1e3), (7.0, 0.0, 0.0)] {
            let fit = fit(Shape::Quadratic, &points(|n| c + a * n + b * n * n)).unwrap();
            for (found, expected) in fit.coefficients.iter().zip([c, a, b]) {
                let tolerance = 1e-6 * (expected + (c + a + b) * 1e-3);
                assert!((found - expected).abs() <= tolerance, "{:?} for {:?}", fit.coefficients, (c, a, b));
            }
        }
        for (c, p) in [(3.0, 1.0), (0.5, 2.0), (1e9, 1.37)] {
            let fit = fit(Shape::Power, &points(|n| c * n.powf(p))).unwrap();
            assert!((fit.coefficients[0] / c - 1.0).abs() < 1e-9 && (fit.coefficients[1] - p).abs() < 1e-12);
        }
    }

    #[test]
    fn the_criterion_prefers_the_shape_that_made_noisy_points() {
        let mut rng = crate::common::Seed::new(5).rng();
        let mut noisy = |value: f64| value * (0.03 * rng.normal()).exp();
        let five = |cost: &mut dyn FnMut(f64) -> f64| -> Vec<(f64, f64)> {
            (0..5).flat_map(|_| SIZES.map(|n| (n, cost(n)))).collect()
        };
        let linear = compare(&five(&mut |n| noisy(50.0 + 2.0 * n))).unwrap();
        let best = linear.best().unwrap();
        assert!(best.shape != Shape::Power && best.quadratic_share(1024.0) < 0.1, "{linear:?}");
        let quadratic = compare(&five(&mut |n| noisy(500.0 * n + 3.0 * n * n))).unwrap();
        assert_eq!(quadratic.best().unwrap().shape, Shape::Quadratic, "{quadratic:?}");
        let power = compare(&five(&mut |n| noisy(4.0 * n.powf(1.5)))).unwrap();
        assert_eq!(power.best().unwrap().shape, Shape::Power, "{power:?}");
    }

    #[test]
    fn no_coefficient_is_below_zero_whatever_the_points() {
        let cases = [points(|n| 1000.0 / n), points(|n| n.sqrt()), vec![(1.0, 5.0), (2.0, 1.0), (4.0, 9.0)]];
        for points in cases {
            let fit = fit(Shape::Quadratic, &points).unwrap();
            assert!(fit.coefficients.iter().all(|&c| c >= 0.0) && fit.error.is_finite(), "{fit:?}");
        }
    }

    #[test]
    fn too_few_sizes_are_not_fitted_and_too_few_points_not_judged() {
        assert!(fit(Shape::Quadratic, &[(1.0, 1.0), (2.0, 2.0), (2.0, 2.1)]).is_none());
        assert!(fit(Shape::Linear, &[(1.0, 1.0), (2.0, 2.0)]).unwrap().aicc.is_none());
        assert!(fit(Shape::Linear, &[(1.0, 1.0), (2.0, 0.0)]).is_none(), "a cost of 0 is none");
        let (four, five) = (points(|n| n)[..4].to_vec(), points(|n| n)[..5].to_vec());
        assert!(fit(Shape::Linear, &four.repeat(5)).unwrap().aicc.is_none(), "repetitions are no sizes");
        assert!(fit(Shape::Linear, &five).unwrap().aicc.is_some());
    }

    #[test]
    fn local_slopes_rise_from_one_to_two_where_the_quadratic_takes_over() {
        let slopes = slopes(&points(|n| 128.0 * n + n * n));
        assert!(slopes.windows(2).all(|pair| pair[0].1 < pair[1].1));
        let (n, slope) = slopes[3];
        assert!((n - 181.0).abs() < 1.0 && (slope - 1.58).abs() < 0.03, "{slopes:?}");
    }
}
