//! What the operations of this process have multiplied and moved, as each adds it up once a call; knows no operation from inside.
//!
//! Two floating-point operations are counted for a product of two numbers that a result depends on, and every operand and result counts
//! its bytes once (twice where a result is added to what is there). What a block computes beyond a causal mask is not counted, nor
//! are norms, rotations, softmax, dropout and the optimiser. So a count says what was asked of the kernels, everything that is
//! computed again included; it does not say what came out of which cache.
//!
//! The counters are the process's: who measures sees what others do meanwhile. What runs in the reference form is not counted.

use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Products with linears' weights, quantised ones too, and on the way back with their transposes.
    Linear,
    /// Gradients of linears' weights.
    WeightGradient,
    /// Products with adapters' factors, there and back, and the factors' gradients.
    Lora,
    /// Logits, and what cross-entropy gives back from them to hidden rows and to the head.
    Head,
    /// Attention's forward pass.
    Attention,
    /// Attention's backward pass.
    AttentionBackward,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Linear, Self::WeightGradient, Self::Lora, Self::Head, Self::Attention, Self::AttentionBackward];

    /// Adds a call.
    pub(crate) fn add(self, flops: usize, bytes: usize) {
        let [all_flops, all_bytes] = &COUNTERS[self as usize];
        // Sums alone: nobody reads anything else by them.
        all_flops.fetch_add(flops as u64, Relaxed);
        all_bytes.fetch_add(bytes as u64, Relaxed);
    }
}

/// Floating-point operations and bytes of each kind.
static COUNTERS: [[AtomicU64; 2]; Operation::ALL.len()] =
    [const { [const { AtomicU64::new(0) }; 2] }; Operation::ALL.len()];

/// Floating-point operations and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Multiplications and additions.
    pub flops: u64,
    /// Read and written.
    pub bytes: u64,
}

/// The counters at one moment, or what they have moved by between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([Count; Operation::ALL.len()]);

impl Counts {
    /// Since the process began.
    pub fn now() -> Self {
        Self(COUNTERS.each_ref().map(|[flops, bytes]| Count { flops: flops.load(Relaxed), bytes: bytes.load(Relaxed) }))
    }

    /// Of one kind.
    pub fn of(&self, operation: Operation) -> Count {
        self.0[operation as usize]
    }

    /// Of all kinds together.
    pub fn total(&self) -> Count {
        let add = |a: Count, b: &Count| Count { flops: a.flops + b.flops, bytes: a.bytes + b.bytes };
        self.0.iter().fold(Count::default(), add)
    }
}

/// From an earlier moment to this one.
impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        let between = |i: usize| Count {
            flops: self.0[i].flops - earlier.0[i].flops,
            bytes: self.0[i].bytes - earlier.0[i].bytes,
        };
        Self(std::array::from_fn(between))
    }
}
