//! Causal grouped-query attention over packed rows, each with its own list of key/value spans; knows no cache or model.
//!
//! A row's keys are the concatenation of its spans (a shared prefix, a cache, the row's new tokens: any cut of them). With n
//! queries over `len` keys, query i sees the first `len − n + i + 1`. Keys are taken by blocks of 64 of the concatenation with
//! a running maximum (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022), scores are summed over the head's width in
//! order, outputs over the keys in order. So a query's bits depend neither on how its keys are cut into spans nor on which
//! other queries run beside it: decoding a token gives what a full pass gives.
//!
//! Error of an output, with u = 2⁻²⁴, n keys and width d: scores are off by at most δ = 2(d+3)u·max_j scale·Σ|q||k_j|, so
//! weights by a factor within e^{±2δ}, exponentials by 2⁻²² each (and once more for each block's rescaling), and sums by
//! 2(n+2)u: `|out − exact| ≤ (4δ + 2(n+10)u + (n/64+2)·2⁻²¹)·max|v|`.
//!
//! Backward recomputes the weights `p = exp(s − logsumexp)`: `dv_j += Σ_i p_ij do_i`, `ds = p∘(do·vᵀ − Σ do∘out)`,
//! `dq = scale·ds·k`, `dk_j += scale·Σ_i ds_ij q_i`, the sums over i in packed order (heads of a group inside a token).
//!
//! Over bf16 weights the operands of these four products (p, do, v, ds, k, scaled q) are rounded to bf16 and summed in f32 by
//! pairs; the scores stay f32, as an error in them grows with its exponential and would set the weights apart from those of the
//! forward pass. A rounding is within ε = 2⁻⁸ of its value, and 2ε + ε² ≤ 2.01ε of a product of two; with P_ij the size of
//! `|do_i|·|v_j|` that adds `2.01ε·Σ_i p_ij|do_i|` to dv's bound, `2.01ε·P_ij` to that of `do·v`, and so
//! `scale·Σ_j p_ij·(2.01ε·P_ij + 2.01ε·|do·v − Σ do∘out|)·|k_j|`, or `≤ 7ε·scale·Σ_j p_ij·max_j P_ij·|k_j|`, to dq's; dk's likewise.

mod backward;
mod cache;
mod forward;
mod narrow;
mod rounded;

pub use backward::{Gradients, Saved, Spans, backward};
pub use cache::{KvCache, round};
pub use forward::{Keys, Row, forward};

use crate::gemm::transpose;
use crate::simd::{LANES, Simd};

/// Keys of a block.
const BLOCK: usize = 4 * LANES;

/// The shape of the heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key/value heads; divides `query`. Query head h reads key/value head `h / (query / kv)`.
    pub kv: usize,
    /// Width of a head.
    pub dim: usize,
    /// Factor of the scores, usually `1 / √dim`.
    pub scale: f32,
}

impl Heads {
    /// Query heads of one key/value head.
    fn group(self) -> usize {
        self.query / self.kv
    }

    fn q_width(self) -> usize {
        self.query * self.dim
    }

    fn kv_width(self) -> usize {
        self.kv * self.dim
    }
}

/// Pairs of a query and a key that it sees, of the last `queries` of `len` tokens.
fn pairs(queries: usize, len: usize) -> usize {
    queries * (len - queries) + queries * (queries + 1) / 2
}

/// Which queries of a row run under one key/value head: entries are its query heads inside its tokens.
#[derive(Clone, Copy)]
struct Entries {
    heads: Heads,
    kv_head: usize,
    /// First token, in the packed queries.
    first: usize,
    tokens: usize,
    /// Keys that the first token sees.
    visible: usize,
}

impl Entries {
    fn len(&self) -> usize {
        self.tokens * self.heads.group()
    }

    /// Keys that entry `e` sees.
    fn limit(&self, e: usize) -> usize {
        self.visible + e / self.heads.group()
    }

    /// Keys that the last entry sees.
    fn limit_max(&self) -> usize {
        self.visible + self.tokens - 1
    }

    /// The first entry that sees key `key`.
    fn first_seeing(&self, key: usize) -> usize {
        (key + 1).saturating_sub(self.visible) * self.heads.group()
    }

    /// Where entry `e` has its row in `[tokens, heads, dim]`.
    fn offset(&self, e: usize) -> usize {
        let group = self.heads.group();
        (self.first + e / group) * self.heads.q_width() + (self.kv_head * group + e % group) * self.heads.dim
    }

    /// Where entry `e` has its value in `[tokens, heads]`.
    fn scalar(&self, e: usize) -> usize {
        let group = self.heads.group();
        (self.first + e / group) * self.heads.query + self.kv_head * group + e % group
    }

    /// Copies the entries' rows of `from`, times `scale`, to `to`, `[entries, dim]`.
    fn gather(&self, from: &[f32], scale: f32, to: &mut [f32]) {
        for (e, to) in to.chunks_exact_mut(self.heads.dim).take(self.len()).enumerate() {
            for (to, from) in to.iter_mut().zip(&from[self.offset(e)..]) {
                *to = from * scale;
            }
        }
    }
}

/// The part of one span inside a block: `(index in the block, span, token in the span, tokens)`.
type Portion = (usize, usize, usize, usize);

/// The portions of keys `first .. first + count` of the concatenation of spans of `lens` tokens.
fn portions(lens: impl Iterator<Item = usize>, first: usize, count: usize) -> impl Iterator<Item = Portion> {
    let mut start = 0;
    lens.enumerate().filter_map(move |(span, len)| {
        let begin = start;
        start += len;
        let (from, to) = (first.max(begin), (first + count).min(start));
        (from < to).then(|| (from - first, span, from - begin, to - from))
    })
}

/// Rows of keys or values: their address and distance.
#[derive(Clone, Copy)]
struct Lines {
    at: *const f32,
    row: usize,
}

/// Keys `first .. first + count` of one head in `spans`: in place where they lie in one span, else copied to `buffer`
/// (`[64, dim]`).
fn lines(
    spans: &[&[f32]],
    (first, count): (usize, usize),
    (heads, kv_head): (Heads, usize),
    buffer: &mut [f32],
) -> Lines {
    let (width, at) = (heads.kv_width(), kv_head * heads.dim);
    let mut all = portions(spans.iter().map(|span| span.len() / width), first, count).peekable();
    if let Some(&(_, span, token, tokens)) = all.peek()
        && tokens == count
    {
        return Lines { at: spans[span][token * width + at..].as_ptr(), row: width };
    }
    for (index, span, token, tokens) in all {
        for t in 0..tokens {
            let from = &spans[span][(token + t) * width + at..][..heads.dim];
            buffer[(index + t) * heads.dim..][..heads.dim].copy_from_slice(from);
        }
    }
    Lines { at: buffer.as_ptr(), row: heads.dim }
}

/// Transposes `count` lines to `[dim, 64]`; columns from `count` to the next multiple of 16 become 0.
///
/// # Safety
/// As for [`Simd`]; `lines` has `count ≤ 64` rows of `dim` values.
#[inline(always)]
unsafe fn turn<S: Simd>(lines: Lines, count: usize, dim: usize, turned: &mut [f32]) {
    assert!(turned.len() >= dim * BLOCK && count <= BLOCK);
    // SAFETY: measured above.
    unsafe { transpose::<S>((lines.at, lines.row), (count, dim), (turned.as_mut_ptr(), BLOCK)) }
    for row in turned.chunks_exact_mut(BLOCK).take(dim) {
        row[count..count.next_multiple_of(LANES)].fill(0.0);
    }
}

#[cfg(test)]
mod tests;
