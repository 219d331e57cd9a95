//! Requests by what their prompts begin with: which beginnings to read before they enter together. Never reads any.

use super::{Request, Sampling, prefix, step};
use std::collections::{BTreeMap, btree_map::IntoValues};

/// Requests of one generation whose prompts begin alike.
pub(super) struct Alike<'r> {
    requests: Vec<&'r Request>,
    /// Tokens that all prompts begin with.
    beginning: &'r [u32],
    /// How many of them have been read.
    read: usize,
}

/// The requests of each generation.
pub(super) fn generations(requests: &[Request]) -> Vec<Alike<'_>> {
    grouped(requests.iter(), step::generation).map(|requests| Alike::new(requests, 0)).collect()
}

impl<'r> Alike<'r> {
    fn new(requests: Vec<&'r Request>, read: usize) -> Self {
        let first = &requests[0].prompt;
        let shared = requests.iter().map(|request| prefix::common(first, &request.prompt)).min();
        Self { beginning: &first[..shared.unwrap_or(0)], requests, read }
    }

    /// The request that reads their beginning, if to read it once saves more than its pass costs; from then on it has been read.
    pub(super) fn read_ahead(&mut self) -> Option<Request> {
        let saved = (self.beginning.len() - self.read) * (self.requests.len() - 1);
        if self.beginning.len().min(saved) < prefix::TOKENS_MIN {
            return None;
        }
        self.read = self.beginning.len();
        let reading = Sampling { max_tokens: 1, ..Sampling::default() };
        Some(Request::new(self.beginning.to_vec(), reading).under(self.requests[0].adapter.clone()))
    }

    /// Those of them that go on alike.
    pub(super) fn parts(&self) -> impl Iterator<Item = Self> + use<'r> {
        let (shared, read) = (self.beginning.len(), self.read);
        let going_on = self.requests.iter().copied().filter(|request| request.prompt.len() > shared);
        let parts = grouped(going_on, |request| request.prompt[shared]);
        parts.filter(|requests| requests.len() > 1).map(move |requests| Self::new(requests, read))
    }
}

/// Requests by `key`, in its order.
fn grouped<'r, K: Ord>(
    requests: impl Iterator<Item = &'r Request>,
    key: impl Fn(&'r Request) -> K,
) -> IntoValues<K, Vec<&'r Request>> {
    let mut groups: BTreeMap<K, Vec<&Request>> = BTreeMap::new();
    requests.for_each(|request| groups.entry(key(request)).or_default().push(request));
    groups.into_values()
}
