//! The smallest of several sizes that learns, by bisection: every size is taken to learn what a smaller one does. Never knows what a size is of.

use super::{found::Bench, study::Study};
use crate::lab::{Cost, LabError, Purpose};

/// Where the smallest size that learns may still lie.
struct Bisection {
    /// Everything before it has failed.
    low: usize,
    /// Everything from it on has learned.
    high: usize,
}

impl Bisection {
    fn over(sizes: usize) -> Self {
        Self { low: 0, high: sizes }
    }

    /// What to try next; none when it is found.
    fn next(&self) -> Option<usize> {
        (self.low < self.high).then(|| self.low.midpoint(self.high))
    }

    fn tried(&mut self, at: usize, learned: bool) {
        if learned {
            self.high = at;
        } else {
            self.low = at + 1;
        }
    }
}

/// Tries `sizes`, ascending, with studies that `begin` begins, until the smallest is found that learns. Every try is recorded, that one last, and
/// what the others took is part of what it costs, as is `before`. None if none has learned: then the largest is recorded last.
///
/// # Errors
/// Whatever keeps a study from being made or measured.
pub(super) fn smallest<'r>(
    bench: &mut Bench<'_, '_>,
    (variant, sizes): (&str, &[usize]),
    before: Cost,
    mut begin: impl FnMut(&Bench<'_, '_>, usize) -> Result<Study<'r>, LabError>,
) -> Result<Option<Study<'r>>, LabError> {
    let (mut bisection, mut spent) = (Bisection::over(sizes.len()), before);
    let mut best: Option<Study<'r>> = None;
    while let Some(at) = bisection.next() {
        let mut study = begin(bench, sizes[at])?;
        let learned = study.until_learned(bench)?;
        bisection.tried(at, learned);
        let passed_over = if learned { best.replace(study) } else { Some(study) };
        if let Some(study) = passed_over {
            study.record(bench, variant, &spent)?;
            spent += study.cost.as_purpose(Purpose::Sweep);
        }
    }
    if let Some(study) = &best {
        study.record(bench, variant, &spent)?;
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::Bisection;

    #[test]
    fn the_first_that_learns_is_found_and_tried_or_the_last_is_tried_last() {
        for sizes in 0..10 {
            for first in 0..=sizes {
                let (mut bisection, mut tried) = (Bisection::over(sizes), Vec::new());
                while let Some(at) = bisection.next() {
                    tried.push(at);
                    bisection.tried(at, at >= first);
                }
                let mut once = tried.clone();
                once.sort_unstable();
                once.dedup();
                assert_eq!(once.len(), tried.len(), "{first} of {sizes}: {tried:?}");
                assert!(
                    tried.len() <= (sizes + 1).next_power_of_two().ilog2() as usize,
                    "{first} of {sizes}: {tried:?}"
                );
                if first < sizes {
                    assert!(tried.contains(&first), "{first} of {sizes}: {tried:?}");
                } else if sizes > 0 {
                    assert_eq!(tried.last(), Some(&(sizes - 1)), "{sizes}: {tried:?}");
                }
            }
        }
    }
}
