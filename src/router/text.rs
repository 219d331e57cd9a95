//! What is known of skills in words: BM25 over documents (Robertson & Zaragoza 2009, *The Probabilistic Relevance Framework*, 3.2).
//! Knows terms; never a model, features or what a document is made from.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// How soon a term that is repeated counts no more, and how much a document's length counts against it: the usual values.
const K1: f64 = 1.2;
const B: f64 = 0.75;

/// How often each term stands in a text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Terms(BTreeMap<String, u32>);

impl Terms {
    /// Runs of letters in lower case; every number is the same term, for it is what changes from prompt to prompt.
    pub fn of(text: &str) -> Self {
        let mut terms = BTreeMap::new();
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            let number = word.chars().all(|c| c.is_ascii_digit());
            *terms.entry(if number { "0".into() } else { word.to_lowercase() }).or_default() += 1;
        }
        Self(terms)
    }

    fn length(&self) -> f64 {
        self.0.values().map(|&count| f64::from(count)).sum()
    }
}

/// Documents by term. A posting holds what its document gains from the term, so that a query only adds.
#[derive(Clone, Debug, Default)]
pub(super) struct Bm25 {
    documents: usize,
    terms: HashMap<String, Term>,
    postings: Vec<Posting>,
}

#[derive(Clone, Copy, Debug)]
struct Term {
    /// Into the postings.
    start: usize,
    end: usize,
    /// What a document gains at most: `idf · (k₁ + 1)`.
    most: f64,
}

/// Size of a posting in a file.
pub(super) const POSTING_BYTES: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Posting {
    document: u32,
    gain: f32,
}

impl Bm25 {
    pub(super) fn new(documents: &[&Terms]) -> Self {
        let mean = documents.iter().map(|terms| terms.length()).sum::<f64>() / documents.len().max(1) as f64;
        let mut by_term: BTreeMap<&str, Vec<(u32, f64)>> = BTreeMap::new();
        for (document, terms) in (0..).zip(documents) {
            let long = K1 * (1.0 - B + B * terms.length() / mean);
            for (term, &count) in &terms.0 {
                let gain = f64::from(count) * (K1 + 1.0) / (f64::from(count) + long);
                by_term.entry(term).or_default().push((document, gain));
            }
        }
        let mut found = Self { documents: documents.len(), ..Self::default() };
        for (term, postings) in by_term {
            let idf = found.idf(postings.len());
            let start = found.postings.len();
            found
                .postings
                .extend(postings.iter().map(|&(document, gain)| Posting { document, gain: (idf * gain) as f32 }));
            let end = found.postings.len();
            found.terms.insert(term.to_owned(), Term { start, end, most: idf * (K1 + 1.0) });
        }
        found
    }

    /// Terms with the number of their postings, in their order, and the postings as bytes.
    pub(super) fn parts(&self) -> (Vec<(&str, u32)>, Vec<u8>) {
        let mut terms: Vec<_> = self.terms.iter().map(|(name, term)| (term, name.as_str())).collect();
        terms.sort_unstable_by_key(|(term, _)| term.start);
        let terms = terms.into_iter().map(|(term, name)| (name, (term.end - term.start) as u32)).collect();
        let bytes = |posting: &Posting| [posting.document.to_le_bytes(), posting.gain.to_le_bytes()].concat();
        (terms, self.postings.iter().flat_map(bytes).collect())
    }

    /// From [`Bm25::parts`] over so many documents; none if they do not belong together.
    pub(super) fn from_parts(documents: usize, terms: Vec<(String, u32)>, postings: &[u8]) -> Option<Self> {
        let mut found = Self { documents, ..Self::default() };
        let mut start = 0;
        for (name, count) in terms {
            let end = start + count as usize;
            let most = found.idf(count as usize) * (K1 + 1.0);
            found.terms.insert(name, Term { start, end, most });
            start = end;
        }
        let value = |at: &[u8]| <[u8; 4]>::try_from(at).expect("four bytes");
        let posting = |bytes: &[u8]| Posting {
            document: u32::from_le_bytes(value(&bytes[..4])),
            gain: f32::from_le_bytes(value(&bytes[4..])),
        };
        found.postings = postings.chunks_exact(POSTING_BYTES).map(posting).collect();
        let whole = postings.len() == POSTING_BYTES * start;
        (whole && found.postings.iter().all(|posting| (posting.document as usize) < documents)).then_some(found)
    }

    /// Of a term that stands in `found` documents.
    fn idf(&self, found: usize) -> f64 {
        (1.0 + (self.documents as f64 - found as f64 + 0.5) / (found as f64 + 0.5)).ln()
    }

    /// One score a document: its BM25 score as a part of what a document could have at most. A term that is known nowhere counts
    /// as the rarest of all.
    pub(super) fn scores(&self, query: &str) -> Vec<f64> {
        let mut scores = vec![0.0; self.documents];
        let mut most = 0.0;
        for term in Terms::of(query).0.keys() {
            let Some(term) = self.terms.get(term) else {
                most += self.idf(0) * (K1 + 1.0);
                continue;
            };
            most += term.most;
            for &Posting { document, gain } in &self.postings[term.start..term.end] {
                scores[document as usize] += f64::from(gain);
            }
        }
        scores.iter_mut().for_each(|score| *score /= f64::max(most, f64::MIN_POSITIVE));
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(texts: &[&str]) -> Bm25 {
        let documents: Vec<Terms> = texts.iter().map(|text| Terms::of(text)).collect();
        Bm25::new(&documents.iter().collect::<Vec<_>>())
    }

    #[test]
    fn a_query_finds_the_document_with_its_rare_words() {
        let index = index(&[
            "reverse the letters of a word",
            "what is the last word of the sentence",
            "what is 12 + 34",
            "the secret word for a thing",
        ]);
        let rows =
            [("Reverse these LETTERS: k i n", 0), ("last word?", 1), ("what is 5 + 9", 2), ("secret of kings", 3)];
        for (query, expected) in rows {
            let scores = index.scores(query);
            let best = (0..4).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
            assert_eq!(best, expected, "{query}: {scores:?}");
            assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
        }
        assert_eq!(index.scores("unheard"), [0.0; 4]);
        assert_eq!(index.scores(""), [0.0; 4]);
    }

    #[test]
    fn a_score_is_the_formula_s() {
        let index = index(&["a a b", "b c"]);
        // N 2, mean length 2.5; "a" stands in one document, twice; "zebra" nowhere.
        let idf = |n: f64| (1.0 + (2.0 - n + 0.5) / (n + 0.5)).ln();
        let gain = 2.0 * 2.2 / (2.0 + 1.2 * (0.25 + 0.75 * 3.0 / 2.5));
        let expected = idf(1.0) * gain / (idf(1.0) * 2.2 + idf(0.0) * 2.2);
        let scores = index.scores("a zebra");
        assert!((scores[0] - expected).abs() < 1e-6 && scores[1] == 0.0, "{scores:?} {expected}");
    }

    #[test]
    fn nothing_is_found_among_no_documents() {
        assert!(index(&[]).scores("a").is_empty());
    }
}
