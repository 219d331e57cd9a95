//! Timings of the trainer and the engine on random tokens, and of a library of made-up skills. Never sees text or tasks.
//!
//! What is timed is what learning and answering run: [`crate::train::forward_backward`] with [`crate::train::optim_step`], and
//! [`crate::engine::Engine::step`]. Every figure is the median of several runs after one that warms up.

mod decode;
mod library;
pub mod ops;
mod roofline;
mod train;

pub use decode::{Decode, Decoded, Decoding, Prefill};
pub use library::{Shelf, ShelfTimes};
pub use roofline::{Bound, Reached, Roofline};
pub use train::{Train, Training};

use crate::{
    common::{Phase, Progress, Report, Seed, Unit},
    engine::EngineError,
    library::LibraryError,
    lora::LoraError,
    train::TrainError,
};
use std::time::Instant;

/// An error of a measurement.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The work does not fit the base.
    #[error("{what}: {right}")]
    Work {
        /// What was wrong.
        what: String,
        /// What would be right.
        right: String,
    },
    /// Ended because it was asked to.
    #[error("ended before it was measured")]
    Cancelled,
    /// The adapters cannot be made.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// The library failed.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// A training step failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A decoding step failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Runs a piece of work again and again.
pub struct Clock<'a> {
    /// Measured runs, at least one; one more goes before and is not counted.
    pub runs: usize,
    /// Who waits.
    pub report: &'a mut dyn Report,
}

impl Clock<'_> {
    /// The median of the seconds that `run` returns.
    ///
    /// # Errors
    /// What `run` says, or that an end was asked for.
    pub fn median(&mut self, mut run: impl FnMut() -> Result<f64, BenchError>) -> Result<f64, BenchError> {
        let mut seconds = Vec::with_capacity(self.runs);
        for done in 0..=self.runs {
            let progress = Progress {
                phase: Phase::Measurement,
                label: "speed",
                done: done as u64,
                total: Some(self.runs as u64 + 1),
                unit: Unit::Steps,
                detail: "",
            };
            self.report.progress(progress);
            if self.report.cancelled() {
                return Err(BenchError::Cancelled);
            }
            seconds.push(run()?);
        }
        Ok(median(&mut seconds[1..]))
    }

    /// The median of how long `step` takes.
    ///
    /// # Errors
    /// As [`Self::median`].
    pub fn time(&mut self, mut step: impl FnMut() -> Result<(), BenchError>) -> Result<f64, BenchError> {
        self.median(|| {
            let start = Instant::now();
            step()?;
            Ok(start.elapsed().as_secs_f64())
        })
    }
}

/// The middle of `values`, which are put in order; of an even number the lower of the two.
///
/// # Panics
/// If there are none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

/// `count` token ids below `vocab`: the `row`-th row of every measurement.
fn random_tokens(row: usize, count: usize, vocab: usize) -> Vec<u32> {
    let mut rng = Seed::new(0).purpose("bench").index(row as u64).rng();
    (0..count).map(|_| rng.below(vocab) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Silent;

    #[test]
    fn the_warm_up_is_not_counted_and_the_median_is() {
        let mut seconds = [100.0, 3.0, 1.0, 2.0].into_iter();
        let found = Clock { runs: 3, report: &mut Silent }.median(|| Ok(seconds.next().unwrap())).unwrap();
        assert_eq!((found, seconds.next()), (2.0, None));
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.0);
    }

    #[test]
    fn an_end_that_is_asked_for_ends_the_measurement() {
        struct Leaving;
        impl Report for Leaving {
            fn progress(&mut self, _: Progress<'_>) {}
            fn note(&mut self, _: &str) {}
            fn cancelled(&self) -> bool {
                true
            }
        }
        let found = Clock { runs: 1, report: &mut Leaving }.time(|| panic!("nothing runs"));
        assert!(matches!(found, Err(BenchError::Cancelled)));
    }
}
