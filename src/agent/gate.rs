//! The gate: whether a candidate proved itself on fresh validation items. Pure: grades in, a decision with its reason out.

use super::measure::{Grades, improvement};
use crate::common::Seed;
use serde::{Deserialize, Serialize};

/// What the gate asks of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// The lower 95 % bound of the strict improvement must be above this (a fraction).
    pub improvement_min: f64,
}

impl Default for Gate {
    fn default() -> Self {
        // Five points: below that, a router's mistakes cost more than the skill brings.
        Self { improvement_min: 0.05 }
    }
}

/// The gate's verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether the candidate becomes a skill.
    pub admitted: bool,
    /// Why, in one sentence with the figures.
    pub reason: String,
    /// 95 % interval of the improvement on the validation items.
    pub improvement95: [f64; 2],
}

impl Gate {
    /// Compares `after` with `before` on the same validation items.
    pub fn decide(&self, before: &Grades, after: &Grades, seed: Seed) -> Decision {
        let improvement95 = improvement(&before.strict, &after.strict, seed);
        let admitted = improvement95[0] > self.improvement_min;
        let reason = format!(
            "strict {:.1} % → {:.1} % on {} validation items: improvement {:+.1} … {:+.1} points (95 %), {} the {:.1} points asked for",
            100.0 * before.score().strict,
            100.0 * after.score().strict,
            after.len(),
            100.0 * improvement95[0],
            100.0 * improvement95[1],
            if admitted { "above" } else { "whose lower end is not above" },
            100.0 * self.improvement_min,
        );
        Decision { admitted, reason, improvement95 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_admits_clear_improvement_and_refuses_noise_and_harm() {
        let grades = |right: usize| {
            let strict: Vec<bool> = (0..96).map(|i| i < right).collect();
            Grades { lenient: strict.clone(), strict }
        };
        for (before, after, admitted) in [(0, 80, true), (40, 42, false), (80, 10, false), (0, 0, false), (0, 12, true)]
        {
            let decision = Gate::default().decide(&grades(before), &grades(after), Seed::new(0));
            assert_eq!(decision.admitted, admitted, "{before} → {after}: {}", decision.reason);
        }
    }
}
