//! Adapters in from other programs and out to them.

use super::{BaseId, Candidate, Generation, Library, LibraryError, Provenance, RoutingFeatures, SkillName};
use crate::{
    common::write_atomic,
    lora::{Base, PeftFiles, from_gguf, to_gguf},
};
use jiff::Timestamp;
use socius_models::Spec;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// An adapter from outside that is to become a skill.
#[derive(Clone, Debug)]
pub struct Import<'a> {
    /// A PEFT directory or a GGUF file.
    pub path: &'a Path,
    /// What it will be called.
    pub name: SkillName,
    /// What it is for, in a sentence.
    pub description: String,
    /// The base at hand, which must be the one that it was made for.
    pub base: &'a BaseId,
    /// That base's architecture.
    pub spec: &'a Spec,
    /// Other names of that base.
    pub aliases: &'a [String],
    /// What the router is to know it by; without, it can only be asked for by name.
    pub routing: Option<RoutingFeatures>,
    /// Now.
    pub created: Timestamp,
}

/// The format of an export.
#[derive(Clone, Copy, Debug)]
pub enum Export<'a> {
    /// A PEFT directory.
    Peft,
    /// A GGUF file, whose layout depends on the base's architecture.
    Gguf {
        /// The base at hand, which must be the skill's own.
        base: &'a BaseId,
        /// Its architecture.
        spec: &'a Spec,
    },
}

impl Library {
    /// Publishes an adapter that another program made.
    ///
    /// # Errors
    /// If it is malformed, not supported, or made for another base.
    pub fn import(&self, import: Import<'_>) -> Result<Arc<Generation>, LibraryError> {
        let Import { path, name, description, base, spec, aliases, routing, created } = import;
        let outside = Base { spec, name: &base.name, aliases };
        let lora = if path.is_dir() { PeftFiles::read(path)?.parse(outside)? } else { from_gguf(path, outside)? };
        let provenance = Provenance::imported(created);
        let base = base.clone();
        self.publish(&Candidate { name, description, base, spec, lora: &lora, episodes: &[], routing, provenance })
    }

    /// Writes the adapter of `generation` into `dir`, made if it is missing, and returns the files: PEFT's two, or
    /// `NAME.gguf`.
    ///
    /// # Errors
    /// If an object is damaged, the base is another, or `dir` cannot be written.
    pub fn export(
        &self,
        generation: &Generation,
        dir: &Path,
        format: Export<'_>,
    ) -> Result<Vec<PathBuf>, LibraryError> {
        match format {
            Export::Peft => Ok(self.load_files(generation)?.write(dir)?.into()),
            Export::Gguf { base, spec } => {
                let lora = self.load_weights(generation, base, spec)?;
                let bytes = to_gguf(&lora, Base { spec, name: &base.name, aliases: &[] })?;
                fs::create_dir_all(dir).map_err(LibraryError::io("create the folder", dir))?;
                let path = dir.join(format!("{}.gguf", generation.manifest.name));
                write_atomic(&path, &bytes).map_err(LibraryError::io("write", &path))?;
                Ok(vec![path])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Fixture;
    use super::*;
    use crate::lora::LoraError;

    fn import<'a>(fixture: &'a Fixture, path: &'a Path, name: &str) -> Import<'a> {
        Import {
            path,
            name: name.parse().unwrap(),
            description: String::new(),
            base: &fixture.base,
            spec: &fixture.spec,
            aliases: &[],
            routing: None,
            created: "2025-01-02T03:04:05Z".parse().unwrap(),
        }
    }

    #[test]
    fn an_exported_adapter_imports_as_the_same_adapter_in_either_format() {
        let fixture = Fixture::new();
        let generation = fixture.publish("a", 1);
        let dir = fixture.folder.path().join("out");
        let gguf = Export::Gguf { base: &fixture.base, spec: &fixture.spec };
        for (format, name) in [(Export::Peft, "peft"), (gguf, "gguf")] {
            let files = fixture.library.export(&generation, &dir, format).unwrap();
            assert!(files.iter().all(|file| file.is_file()));
            let path = if files.len() == 1 { &files[0] } else { &dir };
            let back = fixture.library.import(import(&fixture, path, name)).unwrap();
            assert_eq!(back.manifest.blobs.adapter_weights, generation.manifest.blobs.adapter_weights, "{name}");
            assert_eq!(back.manifest.provenance.learner, "import");
        }
        let listed = fixture.library.heads().unwrap();
        let known = |id| fixture.library.routing_features(&fixture.library.generation(id).unwrap()).unwrap().is_some();
        assert_eq!(listed.into_iter().filter(|(_, id)| known(*id)).count(), 1);
    }

    #[test]
    fn a_foreign_or_missing_adapter_is_refused_and_nothing_is_published() {
        let fixture = Fixture::new();
        let generation = fixture.publish("a", 1);
        let dir = fixture.folder.path().join("out");
        fixture.library.export(&generation, &dir, Export::Peft).unwrap();
        let other = BaseId { name: "org/Other".into(), ..fixture.base.clone() };
        let error = fixture.library.import(Import { base: &other, ..import(&fixture, &dir, "b") }).unwrap_err();
        assert!(matches!(&error, LibraryError::Lora(LoraError::ForeignBase { .. })), "{error}");
        let missing = fixture.folder.path().join("nothing");
        let error = fixture.library.import(import(&fixture, &missing, "b")).unwrap_err().to_string();
        assert!(error.contains("nothing"), "{error}");
        assert_eq!(fixture.library.list().unwrap().skills.len(), 1);
    }
}
