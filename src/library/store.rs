//! Opening the library and reading from it; every byte that leaves has been checked against its digest.

use super::{
    BaseId, BlobRef, Blobs, Evidence, FORMAT, Generation, LibraryError, Manifest, Move, RoutingFeatures, SkillName,
    SkillRef, SkillSummary, Which, episodes,
    index::{Index, Quarantined, Row},
    journal::{self, RecordError},
    objects::{Fault, Objects},
};
use crate::{
    common::Digest,
    episode::Episode,
    lora::{ActiveAdapter, Base, LoraConfig, LoraWeights, PeftFiles},
};
use socius_models::Spec;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// A library folder. Several threads may share one, and several processes may each open their own on the same folder.
pub struct Library {
    root: PathBuf,
    pub(super) objects: Objects,
    pub(super) index: Index,
    generations: Memo<Generation>,
}

/// The current generation of every skill, and errors for those that could not be read: one damaged skill must not hide the others.
#[derive(Debug, Default)]
pub struct Skills {
    /// The sound ones, by name.
    pub skills: Vec<SkillSummary>,
    /// One error for each of the others.
    pub damaged: Vec<LibraryError>,
}

/// What a name has been.
#[derive(Debug, Default)]
pub struct History {
    /// Its sound generations, oldest first.
    pub generations: Vec<Arc<Generation>>,
    /// One error for each of the others.
    pub damaged: Vec<LibraryError>,
    /// Where the name has moved, oldest first.
    pub moves: Vec<Move>,
}

impl Library {
    /// Opens the library at `root` (as [`crate::common::Home::library`] gives it), made if there is none.
    ///
    /// # Errors
    /// If the folder cannot be written, or was written by a newer program.
    pub fn open(root: &Path) -> Result<Self, LibraryError> {
        fs::create_dir_all(root).map_err(LibraryError::io("create the folder", root))?;
        let library = Self::open_as_it_is(root)?;
        library.upgrade()?;
        library.recover()?;
        Ok(library)
    }

    /// Opens the library at `root` without looking at what writers left.
    pub(super) fn open_as_it_is(root: &Path) -> Result<Self, LibraryError> {
        Ok(Self {
            root: root.to_owned(),
            objects: Objects::open(root)?,
            index: Index::open(&root.join("index.sqlite"))?,
            generations: Memo::default(),
        })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The current generation of every skill, by name, as the index describes it: no manifest is opened.
    ///
    /// # Errors
    /// If the index cannot be read; damaged skills are listed apart.
    pub fn list(&self) -> Result<Skills, LibraryError> {
        let bad = self.quarantined()?;
        let mut found = Skills::default();
        for (_, id, summary) in self.index.skills()? {
            let known = summary.as_deref().map(serde_json::from_str);
            match (bad.get(&id), known) {
                (None, Some(Ok(summary))) => found.skills.push(summary),
                (Some(quarantined), _) => found.damaged.push(self.is_quarantined(quarantined)),
                (None, _) => found.damaged.push(self.undescribed(id)),
            }
        }
        Ok(found)
    }

    /// Every generation of `name`, oldest first, and where the name has moved.
    ///
    /// # Errors
    /// If there is no such skill, or the index cannot be read; damaged generations are listed apart.
    pub fn history(&self, name: &SkillName) -> Result<History, LibraryError> {
        let mut history = History::default();
        for row in self.rows(name)? {
            match self.generation(row.id) {
                Ok(generation) => history.generations.push(generation),
                Err(error) => history.damaged.push(error),
            }
        }
        history.moves = self.journal(name)?;
        Ok(history)
    }

    /// Where `name` has moved, oldest first, also if it was taken away.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn journal(&self, name: &SkillName) -> Result<Vec<Move>, LibraryError> {
        Ok(self.index.moves(name)?.into_iter().map(|(_, entry)| entry).collect())
    }

    /// What was found out about a generation after it was published, oldest first.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn evidence(&self, id: Digest) -> Result<Vec<Evidence>, LibraryError> {
        Ok(self.index.evidence(id)?.into_iter().map(|(_, evidence)| evidence).collect())
    }

    /// The generation that `skill` names.
    ///
    /// # Errors
    /// If there is none, the digits fit several, or its manifest is damaged.
    pub fn show(&self, skill: &SkillRef) -> Result<Arc<Generation>, LibraryError> {
        let SkillRef { name, which } = skill;
        let missing = |what: String| LibraryError::NotFound { what };
        let id = match which {
            Which::Current => self.index.current(name)?.ok_or_else(|| no_skill(name))?,
            Which::Number(number) => {
                let rows = self.rows(name)?;
                let found = rows.iter().find(|row| row.number == *number);
                found.ok_or_else(|| missing(format!("skill {name} has no generation {number}")))?.id
            }
            Which::Prefix(prefix) => {
                let rows = self.rows(name)?;
                let fits: Vec<Digest> =
                    rows.iter().map(|row| row.id).filter(|id| id.to_string().starts_with(prefix)).collect();
                match fits[..] {
                    [id] => id,
                    [] => return Err(missing(format!("skill {name} has no generation {prefix}…"))),
                    _ => {
                        let (name, prefix, count) = (name.to_string(), prefix.clone(), fits.len());
                        return Err(LibraryError::Ambiguous { name, prefix, count });
                    }
                }
            }
        };
        self.generation(id).or_else(|error| match self.index.history(name)?.iter().any(|row| row.id == id) {
            true => Err(error),
            // Another process took the name away meanwhile, and collected what it stood for.
            false => Err(no_skill(name)),
        })
    }

    /// The published generation of this digest, under whatever name.
    ///
    /// # Errors
    /// If its manifest is missing or damaged.
    pub fn generation(&self, id: Digest) -> Result<Arc<Generation>, LibraryError> {
        self.generations.get_or_read(id, || {
            let bytes = self.read("the manifest", id, id)?;
            let manifest: Manifest = journal::parse(&bytes).map_err(|error| match error {
                RecordError::Newer(found) => {
                    LibraryError::Newer { what: format!("generation {id}"), found, supported: FORMAT }
                }
                RecordError::Malformed(why) => self.damaged("the manifest", id, why, id),
            })?;
            Ok(Generation { id, manifest })
        })
    }

    /// Every name with the id of its current generation, by name, without reading any; those with an object that is known to be damaged
    /// are left out.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn heads(&self) -> Result<Vec<(SkillName, Digest)>, LibraryError> {
        let bad = self.quarantined()?;
        let heads = self.index.skills()?.into_iter().map(|(name, id, _)| (name, id));
        Ok(heads.filter(|(_, id)| !bad.contains_key(id)).collect())
    }

    /// What the router is to know `generation` by; none for skills that came without prompts. It is read anew each time: of
    /// thousands of skills it is too much to keep.
    ///
    /// # Errors
    /// If the object is damaged.
    pub fn routing_features(&self, generation: &Generation) -> Result<Option<RoutingFeatures>, LibraryError> {
        self.features(generation.id, &generation.manifest.blobs)
    }

    /// The adapter of `generation` for use on `base`.
    ///
    /// # Errors
    /// If it belongs to another base, or one of its objects is damaged (the generation is then to be routed around).
    pub fn load_adapter(
        &self,
        generation: &Generation,
        base: &BaseId,
        spec: &Spec,
    ) -> Result<(ActiveAdapter, LoraConfig), LibraryError> {
        let LoraWeights { config, layout, theta } = self.load_weights(generation, base, spec)?;
        Ok((ActiveAdapter::new(generation.id.to_string(), layout, theta), config))
    }

    /// The adapter of `generation` with its settings, for merging and comparing.
    ///
    /// # Errors
    /// As [`Library::load_adapter`].
    pub fn load_weights(
        &self,
        generation: &Generation,
        base: &BaseId,
        spec: &Spec,
    ) -> Result<LoraWeights, LibraryError> {
        let own = &generation.manifest.base;
        if !own.same(base) {
            return Err(LibraryError::ForeignBase {
                skill: generation.manifest.name.to_string(),
                expected: spelled(own),
                found: spelled(base),
            });
        }
        let files = self.load_files(generation)?;
        // The digests have said that the base is the same, so its name at the time of publishing counts as one of its names.
        let aliases = std::slice::from_ref(&own.name);
        files.parse(Base { spec, name: &base.name, aliases }).map_err(|error| {
            let blob = generation.manifest.blobs.adapter_weights;
            self.damaged("the adapter", blob.digest, error.to_string(), generation.id)
        })
    }

    pub(super) fn load_files(&self, generation: &Generation) -> Result<PeftFiles, LibraryError> {
        let blobs = &generation.manifest.blobs;
        let read = |what, blob: BlobRef| self.read(what, blob.digest, generation.id);
        Ok(PeftFiles {
            config: read("the adapter's configuration", blobs.adapter_config)?,
            weights: read("the adapter", blobs.adapter_weights)?,
        })
    }

    /// The episodes that `generation` was trained on, in order; empty for skills that came without.
    ///
    /// # Errors
    /// If the object is damaged.
    pub fn episodes(&self, generation: &Generation) -> Result<Vec<Episode>, LibraryError> {
        let Some(blob) = generation.manifest.blobs.episodes else { return Ok(Vec::new()) };
        let bytes = self.read("the episodes", blob.digest, generation.id)?;
        episodes::from_bytes(&bytes).map_err(|why| self.damaged("the episodes", blob.digest, why, generation.id))
    }

    /// As [`Library::routing_features`], of a generation whose manifest need not be read for it.
    pub(super) fn features(&self, id: Digest, blobs: &Blobs) -> Result<Option<RoutingFeatures>, LibraryError> {
        let Some(routing) = blobs.routing else { return Ok(None) };
        let bytes = self.read("the routing features", routing.blob.digest, id)?;
        let read = RoutingFeatures::from_bytes(&bytes, routing.layer);
        read.map(Some).map_err(|why| self.damaged("the routing features", routing.blob.digest, why, id))
    }

    fn rows(&self, name: &SkillName) -> Result<Vec<Row>, LibraryError> {
        let rows = self.index.history(name)?;
        if rows.is_empty() { Err(no_skill(name)) } else { Ok(rows) }
    }

    /// The bytes of an object. One that is wrong or missing is remembered, so that the next choice is made without its generation; wrong
    /// bytes are put aside.
    fn read(&self, what: &str, digest: Digest, generation: Digest) -> Result<Vec<u8>, LibraryError> {
        self.objects.get(digest).map_err(|fault| {
            let why = fault.to_string();
            if !matches!(fault, Fault::Unreadable(_)) {
                let found = Quarantined { object: digest, id: generation, what: what.to_owned(), why: why.clone() };
                // A library that cannot be written has shown the damage at least.
                self.index.try_write(|change| {
                    change.quarantine(&found)?;
                    if matches!(fault, Fault::Wrong(_)) { self.objects.set_aside(digest).map(drop) } else { Ok(()) }
                });
            }
            self.damaged(what, digest, why, generation)
        })
    }

    fn damaged(&self, what: &str, digest: Digest, why: String, generation: Digest) -> LibraryError {
        LibraryError::Damaged { what: what.to_owned(), path: self.objects.path(digest), why, generation }
    }

    fn is_quarantined(&self, found: &Quarantined) -> LibraryError {
        self.damaged(&found.what, found.object, found.why.clone(), found.id)
    }

    /// Why the index does not describe a generation that a name stands for.
    fn undescribed(&self, id: Digest) -> LibraryError {
        let why = || "the index does not describe it".to_owned();
        self.generation(id).err().unwrap_or_else(|| self.damaged("the index's row", id, why(), id))
    }

    /// By generation, an object of it that is damaged.
    fn quarantined(&self) -> Result<HashMap<Digest, Quarantined>, LibraryError> {
        Ok(self.index.quarantine()?.into_iter().map(|found| (found.id, found)).collect())
    }
}

pub(super) fn no_skill(name: &SkillName) -> LibraryError {
    LibraryError::NotFound { what: format!("there is no skill {name}") }
}

fn spelled(base: &BaseId) -> String {
    format!("{} (weights {}, tokenizer {})", base.name, base.digest.short(), base.tokenizer.short())
}

/// Immutable things that have been read and checked once.
struct Memo<T>(Mutex<HashMap<Digest, Arc<T>>>);

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Memo<T> {
    fn get_or_read(&self, id: Digest, read: impl FnOnce() -> Result<T, LibraryError>) -> Result<Arc<T>, LibraryError> {
        let map = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = map().get(&id) {
            return Ok(found.clone());
        }
        // Read without the lock: two readers of the same object do the work twice and agree.
        let value = Arc::new(read()?);
        map().insert(id, value.clone());
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
