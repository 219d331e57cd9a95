//! From a budget in time to a number of steps. Pure: seconds in, steps out; the clock is read elsewhere.

use serde::{Deserialize, Serialize};

/// How long a subagent may live.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Exactly this many optimiser steps.
    Steps(usize),
    /// About this many seconds, from base score to gate.
    Seconds(f64),
}

/// Seconds observed so far, from which the number of steps that still fit is planned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spent {
    /// Since the subagent's birth.
    pub total: f64,
    /// Of one training step (median of those seen).
    pub step: f64,
    /// Expected for everything after training: validation, gate, test score, publishing.
    pub reserve: f64,
}

impl Budget {
    /// Total steps that fit, `done` of them already taken; at least one, so that there is always a candidate to judge.
    pub fn steps(self, done: usize, spent: Spent) -> usize {
        match self {
            Self::Steps(steps) => steps,
            Self::Seconds(seconds) => {
                let left = seconds - spent.total - spent.reserve;
                let more = if spent.step > 0.0 { (left / spent.step).floor().max(0.0) } else { 0.0 };
                (done + more as usize).max(1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_in_time_becomes_the_steps_that_fit_before_the_reserve() {
        let spent = |total, step, reserve| Spent { total, step, reserve };
        for (seconds, done, spent, steps) in [
            (300.0, 4, spent(60.0, 2.0, 40.0), 104),
            (300.0, 4, spent(270.0, 2.0, 40.0), 4),
            (10.0, 0, spent(60.0, 2.0, 40.0), 1),
            (300.0, 3, spent(60.0, 0.0, 40.0), 3),
        ] {
            assert_eq!(Budget::Seconds(seconds).steps(done, spent), steps);
        }
        assert_eq!(Budget::Steps(7).steps(3, spent(1e9, 1.0, 1.0)), 7);
    }
}
