//! Multi-query associative recall as Zoology sets it (Arora et al. 2023, arXiv 2312.04927, §4 and its appendix on the synthetic): pairs of a
//! key and a value, one token each, then every key once more, each at a gap that follows a power law. A sequence is a function of a
//! seed; [`answer`] finds what is right without knowing how it was made. Never sees models.
//!
//! Token 0 fills the places between; the lower half of the vocabulary are keys, the upper half values. A query stands an even number of
//! places after the pairs and is answered where it stands; the place after it stays empty.

use crate::common::{Rng, Seed};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What fills the places between queries.
const FILL: u32 = 0;

/// A setting of the task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mqar {
    /// Tokens that there are, half of them keys.
    pub vocab: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Pairs of key and value, and queries.
    pub pairs: usize,
    /// `a`: the chance of the i-th gap is proportional to `i^(a − 1)`. 1 is uniform.
    pub power: f64,
}

/// A sequence and what is asked in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recall {
    /// As a model reads it.
    pub tokens: Vec<u32>,
    /// Places of queries, ascending, and what is right there.
    pub queries: Vec<(usize, u32)>,
}

impl Mqar {
    /// What is wrong with the setting, if anything: places must be even in number, twice as many as the pairs take, and there must be
    /// more keys than pairs.
    pub fn fault(&self) -> Option<String> {
        let Self { vocab, length, pairs, power } = *self;
        if pairs == 0 || !length.is_multiple_of(2) || 4 * pairs > length {
            return Some(format!(
                "a length of {length} is even and holds {pairs} pairs and as many queries: at least 4 a pair"
            ));
        }
        if vocab <= length || vocab > u32::MAX as usize || vocab / 2 <= pairs {
            return Some(format!("a vocabulary of {vocab} is larger than the length of {length}"));
        }
        (power <= 0.0 || !power.is_finite()).then(|| format!("a power of {power} is above 0"))
    }

    /// The sequence of `seed`.
    ///
    /// # Panics
    /// If the setting has a fault.
    pub fn sequence(&self, seed: Seed) -> Recall {
        if let Some(fault) = self.fault() {
            panic!("{fault}");
        }
        let mut rng = seed.rng();
        let half = self.vocab as u32 / 2;
        let keys = distinct(self.pairs, (1, half), &mut rng);
        let values = distinct(self.pairs, (half, self.vocab as u32), &mut rng);
        let mut tokens = vec![FILL; self.length];
        for (place, (&key, &value)) in tokens.chunks_exact_mut(2).zip(keys.iter().zip(&values)) {
            place.copy_from_slice(&[key, value]);
        }
        let places: Vec<usize> = self.gaps(&mut rng).iter().map(|gap| 2 * (self.pairs + gap)).collect();
        places.iter().zip(&keys).for_each(|(&place, &key)| tokens[place] = key);
        let mut queries: Vec<(usize, u32)> = places.into_iter().zip(values).collect();
        queries.sort_unstable();
        Recall { tokens, queries }
    }

    /// A different gap for each pair, in units of two places, drawn one after the other by their weights. The order of exponential waiting
    /// times is that order (Efraimidis & Spirakis 2006).
    fn gaps(&self, rng: &mut Rng) -> Vec<usize> {
        let waiting = |gap: usize| {
            let weight = ((gap + 1) as f64).powf(self.power - 1.0);
            (-(1.0 - rng.uniform()).ln() / weight, gap)
        };
        let mut waits: Vec<(f64, usize)> = (0..self.length / 2 - self.pairs).map(waiting).collect();
        waits.sort_by(|a, b| a.0.total_cmp(&b.0));
        waits.into_iter().take(self.pairs).map(|(_, gap)| gap).collect()
    }
}

/// `count` different tokens of `low .. high`, of which there are many more.
fn distinct(count: usize, (low, high): (u32, u32), rng: &mut Rng) -> Vec<u32> {
    let mut tokens: Vec<u32> = Vec::with_capacity(count);
    while tokens.len() < count {
        let token = low + rng.below((high - low) as usize) as u32;
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    tokens
}

/// What must follow the token at `place`, by the tokens before it alone: what followed it there, if that was always the same.
pub fn answer(tokens: &[u32], place: usize) -> Option<u32> {
    let followed = tokens[..place].windows(2).filter(|pair| pair[0] == tokens[place]);
    let found: BTreeMap<u32, ()> = followed.map(|pair| (pair[1], ())).collect();
    match found.len() {
        1 => found.into_keys().next(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The sizes of Zoology's figure 2.
    const SIZES: [(usize, usize); 5] = [(64, 4), (128, 8), (256, 16), (512, 32), (512, 64)];

    fn setting((length, pairs): (usize, usize)) -> Mqar {
        Mqar { vocab: 8192, length, pairs, power: 0.01 }
    }

    #[test]
    fn every_answer_is_the_only_one_that_the_tokens_before_it_allow() {
        for size in SIZES {
            for seed in 0..20 {
                let Recall { tokens, queries } = setting(size).sequence(Seed::new(seed));
                assert_eq!((tokens.len(), queries.len()), size);
                for &(place, value) in &queries {
                    assert!(place >= 2 * size.1 && place.is_multiple_of(2) && (4096..8192).contains(&value));
                    assert_eq!(answer(&tokens, place), Some(value), "{size:?} seed {seed} place {place}");
                }
                let asked: BTreeSet<u32> = queries.iter().map(|&(place, _)| tokens[place]).collect();
                let keys: BTreeSet<u32> = tokens[..2 * size.1].iter().step_by(2).copied().collect();
                assert_eq!(asked, keys, "every key is asked once");
                let filled = tokens.iter().filter(|&&token| token == FILL).count();
                assert_eq!(filled, size.0 - 3 * size.1, "and nothing else stands there");
            }
        }
    }

    #[test]
    fn gaps_follow_the_power_law() {
        // The first gap drawn of each sequence has the law's own chances; with a power of 1 all are alike.
        for power in [0.01, 1.0] {
            let setting = Mqar { power, ..setting((64, 4)) };
            let (mut rng, draws) = (Seed::new(5).rng(), 20_000);
            let mut counts = [0.0; 28];
            (0..draws).for_each(|_| counts[setting.gaps(&mut rng)[0]] += 1.0);
            let weight = |gap: usize| ((gap + 1) as f64).powf(power - 1.0);
            let all: f64 = (0..28).map(weight).sum();
            for (gap, count) in counts.into_iter().enumerate() {
                let p = weight(gap) / all;
                let expected = p * f64::from(draws);
                // Five standard errors.
                assert!(
                    (count - expected).abs() < 5.0 * (expected * (1.0 - p)).sqrt(),
                    "{power} {gap}: {count} {expected}"
                );
            }
        }
    }

    #[test]
    fn a_sequence_depends_on_seed_and_setting_alone_and_seeds_share_none() {
        let of = |seed, size| setting(size).sequence(Seed::new(seed)).tokens;
        assert_eq!(of(3, SIZES[0]), of(3, SIZES[0]));
        assert_eq!((0..200).map(|seed| of(seed, SIZES[0])).collect::<BTreeSet<_>>().len(), 200);
    }

    #[test]
    fn settings_that_cannot_be_are_refused_and_the_check_finds_several_answers_and_none() {
        for (length, pairs, vocab, power) in
            [(64, 17, 8192, 0.01), (63, 4, 8192, 0.01), (64, 0, 8192, 0.01), (64, 4, 64, 0.01), (64, 4, 8192, 0.0)]
        {
            assert!(Mqar { vocab, length, pairs, power }.fault().is_some(), "{length} {pairs} {vocab} {power}");
        }
        assert!(SIZES.iter().all(|&size| setting(size).fault().is_none()));
        for (tokens, place, expected) in [
            (vec![1, 9, 2, 8, 0, 0, 2], 6, Some(8)),
            (vec![1, 9, 1, 8, 0, 0, 1], 6, None),
            (vec![1, 9, 2, 8, 0, 0, 3], 6, None),
            (vec![1, 9, 1, 9, 0, 0, 1], 6, Some(9)),
        ] {
            assert_eq!(answer(&tokens, place), expected, "{tokens:?}");
        }
    }
}
