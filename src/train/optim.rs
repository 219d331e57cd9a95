//! One optimiser step of one learner: clip, AdamW, schedule. Never sees rows or models.

use super::{Learner, TrainError};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// AdamW (decoupled weight decay, arXiv 1711.05101) in PyTorch's form, with clipping before and a schedule on the rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the gradient's mean and of its square's.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of θ, times the rate, that is taken away a step.
    pub weight_decay: f64,
    /// Longest gradient (L2) that is not scaled down; none leaves it alone.
    pub clip: Option<f64>,
    /// How the rate moves.
    pub schedule: Schedule,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            lr: 5e-4,
            betas: (0.9, 0.99),
            eps: 1e-8,
            weight_decay: 0.0,
            clip: Some(1.0),
            schedule: Schedule { warmup: 3, decay: Decay::Constant },
        }
    }
}

/// The learning rate over steps, as a share of its peak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Steps of a linear rise; the last of them has the peak rate.
    pub warmup: u64,
    /// What follows.
    pub decay: Decay,
}

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Not at all.
    Constant,
    /// On a straight line that reaches 0 after `steps` steps in all.
    Linear {
        /// Steps of the whole run, warm-up included.
        steps: u64,
    },
    /// On half a cosine that reaches 0 after `steps` steps in all (arXiv 1608.03983).
    Cosine {
        /// Steps of the whole run, warm-up included.
        steps: u64,
    },
}

impl Schedule {
    /// The share of the peak rate at `step`, counted from 0.
    pub fn share(&self, step: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        let progress = |steps: u64| {
            let whole = steps.saturating_sub(self.warmup).max(1) as f64;
            ((step - self.warmup) as f64 / whole).min(1.0)
        };
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear { steps } => 1.0 - progress(steps),
            Decay::Cosine { steps } => 0.5 * (1.0 + (std::f64::consts::PI * progress(steps)).cos()),
        }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepStats {
    /// Steps taken, this one included.
    pub step: u64,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub lr: f64,
}

/// Takes one step along the gathered gradient and clears it.
///
/// # Errors
/// If the gradient is not finite: θ and moments stay as they were, the gradient is forgotten.
pub fn optim_step(learner: &mut Learner, settings: &AdamW) -> Result<StepStats, TrainError> {
    let grad_norm = norm(&learner.gradient);
    if !grad_norm.is_finite() {
        learner.discard_gradient();
        return Err(TrainError::Diverged("the gradient"));
    }
    let lr = settings.lr * settings.schedule.share(learner.counters.steps);
    learner.counters.steps += 1;
    // PyTorch's clip_grad_norm_, ε included.
    let scale = settings.clip.map_or(1.0, |longest| (longest / (grad_norm + 1e-6)).min(1.0));
    let update = Update::new(settings, lr, scale, learner.counters.steps);
    let Learner { theta, gradient, moments: [first, second], .. } = learner;
    let chunks = theta.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
    let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
    chunks.zip(moments).for_each(|((theta, gradient), (first, second))| {
        for (((theta, &g), m), v) in theta.iter_mut().zip(gradient).zip(first).zip(second) {
            update.apply(theta, g, m, v);
        }
    });
    learner.discard_gradient();
    Ok(StepStats { step: learner.counters.steps, grad_norm, lr })
}

/// Values that one task works on: the sums below are cut here, so that they do not depend on the thread count.
const CHUNK: usize = 1 << 16;

/// L2 norm, summed in f64.
fn norm(values: &[f32]) -> f64 {
    let square = |chunk: &[f32]| chunk.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let partial: Vec<f64> = values.par_chunks(CHUNK).map(square).collect();
    partial.iter().sum::<f64>().sqrt()
}

/// The constants of one step, in f32 as the values are.
struct Update {
    scale: f32,
    betas: (f32, f32),
    keep: f32,
    rate: f32,
    root: f32,
    eps: f32,
}

impl Update {
    fn new(settings: &AdamW, lr: f64, scale: f64, step: u64) -> Self {
        let (beta1, beta2) = settings.betas;
        let correction = |beta: f64| 1.0 - beta.powi(step as i32);
        Self {
            scale: scale as f32,
            betas: (beta1 as f32, beta2 as f32),
            keep: (1.0 - lr * settings.weight_decay) as f32,
            rate: (lr / correction(beta1)) as f32,
            root: correction(beta2).sqrt() as f32,
            eps: settings.eps as f32,
        }
    }

    fn apply(&self, theta: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
        let (beta1, beta2) = self.betas;
        let g = g * self.scale;
        *m += (1.0 - beta1) * (g - *m);
        *v = beta2 * *v + (1.0 - beta2) * g * g;
        *theta = *theta * self.keep - self.rate * *m / (v.sqrt() / self.root + self.eps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socius_models::{Layout, Projection, Spec};

    fn learner() -> Learner {
        let layout = Layout::uniform(&Spec::tiny(), &[Projection::Q], 1, 1.0);
        let theta = (0..layout.len()).map(|i| (i % 7) as f32 / 10.0).collect();
        Learner::new(layout, theta, 0, 0.0)
    }

    #[test]
    fn steps_are_those_of_the_formula_in_f64() {
        let schedule = Schedule { warmup: 3, decay: Decay::Linear { steps: 9 } };
        let rows = [
            AdamW::default(),
            AdamW { lr: 0.1, weight_decay: 0.2, clip: None, schedule, ..AdamW::default() },
            AdamW { lr: 0.01, betas: (0.8, 0.999), clip: Some(0.5), eps: 1e-3, ..AdamW::default() },
        ];
        for settings in rows {
            let mut learner = learner();
            let n = learner.theta.len();
            let mut expected: Vec<f64> = learner.theta.iter().map(|&t| f64::from(t)).collect();
            let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
            for step in 1..=7 {
                let gradient: Vec<f32> = (0..n).map(|i| ((i + 3 * step) % 11) as f32 - 5.0).collect();
                learner.gradient.copy_from_slice(&gradient);
                let length = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
                let scale = settings.clip.map_or(1.0, |c| (c / (length + 1e-6)).min(1.0));
                let lr = settings.lr * settings.schedule.share(step as u64 - 1);
                for i in 0..n {
                    let g = f64::from(gradient[i]) * scale;
                    m[i] = settings.betas.0 * m[i] + (1.0 - settings.betas.0) * g;
                    v[i] = settings.betas.1 * v[i] + (1.0 - settings.betas.1) * g * g;
                    let (m, v) = (
                        m[i] / (1.0 - settings.betas.0.powi(step as i32)),
                        v[i] / (1.0 - settings.betas.1.powi(step as i32)),
                    );
                    expected[i] -= lr * settings.weight_decay * expected[i] + lr * m / (v.sqrt() + settings.eps);
                }
                let stats = optim_step(&mut learner, &settings).unwrap();
                assert!(
                    (stats.grad_norm - length).abs() < 1e-9 * length && stats.lr == lr && stats.step == step as u64
                );
            }
            let off = learner.theta.iter().zip(&expected).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
            assert!(off < 2e-6, "{off}");
            assert!(learner.gradient.iter().all(|&g| g == 0.0));
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let mut learner = learner();
        let before = learner.clone();
        learner.gradient[5] = f32::NAN;
        assert!(matches!(optim_step(&mut learner, &AdamW::default()), Err(TrainError::Diverged(_))));
        assert_eq!(learner, before);
    }

    #[test]
    fn the_rate_follows_the_table() {
        let rows: [(Decay, &[(u64, f64)]); 3] = [
            (Decay::Constant, &[(0, 1.0 / 3.0), (1, 2.0 / 3.0), (2, 1.0), (3, 1.0), (1000, 1.0)]),
            (
                Decay::Linear { steps: 13 },
                &[(0, 1.0 / 3.0), (2, 1.0), (3, 1.0), (8, 0.5), (12, 0.1), (13, 0.0), (99, 0.0)],
            ),
            (Decay::Cosine { steps: 13 }, &[(1, 2.0 / 3.0), (3, 1.0), (8, 0.5), (13, 0.0), (99, 0.0)]),
        ];
        for (decay, shares) in rows {
            for &(step, share) in shares {
                let found = Schedule { warmup: 3, decay }.share(step);
                assert!((found - share).abs() < 1e-12, "{decay:?} at {step}: {found}");
            }
        }
        assert_eq!(Schedule { warmup: 0, decay: Decay::Constant }.share(0), 1.0);
    }
}
