//! What a user may write for a model: a card's name, a hub id, a path. Parses only; reads nothing but whether a path exists.

use super::{Card, FetchError, known, record::Record};
use crate::common::Digest;
use std::path::{Path, PathBuf};

/// A model, as the user named it.
#[derive(Clone, Debug)]
pub enum ModelRef {
    /// One that socius knows by name.
    Card(&'static Card),
    /// A repository of the hub.
    Hub(HubRef),
    /// A file or folder.
    Path(PathBuf),
}

/// `owner/name[@revision][:file]`.
#[derive(Clone, Debug, PartialEq)]
pub struct HubRef {
    /// `owner/name`.
    pub id: String,
    /// A branch, tag or commit; the default branch without.
    pub revision: Option<String>,
    /// The one file that is meant.
    pub file: Option<String>,
}

impl ModelRef {
    /// A card's name first, then what looks like a path or is one, then a hub id.
    ///
    /// # Errors
    /// If it is none of them.
    pub fn parse(text: &str) -> Result<Self, FetchError> {
        let unknown = || FetchError::Unknown {
            name: text.to_owned(),
            known: known().iter().map(|card| card.name.as_str()).collect::<Vec<_>>().join(", "),
        };
        if let Some(card) = known().iter().find(|card| card.name == text) {
            return Ok(Self::Card(card));
        }
        let path = PathBuf::from(text);
        if path.exists() {
            return path.canonicalize().map(Self::Path).map_err(|source| FetchError::Io { path, source });
        }
        if text.starts_with(['.', '/', '~', '\\']) {
            return Err(unknown());
        }
        HubRef::parse(text).map(Self::Hub).ok_or_else(unknown)
    }

    /// The record in `slot`, unless it is of bytes that the card no longer asks for.
    pub(super) fn record(&self, slot: &Path) -> Option<Record> {
        let record = Record::load(slot)?;
        match self {
            Self::Card(card) => card.files.iter().all(|file| record.has(file.sha256)).then_some(record),
            Self::Hub(_) | Self::Path(_) => Some(record),
        }
    }

    /// What records and other commands call it.
    pub fn name(&self) -> String {
        match self {
            Self::Card(card) => card.name.clone(),
            Self::Hub(hub) => hub.to_string(),
            Self::Path(path) => path.display().to_string(),
        }
    }

    /// The name of its folder under the home's models: readable, unique, and a plain file name on every system.
    pub fn folder(&self) -> String {
        match self {
            Self::Card(card) => card.name.clone(),
            Self::Hub(_) | Self::Path(_) => {
                let name = self.name();
                let tail: String = name
                    .rsplit(['/', '\\', ':'])
                    .next()
                    .unwrap_or_default()
                    .chars()
                    .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' })
                    .take(64)
                    .collect();
                format!("{}-{}", tail.trim_start_matches('.'), Digest::of(&name).short())
            }
        }
    }
}

impl HubRef {
    fn parse(text: &str) -> Option<Self> {
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file.to_owned())),
            None => (text, None),
        };
        let (id, revision) = match rest.split_once('@') {
            Some((id, revision)) => (id, Some(revision.to_owned())),
            None => (rest, None),
        };
        let (owner, name) = id.split_once('/')?;
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let inside = |path: &String| {
            !path.is_empty() && !path.contains('\\') && path.split('/').all(|p| !matches!(p, "" | "." | ".."))
        };
        (plain(owner) && plain(name) && file.iter().all(inside) && revision.iter().all(inside)).then(|| Self {
            id: id.to_owned(),
            revision,
            file,
        })
    }
}

impl std::fmt::Display for HubRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_model_is_a_card_a_path_or_a_hub_id_and_nothing_else() {
        assert!(matches!(ModelRef::parse("smollm2-135m-instruct"), Ok(ModelRef::Card(_))));
        assert!(matches!(ModelRef::parse("src/fetch"), Ok(ModelRef::Path(_))), "an existing path");
        let hub = |text| match ModelRef::parse(text) {
            Ok(ModelRef::Hub(hub)) => (hub.id.clone(), hub.revision.clone(), hub.file.clone()),
            other => panic!("{other:?}"),
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(hub("a/b"), ("a/b".into(), None, None));
        assert_eq!(hub("a/b:c/d.gguf"), ("a/b".into(), None, some("c/d.gguf")));
        assert_eq!(hub("a/b@v1:d.gguf"), ("a/b".into(), some("v1"), some("d.gguf")));
        for bad in ["", "a", "a/b/c", "/no/such", "./none", "a/..", "a/b:../c", "a/b:", "a b/c", "a/b@", ".a/b"] {
            assert!(matches!(ModelRef::parse(bad), Err(FetchError::Unknown { .. })), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_typed_the_folder_is_one_plain_name(text in "\\PC{0,40}") {
            if let Ok(reference) = ModelRef::parse(&text) {
                let folder = reference.folder();
                prop_assert!(!folder.is_empty() && !folder.starts_with('.'));
                prop_assert!(folder.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)));
            }
        }
    }
}
