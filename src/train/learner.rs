//! One learner: the parameters of an adapter, or of a model of its own, with their gradient and optimiser state, as flat buffers of one layout. Never sees a
//! model's weights.

use crate::common::Seed;
use socius_models::{Adapter, Dropout, Layout};

/// What makes training repeatable and resumable, apart from the buffers.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Counters {
    /// Where dropout masks come from.
    pub(super) seed: u64,
    /// Probability that an input of a site is dropped in training.
    pub(super) dropout: f32,
    /// Steps taken.
    pub(super) steps: u64,
    /// Rows trained on: the next row's dropout key.
    pub(super) rows: u64,
    /// Tokens with a loss that the gradient holds, not yet stepped on.
    pub(super) pending: u64,
}

/// An adapter in training: θ, its gradient and AdamW's two moments share one layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Learner {
    pub(super) layout: Layout,
    pub(super) theta: Vec<f32>,
    /// Of [`Layout::gradient_len`] values: what is beyond θ's is 0 but inside a call.
    pub(super) gradient: Vec<f32>,
    /// Exponential means of the gradient and of its square.
    pub(super) moments: [Vec<f32>; 2],
    pub(super) counters: Counters,
}

impl Learner {
    /// A learner that starts from `theta`. `seed` gives the dropout masks, of probability `dropout`.
    ///
    /// # Panics
    /// If θ does not fit the layout, or unless `0 ≤ dropout < 1`.
    pub fn new(layout: Layout, theta: Vec<f32>, seed: u64, dropout: f32) -> Self {
        assert_eq!(theta.len(), layout.len(), "θ fits its layout");
        assert!((0.0..1.0).contains(&dropout), "dropout {dropout} is a probability below 1");
        let zeros = || vec![0.0; theta.len()];
        let counters = Counters { seed, dropout, steps: 0, rows: 0, pending: 0 };
        Self { gradient: vec![0.0; layout.gradient_len()], moments: [zeros(), zeros()], layout, theta, counters }
    }

    /// Sites, ranks, scales and offsets.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The parameters.
    pub fn theta(&self) -> &[f32] {
        &self.theta
    }

    /// What [`super::forward_backward`] has added up since the last step.
    pub fn gradient(&self) -> &[f32] {
        &self.gradient[..self.theta.len()]
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.counters.steps
    }

    /// As a pass of the model reads it.
    pub fn adapter(&self) -> Adapter<'_> {
        Adapter::new(&self.layout, &self.theta)
    }

    /// Forgets what was added up since the last step.
    pub fn discard_gradient(&mut self) {
        self.gradient.fill(0.0);
        self.counters.pending = 0;
    }

    /// Adds up what passes have summed apart.
    pub(super) fn fold(&mut self) {
        self.layout.fold(&mut self.gradient);
    }

    /// What a pass reads and what it writes.
    pub(super) fn split(&mut self) -> (Adapter<'_>, &mut [f32]) {
        (Adapter::new(&self.layout, &self.theta), &mut self.gradient)
    }

    /// Dropout of the `row`-th row from here on, and of its prompt and preamble where those stand alone.
    pub(super) fn dropout(&self, row: usize) -> Option<[Dropout; 3]> {
        let Counters { seed, dropout: p, rows, .. } = self.counters;
        let seed = Seed::new(seed).purpose("dropout").index(rows + row as u64);
        (p > 0.0).then(|| [0, 1, 2].map(|part| Dropout { p, key: seed.index(part).key() }))
    }
}
