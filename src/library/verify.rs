//! Whether everything stored is what was published, and the index what the objects say; making the index again from them.

use super::{
    Evidence, Library, LibraryError, Manifest, Move, SkillName,
    commit::describe,
    index::{Index, Quarantined, Row},
    journal,
    objects::Fault,
};
use crate::common::Digest;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// What a verification found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verification {
    /// Objects that were read.
    pub checked: usize,
    /// Their size.
    pub bytes: u64,
    /// Objects that are missing or wrong, with what needs them.
    pub damaged: Vec<Damage>,
    /// Records that were written again from the index.
    pub mended: Vec<Digest>,
    /// Where the index differs from the objects, or is damaged itself.
    pub index: Vec<String>,
}

impl Verification {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty() && self.index.is_empty()
    }
}

/// One object that is missing or wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Damage {
    /// Its name.
    pub object: Digest,
    /// Where it lies, or ought to.
    pub path: PathBuf,
    /// Which part of a generation it is; `nothing needs it` where it is none.
    pub what: String,
    /// What is wrong.
    pub why: String,
    /// Generations that cannot be used without it: `name@number`.
    pub generations: Vec<String>,
    /// Generations that were born from those. They work, but cannot be replayed.
    pub born_from_them: Vec<String>,
    /// Where its bytes were put, if they were wrong.
    pub quarantined: Option<PathBuf>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "damaged: {} {} ({})", self.what, self.path.display(), self.why)?;
        if !self.generations.is_empty() {
            write!(f, "; do not use {}", self.generations.join(", "))?;
        }
        if !self.born_from_them.is_empty() {
            write!(f, "; born from them: {}", self.born_from_them.join(", "))?;
        }
        match &self.quarantined {
            Some(path) => write!(f, "; put aside as {}", path.display()),
            None => Ok(()),
        }
    }
}

/// What the objects alone say.
#[derive(Debug, Default)]
struct Recorded {
    journals: BTreeMap<SkillName, Vec<(Digest, Move)>>,
    evidence: BTreeMap<Digest, Vec<(Digest, Evidence)>>,
    /// Where there is no journal at all, every generation by name and number: what a program before journals left.
    strays: BTreeMap<SkillName, BTreeMap<u32, Digest>>,
}

impl Library {
    /// Reads every object. What is wrong is put aside, and its generations are left out of the catalogue until it is mended; moves and
    /// evidence are mended from the index.
    ///
    /// # Errors
    /// If index or folder cannot be read.
    pub fn verify(&self) -> Result<Verification, LibraryError> {
        let _lock = self.objects.publishing()?;
        let reach = self.reach()?;
        let stored = self.objects.all()?;
        let mut found =
            Verification { checked: stored.len(), bytes: stored.iter().map(|b| b.bytes).sum(), ..Default::default() };
        let present: BTreeSet<Digest> = stored.iter().map(|blob| blob.digest).collect();
        let records = self.records(&reach)?;
        let missing = reach.objects.keys().chain(&records).filter(|object| !present.contains(object));
        let suspects: BTreeSet<Digest> = present.iter().chain(missing).copied().collect();
        let mut quarantine = Vec::new();
        for object in suspects {
            let Err(fault) = self.objects.check(object) else { continue };
            let needs = reach.objects.get(&object).map_or(&[][..], Vec::as_slice);
            let wrong = matches!(fault, Fault::Wrong(_));
            let quarantined = if wrong { self.objects.set_aside(object).ok() } else { None };
            if records.contains(&object) && self.mend(object)? {
                found.mended.push(object);
                continue;
            }
            if !wrong && needs.is_empty() && !records.contains(&object) {
                continue; // Collected since the store was listed.
            }
            let why = fault.to_string();
            quarantine.extend(needs.iter().map(|need| Quarantined {
                object,
                id: need.generation,
                what: need.what.to_owned(),
                why: why.clone(),
            }));
            let lost: BTreeSet<Digest> = needs.iter().map(|need| need.generation).collect();
            let born = reach.generations.values().filter(|(_, parents)| parents.iter().any(|id| lost.contains(id)));
            found.damaged.push(Damage {
                object,
                path: self.objects.path(object),
                what: needs.first().map_or("nothing needs it", |need| need.what).to_owned(),
                why,
                generations: needs.iter().map(|need| need.label.clone()).collect(),
                born_from_them: born.map(|(label, _)| label.clone()).collect(),
                quarantined,
            });
        }
        self.remember(&quarantine)?;
        found.index = self.index.check()?;
        found.index.extend(self.disagreements()?);
        Ok(found)
    }

    /// What is damaged, and nothing else, is left out from now on. A library that cannot be written has at least been looked at.
    fn remember(&self, quarantine: &[Quarantined]) -> Result<(), LibraryError> {
        let known: BTreeSet<Quarantined> = self.index.quarantine()?.into_iter().collect();
        if known != quarantine.iter().cloned().collect() {
            let _ = self.index.write(|change| {
                change.release(None)?;
                quarantine.iter().try_for_each(|found| change.quarantine(found))
            });
        }
        Ok(())
    }

    /// Writes a record again from the index, if the index has it as it was.
    fn mend(&self, record: Digest) -> Result<bool, LibraryError> {
        let Some(bytes) = self.index.record(record)? else { return Ok(false) };
        Ok(Digest::of(&bytes) == record && self.objects.put(&bytes).is_ok())
    }

    /// Where the index and the objects differ about names and evidence. What a writer does meanwhile is no difference.
    fn disagreements(&self) -> Result<Vec<String>, LibraryError> {
        let first = self.differences()?;
        if first.is_empty() {
            return Ok(first);
        }
        let second = self.differences()?;
        Ok(first.into_iter().filter(|line| second.contains(line)).collect())
    }

    fn differences(&self) -> Result<Vec<String>, LibraryError> {
        let recorded = self.recorded()?;
        let digests = |moves: &[(Digest, Move)]| moves.iter().map(|(digest, _)| *digest).collect::<Vec<_>>();
        let mut lines = Vec::new();
        let names: BTreeSet<SkillName> =
            self.index.names()?.into_iter().chain(recorded.journals.keys().cloned()).collect();
        for name in names {
            let indexed = self.index.moves(&name)?;
            let stored = recorded.journals.get(&name).map_or(&[][..], Vec::as_slice);
            if let Some((digest, _)) =
                indexed.iter().find(|(digest, entry)| Digest::of(journal::to_bytes(entry)) != *digest)
            {
                lines.push(format!("{name}: move {} is another one in the index", digest.short()));
                continue;
            }
            if digests(&indexed) != digests(stored) {
                lines.push(format!("{name}: the index has {} moves, the objects {}", indexed.len(), stored.len()));
                continue;
            }
            let stands_for = stored.last().and_then(|(_, last)| last.to).map(|to| to.generation);
            if self.index.current(&name)? != stands_for {
                lines.push(format!("{name}: the index has another current generation than its journal"));
            }
        }
        for (row, name, about) in self.index.live_about()? {
            let indexed: BTreeSet<Digest> =
                self.index.evidence(row.id)?.into_iter().map(|(digest, _)| digest).collect();
            let stored = recorded.evidence.get(&row.id).into_iter().flatten().map(|(digest, _)| *digest).collect();
            if indexed != stored {
                let count = (indexed.len(), stored.len());
                lines.push(format!(
                    "{name}@{}: evidence of the index {}, of the objects {}",
                    row.number, count.0, count.1
                ));
            }
            if about.is_none() && self.generation(row.id).is_ok() {
                lines.push(format!("{name}@{}: the index does not describe it", row.number));
            }
        }
        Ok(lines)
    }

    /// Reads all records.
    fn recorded(&self) -> Result<Recorded, LibraryError> {
        let mut recorded = Recorded::default();
        let mut moves: BTreeMap<SkillName, Vec<(Digest, Move)>> = BTreeMap::new();
        for blob in self.objects.all()? {
            let beginning = self.objects.beginning(blob.digest);
            let is = |key: &str| beginning.starts_with(b"{") && String::from_utf8_lossy(&beginning).contains(key);
            let bytes = || self.objects.get(blob.digest).unwrap_or_default();
            if is("\"socius_move\"") {
                if let Ok(entry) = journal::parse::<Move>(&bytes()) {
                    moves.entry(entry.name.clone()).or_default().push((blob.digest, entry));
                }
            } else if is("\"socius_evidence\"") {
                if let Ok(found) = journal::parse::<Evidence>(&bytes()) {
                    recorded.evidence.entry(found.generation).or_default().push((blob.digest, found));
                }
            } else if is("\"socius_generation\"")
                && let Ok(manifest) = journal::parse::<Manifest>(&bytes())
            {
                recorded.strays.entry(manifest.name).or_default().insert(manifest.number, blob.digest);
            }
        }
        if !moves.is_empty() {
            recorded.strays.clear(); // Manifests alone mean nothing where there are journals.
        }
        recorded.journals = moves.into_iter().map(|(name, moves)| (name, journal::chain(moves))).collect();
        Ok(recorded)
    }

    /// Opens the library at `root` with an index made again from the objects alone. A damaged index is put aside; a sound one is
    /// replaced in one transaction, so that other processes see the old or the new one.
    ///
    /// # Errors
    /// If the folder cannot be read or written.
    pub fn rebuild(root: &Path) -> Result<Self, LibraryError> {
        let path = root.join("index.sqlite");
        let readable = match Index::open(&path) {
            Err(LibraryError::DamagedIndex { .. }) => false,
            Err(error) => return Err(error),
            Ok(index) => index.check().is_ok_and(|problems| problems.is_empty()),
        };
        if !readable {
            set_index_aside(root)?;
        }
        let library = Self::open_as_it_is(root)?;
        library.upgrade()?;
        let lock = library.objects.collecting()?;
        // A lost index has no say in what a dead writer left: it is whole, and is believed.
        let moving = library.moving()?;
        if readable {
            library.undo()?;
        }
        let recorded = library.recorded()?;
        library.index.write(|change| {
            change.clear()?;
            for (digest, entry) in recorded.journals.values().flatten() {
                change.apply(*digest, entry)?;
                if let Some(to) = entry.to {
                    library.describe_again(change, to.generation)?;
                }
            }
            for (name, generations) in &recorded.strays {
                for (&number, &id) in generations {
                    library.replay_row(change, name, Row { id, number })?;
                }
            }
            recorded.evidence.values().flatten().try_for_each(|(digest, found)| change.attach(*digest, found))
        })?;
        let _ = moving.set_len(0);
        drop(lock);
        Ok(library)
    }

    fn describe_again(&self, change: &super::index::Change<'_>, id: Digest) -> Result<(), LibraryError> {
        let Ok(generation) = self.generation(id) else { return Ok(()) };
        let features = self.features(id, &generation.manifest.blobs).ok().flatten();
        describe(change, &generation, &features)
    }
}

/// Moves the index with all that SQLite keeps beside it into quarantine.
fn set_index_aside(root: &Path) -> Result<(), LibraryError> {
    let folder = root.join("quarantine");
    fs::create_dir_all(&folder).map_err(LibraryError::io("create the folder", &folder))?;
    let seconds = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    for suffix in ["", "-wal", "-shm"] {
        let from = root.join(format!("index.sqlite{suffix}"));
        if from.exists() {
            let to = folder.join(format!("index-{seconds}.sqlite{suffix}"));
            fs::rename(&from, to).map_err(LibraryError::io("put aside", &from))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
