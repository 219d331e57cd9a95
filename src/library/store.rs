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
        Ok((ActiveAdapter { generation: generation.id.to_string(), layout, theta }, config))
    }

    pub(super) fn load_weights(
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
mod tests {
    use super::super::testing::{Fixture, manifest};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_manifest_reads_back_as_it_was_written() {
        let manifest = manifest("reverse");
        let bytes = serde_json::to_vec_pretty(&manifest).unwrap();
        assert_eq!(parse_manifest(&bytes).unwrap(), manifest);
    }

    #[test]
    fn a_newer_format_is_told_from_damage_and_unknown_fields_are_passed_over() {
        let mut value = serde_json::to_value(manifest("reverse")).unwrap();
        value["later_field"] = serde_json::json!([1, 2]);
        assert!(parse_manifest(&serde_json::to_vec(&value).unwrap()).is_ok());
        value["name"] = "../x".into();
        assert!(matches!(parse_manifest(&serde_json::to_vec(&value).unwrap()), Err(ManifestError::Malformed(_))));
        value["socius_generation"] = 99.into();
        assert!(matches!(parse_manifest(&serde_json::to_vec(&value).unwrap()), Err(ManifestError::Newer(99))));
        assert!(matches!(parse_manifest(b"{}"), Err(ManifestError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn no_cut_or_changed_manifest_makes_the_parser_panic(cut in 0usize..4000, at in 0usize..4000, byte in any::<u8>()) {
            let mut bytes = serde_json::to_vec(&manifest("reverse")).unwrap();
            let length = bytes.len();
            bytes[at % length] = byte;
            let _ = parse_manifest(&bytes);
            prop_assert!(parse_manifest(&bytes[..cut % length]).is_err());
        }
    }

    #[test]
    fn a_generation_is_found_by_name_number_and_prefix() {
        let fixture = Fixture::new();
        let (first, second) = (fixture.publish("a", 1), fixture.publish("a", 2));
        fixture.publish("b", 3);
        let show = |text: &str| fixture.library.show(&text.parse().unwrap()).map(|generation| generation.id);
        assert_eq!(show("a").unwrap(), second.id);
        assert_eq!(show("a@1").unwrap(), first.id);
        assert_eq!(show(&format!("a@{}", first.id.short())).unwrap(), first.id);
        for missing in ["c", "a@3", "a@00000000000000000000000000000000"] {
            assert!(matches!(show(missing), Err(LibraryError::NotFound { .. })), "{missing}");
        }
        let history = fixture.library.history(&"a".parse().unwrap()).unwrap();
        assert_eq!(history.generations.iter().map(|g| g.id).collect::<Vec<_>>(), [first.id, second.id]);
        assert_eq!(second.manifest.previous, Some(first.id));
    }

    #[test]
    fn an_adapter_comes_back_as_it_was_published() {
        let fixture = Fixture::new();
        let generation = fixture.publish("a", 1);
        let (adapter, config) = fixture.library.load_adapter(&generation, &fixture.base, &fixture.spec).unwrap();
        let lora = fixture.lora(1);
        assert_eq!((adapter.theta, adapter.layout, config), (lora.theta, lora.layout, lora.config));
        assert_eq!(adapter.generation, generation.id.to_string());
        assert_eq!(fixture.library.episodes(&generation).unwrap(), fixture.episodes());
    }

    #[test]
    fn a_base_of_another_digest_is_refused_with_both_names_and_a_renamed_one_is_not() {
        let fixture = Fixture::new();
        let generation = fixture.publish("a", 1);
        let renamed = BaseId { name: "my-copy".into(), ..fixture.base.clone() };
        assert!(fixture.library.load_adapter(&generation, &renamed, &fixture.spec).is_ok());
        let other = BaseId { name: "org/Other".into(), digest: Digest::of("other"), ..fixture.base.clone() };
        let retokenized = BaseId { tokenizer: Digest::of("other"), ..fixture.base.clone() };
        for base in [other, retokenized] {
            let error = fixture.library.load_adapter(&generation, &base, &fixture.spec).unwrap_err();
            assert!(matches!(error, LibraryError::ForeignBase { .. }));
            let text = error.to_string();
            assert!(
                text.contains(&base.name) && text.contains(&fixture.base.name) && text.contains("skill a"),
                "{text}"
            );
        }
    }

    #[test]
    fn every_flipped_byte_is_an_error_that_names_object_and_generation() {
        let fixture = Fixture::new();
        let generation = fixture.publish("a", 1);
        let sound = fixture.publish("b", 2);
        let blobs = generation.manifest.blobs;
        let objects = blobs.all().map(|(_, blob)| blob.digest).chain([generation.id]);
        for digest in objects {
            let path = fixture.library.objects.path(digest);
            let whole = fs::read(&path).unwrap();
            for at in [0, whole.len() / 2, whole.len() - 1] {
                let mut bytes = whole.clone();
                bytes[at] ^= 0x10;
                fs::remove_file(&path).unwrap();
                fs::write(&path, &bytes).unwrap();
                // Another process has nothing in memory yet.
                let library = Library::open(fixture.library.root()).unwrap();
                let catalogue = library.catalogue().unwrap();
                let error = library
                    .generation(generation.id)
                    .and_then(|g| library.load_adapter(&g, &fixture.base, &fixture.spec).map(|_| g))
                    .and_then(|g| library.episodes(&g))
                    .err()
                    .or_else(|| catalogue.damaged.into_iter().next())
                    .expect("damage is seen");
                assert!(matches!(error, LibraryError::Damaged { .. }), "{error}");
                let text = error.to_string();
                assert!(text.contains(&generation.id.to_string()) && text.contains(path.to_str().unwrap()), "{text}");
                assert!(text.contains("route to another"), "{text}");
                assert!(
                    catalogue.entries.iter().any(|entry| entry.generation == sound.id),
                    "the others are still there"
                );
            }
            fs::remove_file(&path).unwrap();
            fs::write(&path, &whole).unwrap();
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_or_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for root in [file.join("library"), file.clone()] {
            let error = Library::open(&root).err().expect("a file is no folder").to_string();
            assert!(error.contains("file") && error.contains("create the folder"), "{error}");
        }
        let library = folder.path().join("library");
        fs::create_dir_all(library.join("index.sqlite")).unwrap();
        let error = Library::open(&library).err().expect("a folder is no index").to_string();
        assert!(error.contains("index.sqlite"), "{error}");
    }

    #[test]
    fn an_index_of_a_newer_program_is_refused() {
        let fixture = Fixture::new();
        let path = fixture.library.root().join("index.sqlite");
        rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
        let error = Library::open(fixture.library.root()).err().expect("too new");
        assert!(matches!(error, LibraryError::Newer { found: 7, .. }), "{error}");
    }

    #[test]
    fn the_catalogue_carries_what_routing_needs() {
        let fixture = Fixture::new();
        let generation = fixture.publish("a", 1);
        let catalogue = fixture.library.catalogue().unwrap();
        let [entry] = &catalogue.entries[..] else { panic!("{catalogue:?}") };
        assert_eq!((entry.name.as_str(), entry.generation), ("a", generation.id));
        assert_eq!((entry.base.clone(), entry.description.as_str()), (fixture.base.clone(), "what a does"));
        assert_eq!(entry.features.as_deref(), Some(&fixture.features(1)));
    }
}
