//! Where one cost becomes less than another: in N between measured sizes, and in the number of questions. Never extrapolates in N.

/// What a number of questions costs: once, and each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Before the first question.
    pub fixed: f64,
    /// For each.
    pub each: f64,
}

/// How two costs lie to each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Crossing {
    /// Neither is ever less.
    Equal,
    /// The first is less everywhere.
    First,
    /// The second is less everywhere.
    Second,
    /// The second becomes less from here on.
    SecondFrom(f64),
    /// The first becomes less from here on.
    FirstFrom(f64),
}

/// The number of questions from which on `later` costs less than `at_first`. At least one is asked.
pub fn queries_until(at_first: Line, later: Line) -> Crossing {
    let (more, saved) = (later.fixed - at_first.fixed, at_first.each - later.each);
    if more == 0.0 && saved == 0.0 {
        return Crossing::Equal;
    }
    let at = (more / saved).ceil();
    match (more > 0.0, saved > 0.0) {
        (true, true) if at > 1.0 => Crossing::SecondFrom(at),
        (true, true) | (false, true) => Crossing::Second,
        (true, false) => Crossing::First,
        // Less to begin with, more for each.
        (false, false) if saved < 0.0 && at > 1.0 => Crossing::FirstFrom(at),
        (false, false) if saved < 0.0 => Crossing::First,
        (false, false) => Crossing::Second,
    }
}

/// The last size at which two costs over the same ascending sizes cross, on the straight line between the logarithms of neighbours. None without
/// a common size.
pub fn crossing(first: &[(f64, f64)], second: &[(f64, f64)]) -> Option<Crossing> {
    let common: Vec<(f64, f64)> = first
        .iter()
        .filter_map(|&(n, a)| {
            let (_, b) = second.iter().find(|(m, _)| *m == n)?;
            Some((n, (a / b).ln()))
        })
        .collect();
    let change = common.windows(2).rev().find(|pair| (pair[0].1 > 0.0) != (pair[1].1 > 0.0));
    let &(_, last) = common.last()?;
    Some(match change {
        None if common.iter().all(|(_, ratio)| *ratio == 0.0) => Crossing::Equal,
        None if last > 0.0 => Crossing::Second,
        None => Crossing::First,
        Some(pair) => {
            let ((n, a), (m, b)) = (pair[0], pair[1]);
            let at = (n.ln() + (m / n).ln() * a / (a - b)).exp();
            if last > 0.0 { Crossing::SecondFrom(at) } else { Crossing::FirstFrom(at) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lines_cross_where_their_sums_are_equal() {
        let line = |fixed, each| Line { fixed, each };
        for (at_first, later, expected) in [
            (line(0.0, 10.0), line(100.0, 5.0), Crossing::SecondFrom(20.0)),
            (line(100.0, 5.0), line(0.0, 10.0), Crossing::FirstFrom(20.0)),
            (line(0.0, 1.0), line(5.0, 2.0), Crossing::First),
            (line(5.0, 2.0), line(0.0, 1.0), Crossing::Second),
            (line(0.0, 1.0), line(0.0, 2.0), Crossing::First),
            (line(3.0, 1.0), line(3.0, 1.0), Crossing::Equal),
            (line(5.0, 1.0), line(3.0, 1.0), Crossing::Second),
            (line(0.0, 10.0), line(4.0, 5.0), Crossing::Second),
            (line(4.0, 5.0), line(0.0, 10.0), Crossing::First),
            (line(0.0, 10.0), line(101.0, 5.0), Crossing::SecondFrom(21.0)),
        ] {
            assert_eq!(queries_until(at_first, later), expected);
        }
    }

    #[test]
    fn curves_cross_between_the_sizes_where_their_order_changes() {
        let curve = |cost: fn(f64) -> f64| [16.0, 64.0, 256.0, 1024.0].map(|n| (n, cost(n)));
        let (square, straight) = (curve(|n| n * n), curve(|n| 100.0 * n));
        let Some(Crossing::SecondFrom(at)) = crossing(&square, &straight) else { panic!("they cross") };
        assert!((at - 100.0).abs() < 1e-9, "power laws are straight in logarithms: {at}");
        let Some(Crossing::FirstFrom(again)) = crossing(&straight, &square) else { panic!("they cross") };
        assert!((again - at).abs() < 1e-9);
        assert_eq!(crossing(&straight, &curve(|n| 99.0 * n)), Some(Crossing::Second));
        assert_eq!(crossing(&straight, &straight), Some(Crossing::Equal));
        assert_eq!(crossing(&straight, &[(5.0, 1.0)]), None);
    }
}
