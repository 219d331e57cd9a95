//! What learns the questions of every context, a learner a context, until it answers them as its teacher did: adapters over the base, prefixes
//! before the question, or all weights of a small model. Never sees right answers.

use super::found::{Answers, Bench, timed};
use crate::{
    common::{Rng, Seed},
    lab::{
        Cost, LabError, Meter, Purpose,
        synthetic::{
            Question, best, recall,
            work::{Stretch, forward, train_under},
        },
    },
    lora,
    train::{AdamW, Job, Learner, Loss, PassLimits, TrainRow, forward_backward, loss, optim_step},
};
use candle_core::Device;
use socius_models::{Adapter, Dtype, InitialSource, Layout, Model, Spec};
use std::collections::BTreeMap;

/// Symbols of a teacher's distribution that are kept.
const TEACHER_KEPT: usize = 8;
/// The share of trained questions that must be answered as the teacher did. Looking there needs no right answers.
const LEARNED: f64 = 0.99;
/// Steps after which is looked first.
const LOOK_FIRST: usize = 8;

/// How a study trains.
#[derive(Clone, Copy)]
pub(super) struct Course {
    /// What it minimises.
    pub(super) loss: &'static Loss<'static>,
    /// Peak learning rate.
    pub(super) lr: f64,
    /// Rows a step.
    pub(super) batch: usize,
    /// Steps at most.
    pub(super) steps_max: usize,
    /// Passes over a context's rows at most, where that is more steps.
    pub(super) passes_max: usize,
}

impl Course {
    /// From the teacher's distributions: peak learning rate and rows a step; steps and passes at most.
    pub(super) fn distilled((lr, batch): (f64, usize), (steps_max, passes_max): (usize, usize)) -> Self {
        Self { loss: &loss::distillation, lr, batch, steps_max, passes_max }
    }

    /// Steps over `rows` rows of a context at most.
    pub(super) fn steps(self, rows: usize) -> usize {
        self.steps_max.max(self.passes_max * rows.div_ceil(self.batch))
    }
}

/// For every context the rows that it is learned from, questions after `before`, and what asking the teacher took.
pub(super) fn taught(bench: &Bench<'_, '_>, before: &[u32]) -> Result<(Vec<Vec<TrainRow>>, Cost), LabError> {
    let reader = &bench.reader;
    let contexts: Vec<Vec<u32>> = bench.contexts.iter().map(|context| context.tokens()).collect();
    let questions = bench.forward();
    timed(Purpose::Teacher, || {
        let (read, flops) = reader.read(&contexts)?;
        let asked: Vec<_> = questions.iter().map(|(i, question)| (&read[*i], question.tokens.to_vec())).collect();
        let answered = reader.ask(&asked)?;
        let mut rows: Vec<Vec<TrainRow>> = vec![Vec::new(); contexts.len()];
        for ((i, question), logits) in questions.iter().zip(&answered.logits) {
            let prompt = [before, &question.tokens].concat();
            rows[*i].push(TrainRow::soft(prompt, vec![best(logits)], vec![likeliest(logits)]));
        }
        let tokens = contexts.iter().map(|tokens| tokens.len() as u64).sum::<u64>() + answered.tokens;
        Ok((rows, tokens, flops + answered.flops))
    })
}

/// The most probable symbols with their probabilities, which add up to 1.
fn likeliest(logits: &[f32]) -> Vec<(u32, f32)> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|logit| (logit - highest).exp())).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(TEACHER_KEPT);
    let sum: f32 = all.iter().map(|(_, p)| p).sum();
    all.iter().map(|&(token, p)| (token, p / sum)).collect()
}

/// A learner a context, all trained beside each other.
pub(super) struct Study<'r> {
    /// The model whose weights the learners are; without, they adapt the base.
    own: Option<Model>,
    /// What distinguishes it from the others of its arm: a name and a number.
    size: (&'static str, usize),
    pub(super) layout: Layout,
    learners: Vec<Learner>,
    rows: &'r [Vec<TrainRow>],
    draws: Vec<Draw>,
    course: Course,
    pub(super) steps: usize,
    pub(super) cost: Cost,
}

/// Rows in an order that is shuffled whenever all were seen.
pub(in crate::lab) struct Draw {
    order: Vec<usize>,
    at: usize,
    rng: Rng,
}

impl Draw {
    /// Over `count` rows.
    pub(in crate::lab) fn new(count: usize, rng: Rng) -> Self {
        Self { order: (0..count).collect(), at: count, rng }
    }

    /// The next rows: `batch` of them, or all if there are fewer.
    pub(in crate::lab) fn take(&mut self, batch: usize) -> Vec<usize> {
        let count = self.order.len();
        (0..batch.min(count))
            .map(|_| {
                if self.at == count {
                    self.rng.shuffle(&mut self.order);
                    self.at = 0;
                }
                self.at += 1;
                self.order[self.at - 1]
            })
            .collect()
    }
}

impl<'r> Study<'r> {
    /// Adapters of `layout` over the base, all of one rank.
    pub(super) fn of_adapters(
        bench: &Bench<'_, '_>,
        layout: Layout,
        (rows, course): (&'r [Vec<TrainRow>], Course),
        purpose: &str,
    ) -> Self {
        let seed = bench.seed.purpose("adapter").purpose(purpose);
        let size = ("rank", layout.sites()[0].rank);
        let theta = |_, seed| Ok(lora::init(&layout, seed));
        let begun = Self::begin((None, size), &layout, (rows, course), seed, theta);
        begun.expect("initial factors are drawn, not read")
    }

    /// Prefixes of `positions`, each at first the keys and values of its context's first tokens, as the base reads them.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn of_prefixes(
        bench: &Bench<'_, '_>,
        positions: usize,
        given: (&'r [Vec<TrainRow>], Course),
    ) -> Result<Self, LabError> {
        let seed = bench.seed.purpose("prefix").index(positions as u64);
        let (reader, contexts) = (&bench.reader, &bench.contexts);
        let layout = Layout::prefix(reader.spec(), positions);
        let theta = |i: usize, _| Ok(reader.model().read_prefix(&contexts[i].tokens(), positions)?);
        let (mut study, read) = timed(Purpose::Prefill, || {
            let study = Self::begin((None, ("positions", positions)), &layout, given, seed, theta)?;
            let one = forward(reader.spec(), Stretch { cached: 0, tokens: positions, scored: 0 });
            Ok((study, (positions * contexts.len()) as u64, one * contexts.len() as f64))
        })?;
        study.cost = read;
        Ok(study)
    }

    /// Models of `spec` from scratch, each with initial weights of its own.
    ///
    /// # Errors
    /// If a model cannot be made ready.
    pub(super) fn of_models(
        bench: &Bench<'_, '_>,
        spec: &Spec,
        given: (&'r [Vec<TrainRow>], Course),
    ) -> Result<Self, LabError> {
        let seed = bench.seed.purpose("scratch").index(spec.hidden as u64);
        let initial = |seed: Seed| InitialSource { spec: spec.clone(), seed: seed.key() };
        let own = Model::load(spec.clone(), &initial(seed), &Device::Cpu, Dtype::F32)?;
        let layout = Layout::whole(spec);
        let theta = |_, seed| Ok(layout.read(spec, &initial(seed))?);
        Self::begin((Some(own), ("width", spec.hidden)), &layout, given, seed, theta)
    }

    fn begin(
        (own, size): (Option<Model>, (&'static str, usize)),
        layout: &Layout,
        (rows, course): (&'r [Vec<TrainRow>], Course),
        seed: Seed,
        theta: impl Fn(usize, Seed) -> Result<Vec<f32>, LabError>,
    ) -> Result<Self, LabError> {
        let learner = |i: usize| {
            let seed = seed.index(i as u64);
            Ok(Learner::new(layout.clone(), theta(i, seed)?, seed.key(), 0.0))
        };
        let learners = (0..rows.len()).map(learner).collect::<Result<_, LabError>>()?;
        let draw =
            |(i, rows): (usize, &Vec<TrainRow>)| Draw::new(rows.len(), seed.purpose("order").index(i as u64).rng());
        let draws = rows.iter().enumerate().map(draw).collect();
        let layout = layout.clone();
        Ok(Self { own, size, layout, learners, rows, draws, course, steps: 0, cost: Cost::default() })
    }

    /// Trains until almost all trained questions are answered as the teacher did, or the steps are used up.
    pub(super) fn until_learned(&mut self, bench: &mut Bench<'_, '_>) -> Result<bool, LabError> {
        let most = self.course.steps(self.rows.iter().map(Vec::len).max().unwrap_or(0));
        let mut look = LOOK_FIRST;
        loop {
            bench.desk.step(self.steps as u64, most as u64, format!("{} {}", self.size.0, self.size.1))?;
            self.train(bench, look.min(most))?;
            if self.agreement(bench)? >= LEARNED {
                return Ok(true);
            }
            if self.steps >= most {
                return Ok(false);
            }
            look *= 2;
        }
    }

    /// Trains until so many steps are taken.
    pub(super) fn train(&mut self, bench: &Bench<'_, '_>, until: usize) -> Result<(), LabError> {
        let meter = Meter::begin();
        let settings = AdamW { lr: self.course.lr, ..AdamW::default() };
        let model = self.own.as_ref().unwrap_or(bench.reader.model());
        let (mut tokens, mut flops) = (0, 0.0);
        while self.steps < until {
            let batches: Vec<Vec<TrainRow>> = self
                .draws
                .iter_mut()
                .zip(self.rows)
                .map(|(draw, rows)| draw.take(self.course.batch).into_iter().map(|i| rows[i].clone()).collect())
                .collect();
            let mut jobs: Vec<Job<'_>> = self
                .learners
                .iter_mut()
                .zip(&batches)
                .map(|(learner, rows)| Job { learner, rows, loss: self.course.loss })
                .collect();
            let limits = PassLimits { share_prompts: false, ..PassLimits::default() };
            forward_backward(model, &mut jobs, limits)?;
            for learner in &mut self.learners {
                optim_step(learner, &settings)?;
            }
            for row in batches.iter().flatten() {
                let read = row.prompt.len() + row.completion.len() - 1;
                let stretch = Stretch { cached: self.layout.positions(), tokens: read, scored: row.completion.len() };
                flops += train_under(model.spec(), &self.layout, stretch);
                tokens += read as u64;
            }
            self.steps += 1;
        }
        self.cost += meter.cost(Purpose::Trained, tokens, flops);
        Ok(())
    }

    /// The share of trained questions that are answered as the teacher did.
    fn agreement(&mut self, bench: &Bench<'_, '_>) -> Result<f64, LabError> {
        let trained: Vec<(usize, [u32; 3], u32)> = self
            .rows
            .iter()
            .enumerate()
            .flat_map(|(i, rows)| {
                let asked = |row: &TrainRow| *row.prompt.last_chunk().expect("a question is three symbols");
                rows.iter().map(move |row| (i, asked(row), row.completion[0]))
            })
            .collect();
        let questions: Vec<(Option<usize>, [u32; 3])> = trained.iter().map(|row| (Some(row.0), row.1)).collect();
        let adapters: Vec<Adapter<'_>> = self.learners.iter().map(Learner::adapter).collect();
        let model = self.own.as_ref().unwrap_or(bench.reader.model());
        let (answers, took) = timed(Purpose::Validation, || {
            let answered = recall(model, &questions, &adapters)?;
            Ok((answered.best(), answered.tokens, answered.flops))
        })?;
        self.cost += took;
        let same = answers.iter().zip(&trained).filter(|(answer, row)| **answer == row.2).count();
        Ok(same as f64 / trained.len() as f64)
    }

    /// Asks everything and keeps what was found.
    pub(super) fn record(&self, bench: &mut Bench<'_, '_>, variant: &str, before: &Cost) -> Result<(), LabError> {
        let adapters: Vec<Adapter<'_>> = self.learners.iter().map(Learner::adapter).collect();
        let ask = |questions: Vec<(usize, Question)>| {
            let questions: Vec<_> = questions.iter().map(|(i, question)| (Some(*i), question.tokens)).collect();
            let model = self.own.as_ref().unwrap_or(bench.reader.model());
            timed(Purpose::Decode, || {
                let answered = recall(model, &questions, &adapters)?;
                Ok((answered.best(), answered.tokens, answered.flops))
            })
        };
        let (_, asked) = ask(bench.forward())?;
        let (given, _) = ask(bench.all())?;
        let setting = BTreeMap::from([
            (self.size.0.to_owned(), self.size.1 as f64),
            ("parameters".to_owned(), self.layout.len() as f64),
            ("steps".to_owned(), self.steps as f64),
        ]);
        let fixed = before.clone() + self.cost.clone();
        let kept_bytes = 4 * self.layout.len() as u64;
        let given = given.into_iter().map(Some).collect();
        bench.record(Answers { variant, given, fixed, asked, kept_bytes, setting })
    }
}
