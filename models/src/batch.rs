//! Rows of tokens for one pass: each names its adapter (or none) and, in training, the row whose keys it also attends to.

use crate::Site;
use std::ops::Range;

/// Seeded LoRA dropout on a row: element `i` of the input of a site is dropped as a pure function of
/// `(key, layer, projection, token in row, i)`, so a row is masked alike whatever stands beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping, `0 ≤ p < 1`.
    pub p: f32,
    /// The row's key (from run seed, step and row).
    pub key: u64,
}

impl Dropout {
    /// Writes the factors of the input of `site` at `token` of the row: `0` where dropped, `1 / (1 − p)` where kept.
    pub fn factors(&self, site: Site, token: usize, factors: &mut [f32]) {
        let (layer, projection) = (site.layer as u64, site.projection as u64);
        let stream = mix(mix(self.key ^ mix(layer << 8 | projection)) ^ token as u64);
        let kept = 1.0 / (1.0 - self.p);
        for (i, factor) in factors.iter_mut().enumerate() {
            // The upper 24 bits as a uniform in [0, 1): exact in f32.
            let uniform = (mix(stream.wrapping_add(i as u64)) >> 40) as f32 / (1 << 24) as f32;
            *factor = if uniform < self.p { 0.0 } else { kept };
        }
    }
}

/// splitmix64's output function: every bit of the result depends on every bit of `x`.
pub(crate) fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One row as the caller gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// Position of the first token. In decode this is the number of tokens already in the row's KV sequence; for a row with a
    /// prefix it is the position after it; for any other it is [`crate::Layout::positions`] of its adapter.
    pub position: usize,
    /// Index of the row's adapter in the pass's adapter list.
    pub adapter: Option<usize>,
    /// An earlier row of the batch that this row continues: it attends to all that this row sees, then causally to its own tokens.
    /// It runs under the same adapter, and may have a prefix itself. Several rows may share one (a group's prompt).
    pub prefix: Option<usize>,
    /// Dropout for training; none in serving.
    pub dropout: Option<Dropout>,
}

impl<'a> Row<'a> {
    /// A row of its own from position 0, under no adapter.
    pub fn new(tokens: &'a [u32]) -> Self {
        Self { tokens, position: 0, adapter: None, prefix: None, dropout: None }
    }

    /// The same row under adapter `adapter` of the pass.
    pub fn under(self, adapter: Option<usize>) -> Self {
        Self { adapter, ..self }
    }
}

/// A row's place in the packed batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The row's tokens in the packed order.
    pub tokens: Range<usize>,
    /// See [`Row::position`].
    pub position: usize,
    /// See [`Row::adapter`].
    pub adapter: Option<usize>,
    /// See [`Row::prefix`].
    pub prefix: Option<usize>,
    /// See [`Row::dropout`].
    pub dropout: Option<Dropout>,
}

impl Span {
    /// Position after the row's last token.
    pub fn end(&self) -> usize {
        self.position + self.tokens.len()
    }
}

/// Rows packed without padding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    spans: Vec<Span>,
}

impl Batch {
    /// Packs `rows` in their order.
    ///
    /// # Panics
    /// On an empty row, and on a prefix that is not an earlier row under the same adapter: both are bugs of the caller, not of its
    /// input.
    pub fn new<'a>(rows: impl IntoIterator<Item = Row<'a>>) -> Self {
        let mut batch = Self::default();
        for row in rows {
            batch.push(row);
        }
        batch
    }

    /// Adds a row and returns its index.
    pub fn push(&mut self, row: Row<'_>) -> usize {
        assert!(!row.tokens.is_empty(), "a row holds at least one token");
        if let Some(prefix) = row.prefix {
            let prefix = &self.spans[prefix];
            assert_eq!(prefix.adapter, row.adapter, "a prefix is a row of the same adapter");
            assert_eq!(row.position, prefix.end(), "a continuation starts where its prefix ends");
        }
        let start = self.tokens.len();
        self.tokens.extend_from_slice(row.tokens);
        self.positions.extend((row.position..row.position + row.tokens.len()).map(|p| p as u32));
        self.spans.push(Span {
            tokens: start..self.tokens.len(),
            position: row.position,
            adapter: row.adapter,
            prefix: row.prefix,
            dropout: row.dropout,
        });
        self.spans.len() - 1
    }

    /// All tokens, packed.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Position of each packed token in its sequence.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The rows' places, in order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// What row `row` attends to, in order: the tokens of its prefixes, first to last, and its own.
    pub(crate) fn seen(&self, row: usize) -> Vec<Range<usize>> {
        let lineage =
            std::iter::successors(Some(&self.spans[row]), |span| span.prefix.map(|prefix| &self.spans[prefix]));
        let mut seen: Vec<_> = lineage.map(|span| span.tokens.clone()).collect();
        seen.reverse();
        seen
    }

    /// Runs of neighbouring tokens under one adapter: `(tokens, adapter)`, covering the batch in order.
    pub fn segments(&self) -> Vec<(Range<usize>, Option<usize>)> {
        let mut segments: Vec<(Range<usize>, Option<usize>)> = Vec::new();
        for span in &self.spans {
            match segments.last_mut() {
                Some((tokens, adapter)) if *adapter == span.adapter => tokens.end = span.tokens.end,
                _ => segments.push((span.tokens.clone(), span.adapter)),
            }
        }
        segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Projection;

    #[test]
    fn dropout_drops_a_share_p_whatever_key_site_or_token() {
        for p in [0.0, 0.1, 0.5, 0.9] {
            for (key, layer, projection, token) in [
                (0, 0, Projection::Q, 0),
                (0, 0, Projection::Q, 1),
                (1, 0, Projection::Q, 0),
                (9, 7, Projection::Down, 3),
            ] {
                let mut factors = vec![f32::NAN; 40_000];
                Dropout { p, key }.factors(Site { layer, projection }, token, &mut factors);
                assert!(factors.iter().all(|&f| f == 0.0 || f == 1.0 / (1.0 - p)));
                let dropped = factors.iter().filter(|&&f| f == 0.0).count() as f32 / 40_000.0;
                // Five standard errors.
                assert!((dropped - p).abs() <= 5.0 * (p * (1.0 - p) / 40_000.0).sqrt(), "{dropped} for {p}");
            }
        }
    }

    #[test]
    fn neighbouring_keys_sites_and_tokens_drop_independently() {
        let mask = |key, layer, projection, token| {
            let mut factors = vec![0.0; 10_000];
            Dropout { p: 0.5, key }.factors(Site { layer, projection }, token, &mut factors);
            factors
        };
        let first = mask(0, 0, Projection::Q, 0);
        for other in [
            mask(1, 0, Projection::Q, 0),
            mask(0, 1, Projection::Q, 0),
            mask(0, 0, Projection::K, 0),
            mask(0, 0, Projection::Q, 1),
        ] {
            let agree = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!((4_750..5_250).contains(&agree), "{agree} of 10,000 agree");
        }
    }
}
