//! Everything opened once: a base, the library over it, and adapters in memory. Never learns.

use super::{AgentError, Base, BaseChoice, SkillChoice, route};
use crate::{
    common::{Home, Report},
    library::{AdapterCache, Generation, Library, LibraryError},
    lora::ActiveAdapter,
};
use std::sync::Arc;

/// Adapters kept in memory: 2 GiB hold some seventy of rank 16 over the default base.
const CACHE_BYTES: usize = 2 << 30;

/// Damaged skills that are routed around before a request fails: more are no accident.
const DETOURS_MAX: usize = 8;

/// A base and the skills over it.
pub struct Session {
    /// Where everything is kept.
    pub home: Home,
    /// The base.
    pub base: Base,
    /// The skills.
    pub library: Library,
    cache: AdapterCache,
    pub(super) routing: route::Kept,
}

impl Session {
    /// Opens the base that `choice` names, fetched if need be, and the library in `home`.
    pub fn open(choice: &BaseChoice, home: Home, report: &mut dyn Report) -> Result<Self, AgentError> {
        let library = Library::open(&home.library())?;
        let base = Base::open(choice, &home, report)?;
        Ok(Self { home, base, library, cache: AdapterCache::new(CACHE_BYTES), routing: route::Kept::default() })
    }

    /// The same session with so much memory for adapters.
    pub fn with_adapter_memory(self, bytes_max: usize) -> Self {
        Self { cache: AdapterCache::new(bytes_max), ..self }
    }

    /// Bytes of adapters that are in memory now.
    pub fn adapter_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// The adapter of `generation`, from memory or from the library.
    pub fn adapter(&self, generation: &Generation) -> Result<Arc<ActiveAdapter>, AgentError> {
        Ok(self.cache.get(&self.library, generation, &self.base.id, self.base.spec())?)
    }

    /// Who answers the prompt of these token ids; none is the base.
    pub fn choose(&self, skill: &SkillChoice, prompt: &[u32]) -> Result<Option<Arc<Generation>>, AgentError> {
        match skill {
            SkillChoice::None => Ok(None),
            SkillChoice::Named(skill) => Ok(Some(self.library.show(skill)?)),
            // Knowing what belongs to no skill may cost a pass over the background prompts: not worth it where there is no choice.
            SkillChoice::Auto if !self.has_routable_skills()? => Ok(None),
            SkillChoice::Auto => self.around_damage(|| Ok(self.route(&[prompt.to_vec()])?.remove(0).choice)),
            SkillChoice::Routed(routing) => {
                self.around_damage(|| Ok(self.route_as(&[prompt.to_vec()], *routing)?.remove(0).choice))
            }
        }
    }

    /// What `choose` chooses once its adapter can be loaded: the library leaves out what it has found damaged, so the next choice is
    /// another one.
    fn around_damage(
        &self,
        choose: impl Fn() -> Result<Option<Arc<Generation>>, AgentError>,
    ) -> Result<Option<Arc<Generation>>, AgentError> {
        let loaded = || {
            let chosen = choose()?;
            chosen.as_ref().map(|generation| self.adapter(generation)).transpose()?;
            Ok(chosen)
        };
        for _ in 0..DETOURS_MAX {
            match loaded() {
                Err(AgentError::Library(LibraryError::Damaged { .. })) => {}
                other => return other,
            }
        }
        loaded()
    }
}
