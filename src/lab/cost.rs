//! What something took: operations, tokens by purpose, bytes, seconds. Adds up; never knows what it is spent on.

use serde::{Deserialize, Serialize};
use socius_kernels::counts::Counts;
use std::{
    collections::BTreeMap,
    iter::Sum,
    ops::{Add, AddAssign, Mul},
    time::Instant,
};

/// What tokens went through a model for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Training the base that all arms share, before any context is seen.
    Pretrained,
    /// Reading a context.
    Prefill,
    /// Reading a question and drawing its answer.
    Decode,
    /// Forward and backward.
    Trained,
    /// Training data that a model wrote.
    Synthesised,
    /// A teacher's distributions.
    Teacher,
    /// Choosing who answers.
    Router,
    /// Messages between agents, read and written.
    Message,
    /// Settings that were tried and not taken.
    Sweep,
    /// Looking whether it is good enough yet.
    Validation,
}

/// What something took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cost {
    /// Floating-point operations by purpose, counted analytically: attention's products, the head and the frozen weights on the way
    /// back included.
    pub flops: BTreeMap<Purpose, f64>,
    /// The same as the kernels themselves counted them, products alone; 0 where nothing was counted.
    pub counted_flops: f64,
    /// Bytes that the kernels counted as read and written.
    pub counted_bytes: f64,
    /// Tokens by purpose.
    pub tokens: BTreeMap<Purpose, u64>,
    /// Bytes that must be kept for the next question: keys and values, an adapter, weights, an index.
    pub kept_bytes: u64,
    /// Wall time.
    pub seconds: f64,
}

impl Cost {
    /// So many operations on so many tokens.
    pub fn of(purpose: Purpose, tokens: u64, flops: f64) -> Self {
        Self { flops: [(purpose, flops)].into(), tokens: [(purpose, tokens)].into(), ..Self::default() }
    }

    /// All operations together, the shared base's training aside: that is paid before any context is seen.
    pub fn total_flops(&self) -> f64 {
        let paid = self.flops.iter().filter(|(purpose, _)| **purpose != Purpose::Pretrained);
        // A sum of nothing is -0 otherwise.
        paid.fold(0.0, |sum, (_, flops)| sum + flops)
    }

    /// All tokens together, the shared base's training aside.
    pub fn total_tokens(&self) -> u64 {
        self.tokens.iter().filter(|(purpose, _)| **purpose != Purpose::Pretrained).map(|(_, tokens)| tokens).sum()
    }

    /// The same spent on something else.
    pub fn as_purpose(&self, purpose: Purpose) -> Self {
        let flops = [(purpose, self.flops.values().sum())].into();
        Self { flops, tokens: [(purpose, self.tokens.values().sum())].into(), ..self.clone() }
    }
}

/// Measures what work takes: its time, and what the kernels count meanwhile, which is the work's if nobody else computes in this
/// process.
pub struct Meter {
    begun: Instant,
    counts: Counts,
}

impl Meter {
    /// From now on.
    pub fn begin() -> Self {
        Self { begun: Instant::now(), counts: Counts::now() }
    }

    /// What was taken until now, for so many tokens and analytic operations.
    pub fn cost(&self, purpose: Purpose, tokens: u64, flops: f64) -> Cost {
        self.taken() + Cost::of(purpose, tokens, flops)
    }

    /// Time and counts until now; what for is counted elsewhere.
    pub fn taken(&self) -> Cost {
        let counted = (Counts::now() - self.counts).total();
        Cost {
            counted_flops: counted.flops as f64,
            counted_bytes: counted.bytes as f64,
            seconds: self.begun.elapsed().as_secs_f64(),
            ..Cost::default()
        }
    }
}

/// Everything adds up but what is kept, of which the larger stays: the same memory is kept for one question after another.
impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        for (purpose, flops) in other.flops {
            *self.flops.entry(purpose).or_default() += flops;
        }
        for (purpose, tokens) in other.tokens {
            *self.tokens.entry(purpose).or_default() += tokens;
        }
        self.counted_flops += other.counted_flops;
        self.counted_bytes += other.counted_bytes;
        self.seconds += other.seconds;
        self.kept_bytes = self.kept_bytes.max(other.kept_bytes);
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

/// The same work `factor` times over.
impl Mul<f64> for Cost {
    type Output = Self;

    fn mul(mut self, factor: f64) -> Self {
        self.flops.values_mut().for_each(|flops| *flops *= factor);
        self.tokens.values_mut().for_each(|tokens| *tokens = (*tokens as f64 * factor).round() as u64);
        self.counted_flops *= factor;
        self.counted_bytes *= factor;
        self.seconds *= factor;
        self
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_add_up_by_purpose_and_the_shared_base_stands_aside() {
        let mut cost = Cost::of(Purpose::Prefill, 10, 100.0) + Cost::of(Purpose::Prefill, 5, 50.0);
        cost += Cost { kept_bytes: 7, seconds: 1.0, ..Cost::of(Purpose::Pretrained, 99, 1e6) };
        let counted = Cost { counted_flops: 3.0, counted_bytes: 8.0, ..Cost::of(Purpose::Router, 1, 2.0) };
        cost += Cost { kept_bytes: 3, seconds: 0.5, ..counted };
        assert_eq!((cost.total_flops(), cost.total_tokens()), (152.0, 16));
        assert_eq!((cost.kept_bytes, cost.seconds), (7, 1.5));
        assert_eq!((cost.counted_flops, cost.counted_bytes), (3.0, 8.0));
        let again = cost.clone() * 2.0;
        assert_eq!((again.total_flops(), again.tokens[&Purpose::Prefill]), (304.0, 30));
        assert_eq!((again.counted_flops, again.counted_bytes), (6.0, 16.0));
        let swept = Cost::of(Purpose::Trained, 3, 9.0).as_purpose(Purpose::Sweep);
        assert_eq!((swept.flops[&Purpose::Sweep], swept.tokens[&Purpose::Sweep], swept.flops.len()), (9.0, 3, 1));
        let text = serde_json::to_string(&cost).unwrap();
        assert_eq!(serde_json::from_str::<Cost>(&text).unwrap(), cost);
    }
}
