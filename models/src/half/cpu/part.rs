//! A pass cut into parts of its rows, which threads share out: what a half computes between its linears then stays in the caches.
//! Never knows what is computed.

use super::{At, Prepared};
use crate::Batch;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a part: a multiple of every tile's. Gate and up of 96 rows take 1.2 MB in SmolLM2-135M, and its weights are
/// read from the last-level cache once for each part: some 3 GB/s a core.
const PART_ROWS: usize = 96;

/// The adapters that have rows in a pass, ascending, each with those of its rows that are in a part, counted from its first.
pub(super) type Groups = Vec<(usize, Vec<Range<usize>>)>;

/// The groups of a pass, made once for all of its halves.
pub(super) struct Grouped {
    whole: Groups,
    parts: Vec<Groups>,
}

impl Grouped {
    /// Of the rows under one of `adapters` adapters; a pass under none has no groups, whatever its rows name.
    pub(super) fn new(batch: &Batch, adapters: usize) -> Self {
        let mut whole = Groups::new();
        for (tokens, adapter) in batch.segments() {
            let Some(adapter) = adapter.filter(|&adapter| adapter < adapters) else { continue };
            match whole.binary_search_by_key(&adapter, |group| group.0) {
                Ok(at) => whole[at].1.push(tokens),
                Err(at) => whole.insert(at, (adapter, vec![tokens])),
            }
        }
        let parts = (0..batch.tokens().len()).step_by(PART_ROWS);
        Self { parts: parts.map(|first| inside(&whole, first)).collect(), whole }
    }
}

/// What the part from `first` has of the groups' rows.
fn inside(groups: &Groups, first: usize) -> Groups {
    let cut = |rows: &Range<usize>| {
        let own = rows.start.max(first)..rows.end.min(first + PART_ROWS);
        (!own.is_empty()).then(|| own.start - first..own.end - first)
    };
    groups.iter().map(|(adapter, rows)| (*adapter, rows.iter().filter_map(cut).collect())).collect()
}

/// Some rows of a half's pass.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) at: At<'a, Prepared>,
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) groups: &'a Groups,
}

impl<'a> Part<'a> {
    /// All rows of the pass.
    pub(super) fn whole(at: At<'a, Prepared>) -> Self {
        Self { at, first: 0, count: at.pass.batch.tokens().len(), groups: &at.pass.prepared.grouped.whole }
    }

    /// This part's rows of `x`, `[rows, width]`.
    pub(super) fn of<'x>(&self, x: &'x [f32], width: usize) -> &'x [f32] {
        &x[self.first * width..(self.first + self.count) * width]
    }
}

/// Runs `body` on every part of the pass, each with its own rows of `buffers`, `([rows, width], width)`; results are in the
/// order of rows. A pass of one part runs on the calling thread.
pub(super) fn in_parts<'a, 'b, const N: usize, R: Send>(
    at: At<'a, Prepared>,
    mut buffers: [(&'b mut [f32], usize); N],
    body: impl Fn(Part<'a>, [&'b mut [f32]; N]) -> R + Sync,
) -> Vec<R> {
    let rows = at.pass.batch.tokens().len();
    let mut parts = Vec::with_capacity(rows.div_ceil(PART_ROWS));
    for (first, groups) in (0..rows).step_by(PART_ROWS).zip(&at.pass.prepared.grouped.parts) {
        let count = PART_ROWS.min(rows - first);
        let cut = |(rest, width): &mut (&'b mut [f32], usize)| {
            rest.split_off_mut(..count * *width).expect("a buffer holds every row of the pass")
        };
        let pieces = buffers.each_mut().map(cut);
        parts.push((Part { at, first, count, groups }, pieces));
    }
    let run = |(part, pieces)| body(part, pieces);
    if parts.len() < 2 { parts.into_iter().map(run).collect() } else { parts.into_par_iter().map(run).collect() }
}
