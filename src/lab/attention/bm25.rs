//! BM25 over documents of symbols (Robertson & Zaragoza 2009, *The Probabilistic Relevance Framework*, 3.2). Never knows what symbols mean.

use std::collections::HashMap;

/// How soon a repeated term counts no more, and how much a document's length counts against it: the usual values.
const K1: f64 = 1.2;
const B: f64 = 0.75;

/// Documents by term.
pub(crate) struct Bm25 {
    documents: usize,
    /// (document, gain) of every term.
    postings: HashMap<u32, Vec<(usize, f64)>>,
}

impl Bm25 {
    /// An index of `documents`.
    pub(crate) fn new(documents: &[Vec<u32>]) -> Self {
        let count = documents.len() as f64;
        let mean = documents.iter().map(Vec::len).sum::<usize>() as f64 / count.max(1.0);
        let mut postings: HashMap<u32, Vec<(usize, f64)>> = HashMap::new();
        for (i, document) in documents.iter().enumerate() {
            let mut terms: HashMap<u32, f64> = HashMap::new();
            document.iter().for_each(|&term| *terms.entry(term).or_default() += 1.0);
            for (term, often) in terms {
                let length = 1.0 - B + B * document.len() as f64 / mean;
                postings.entry(term).or_default().push((i, often * (K1 + 1.0) / (often + K1 * length)));
            }
        }
        for found in postings.values_mut() {
            let holding = found.len() as f64;
            let idf = (1.0 + (count - holding + 0.5) / (holding + 0.5)).ln();
            found.iter_mut().for_each(|(_, gain)| *gain *= idf);
        }
        Self { documents: documents.len(), postings }
    }

    /// The `k` documents that gain most from `query`, best first and earlier ones before later ones that gain as much; those that gain nothing
    /// are left out. Beside them the additions and comparisons that this took.
    pub(crate) fn search(&self, query: &[u32], k: usize) -> (Vec<usize>, f64) {
        let mut gains = vec![0.0; self.documents];
        let mut work = self.documents as f64;
        for (document, gain) in query.iter().filter_map(|term| self.postings.get(term)).flatten() {
            gains[*document] += gain;
            work += 1.0;
        }
        let mut found: Vec<usize> = (0..self.documents).filter(|&document| gains[document] > 0.0).collect();
        found.sort_by(|&a, &b| gains[b].total_cmp(&gains[a]).then(a.cmp(&b)));
        found.truncate(k);
        (found, work)
    }

    /// Bytes of its postings.
    pub(crate) fn bytes(&self) -> u64 {
        self.postings.values().map(|found| 4 + 8 * found.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_terms_count_more_and_what_gains_nothing_is_left_out() {
        let documents = [vec![1, 2, 9], vec![1, 3, 9], vec![4, 2, 9], vec![5, 6, 9]];
        let index = Bm25::new(&documents);
        for (query, k, expected) in [
            (&[1, 3][..], 4, vec![1, 0]),
            (&[1, 2], 4, vec![0, 1, 2]),
            (&[1, 2], 1, vec![0]),
            (&[7], 4, vec![]),
            (&[5, 9], 2, vec![3, 0]),
        ] {
            assert_eq!(index.search(query, k).0, expected, "{query:?}");
        }
        assert!(index.search(&[9], 4).1 > index.search(&[5], 4).1, "what is looked at is counted");
    }
}
