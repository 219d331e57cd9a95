//! How sequences are laid out in passes: which stand together, which share a prompt, and where each token is predicted. Knows
//! nothing of losses.

use socius_models::{Batch, Dropout, Row};
use std::ops::Range;

/// How a call is cut into passes. Results do not depend on it beyond `share_prompts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassLimits {
    /// Tokens of one pass; a unit (a row, or a group that shares its prompt) that is longer has a pass of its own.
    pub tokens_per_pass: usize,
    /// Whether neighbouring rows with the same prompt compute it once. The gradient is the same sum in another order.
    pub share_prompts: bool,
}

impl Default for PassLimits {
    fn default() -> Self {
        Self { tokens_per_pass: 2048, share_prompts: true }
    }
}

/// A sequence to be scored at every token of `completion`.
#[derive(Clone, Copy)]
pub(super) struct Sequence<'a> {
    pub(super) prompt: &'a [u32],
    pub(super) completion: &'a [u32],
    pub(super) adapter: Option<usize>,
    /// Dropout of the row, and of the prompt where it stands alone.
    pub(super) dropout: Option<[Dropout; 2]>,
}

/// Cuts `sequences` into units: runs with one prompt and adapter if prompts are shared, single sequences if not.
pub(super) fn units(sequences: &[Sequence<'_>], limits: PassLimits) -> Vec<Range<usize>> {
    let together =
        |a: &Sequence<'_>, b: &Sequence<'_>| limits.share_prompts && a.adapter == b.adapter && a.prompt == b.prompt;
    let mut start = 0;
    let unit = |chunk: &[Sequence<'_>]| {
        let unit = start..start + chunk.len();
        start = unit.end;
        unit
    };
    sequences.chunk_by(together).map(unit).collect()
}

/// Joins neighbouring units into passes of at most `tokens_per_pass` tokens.
pub(super) fn passes(sequences: &[Sequence<'_>], limits: PassLimits) -> Vec<Vec<Range<usize>>> {
    let mut passes: Vec<Vec<Range<usize>>> = Vec::new();
    let mut held = 0;
    for unit in units(sequences, limits) {
        let tokens = tokens(&sequences[unit.clone()]);
        match passes.last_mut() {
            Some(pass) if held + tokens <= limits.tokens_per_pass => {
                held += tokens;
                pass.push(unit);
            }
            _ => {
                held = tokens;
                passes.push(vec![unit]);
            }
        }
    }
    passes
}

/// Tokens that a unit takes in a pass. Nothing is predicted after a last token, so it is not among them.
fn tokens(unit: &[Sequence<'_>]) -> usize {
    unit[0].prompt.len() + unit.iter().map(|sequence| sequence.completion.len() - 1).sum::<usize>()
}

/// Adds a unit to `batch`. For each of its sequences, the packed position after which its completion starts, and the position of
/// its first completion token (the others follow).
pub(super) fn push(batch: &mut Batch, unit: &[Sequence<'_>]) -> Vec<Place> {
    match unit {
        [single] => vec![push_single(batch, single)],
        group => push_group(batch, group),
    }
}

/// Where a sequence's completion tokens are predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Position of the prompt's last token: it predicts the first completion token.
    prompt_end: usize,
    /// Position of the first completion token: it predicts the second.
    start: usize,
}

impl Place {
    /// The packed position that predicts completion token `i`.
    pub(super) fn of(self, i: usize) -> usize {
        if i == 0 { self.prompt_end } else { self.start + i - 1 }
    }
}

fn push_single(batch: &mut Batch, sequence: &Sequence<'_>) -> Place {
    let read = &sequence.completion[..sequence.completion.len() - 1];
    let tokens = [sequence.prompt, read].concat();
    let dropout = sequence.dropout.map(|[row, _]| row);
    let start = batch.tokens().len() + sequence.prompt.len();
    batch.push(Row { dropout, ..Row::new(&tokens).under(sequence.adapter) });
    Place { prompt_end: start - 1, start }
}

fn push_group(batch: &mut Batch, group: &[Sequence<'_>]) -> Vec<Place> {
    let Sequence { prompt, adapter, dropout, .. } = group[0];
    let dropout = dropout.map(|[_, prompt]| prompt);
    let prefix = batch.push(Row { dropout, ..Row::new(prompt).under(adapter) });
    let prompt_end = batch.tokens().len() - 1;
    let place = |sequence: &Sequence<'_>| {
        let start = batch.tokens().len();
        let read = &sequence.completion[..sequence.completion.len() - 1];
        if !read.is_empty() {
            let dropout = sequence.dropout.map(|[row, _]| row);
            let row = Row::new(read).under(adapter);
            batch.push(Row { position: prompt.len(), prefix: Some(prefix), dropout, ..row });
        }
        Place { prompt_end, start }
    };
    group.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence<'a>(prompt: &'a [u32], completion: &'a [u32], adapter: usize) -> Sequence<'a> {
        Sequence { prompt, completion, adapter: Some(adapter), dropout: None }
    }

    #[test]
    fn passes_keep_groups_whole_and_stay_within_the_limit_where_they_can() {
        let (p, q) = (&[1, 2, 3][..], &[4][..]);
        let completion = &[5, 6, 7][..];
        // Units under sharing: three rows of p (3 + 3·2 = 9 tokens), one of q (3), and p under another adapter (5).
        let all = [
            sequence(p, completion, 0),
            sequence(p, completion, 0),
            sequence(p, completion, 0),
            sequence(q, completion, 0),
            sequence(p, completion, 1),
        ];
        let rows: [(usize, bool, &[&[usize]]); 4] = [
            (1, true, &[&[3], &[1], &[1]]),
            (12, true, &[&[3, 1], &[1]]),
            (100, true, &[&[3, 1, 1]]),
            (10, false, &[&[1, 1], &[1, 1], &[1]]),
        ];
        for (tokens_per_pass, share_prompts, expected) in rows {
            let passes = passes(&all, PassLimits { tokens_per_pass, share_prompts });
            assert!(passes.iter().flatten().flat_map(|unit| unit.clone()).eq(0..5), "every row once, in order");
            let lengths: Vec<Vec<_>> = passes.iter().map(|pass| pass.iter().map(Range::len).collect()).collect();
            assert_eq!(lengths, expected, "{tokens_per_pass}");
        }
    }

    #[test]
    fn every_completion_token_is_predicted_at_the_token_before_it() {
        let (p, one, three) = (&[1, 2, 3][..], &[9][..], &[5, 6, 7][..]);
        let mut batch = Batch::default();
        let single = push(&mut batch, &[sequence(p, three, 0)]);
        assert_eq!(batch.tokens(), [1, 2, 3, 5, 6]);
        assert_eq!((0..3).map(|i| single[0].of(i)).collect::<Vec<_>>(), [2, 3, 4]);

        let group = push(&mut batch, &[sequence(p, three, 0), sequence(p, one, 0), sequence(p, three, 0)]);
        assert_eq!(batch.tokens()[5..], [1, 2, 3, 5, 6, 5, 6]);
        assert_eq!((0..3).map(|i| group[0].of(i)).collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(group[1].of(0), 7);
        assert_eq!((0..3).map(|i| group[2].of(i)).collect::<Vec<_>>(), [7, 10, 11]);
        assert_eq!(batch.positions()[8..], [3, 4, 3, 4]);
    }
}
