//! Records that come after a manifest: where a name moved, and what was found out about a generation. Plain data, never changed.

use super::{Comparison, EnvId, FORMAT, SkillName};
use crate::common::Digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Why a name moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MoveKind {
    /// A new generation was published under it.
    Publish,
    /// It was moved to a generation of its history.
    Promote,
    /// It was moved back to a generation that it stood for before.
    Rollback,
    /// It was taken away.
    Remove,
    /// An archive brought a name back that had been taken away.
    Restore,
}

impl MoveKind {
    /// As `skills history` spells it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Publish => "published",
            Self::Promote => "promoted",
            Self::Rollback => "rolled back",
            Self::Remove => "removed",
            Self::Restore => "restored",
        }
    }
}

/// A generation and its place in its name's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The generation.
    pub generation: Digest,
    /// Its number.
    pub number: u32,
}

/// One entry of a name's journal. The journal alone says which generations a name has had and which one it stands for, so the index
/// can be made again from the objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// [`FORMAT`] of the program that wrote it.
    pub socius_move: u32,
    /// The name.
    pub name: SkillName,
    /// Place in the name's journal, from 1, without gaps.
    pub sequence: u32,
    /// The move before it.
    pub previous: Option<Digest>,
    /// Why.
    pub kind: MoveKind,
    /// What the name stood for until then.
    pub from: Option<Target>,
    /// What it stands for now; none where it was taken away.
    pub to: Option<Target>,
    /// When.
    pub at: Timestamp,
}

/// What was found out about a generation after it was published. It is added, and never changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// [`FORMAT`] of the program that wrote it.
    pub socius_evidence: u32,
    /// What it is about.
    pub generation: Digest,
    /// When it was found out.
    pub at: Timestamp,
    /// What.
    pub finding: Finding,
}

impl Evidence {
    /// That `finding` holds of `generation`.
    pub fn new(generation: Digest, finding: Finding, at: Timestamp) -> Self {
        Self { socius_evidence: FORMAT, generation, at, finding }
    }
}

/// A fact about a generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Finding {
    /// Accuracy on fixed items: of its own environment, or of another, where it says what the skill brings or harms.
    Evaluation {
        /// The environment.
        env: EnvId,
        /// `validation` or `test`.
        split: String,
        /// Of the base and of the skill, on the same items.
        scores: Comparison,
    },
    /// How far its replies are from the base's: the mean of `ln p(token | skill) − ln p(token | base)` over tokens that it
    /// sampled, which estimates KL(skill ‖ base).
    Divergence {
        /// The environment whose prompts were answered.
        env: EnvId,
        /// Mean over tokens.
        nats_per_token: f64,
        /// Number of tokens.
        tokens: u64,
    },
    /// Words of whoever keeps the library.
    Note {
        /// What they say.
        text: String,
    },
}

/// Why bytes are no record.
#[derive(Debug)]
pub(super) enum RecordError {
    Newer(u32),
    Malformed(String),
}

/// A record of this format or an older one. Fields that are not known are passed over.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Format {
        #[serde(alias = "socius_move", alias = "socius_evidence", alias = "socius_archive")]
        socius_generation: u32,
    }
    let malformed = |error: serde_json::Error| RecordError::Malformed(error.to_string());
    let Format { socius_generation } = serde_json::from_slice(bytes).map_err(malformed)?;
    if socius_generation > FORMAT {
        return Err(RecordError::Newer(socius_generation));
    }
    serde_json::from_slice(bytes).map_err(malformed)
}

/// A record as it is stored: the same record gives the same bytes.
pub(super) fn to_bytes(record: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(record).expect("a record is plain data");
    bytes.push(b'\n');
    bytes
}

/// The journal that `moves` make up, oldest first: back from the last move, each to the one that it names, or, where that one is
/// lost, to the last before it.
pub(super) fn chain(mut moves: Vec<(Digest, Move)>) -> Vec<(Digest, Move)> {
    moves.sort_by_key(|(digest, entry)| (entry.sequence, entry.at, *digest));
    let mut journal: Vec<(Digest, Move)> = moves.pop().into_iter().collect();
    while let Some((_, next)) = journal.last() {
        let named = moves.iter().rposition(|(digest, _)| Some(*digest) == next.previous);
        let before = || moves.iter().rposition(|(_, entry)| entry.sequence < next.sequence);
        let Some(at) = named.or_else(before) else { break };
        moves.truncate(at + 1);
        journal.extend(moves.pop());
    }
    journal.reverse();
    journal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sequence: u32, previous: Option<Digest>, second: i64) -> (Digest, Move) {
        let entry = Move {
            socius_move: FORMAT,
            name: "a".parse().unwrap(),
            sequence,
            previous,
            kind: MoveKind::Publish,
            from: None,
            to: None,
            at: Timestamp::from_second(second).unwrap(),
        };
        (Digest::of(to_bytes(&entry)), entry)
    }

    #[test]
    fn a_journal_is_its_longest_chain_whatever_else_lies_about() {
        let first = entry(1, None, 1);
        let second = entry(2, Some(first.0), 2);
        let third = entry(3, Some(second.0), 4);
        // What a writer left that died, which the next one did not build upon.
        let dead = entry(2, Some(first.0), 3);
        let whole = vec![first.clone(), second.clone(), third.clone()];
        assert_eq!(chain(vec![third.clone(), dead.clone(), first.clone(), second.clone()]), whole);
        assert_eq!(chain(vec![third.clone(), first.clone()]), [first.clone(), third], "a lost one is passed over");
        assert_eq!(chain(vec![second, dead.clone(), first.clone()]), [first, dead], "the later of two ends");
        assert!(chain(Vec::new()).is_empty());
    }

    #[test]
    fn records_read_back_and_newer_ones_are_told_from_damage() {
        let (_, entry) = entry(1, None, 1);
        assert_eq!(parse::<Move>(&to_bytes(&entry)).unwrap(), entry);
        let finding = Finding::Note { text: "good with names".into() };
        let evidence = Evidence::new(Digest::of("g"), finding, entry.at);
        let bytes = to_bytes(&evidence);
        assert_eq!(parse::<Evidence>(&bytes).unwrap(), evidence);
        let newer = String::from_utf8(bytes).unwrap().replace("\"socius_evidence\": 1", "\"socius_evidence\": 9");
        assert!(matches!(parse::<Evidence>(newer.as_bytes()), Err(RecordError::Newer(9))));
        assert!(matches!(parse::<Evidence>(b"{}"), Err(RecordError::Malformed(_))));
    }
}
