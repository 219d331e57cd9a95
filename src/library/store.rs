//! Opening the library and reading from it; every byte that leaves has been checked against its digest.

use super::{
    BaseId, BlobRef, FORMAT, Generation, LibraryError, Manifest, RoutingFeatures, SkillName, SkillRef, Which, episodes,
    index::{Index, Row},
    objects::Objects,
};
use crate::{
    common::Digest,
    episode::Episode,
    lora::{ActiveAdapter, Base, LoraConfig, LoraWeights, PeftFiles},
};
use serde::Deserialize;
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
    features: Memo<RoutingFeatures>,
}

/// What could be read, and errors for what could not: one damaged skill must not hide the others.
#[derive(Debug, Default)]
pub struct Listing {
    /// The sound ones.
    pub generations: Vec<Arc<Generation>>,
    /// One error for each of the others.
    pub damaged: Vec<LibraryError>,
}

/// What the router sees.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// The current generation of every sound skill, by name.
    pub entries: Vec<CatalogueEntry>,
    /// One error for each of the others.
    pub damaged: Vec<LibraryError>,
}

/// One skill as the router sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct CatalogueEntry {
    /// The skill.
    pub name: SkillName,
    /// Its current generation.
    pub generation: Digest,
    /// The base that it belongs to, and whose features it is routed by.
    pub base: BaseId,
    /// What it is for.
    pub description: String,
    /// What it is known by; none for skills that came without prompts, which can only be asked for by name.
    pub features: Option<Arc<RoutingFeatures>>,
}

impl Library {
    /// Opens the library at `root` (as [`crate::common::Home::library`] gives it), made if there is none.
    ///
    /// # Errors
    /// If the folder cannot be written, or was written by a newer program.
    pub fn open(root: &Path) -> Result<Self, LibraryError> {
        fs::create_dir_all(root).map_err(LibraryError::io("create the folder", root))?;
        Ok(Self {
            root: root.to_owned(),
            objects: Objects::open(root)?,
            index: Index::open(&root.join("index.sqlite"))?,
            generations: Memo::default(),
            features: Memo::default(),
        })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The current generation of every skill, by name.
    ///
    /// # Errors
    /// If the index cannot be read; damaged skills are in the listing.
    pub fn list(&self) -> Result<Listing, LibraryError> {
        Ok(self.listing(self.index.skills()?.into_iter().map(|(_, id)| id)))
    }

    /// Every generation of `name`, oldest first.
    ///
    /// # Errors
    /// If there is no such skill, or the index cannot be read; damaged generations are in the listing.
    pub fn history(&self, name: &SkillName) -> Result<Listing, LibraryError> {
        Ok(self.listing(self.rows(name)?.into_iter().map(|row| row.id)))
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
        self.generation(id)
    }

    /// The published generation of this digest, under whatever name.
    ///
    /// # Errors
    /// If its manifest is missing or damaged.
    pub fn generation(&self, id: Digest) -> Result<Arc<Generation>, LibraryError> {
        self.generations.get_or_read(id, || {
            let bytes = self.read("the manifest", id, id)?;
            let manifest = parse_manifest(&bytes).map_err(|error| match error {
                ManifestError::Newer(found) => {
                    LibraryError::Newer { what: format!("generation {id}"), found, supported: FORMAT }
                }
                ManifestError::Malformed(why) => self.damaged("the manifest", id, why, id),
            })?;
            Ok(Generation { id, manifest })
        })
    }

    /// Every name with the id of its current generation, by name, without reading any.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn heads(&self) -> Result<Vec<(SkillName, Digest)>, LibraryError> {
        self.index.skills()
    }

    /// What the router is to know `generation` by; none for skills that came without prompts. It is read anew each time: of
    /// thousands of skills it is too much to keep.
    ///
    /// # Errors
    /// If the object is damaged.
    pub fn routing_features(&self, generation: &Generation) -> Result<Option<RoutingFeatures>, LibraryError> {
        let Some(routing) = generation.manifest.blobs.routing else { return Ok(None) };
        let bytes = self.read("the routing features", routing.blob.digest, generation.id)?;
        let read = RoutingFeatures::from_bytes(&bytes, routing.layer);
        read.map(Some).map_err(|why| self.damaged("the routing features", routing.blob.digest, why, generation.id))
    }

    /// What the router chooses from.
    ///
    /// # Errors
    /// If the index cannot be read; damaged skills are listed apart.
    pub fn catalogue(&self) -> Result<Catalogue, LibraryError> {
        let Listing { generations, mut damaged } = self.list()?;
        let mut entries = Vec::with_capacity(generations.len());
        for generation in generations {
            match self.features(&generation) {
                Ok(features) => entries.push(CatalogueEntry {
                    name: generation.manifest.name.clone(),
                    generation: generation.id,
                    base: generation.manifest.base.clone(),
                    description: generation.manifest.description.clone(),
                    features,
                }),
                Err(error) => damaged.push(error),
            }
        }
        Ok(Catalogue { entries, damaged })
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

    fn features(&self, generation: &Generation) -> Result<Option<Arc<RoutingFeatures>>, LibraryError> {
        let Some(routing) = generation.manifest.blobs.routing else { return Ok(None) };
        let digest = routing.blob.digest;
        let read = || {
            let bytes = self.read("the routing features", digest, generation.id)?;
            RoutingFeatures::from_bytes(&bytes, routing.layer)
                .map_err(|why| self.damaged("the routing features", digest, why, generation.id))
        };
        self.features.get_or_read(digest, read).map(Some)
    }

    fn listing(&self, ids: impl Iterator<Item = Digest>) -> Listing {
        let mut listing = Listing::default();
        for id in ids {
            match self.generation(id) {
                Ok(generation) => listing.generations.push(generation),
                Err(error) => listing.damaged.push(error),
            }
        }
        listing
    }

    fn rows(&self, name: &SkillName) -> Result<Vec<Row>, LibraryError> {
        let rows = self.index.history(name)?;
        if rows.is_empty() { Err(no_skill(name)) } else { Ok(rows) }
    }

    fn read(&self, what: &'static str, digest: Digest, generation: Digest) -> Result<Vec<u8>, LibraryError> {
        self.objects.get(digest).map_err(|why| self.damaged(what, digest, why, generation))
    }

    fn damaged(&self, what: &'static str, digest: Digest, why: String, generation: Digest) -> LibraryError {
        LibraryError::Damaged { what, path: self.objects.path(digest), why, generation }
    }
}

pub(super) fn no_skill(name: &SkillName) -> LibraryError {
    LibraryError::NotFound { what: format!("there is no skill {name}") }
}

fn spelled(base: &BaseId) -> String {
    format!("{} (weights {}, tokenizer {})", base.name, base.digest.short(), base.tokenizer.short())
}

#[derive(Debug)]
enum ManifestError {
    Newer(u32),
    Malformed(String),
}

/// A manifest of this format or an older one. Fields that are not known are passed over.
fn parse_manifest(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    #[derive(Deserialize)]
    struct Format {
        socius_generation: u32,
    }
    let malformed = |error: serde_json::Error| ManifestError::Malformed(error.to_string());
    let Format { socius_generation } = serde_json::from_slice(bytes).map_err(malformed)?;
    if socius_generation > FORMAT {
        return Err(ManifestError::Newer(socius_generation));
    }
    serde_json::from_slice(bytes).map_err(malformed)
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
