//! Twenty steps of LoRA training against the losses that peft saw: same start, data and optimiser.

use crate::peer::{TinyConfig, tiny_model, trace};
use serde::Deserialize;
use socius::train::{AdamW, Decay, Job, Learner, PassLimits, Schedule, TrainRow, forward_backward, loss, optim_step};
use socius_models::{Layout, Model, Projection, SiteParameters, random_values};

/// The bound on the relative difference of a step's loss.
const LOSS_DIFFERENCE_MAX: f64 = 1e-3;

#[derive(Deserialize)]
struct TinyTrace {
    config: TinyConfig,
    model_seed: u64,
    #[serde(flatten)]
    run: Run,
}

#[derive(Deserialize)]
pub(crate) struct Run {
    lora: Lora,
    adamw: Optimiser,
    rows_a_step: usize,
    rows: Vec<Sequence>,
    losses: Vec<f64>,
}

#[derive(Deserialize)]
struct Lora {
    r: usize,
    lora_alpha: f32,
    seed: u64,
    b_factor: f32,
}

#[derive(Deserialize)]
struct Optimiser {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
}

#[derive(Deserialize)]
struct Sequence {
    prompt: usize,
    tokens: Vec<u32>,
}

impl Lora {
    /// θ as `record_training.py` makes it: the generator under the names of a PEFT file.
    fn learner(&self, model: &Model) -> Learner {
        let layout = Layout::uniform(model.spec(), &Projection::ALL, self.r, self.lora_alpha / self.r as f32);
        let mut theta = vec![0.0; layout.len()];
        for site in layout.sites() {
            let (a, b) = site.factors_mut(&mut theta);
            a.copy_from_slice(&self.factor(site, "lora_A", [site.rank, site.inputs]));
            b.copy_from_slice(&self.factor(site, "lora_B", [site.outputs, site.rank]));
            b.iter_mut().for_each(|value| *value *= self.b_factor);
        }
        Learner::new(layout, theta, 0, 0.0)
    }

    fn factor(&self, site: &SiteParameters, factor: &str, shape: [usize; 2]) -> Vec<f32> {
        let module = site.site.projection.slot().hugging_face_module();
        let name = format!("base_model.model.model.layers.{}.{module}.{factor}.weight", site.site.layer);
        random_values(&name, &shape, self.seed)
    }
}

impl Run {
    /// Trains as recorded and holds every step's loss to the trace.
    pub(crate) fn check(&self, model: &Model) {
        assert_eq!(self.losses.len(), 20);
        let settings = AdamW {
            lr: self.adamw.lr,
            betas: (self.adamw.beta1, self.adamw.beta2),
            eps: self.adamw.eps,
            weight_decay: 0.0,
            clip: None,
            schedule: Schedule { warmup: 0, decay: Decay::Constant },
        };
        let mut learner = self.lora.learner(model);
        let mut rows = self.rows.iter().cycle();
        for (step, &expected) in self.losses.iter().enumerate() {
            let batch: Vec<TrainRow> = rows.by_ref().take(self.rows_a_step).map(Sequence::row).collect();
            let mut jobs = [Job { learner: &mut learner, rows: &batch, loss: &loss::nll }];
            let found = forward_backward(model, &mut jobs, PassLimits::default()).unwrap()[0].loss;
            optim_step(&mut learner, &settings).unwrap();
            let relative = (found - expected).abs() / expected;
            println!("step {step}: {found:.6}, peft {expected:.6}, relative {relative:.1e}");
            assert!(relative <= LOSS_DIFFERENCE_MAX, "step {step}: {found}, peft {expected}");
        }
    }
}

impl Sequence {
    fn row(&self) -> TrainRow {
        let (prompt, completion) = self.tokens.split_at(self.prompt);
        TrainRow::answer(prompt.to_vec(), completion.to_vec())
    }
}

#[test]
fn a_tiny_model_trains_as_it_does_in_peft() {
    let trace: TinyTrace = trace("training-tiny.json");
    trace.run.check(&tiny_model(&trace.config, trace.model_seed));
}
