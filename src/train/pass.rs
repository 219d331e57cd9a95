//! The joint pass: rows of several learners through one recorded walk over the base, each learner's loss, and gradients back.
//! Never steps.

use super::{
    Label, Learner, PassLimits, TrainError, TrainRow,
    loss::{Evaluated, Loss, Scored, evaluate},
    pack::{Sequence, Unit, passes, push},
};
use socius_models::{Adapter, Batch, HeadGradient, Model, Scores, Target};

/// What one learner does in a call.
pub struct Job<'a> {
    /// Whose gradient is added to.
    pub learner: &'a mut Learner,
    /// What it learns from.
    pub rows: &'a [TrainRow],
    /// What it minimises.
    pub loss: &'a Loss<'a>,
}

/// What a call found for one learner. Means are over its loss tokens that have the value, none where no token has it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PassStats {
    /// Weighed and normalised loss.
    pub loss: f64,
    /// Tokens that had a loss.
    pub loss_tokens: usize,
    /// Tokens that went through the model for this learner.
    pub tokens: usize,
    /// Mean entropy of the next-token distribution in nats.
    pub entropy: f64,
    /// Mean logprob.
    pub logprob: f64,
    /// Mean absolute difference between recomputed and recorded logprobs of sampled tokens.
    pub gap: Option<f64>,
    /// Mean k3 estimate of KL(learner ‖ base), where labels carry the base's logprob.
    pub kl: Option<f64>,
}

/// A token with a loss: whose it is, and what is known of it.
struct Trained<'a> {
    job: usize,
    label: &'a Label,
    factor: f64,
}

/// Adds ∂loss/∂θ of each job's rows to its learner's gradient, all in one walk over the base a pass, and says what was found, in
/// the order of the jobs. A learner's gradient and statistics are the same to the byte whatever other jobs there are and
/// however the rows are cut into passes (see the module for the normalisation).
///
/// # Errors
/// Rows that cannot be trained on are found before anything is computed. After another error the gradients of the jobs'
/// learners are part-made: see [`Learner::discard_gradient`].
pub fn forward_backward(model: &Model, jobs: &mut [Job<'_>], limits: PassLimits) -> Result<Vec<PassStats>, TrainError> {
    for Job { learner, rows, .. } in jobs.iter() {
        let before = learner.layout.positions();
        rows.iter().enumerate().try_for_each(|(i, row)| row.check(i, before, model.spec()))?;
    }
    let counts: Vec<usize> = jobs.iter().map(|job| job.rows.iter().map(TrainRow::loss_tokens).sum()).collect();
    let (sequences, rows) = sequences(jobs);
    let passes = passes(&sequences, limits.within(model.spec()));
    let losses: Vec<_> = jobs.iter().map(|job| job.loss).collect();
    let mut tallies: Vec<Tally> = jobs.iter().map(|_| Tally::default()).collect();

    let (adapters, mut gradients): (Vec<Adapter<'_>>, Vec<&mut [f32]>) =
        jobs.iter_mut().map(|job| job.learner.split()).unzip();
    for units in &passes {
        let (batch, targets, trained) = lay_out(units, &sequences, &rows, &counts);
        let mut recording = model.record_within(&batch, &adapters, limits.recorded_bytes_max)?;
        let scores = recording.scores(&targets)?;
        let evaluated = evaluate_jobs(&losses, &trained, &scores)?;
        for (job, tally) in tallies.iter_mut().enumerate() {
            let own = trained.iter().enumerate().filter(|(_, token)| token.job == job);
            own.for_each(|(i, token)| tally.add(token.label, &scores, evaluated.terms[i], i));
        }
        for span in batch.spans() {
            tallies[span.adapter.expect("every row has its learner")].stats.tokens += span.tokens.len();
        }
        if !evaluated.terms.iter().all(|term| term.is_finite()) {
            return Err(TrainError::Diverged("the loss"));
        }
        let entropies = evaluated.by_entropy.iter().any(|&g| g != 0.0).then_some(&evaluated.by_entropy[..]);
        let gradient = HeadGradient { logprobs: &evaluated.by_logprob, entropies };
        recording.backward(&targets, gradient, &mut gradients)?;
    }
    drop(sequences);
    for (job, &count) in jobs.iter_mut().zip(&counts) {
        job.learner.fold();
        job.learner.counters.rows += job.rows.len() as u64;
        job.learner.counters.pending += count as u64;
    }
    Ok(tallies.into_iter().map(Tally::finish).collect())
}

/// The rows of all jobs that have a loss, job after job, and beside each sequence its row.
fn sequences<'a>(jobs: &[Job<'a>]) -> (Vec<Sequence<'a>>, Vec<&'a TrainRow>) {
    let rows = |(job, Job { learner, rows, .. }): (usize, &Job<'a>)| {
        let rows: &'a [TrainRow] = rows;
        let sequence = |(i, row): (usize, &'a TrainRow)| {
            let (prompt, completion) = (row.prompt.as_slice(), row.trained());
            let (position, alone) = (learner.layout.positions(), learner.layout.is_whole());
            let dropout = learner.dropout(i);
            (Sequence { prompt, completion, adapter: Some(job), position, alone, dropout }, row)
        };
        rows.iter().enumerate().map(sequence).filter(|(s, _)| !s.completion.is_empty()).collect::<Vec<_>>()
    };
    jobs.iter().enumerate().flat_map(rows).unzip()
}

/// The packed batch of a pass, its targets, and the trained token behind each target.
fn lay_out<'a>(
    units: &[Unit],
    sequences: &[Sequence<'_>],
    rows: &[&'a TrainRow],
    counts: &[usize],
) -> (Batch, Vec<Target>, Vec<Trained<'a>>) {
    let (mut batch, mut targets, mut trained) = (Batch::default(), Vec::new(), Vec::new());
    for unit in units {
        let places = push(&mut batch, sequences, unit);
        for (i, place) in unit.sequences.clone().zip(places) {
            let (row, job) = (rows[i], sequences[i].adapter.expect("every row has its learner"));
            for (t, label) in row.labels.iter().enumerate().filter(|(_, label)| label.weight != 0.0) {
                targets.push(Target { position: place.of(t), tokens: row.target(t) });
                trained.push(Trained { job, label, factor: f64::from(label.weight) / counts[job] as f64 });
            }
        }
    }
    (batch, targets, trained)
}

/// Each job's loss at its own tokens, put back in the order of the targets.
fn evaluate_jobs(losses: &[&Loss<'_>], trained: &[Trained<'_>], scores: &Scores) -> Result<Evaluated, TrainError> {
    let mut all = Evaluated { terms: Vec::new(), by_logprob: Vec::new(), by_entropy: Vec::new() };
    // Jobs stand one after the other, so each has one run of neighbours.
    for own in trained.chunk_by(|a, b| a.job == b.job) {
        let range = all.terms.len()..all.terms.len() + own.len();
        let scored = Scored {
            logprobs: &scores.logprobs[range.clone()],
            entropies: &scores.entropies[range],
            labels: &own.iter().map(|token| token.label).collect::<Vec<_>>(),
            factors: &own.iter().map(|token| token.factor).collect::<Vec<_>>(),
        };
        let Evaluated { terms, by_logprob, by_entropy } = evaluate(losses[own[0].job], &scored)?;
        all.terms.extend(terms);
        all.by_logprob.extend(by_logprob);
        all.by_entropy.extend(by_entropy);
    }
    Ok(all)
}

/// Sums over a job's tokens in their order, so that they do not depend on passes.
#[derive(Default)]
struct Tally {
    stats: PassStats,
    gap: (f64, usize),
    kl: (f64, usize),
}

impl Tally {
    fn add(&mut self, label: &Label, scores: &Scores, term: f64, i: usize) {
        let logprob = f64::from(scores.logprobs[i]);
        self.stats.loss += term;
        self.stats.loss_tokens += 1;
        self.stats.entropy += f64::from(scores.entropies[i]);
        self.stats.logprob += logprob;
        if let Some(sampled) = label.sampled {
            self.gap.0 += (logprob - f64::from(sampled)).abs();
            self.gap.1 += 1;
        }
        if let Some(base) = label.base {
            let d = f64::from(base) - logprob;
            self.kl.0 += d.exp_m1() - d;
            self.kl.1 += 1;
        }
    }

    fn finish(self) -> PassStats {
        let n = self.stats.loss_tokens.max(1) as f64;
        let mean = |(sum, count): (f64, usize)| (count > 0).then(|| sum / count as f64);
        let (entropy, logprob) = (self.stats.entropy / n, self.stats.logprob / n);
        PassStats { entropy, logprob, gap: mean(self.gap), kl: mean(self.kl), ..self.stats }
    }
}
