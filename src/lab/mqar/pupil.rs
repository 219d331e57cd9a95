//! A small decoder of attention alone that learns to recall, and what that takes. Never knows which settings are tried.

use super::config::{Config, Point, Size};
use crate::{
    common::Seed,
    lab::{
        Cost, Desk, LabError, Meter, Purpose,
        attention::Draw,
        synthetic::{
            Recall, best,
            work::{Stretch, forward, train_under},
        },
    },
    train::{
        AdamW, Decay, Job, Label, Learner, Loss, PassLimits, Schedule, TrainRow, forward_backward, loss, optim_step,
    },
};
use candle_core::Device;
use socius_models::{Adapter, Batch, Dtype, InitialSource, KvSequence, Layout, Model, Row, Spec};

/// Tokens of one pass: the weights are packed again for each, so there are few.
const PASS_TOKENS: usize = 32_768;
/// Sequences that are asked in one pass.
const ASKED: usize = 64;
/// Weight decay, as the paper has it.
const WEIGHT_DECAY: f64 = 0.1;

/// The model in training.
pub(super) struct Pupil {
    model: Model,
    learner: Learner,
    settings: AdamW,
    look: usize,
    enough: f64,
    draw: Draw,
    steps_max: usize,
    pub(super) steps: usize,
    pub(super) sequences: usize,
    pub(super) cost: Cost,
}

impl Pupil {
    /// With initial weights of its own for every width and seed.
    pub(super) fn new(config: &Config, point: &Point, seed: Seed) -> Result<Self, LabError> {
        let size = config.size(point)?;
        let small = Spec::small(config.vocab, point.width, config.layers, config.heads);
        let spec = Spec { intermediate: 0, ..small };
        let seed = seed.purpose("weights").index(point.width as u64);
        let initial = InitialSource { spec: spec.clone(), seed: seed.key() };
        let model = Model::load(spec.clone(), &initial, &Device::Cpu, Dtype::F32)?;
        let layout = Layout::whole(&spec);
        let theta = layout.read(&spec, &initial)?;
        let steps_max = config.examples.div_ceil(size.batch) * config.epochs;
        let schedule = Schedule { warmup: 0, decay: Decay::Cosine { steps: steps_max as u64 } };
        let (lr, betas) = (point.rate, (0.9, 0.999));
        Ok(Self {
            model,
            learner: Learner::new(layout, theta, seed.key(), 0.0),
            settings: AdamW { lr, betas, weight_decay: WEIGHT_DECAY, schedule, ..AdamW::default() },
            look: config.look,
            enough: config.enough,
            draw: Draw::new(config.examples, seed.purpose("order").rng()),
            steps_max,
            steps: 0,
            sequences: 0,
            cost: Cost::default(),
        })
    }

    /// Weights of the model.
    pub(super) fn parameters(&self) -> usize {
        self.learner.layout().len()
    }

    /// Trains until enough validation queries are answered rightly, or the epochs are over. Gives the last share of them, and the mean loss
    /// before each look.
    pub(super) fn study(
        &mut self,
        size: &Size,
        example: &dyn Fn(usize) -> Recall,
        validation: &[Recall],
        desk: &mut Desk<'_>,
    ) -> Result<(f64, Vec<f64>), LabError> {
        let asked: usize = validation.iter().map(|recall| recall.queries.len()).sum();
        let (mut losses, mut share) = (Vec::new(), 0.0);
        while self.steps < self.steps_max && share < self.enough {
            let detail = losses.last().map_or(String::new(), |loss| format!("loss {loss:.3}, {:.1} %", 100.0 * share));
            desk.step(self.steps as u64, self.steps_max as u64, detail)?;
            let until = self.steps_max.min(self.steps + self.look);
            let (first, mut sum) = (self.steps, 0.0);
            while self.steps < until {
                let drawn: Vec<Recall> = self.draw.take(size.batch).into_iter().map(example).collect();
                sum += self.step(&drawn)?;
            }
            losses.push(sum / (until - first) as f64);
            share = self.correct_for(Purpose::Validation, validation)? as f64 / asked as f64;
        }
        Ok((share, losses))
    }

    /// One step on some sequences; their mean loss.
    fn step(&mut self, drawn: &[Recall]) -> Result<f64, LabError> {
        let meter = Meter::begin();
        let rows: Vec<TrainRow> = drawn.iter().map(row).collect();
        let nll: &Loss<'_> = &loss::nll;
        let limits = PassLimits { tokens_per_pass: PASS_TOKENS, share_prompts: false, ..PassLimits::default() };
        let mut jobs = [Job { learner: &mut self.learner, rows: &rows, loss: nll }];
        let found = forward_backward(&self.model, &mut jobs, limits)?.remove(0);
        optim_step(&mut self.learner, &self.settings)?;
        let flops = |recall: &Recall| train_under(self.model.spec(), self.learner.layout(), stretch(recall));
        let flops = drawn.iter().map(flops).sum();
        self.cost += meter.cost(Purpose::Trained, found.tokens as u64, flops);
        self.steps += 1;
        self.sequences += drawn.len();
        Ok(found.loss)
    }

    /// How many queries of `recalls` are answered rightly.
    pub(super) fn correct(&mut self, recalls: &[Recall]) -> Result<usize, LabError> {
        self.correct_for(Purpose::Decode, recalls)
    }

    fn correct_for(&mut self, purpose: Purpose, recalls: &[Recall]) -> Result<usize, LabError> {
        let meter = Meter::begin();
        let parts = recalls.chunks(ASKED).map(|part| correct(&self.model, self.learner.adapter(), part));
        let correct = parts.sum::<Result<usize, LabError>>()?;
        let stretches = recalls.iter().map(stretch);
        let tokens = stretches.clone().map(|stretch| stretch.tokens as u64).sum();
        let flops = stretches.map(|stretch| forward(self.model.spec(), stretch)).sum();
        self.cost += meter.cost(purpose, tokens, flops);
        Ok(correct)
    }
}

/// Tokens up to the last query.
fn read(Recall { tokens, queries }: &Recall) -> &[u32] {
    let last = queries.last().expect("a sequence asks something").0;
    &tokens[..=last]
}

fn stretch(recall: &Recall) -> Stretch {
    Stretch { cached: 0, tokens: read(recall).len(), scored: recall.queries.len() }
}

/// What is trained on: at every query the value, elsewhere nothing. The token that follows a query is not its answer, so answers are targets
/// of their own.
fn row(recall: &Recall) -> TrainRow {
    let tokens = read(recall);
    // A completion's token is predicted where the one before it stands; the last is not read, so any will do.
    let completion = [&tokens[1..], &tokens[..1]].concat();
    let mut labels = vec![Label::default(); completion.len()];
    for &(place, value) in &recall.queries {
        labels[place] = Label { weight: 1.0, soft: Some(vec![(value, 1.0)]), ..Label::default() };
    }
    TrainRow { prompt: vec![tokens[0]], completion, labels }
}

/// Queries whose most probable token is right.
fn correct(model: &Model, learned: Adapter<'_>, recalls: &[Recall]) -> Result<usize, LabError> {
    let batch = Batch::new(recalls.iter().map(|recall| Row::new(read(recall)).under(Some(0))));
    let places = batch
        .spans()
        .iter()
        .zip(recalls)
        .flat_map(|(span, recall)| recall.queries.iter().map(|&(place, value)| (span.tokens.start + place, value)));
    let (wanted, values): (Vec<usize>, Vec<u32>) = places.unzip();
    let mut empty: Vec<KvSequence> = recalls.iter().map(|_| model.sequence()).collect();
    let mut sequences: Vec<&mut KvSequence> = empty.iter_mut().collect();
    let logits = model.forward(&batch, &[learned], &mut sequences, &wanted)?;
    let given = logits.chunks_exact(model.spec().vocab).map(best);
    Ok(given.zip(values).filter(|(given, value)| given == value).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::synthetic::Mqar;

    #[test]
    fn only_queries_are_trained_on_and_their_targets_are_the_values() {
        let setting = Mqar { vocab: 64, length: 32, pairs: 3, power: 0.5 };
        for seed in 0..50 {
            let recall = setting.sequence(Seed::new(seed));
            let TrainRow { prompt, completion, labels } = row(&recall);
            let read = [&prompt[..], &completion[..completion.len() - 1]].concat();
            assert_eq!(read, recall.tokens[..read.len()]);
            let trained: Vec<(usize, u32)> = labels
                .iter()
                .enumerate()
                .filter(|(_, label)| label.weight > 0.0)
                .map(|(i, label)| (i, label.soft.as_ref().unwrap()[0].0))
                .collect();
            // Label i is of the token after position i.
            assert_eq!(trained, recall.queries);
        }
    }
}
