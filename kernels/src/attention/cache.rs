//! Keys kept turned, so that queries read them without turning them again at every step; knows no values or queries.

use super::{BLOCK, Heads};

/// The rotated keys of one span, by blocks of 64 positions: `[blocks, kv, dim, 64]`. Blocks are those of the whole row, so a span
/// that starts at position 70 has its first key in column 6.
#[derive(Clone, Debug, Default)]
pub struct KeyCache {
    turned: Vec<f32>,
    /// Column of the first key.
    start: usize,
    len: usize,
}

impl KeyCache {
    /// Keys held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all keys but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Appends `k`, `[tokens, kv · dim]`; the first of them stands at `position` of its row.
    pub fn extend(&mut self, heads: Heads, position: usize, k: &[f32]) {
        if self.len == 0 {
            self.start = position % BLOCK;
        }
        assert_eq!((self.start + self.len) % BLOCK, position % BLOCK, "keys come in the order of their positions");
        let width = heads.kv_width();
        let tokens = k.len() / width;
        assert_eq!(k.len(), tokens * width, "keys of {width}");
        let blocks = (self.start + self.len + tokens).div_ceil(BLOCK);
        if self.turned.len() < blocks * BLOCK * width {
            self.turned.resize(blocks * BLOCK * width, 0.0);
        }
        for (token, key) in (self.len..).zip(k.chunks_exact(width)) {
            let (block, column) = self.place(token);
            let lines = self.turned[block * BLOCK * width..][..BLOCK * width].chunks_exact_mut(BLOCK);
            for (line, &value) in lines.zip(key) {
                line[column] = value;
            }
        }
        self.len += tokens;
    }

    fn place(&self, token: usize) -> (usize, usize) {
        ((self.start + token) / BLOCK, (self.start + token) % BLOCK)
    }

    /// `[dim, 64]` of `kv_head` from key `token` on, rows 64 apart: what follows the block's last key is undefined.
    pub(super) fn lines(&self, heads: Heads, kv_head: usize, token: usize) -> &[f32] {
        assert!(token < self.len, "key {token} of {}", self.len);
        let (block, column) = self.place(token);
        let size = heads.dim * BLOCK;
        &self.turned[(block * heads.kv + kv_head) * size + column..][..size - column]
    }
}
