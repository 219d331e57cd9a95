//! Words: common ones, ones of a category, invented ones. Never knows what they are used for.

use crate::common::Rng;
use std::sync::LazyLock;

/// Common English words of three to seven letters, in lower case.
pub(super) static COMMON: LazyLock<Vec<&'static str>> = LazyLock::new(|| list(include_str!("words/common.txt")));
/// Things that stand at the end of a sentence.
pub(super) static NOUNS: LazyLock<Vec<&'static str>> = LazyLock::new(|| list(include_str!("words/nouns.txt")));
/// First names.
pub(super) static NAMES: LazyLock<Vec<&'static str>> = LazyLock::new(|| list(include_str!("words/names.txt")));
/// Categories: nothing stands in two of them.
pub(super) static ANIMALS: LazyLock<Vec<&'static str>> = LazyLock::new(|| list(include_str!("words/animals.txt")));
/// Things to eat and drink.
pub(super) static FOODS: LazyLock<Vec<&'static str>> = LazyLock::new(|| list(include_str!("words/foods.txt")));
/// Things to work with.
pub(super) static TOOLS: LazyLock<Vec<&'static str>> = LazyLock::new(|| list(include_str!("words/tools.txt")));
/// Things to wear.
pub(super) static CLOTHES: LazyLock<Vec<&'static str>> = LazyLock::new(|| list(include_str!("words/clothes.txt")));

fn list(text: &'static str) -> Vec<&'static str> {
    text.split_whitespace().collect()
}

/// Common words of three to five letters.
pub(super) static SHORT: LazyLock<Vec<&'static str>> = LazyLock::new(|| common_of(3..=5));
/// Common words of six or seven letters.
pub(super) static LONG: LazyLock<Vec<&'static str>> = LazyLock::new(|| common_of(6..=7));

fn common_of(lengths: std::ops::RangeInclusive<usize>) -> Vec<&'static str> {
    COMMON.iter().copied().filter(|word| lengths.contains(&word.len())).collect()
}

/// `count` different members of a list, in random order.
///
/// # Panics
/// If the list is shorter.
pub(super) fn pick_distinct<T: Copy>(rng: &mut Rng, list: &[T], count: usize) -> Vec<T> {
    assert!(count <= list.len(), "{count} different members of {}", list.len());
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let index = rng.below(list.len());
        if !chosen.contains(&index) {
            chosen.push(index);
        }
    }
    chosen.into_iter().map(|index| list[index]).collect()
}

/// A word of `syllables` consonant-vowel pairs and sometimes a last consonant, such as `tolmak`; no common word.
pub(super) fn invent(rng: &mut Rng, syllables: usize) -> String {
    loop {
        let mut word = String::new();
        for _ in 0..syllables {
            word.push(*rng.pick(b"bdfgklmnprstvz") as char);
            word.push(*rng.pick(b"aeiou") as char);
        }
        if rng.below(2) == 0 {
            word.push(*rng.pick(b"klmnrst") as char);
        }
        if COMMON.binary_search(&word.as_str()).is_err() {
            return word;
        }
    }
}

/// `count` different invented words.
pub(super) fn invent_distinct(rng: &mut Rng, syllables: usize, count: usize) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    while words.len() < count {
        let word = invent(rng, syllables);
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn lists_hold_lower_case_words_once_and_categories_do_not_meet() {
        assert!(COMMON.is_sorted(), "binary search needs order");
        let mut seen = HashSet::new();
        for list in [&*ANIMALS, &*FOODS, &*TOOLS, &*CLOTHES] {
            assert!(list.iter().all(|word| seen.insert(*word)), "a category shares a word with another");
            assert!(list.len() >= 100, "{}", list.len());
        }
        for list in [&*COMMON, &*NOUNS, &*ANIMALS, &*FOODS, &*TOOLS, &*CLOTHES] {
            assert_eq!(list.iter().collect::<HashSet<_>>().len(), list.len());
            assert!(list.iter().all(|word| word.bytes().all(|b| b.is_ascii_lowercase())));
        }
        assert!(NAMES.len() >= 64 && NAMES.iter().collect::<HashSet<_>>().len() == NAMES.len());
        assert!(SHORT.len() > 2500 && LONG.len() > 2500);
    }
}
