//! Adapters in memory: the least recently used leave first. Knows sizes, never contents.

use super::{BaseId, Generation, Library, LibraryError};
use crate::{common::Digest, lora::ActiveAdapter};
use socius_models::Spec;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Loaded adapters of one base, up to a number of bytes. What is dropped here lives on while a request holds it.
pub struct AdapterCache {
    bytes_max: usize,
    entries: Mutex<Vec<(Digest, Arc<ActiveAdapter>)>>,
}

impl AdapterCache {
    /// An empty cache for at most `bytes_max` bytes of parameters.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, entries: Mutex::default() }
    }

    /// The adapter of `generation`, from memory or else from `library`.
    ///
    /// # Errors
    /// As [`Library::load_adapter`]; also for another base than the cached one, which is checked on every call.
    pub fn get(
        &self,
        library: &Library,
        generation: &Generation,
        base: &BaseId,
        spec: &Spec,
    ) -> Result<Arc<ActiveAdapter>, LibraryError> {
        if generation.manifest.base.same(base)
            && let Some(found) = self.touch(generation.id)
        {
            return Ok(found);
        }
        // Loaded without the lock, so that hits never wait for the disk.
        let (adapter, _) = library.load_adapter(generation, base, spec)?;
        Ok(self.insert(generation.id, Arc::new(adapter)))
    }

    /// Bytes of parameters held now.
    pub fn bytes(&self) -> usize {
        self.lock().iter().map(|(_, adapter)| adapter.bytes()).sum()
    }

    /// Moves a hit to the end, which is the last to leave.
    fn touch(&self, id: Digest) -> Option<Arc<ActiveAdapter>> {
        let mut entries = self.lock();
        let at = entries.iter().position(|(found, _)| *found == id)?;
        entries[at..].rotate_left(1);
        entries.last().map(|(_, adapter)| adapter.clone())
    }

    fn insert(&self, id: Digest, adapter: Arc<ActiveAdapter>) -> Arc<ActiveAdapter> {
        if let Some(found) = self.touch(id) {
            return found; // Another thread was faster: all share one copy.
        }
        let mut entries = self.lock();
        let mut free = self.bytes_max.saturating_sub(entries.iter().map(|(_, held)| held.bytes()).sum());
        if adapter.bytes() <= self.bytes_max {
            while free < adapter.bytes() {
                free += entries.remove(0).1.bytes();
            }
            entries.push((id, adapter.clone()));
        }
        adapter
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Digest, Arc<ActiveAdapter>)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Fixture;
    use super::*;

    #[test]
    fn the_least_recently_used_leaves_first_and_a_held_one_lives_on() {
        let fixture = Fixture::new();
        let generations: Vec<_> = (1..=3).map(|seed| fixture.publish(&format!("s{seed}"), seed)).collect();
        let one = fixture.lora(1).theta.len() * 6;
        let cache = AdapterCache::new(2 * one);
        let get = |i: usize| cache.get(&fixture.library, &generations[i], &fixture.base, &fixture.spec).unwrap();
        let first = get(0);
        let second = get(1);
        assert!(Arc::ptr_eq(&first, &get(0)), "a hit shares the copy");
        get(2);
        assert_eq!(cache.bytes(), 2 * one);
        assert!(Arc::ptr_eq(&first, &get(0)), "used since");
        assert!(!Arc::ptr_eq(&second, &get(1)), "dropped and loaded again");
        assert_eq!(second.theta, get(1).theta);
    }

    #[test]
    fn an_adapter_larger_than_the_cache_is_used_but_not_kept() {
        let fixture = Fixture::new();
        let generation = fixture.publish("a", 1);
        let cache = AdapterCache::new(10);
        assert!(cache.get(&fixture.library, &generation, &fixture.base, &fixture.spec).is_ok());
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn another_base_is_refused_even_for_a_cached_adapter() {
        let fixture = Fixture::new();
        let generation = fixture.publish("a", 1);
        let cache = AdapterCache::new(1 << 20);
        cache.get(&fixture.library, &generation, &fixture.base, &fixture.spec).unwrap();
        let other = BaseId { digest: Digest::of("other"), ..fixture.base.clone() };
        let error = cache.get(&fixture.library, &generation, &other, &fixture.spec).unwrap_err();
        assert!(matches!(error, LibraryError::ForeignBase { .. }));
    }
}
