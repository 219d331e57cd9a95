//! How sequences are laid out in passes: which stand together, which share a prompt, and where each token is predicted. Knows
//! nothing of losses.

use socius_models::{Batch, Dropout, RECORDED_BYTES_MAX, Row, Spec};
use std::ops::Range;

/// How a call is cut into passes. Results do not depend on it beyond `share_prompts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassLimits {
    /// Tokens of one pass; a unit (what shares tokens) that is longer has a pass of its own.
    pub tokens_per_pass: usize,
    /// Whether neighbouring rows of a learner compute what their prompts have in common once. The gradient is the same sum in
    /// another order.
    pub share_prompts: bool,
    /// Bytes that a pass may keep for its way back: what does not fit is computed again, and where the inputs of all half-layers
    /// would not fit either, passes are shorter.
    pub recorded_bytes_max: usize,
}

impl PassLimits {
    /// With passes short enough that at least the inputs of all half-layers fit.
    pub(super) fn within(self, spec: &Spec) -> Self {
        let bytes = 2 * spec.layers * spec.hidden * size_of::<f32>();
        let tokens = (self.recorded_bytes_max / bytes).max(1);
        Self { tokens_per_pass: self.tokens_per_pass.min(tokens), ..self }
    }
}

impl Default for PassLimits {
    fn default() -> Self {
        Self { tokens_per_pass: 2048, share_prompts: true, recorded_bytes_max: RECORDED_BYTES_MAX }
    }
}

/// Prompts share a beginning only up to so many tokens of their unit, and from then on one of their own again: few enough that
/// a pass is no larger than it was asked to be, enough that the beginning is a small part.
const UNIT_TOKENS_MAX: usize = 1024;
/// Tokens that joining a unit must save: an attention block holds 16 keys a vector, and a shorter beginning fills none.
const SAVING_MIN: usize = 16;

/// A sequence to be scored at every token of `completion`.
#[derive(Clone, Copy)]
pub(super) struct Sequence<'a> {
    pub(super) prompt: &'a [u32],
    pub(super) completion: &'a [u32],
    pub(super) adapter: Option<usize>,
    /// Where its first token stands: after its adapter's trained prefix.
    pub(super) position: usize,
    /// Whether nothing else runs in its adapter's passes: they run on weights of its own.
    pub(super) alone: bool,
    /// Dropout of the row, of the prompt where it stands alone, and of the preamble where that does.
    pub(super) dropout: Option<[Dropout; 3]>,
}

/// Neighbouring sequences of one adapter that are computed together: their prompts' common beginning once, then each prompt
/// (once for all its completions), then the completions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) sequences: Range<usize>,
    /// Tokens of the common beginning that stand alone.
    preamble: usize,
    /// Different prompts.
    prompts: usize,
    /// Tokens in a pass.
    tokens: usize,
}

impl Unit {
    /// Sequences that share their whole prompt. Nothing is predicted after a last token, so it is not among the tokens.
    fn group(first: usize, group: &[Sequence<'_>]) -> Self {
        let read = group.iter().map(|sequence| sequence.completion.len() - 1).sum::<usize>();
        let sequences = first..first + group.len();
        Self { sequences, preamble: 0, prompts: 1, tokens: group[0].prompt.len() + read }
    }

    /// Both as one unit whose prompts begin with the same `preamble` tokens.
    fn join(&self, group: &Self, preamble: usize) -> Self {
        let apart = self.tokens + (self.prompts - 1) * self.preamble + group.tokens;
        let prompts = self.prompts + group.prompts;
        let sequences = self.sequences.start..group.sequences.end;
        Self { sequences, preamble, prompts, tokens: apart - (prompts - 1) * preamble }
    }
}

/// Cuts `sequences` into units: single sequences if prompts are not shared, else neighbours as long as sharing saves tokens.
pub(super) fn units(sequences: &[Sequence<'_>], limits: PassLimits) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut first = 0;
    for group in sequences.chunk_by(|a, b| limits.share_prompts && same_prompt(a, b)) {
        let own = Unit::group(first, group);
        first = own.sequences.end;
        let joined = units.last().filter(|_| limits.share_prompts).and_then(|unit| {
            let begun = &sequences[unit.sequences.start];
            let common = if unit.prompts > 1 { unit.preamble } else { begun.prompt.len() - 1 };
            let preamble = common.min(common_beginning(begun, &group[0]));
            let joined = unit.join(&own, preamble);
            let saves = joined.tokens + SAVING_MIN <= unit.tokens + own.tokens;
            (saves && joined.tokens <= UNIT_TOKENS_MAX).then_some(joined)
        });
        match joined {
            Some(joined) => *units.last_mut().expect("joined to it") = joined,
            None => units.push(own),
        }
    }
    units
}

fn same_prompt(a: &Sequence<'_>, b: &Sequence<'_>) -> bool {
    a.adapter == b.adapter && a.prompt == b.prompt
}

/// Tokens with which both prompts begin, leaving at least one to the second; none under different adapters.
fn common_beginning(a: &Sequence<'_>, b: &Sequence<'_>) -> usize {
    if a.adapter != b.adapter {
        return 0;
    }
    a.prompt.iter().zip(&b.prompt[..b.prompt.len() - 1]).take_while(|(a, b)| a == b).count()
}

/// Joins neighbouring units into passes of at most `tokens_per_pass` tokens.
pub(super) fn passes(sequences: &[Sequence<'_>], limits: PassLimits) -> Vec<Vec<Unit>> {
    let first = |unit: &Unit| sequences[unit.sequences.start];
    let may_join = |pass: &Unit, unit: &Unit| {
        let (a, b) = (first(pass), first(unit));
        a.adapter == b.adapter || !(a.alone || b.alone)
    };
    let mut passes: Vec<Vec<Unit>> = Vec::new();
    let mut held = 0;
    for unit in units(sequences, limits) {
        match passes.last_mut() {
            Some(pass) if held + unit.tokens <= limits.tokens_per_pass && may_join(&pass[0], &unit) => {
                held += unit.tokens;
                pass.push(unit);
            }
            _ => {
                held = unit.tokens;
                passes.push(vec![unit]);
            }
        }
    }
    passes
}

/// Adds `unit` of `sequences` to `batch`: where each of its sequences is predicted.
pub(super) fn push(batch: &mut Batch, sequences: &[Sequence<'_>], unit: &Unit) -> Vec<Place> {
    let sequences = &sequences[unit.sequences.clone()];
    let Sequence { prompt, adapter, position, dropout, .. } = sequences[0];
    let preamble = (unit.preamble > 0).then(|| {
        let dropout = dropout.map(|[.., preamble]| preamble);
        batch.push(Row { position, dropout, ..Row::new(&prompt[..unit.preamble]).under(adapter) })
    });
    let beginning = Beginning { row: preamble, tokens: unit.preamble };
    let mut places = Vec::with_capacity(sequences.len());
    for group in sequences.chunk_by(same_prompt) {
        match group {
            [single] => places.push(push_single(batch, beginning, single)),
            group => places.extend(push_group(batch, beginning, group)),
        }
    }
    places
}

/// What a prompt continues: a row of the batch and its tokens, or nothing.
#[derive(Clone, Copy)]
struct Beginning {
    row: Option<usize>,
    tokens: usize,
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

fn push_single(batch: &mut Batch, beginning: Beginning, sequence: &Sequence<'_>) -> Place {
    let prompt = &sequence.prompt[beginning.tokens..];
    let read = &sequence.completion[..sequence.completion.len() - 1];
    let tokens = [prompt, read].concat();
    let dropout = sequence.dropout.map(|[row, ..]| row);
    let start = batch.tokens().len() + prompt.len();
    let row = Row::new(&tokens).under(sequence.adapter);
    batch.push(Row { position: sequence.position + beginning.tokens, prefix: beginning.row, dropout, ..row });
    Place { prompt_end: start - 1, start }
}

fn push_group(batch: &mut Batch, beginning: Beginning, group: &[Sequence<'_>]) -> Vec<Place> {
    let Sequence { prompt, adapter, position, dropout, .. } = group[0];
    let dropout = dropout.map(|[_, prompt, _]| prompt);
    let row = Row::new(&prompt[beginning.tokens..]).under(adapter);
    let prefix = batch.push(Row { position: position + beginning.tokens, prefix: beginning.row, dropout, ..row });
    let prompt_end = batch.tokens().len() - 1;
    let place = |sequence: &Sequence<'_>| {
        let start = batch.tokens().len();
        let read = &sequence.completion[..sequence.completion.len() - 1];
        if !read.is_empty() {
            let dropout = sequence.dropout.map(|[row, ..]| row);
            let row = Row::new(read).under(adapter);
            batch.push(Row { position: position + prompt.len(), prefix: Some(prefix), dropout, ..row });
        }
        Place { prompt_end, start }
    };
    group.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence<'a>(prompt: &'a [u32], completion: &'a [u32], adapter: usize) -> Sequence<'a> {
        Sequence { prompt, completion, adapter: Some(adapter), position: 0, alone: false, dropout: None }
    }

    /// Tokens `0 .. common`, then `own` that begin with `mark`.
    fn prompt(common: u32, mark: u32, own: u32) -> Vec<u32> {
        (0..common).chain(mark..mark + own).collect()
    }

    fn lay_out(sequences: &[Sequence<'_>], limits: PassLimits) -> (Batch, Vec<Place>) {
        let mut batch = Batch::default();
        let units = units(sequences, limits);
        let places = units.iter().flat_map(|unit| push(&mut batch, sequences, unit)).collect();
        assert_eq!(batch.tokens().len(), units.iter().map(|unit| unit.tokens).sum::<usize>(), "tokens are counted");
        (batch, places)
    }

    #[test]
    fn passes_keep_units_whole_and_stay_within_the_limit_where_they_can() {
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
            let passes = passes(&all, PassLimits { tokens_per_pass, share_prompts, ..PassLimits::default() });
            let rows = passes.iter().flatten().flat_map(|unit| unit.sequences.clone());
            assert!(rows.eq(0..5), "every row once, in order");
            let lengths: Vec<Vec<_>> =
                passes.iter().map(|pass| pass.iter().map(|unit| unit.sequences.len()).collect()).collect();
            assert_eq!(lengths, expected, "{tokens_per_pass}");
        }
    }

    #[test]
    fn neighbours_join_as_long_as_their_beginning_saves_tokens() {
        // (tokens in common, own mark, adapter) of each sequence, and the units: (sequences, preamble, tokens).
        let rows: [(&[(u32, u32, usize)], &[(usize, usize, usize)]); 6] = [
            (&[(15, 100, 0), (15, 200, 0)], &[(1, 0, 21), (1, 0, 21)]),
            (&[(20, 100, 0), (20, 200, 0), (20, 300, 0)], &[(3, 20, 20 + 3 * 6)]),
            (&[(20, 100, 0), (20, 100, 0), (20, 200, 0)], &[(3, 20, 20 + 5 + 2 + 6)]),
            (&[(20, 100, 0), (20, 200, 1)], &[(1, 0, 26), (1, 0, 26)]),
            // The third has 20 in common: sharing those among three saves fewer than sharing 60 among two.
            (&[(60, 100, 0), (60, 200, 0), (20, 300, 0)], &[(2, 60, 60 + 2 * 6), (1, 0, 26)]),
            // And here more.
            (&[(40, 100, 0), (40, 200, 0), (30, 300, 0)], &[(3, 30, 30 + 2 * 16 + 6)]),
        ];
        for (sequences, expected) in rows {
            let prompts: Vec<_> = sequences.iter().map(|&(common, mark, _)| prompt(common, mark, 5)).collect();
            let completion = &[7, 8][..];
            let sequences: Vec<_> =
                prompts.iter().zip(sequences).map(|(prompt, row)| sequence(prompt, completion, row.2)).collect();
            let found: Vec<_> = units(&sequences, PassLimits::default())
                .iter()
                .map(|unit| (unit.sequences.len(), unit.preamble, unit.tokens))
                .collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_unit_is_no_longer_than_its_limit_and_a_prompt_keeps_a_token_of_its_own() {
        let prompts: Vec<_> = (0..100).map(|i| prompt(30, 100 + 40 * i, 20)).collect();
        let sequences: Vec<_> = prompts.iter().map(|prompt| sequence(prompt, &[7], 0)).collect();
        let units = units(&sequences, PassLimits::default());
        assert!(units.iter().all(|unit| unit.tokens <= UNIT_TOKENS_MAX && unit.preamble == 30), "{units:?}");
        assert_eq!(units.iter().map(|unit| unit.sequences.len()).collect::<Vec<_>>(), [49, 49, 2]);

        let (long, short) = (prompt(30, 100, 5), prompt(30, 100, 3));
        for pair in [[&long, &short], [&short, &long]] {
            let sequences = pair.map(|prompt| sequence(prompt, &[7], 0));
            let (batch, _) = lay_out(&sequences, PassLimits::default());
            assert_eq!(batch.spans()[0].tokens, 0..32, "the shorter one has 33");
        }
    }

    #[test]
    fn every_completion_token_is_predicted_at_the_token_before_it() {
        let prompts = [prompt(20, 100, 3), prompt(20, 100, 3), prompt(20, 200, 4), prompt(20, 300, 1)];
        let completions: [&[u32]; 4] = [&[401, 402, 403], &[501], &[601, 602], &[701, 702]];
        for (share_prompts, first) in [(true, 0), (false, 0), (true, 7), (false, 7)] {
            let sequence = |(prompt, completion)| Sequence { position: first, ..sequence(prompt, completion, 0) };
            let prompts_as_given = prompts.iter().map(|prompt| &prompt[..]);
            let sequences: Vec<_> = prompts_as_given.zip(completions).map(sequence).collect();
            let limits = PassLimits { share_prompts, ..PassLimits::default() };
            let (batch, places) = lay_out(&sequences, limits);
            for ((prompt, completion), place) in prompts.iter().zip(completions).zip(places) {
                let whole = [&prompt[..], completion].concat();
                for i in 0..completion.len() {
                    let (position, before) = (place.of(i), prompt.len() + i - 1);
                    assert_eq!(batch.tokens()[position], whole[before]);
                    assert_eq!(batch.positions()[position] as usize, first + before);
                }
            }
        }
    }
}
