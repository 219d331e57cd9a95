//! Logprobs of given completions, without gradients; the base's are what a KL term compares with.

use super::{
    PassLimits, TrainError, TrainRow,
    pack::{Sequence, passes, push},
    row::sequence_fault,
};
use socius_models::{Adapter, Batch, Model, Target, TargetTokens};

/// Logprob in nats of every token of each completion after its prompt, under `adapter` or the base.
pub fn score(
    model: &Model,
    adapter: Option<Adapter<'_>>,
    sequences: &[(&[u32], &[u32])],
    limits: PassLimits,
) -> Result<Vec<Vec<f32>>, TrainError> {
    let position = adapter.map_or(0, |adapter| adapter.layout.positions());
    for (row, (prompt, completion)) in sequences.iter().enumerate() {
        if let Some(what) = sequence_fault(prompt, completion, position, model.spec()) {
            return Err(TrainError::Row { row, what });
        }
    }
    let slot = adapter.map(|_| 0);
    let sequence =
        |&(prompt, completion)| Sequence { prompt, completion, adapter: slot, position, alone: false, dropout: None };
    let sequences: Vec<_> = sequences.iter().map(sequence).collect();
    let mut logprobs = Vec::with_capacity(sequences.len());
    for units in passes(&sequences, limits) {
        let (mut batch, mut targets) = (Batch::default(), Vec::new());
        let all = units[0].sequences.start..units[units.len() - 1].sequences.end;
        for unit in units {
            let places = push(&mut batch, &sequences, &unit);
            for (sequence, place) in sequences[unit.sequences].iter().zip(places) {
                let target = |(i, &id)| Target { position: place.of(i), tokens: TargetTokens::Token(id) };
                targets.extend(sequence.completion.iter().enumerate().map(target));
            }
        }
        let scores = model.score(&batch, adapter.as_slice(), &targets)?;
        let mut rest = &scores.logprobs[..];
        for sequence in &sequences[all] {
            let (own, others) = rest.split_at(sequence.completion.len());
            logprobs.push(own.to_vec());
            rest = others;
        }
    }
    Ok(logprobs)
}

/// Gives every label of a plain token (a soft target has none) its logprob under the base.
pub fn attach_base(model: &Model, rows: &mut [TrainRow], limits: PassLimits) -> Result<(), TrainError> {
    let sequences: Vec<_> = rows.iter().map(|row| (&row.prompt[..], &row.completion[..])).collect();
    let logprobs = score(model, None, &sequences, limits)?;
    for (row, logprobs) in rows.iter_mut().zip(logprobs) {
        for (label, logprob) in row.labels.iter_mut().zip(logprobs) {
            label.base = label.soft.is_none().then_some(logprob);
        }
    }
    Ok(())
}
