//! Beginnings that prompts may share: what has been read is kept, by the adapter generation that it was read under, until room is
//! needed. Knows tokens and their sequences, never requests.

use socius_models::KvSequence;
use std::{collections::HashSet, sync::Arc};

/// Shorter beginnings are read again: every sequence that is continued is one more place where attention looks for keys.
pub(super) const TOKENS_MIN: usize = 16;

/// Sequences whose first tokens may be continued, the least recently used first. Lengths are those of prompts: a sequence may hold a trained
/// prefix before its tokens.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    generation: Option<String>,
    tokens: Vec<u32>,
    sequence: Arc<KvSequence>,
}

impl Prefixes {
    /// The sequence that has most of `prompt` in common under `generation`, and how many tokens. The last token of a prompt is always
    /// read anew, for what follows it.
    pub(super) fn longest(&mut self, generation: Option<&str>, prompt: &[u32]) -> Option<(Arc<KvSequence>, usize)> {
        let readable = &prompt[..prompt.len() - 1];
        let under = self.entries.iter().enumerate().filter(|(_, entry)| entry.generation.as_deref() == generation);
        let (len, at) = under.map(|(at, entry)| (common(&entry.tokens, readable), at)).max()?;
        if len < TOKENS_MIN {
            return None;
        }
        self.entries[at..].rotate_left(1);
        Some((self.entries.last()?.sequence.clone(), len))
    }

    /// Keeps `sequence` of `tokens`, in place of those that it begins with.
    pub(super) fn insert(&mut self, generation: Option<&str>, tokens: Vec<u32>, sequence: Arc<KvSequence>) {
        debug_assert!(tokens.len() <= sequence.len(), "a position for each token");
        if tokens.len() < TOKENS_MIN {
            return;
        }
        self.entries.retain(|entry| entry.generation.as_deref() != generation || !tokens.starts_with(&entry.tokens));
        self.entries.push(Entry { generation: generation.map(str::to_owned), tokens, sequence });
    }

    /// Forgets the least recently used; false if there was none.
    pub(super) fn evict(&mut self) -> bool {
        let any = !self.entries.is_empty();
        if any {
            self.entries.remove(0);
        }
        any
    }

    /// Forgets until no more than `tokens_max` tokens are held.
    pub(super) fn shrink(&mut self, tokens_max: usize) {
        while held(self.sequences()) > tokens_max && self.evict() {}
    }

    /// What is kept.
    pub(super) fn sequences(&self) -> impl Iterator<Item = &Arc<KvSequence>> {
        self.entries.iter().map(|entry| &entry.sequence)
    }
}

/// Tokens that both begin with.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Tokens that `sequences` hold in memory, together with what they continue, each counted once.
pub(super) fn held<'a>(sequences: impl IntoIterator<Item = &'a Arc<KvSequence>>) -> usize {
    let mut seen = HashSet::new();
    let all = sequences.into_iter().flat_map(|sequence| std::iter::once(sequence).chain(sequence.ancestors()));
    all.filter(|sequence| seen.insert(Arc::as_ptr(sequence))).map(|sequence| sequence.own()).sum()
}
