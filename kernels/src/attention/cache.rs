//! Keys and values kept in the order in which queries read them, so that a decoding step turns and widens nothing; knows no queries.
//!
//! A block is 64 positions of a row: for each head its keys turned, `[dim, 64]`, then its values, `[64, dim]`, so that a head of a
//! block is read in one stream. In bf16 a 32-bit word holds two values: of keys, dimensions 2i (low half) and 2i + 1 of one
//! position; of values, dimensions i and i + 16 of each 32 (the width is padded to a multiple of 32). So half a load and one
//! operation give sixteen of them in f32, which is exact.

use super::{BLOCK, Heads};
use crate::linear::{WeightType, pair};
use crate::simd::LANES;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Words of idle blocks that are kept for other sequences: 512 MiB.
const IDLE_WORDS_MAX: usize = 128 << 20;

/// Blocks that nobody uses, so that sequences that come and go touch no fresh pages.
static IDLE: Mutex<Idle> = Mutex::new(Idle { blocks: Vec::new(), words: 0 });

struct Idle {
    blocks: Vec<Vec<u32>>,
    words: usize,
}

/// 64 positions of all heads; unspecified where nothing was written.
#[derive(Debug)]
struct Block(Vec<u32>);

impl Block {
    fn new(words: usize) -> Self {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = idle.blocks.iter().rposition(|block| block.len() == words);
        let Some(index) = fitting else { return Self(vec![0; words]) };
        idle.words -= words;
        Self(idle.blocks.swap_remove(index))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.words + self.0.len() <= IDLE_WORDS_MAX {
            idle.words += self.0.len();
            idle.blocks.push(std::mem::take(&mut self.0));
        }
    }
}

impl Clone for Block {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.0.len());
        copy.0.copy_from_slice(&self.0);
        copy
    }
}

/// The rotated keys and the values of one span. Blocks are those of the whole row, so a span that starts at position 70 has its first
/// key in column 6.
#[derive(Clone, Debug)]
pub struct KvCache {
    heads: Heads,
    kept: WeightType,
    blocks: Vec<Block>,
    /// Column of the first key.
    start: usize,
    len: usize,
}

/// Some positions of one block and one head.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub(super) kept: WeightType,
    /// The first position's place in the block.
    pub(super) column: usize,
    /// The first position's column of the first line; lines are 64 words apart.
    pub(super) keys: *const u32,
    /// The first position's values; positions are `value_words` apart.
    pub(super) values: *const u32,
    pub(super) value_words: usize,
    /// What is read next, as a rule.
    pub(super) next: *const u32,
}

impl KvCache {
    /// No keys, kept as `kept`: what is not representable in it is rounded to nearest, ties to even (see [`round`]).
    pub fn new(heads: Heads, kept: WeightType) -> Self {
        Self { heads, kept, blocks: Vec::new(), start: 0, len: 0 }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        let used = if self.len == 0 { 0 } else { (self.start + self.len).div_ceil(BLOCK) };
        self.blocks.truncate(used);
    }

    /// Appends `k` and `v`, `[tokens, kv · dim]`; the first of them stands at `position` of its row.
    pub fn extend(&mut self, position: usize, k: &[f32], v: &[f32]) {
        if self.len == 0 {
            self.start = position % BLOCK;
        }
        assert_eq!((self.start + self.len) % BLOCK, position % BLOCK, "keys come in the order of their positions");
        let (width, dim) = (self.heads.kv_width(), self.heads.dim);
        assert!(k.len().is_multiple_of(width) && k.len() == v.len(), "keys and values of {width}");
        for (k, v) in k.chunks_exact(width).zip(v.chunks_exact(width)) {
            let (block, column) = self.place(self.len);
            if block == self.blocks.len() {
                self.blocks.push(Block::new(self.heads.kv * self.head_words()));
            }
            let (line_words, value_words, head_words) = (self.key_words(), self.value_words(), self.head_words());
            let heads = self.blocks[block].0.chunks_exact_mut(head_words);
            for ((words, k), v) in heads.zip(k.chunks_exact(dim)).zip(v.chunks_exact(dim)) {
                let (keys, values) = words.split_at_mut(line_words * BLOCK);
                write_key(self.kept, k, keys, column);
                write_value(self.kept, v, &mut values[column * value_words..][..value_words]);
            }
            self.len += 1;
        }
    }

    /// Lines of a turned key.
    fn key_words(&self) -> usize {
        match self.kept {
            WeightType::F32 => self.heads.dim,
            WeightType::Bf16 => self.heads.dim.div_ceil(2),
        }
    }

    /// Words of a value.
    fn value_words(&self) -> usize {
        match self.kept {
            WeightType::F32 => self.heads.dim,
            WeightType::Bf16 => self.heads.dim.next_multiple_of(2 * LANES) / 2,
        }
    }

    /// Bytes of one token's key and value of one head.
    pub(super) fn token_bytes(&self) -> usize {
        (self.key_words() + self.value_words()) * size_of::<u32>()
    }

    /// Words of a head in a block.
    fn head_words(&self) -> usize {
        BLOCK * (self.key_words() + self.value_words())
    }

    fn place(&self, token: usize) -> (usize, usize) {
        ((self.start + token) / BLOCK, (self.start + token) % BLOCK)
    }

    /// Tokens `tokens`, all of one block; what follows the block's last key is undefined.
    pub(super) fn lines(&self, heads: Heads, kv_head: usize, tokens: Range<usize>) -> Lines {
        assert_eq!(heads, self.heads, "a cache belongs to the heads that it was made for");
        assert!(tokens.start < tokens.end && tokens.end <= self.len, "tokens {tokens:?} of {}", self.len);
        let (block, column) = self.place(tokens.start);
        assert_eq!(self.place(tokens.end - 1).0, block, "tokens of one block");
        let head = |block: usize, head: usize| self.blocks[block].0[head * self.head_words()..].as_ptr();
        let own = &self.blocks[block].0[kv_head * self.head_words()..][..self.head_words()];
        let value_words = self.value_words();
        Lines {
            kept: self.kept,
            column,
            keys: own[column..].as_ptr(),
            values: own[BLOCK * self.key_words() + column * value_words..].as_ptr(),
            value_words,
            next: match (block + 1 < self.blocks.len(), kv_head + 1 < heads.kv) {
                (true, _) => head(block + 1, kv_head),
                (false, true) => head(0, kv_head + 1),
                (false, false) => own.as_ptr(),
            },
        }
    }
}

fn write_key(kept: WeightType, key: &[f32], lines: &mut [u32], column: usize) {
    let lines = lines.chunks_exact_mut(BLOCK);
    match kept {
        WeightType::F32 => lines.zip(key).for_each(|(line, value)| line[column] = value.to_bits()),
        WeightType::Bf16 => {
            let second = |two: &[f32]| two.get(1).copied().unwrap_or(0.0);
            lines.zip(key.chunks(2)).for_each(|(line, two)| line[column] = pair(two[0], second(two)));
        }
    }
}

fn write_value(kept: WeightType, value: &[f32], words: &mut [u32]) {
    match kept {
        WeightType::F32 => words.iter_mut().zip(value).for_each(|(word, value)| *word = value.to_bits()),
        WeightType::Bf16 => {
            for (words, values) in words.chunks_exact_mut(LANES).zip(value.chunks(2 * LANES)) {
                let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
                words.iter_mut().enumerate().for_each(|(i, word)| *word = pair(at(i), at(LANES + i)));
            }
        }
    }
}

/// Rounds keys or values to what a cache of `kept` holds, so that a pass that keeps them in f32 has the bits of one that reads
/// them from a cache.
pub fn round(kept: WeightType, values: &mut [f32]) {
    if kept == WeightType::Bf16 {
        crate::elementwise::rows(values, 1, |_, values| {
            values.iter_mut().for_each(|value| *value = f32::from_bits(pair(0.0, *value)));
        });
    }
}
