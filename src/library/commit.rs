//! The one way in which names move and evidence is added: records become durable objects, then one index transaction makes them
//! visible together. Knows nothing of what they say.
//!
//! Before a record is stored, the file `moving` names it; after the commit it is emptied, and its lock is held meanwhile. Whoever next
//! takes the lock, or opens the library, removes the named records that the index does not have: a kill between objects and commit
//! leaves nothing that a rebuilt index would believe. It settles first what the index has (`Change::settle`). A collector names the evidence that it takes away in the same way.

use super::{
    Evidence, FORMAT, Generation, Library, LibraryError, Move, MoveKind, RoutingFeatures, SkillName, Target,
    index::{About, Change, Row},
    journal, kill,
    store::no_skill,
};
use crate::common::{Digest, sync_dir};
use jiff::Timestamp;
use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::PathBuf,
};

/// What becomes visible together.
#[derive(Default)]
pub(super) struct Records {
    pub(super) moves: Vec<Move>,
    pub(super) evidence: Vec<Evidence>,
    /// Generations that the index is to describe, with what the router knows them by.
    pub(super) described: Vec<(Generation, Option<RoutingFeatures>)>,
}

impl Library {
    /// Moves `name` to `number` of its history.
    ///
    /// # Errors
    /// If there is no such skill or generation, it stands for that one already, or the library cannot be written.
    pub fn promote(&self, name: &SkillName, number: u32) -> Result<Move, LibraryError> {
        self.shift(name, MoveKind::Promote, Some(number))
    }

    /// Moves `name` back: to `number`, or to what it stood for before its last generation came.
    ///
    /// # Errors
    /// As [`Library::promote`]; also if there is nothing before.
    pub fn rollback(&self, name: &SkillName, number: Option<u32>) -> Result<Move, LibraryError> {
        self.shift(name, MoveKind::Rollback, number)
    }

    fn shift(&self, name: &SkillName, kind: MoveKind, number: Option<u32>) -> Result<Move, LibraryError> {
        let unmovable = |what: String| LibraryError::Unmovable { name: name.to_string(), what };
        self.commit(|change| {
            let current = change.current(name)?.ok_or_else(|| no_skill(name))?;
            let rows = change.history(name)?;
            let now = rows.iter().find(|row| row.id == current).expect("a name stands for one of its generations");
            let to = match number {
                Some(number) => rows.iter().find(|row| row.number == number).ok_or_else(|| LibraryError::NotFound {
                    what: format!("skill {name} has no generation {number}"),
                })?,
                None => rows
                    .iter()
                    .rfind(|row| row.number < now.number)
                    .ok_or_else(|| unmovable(format!("nothing comes before generation {}", now.number)))?,
            };
            if to.id == current {
                return Err(unmovable(format!("it stands for generation {} already", to.number)));
            }
            let to = Some(Target { generation: to.id, number: to.number });
            let entry = self.next_move(change, name, kind, to)?;
            Ok((entry.clone(), Records { moves: vec![entry], ..Records::default() }))
        })
    }

    /// Takes `name` away. Its objects stay until they are collected, so running requests are not disturbed.
    ///
    /// # Errors
    /// If there is no such skill, or the library cannot be written.
    pub fn remove(&self, name: &SkillName) -> Result<(), LibraryError> {
        self.commit(|change| {
            change.current(name)?.ok_or_else(|| no_skill(name))?;
            let moves = vec![self.next_move(change, name, MoveKind::Remove, None)?];
            Ok(((), Records { moves, ..Records::default() }))
        })
    }

    /// Adds what was found out about a published generation. Saying the same again changes nothing.
    ///
    /// # Errors
    /// If the generation's manifest is missing or damaged, or the library cannot be written.
    pub fn attach(&self, evidence: Evidence) -> Result<(), LibraryError> {
        self.generation(evidence.generation)?;
        self.commit(|_| Ok(((), Records { evidence: vec![evidence], ..Records::default() })))
    }

    /// The move that would come next in the journal of `name`.
    pub(super) fn next_move(
        &self,
        change: &Change<'_>,
        name: &SkillName,
        kind: MoveKind,
        to: Option<Target>,
    ) -> Result<Move, LibraryError> {
        let tip = change.tip(name)?;
        let now = Timestamp::now();
        Ok(Move {
            socius_move: FORMAT,
            name: name.clone(),
            sequence: tip.as_ref().map_or(1, |(_, last)| last.sequence + 1),
            previous: tip.as_ref().map(|(digest, _)| *digest),
            kind,
            from: tip.as_ref().and_then(|(_, last)| last.to),
            to,
            // A clock that was set back does not turn a journal around.
            at: tip.map_or(now, |(_, last)| now.max(last.at)),
        })
    }

    /// Plans records under the index's write lock, stores them and makes them visible, all or none.
    pub(super) fn commit<T>(
        &self,
        plan: impl FnOnce(&Change<'_>) -> Result<(T, Records), LibraryError>,
    ) -> Result<T, LibraryError> {
        let _lock = self.objects.publishing()?;
        let moving = self.moving()?;
        self.undo()?;
        let value = self.index.write(|change| {
            let (value, records) = plan(change)?;
            let moves: Vec<Vec<u8>> = records.moves.iter().map(journal::to_bytes).collect();
            let evidence: Vec<Vec<u8>> = records.evidence.iter().map(journal::to_bytes).collect();
            let digests: Vec<Digest> = moves.iter().chain(&evidence).map(Digest::of).collect();
            self.intend(&moving, &digests)?;
            moves.iter().chain(&evidence).try_for_each(|bytes| self.objects.put(bytes).map(drop))?;
            let (of_moves, of_evidence) = digests.split_at(moves.len());
            records.moves.iter().zip(of_moves).try_for_each(|(entry, &digest)| change.apply(digest, entry))?;
            records.evidence.iter().zip(of_evidence).try_for_each(|(found, &digest)| change.attach(digest, found))?;
            records.described.iter().try_for_each(|(generation, routing)| describe(change, generation, routing))?;
            Ok(value)
        })?;
        // What is committed needs no undoing; a name that stays here by a kill is found in the index.
        let _ = moving.set_len(0);
        Ok(value)
    }

    /// The file that names records which are being stored, and its lock.
    pub(super) fn moving(&self) -> Result<File, LibraryError> {
        let path = self.moving_path();
        let open = || {
            let is_new = !path.exists();
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            file.lock()?;
            if is_new { sync_dir(self.root()).map(|()| file) } else { Ok(file) }
        };
        open().map_err(LibraryError::io("lock", &path))
    }

    fn moving_path(&self) -> PathBuf {
        self.root().join("moving")
    }

    /// Says durably which records are about to be stored.
    pub(super) fn intend(&self, mut moving: &File, records: &[Digest]) -> Result<(), LibraryError> {
        if records.is_empty() {
            return Ok(());
        }
        let lines: String = records.iter().map(|digest| format!("{digest}\n")).collect();
        let mut write = || {
            kill::point()?;
            moving.set_len(0)?;
            kill::point()?;
            moving.seek(SeekFrom::Start(0))?;
            moving.write_all(lines.as_bytes())?;
            moving.sync_all()?;
            kill::point()
        };
        write().map_err(LibraryError::io("write", &self.moving_path()))
    }

    /// The records that the last writer was about to store. A line that a kill cut off names nothing: nothing was stored yet.
    fn intended(&self) -> Result<Vec<Digest>, LibraryError> {
        let path = self.moving_path();
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(LibraryError::io("read", &path)(error)),
        }
    }

    /// Takes away what a writer left that died before its commit. The caller holds the lock of the file that names it.
    pub(super) fn undo(&self) -> Result<(), LibraryError> {
        let intended = self.intended()?;
        if intended.is_empty() {
            return Ok(());
        }
        let dead = self.index.write(|change| {
            change.settle()?;
            let mut dead = Vec::new();
            for record in intended {
                if !change.has(record)? {
                    dead.push(record);
                }
            }
            Ok(dead)
        })?;
        self.objects.withdraw(&dead)
    }

    /// As [`Library::undo`], for whoever opens the library. A writer that is at it is waited for; where nothing can be written, nothing is
    /// taken away.
    pub(super) fn recover(&self) -> Result<(), LibraryError> {
        if self.intended()?.is_empty() {
            return Ok(());
        }
        if let Ok(moving) = self.moving() {
            self.undo()?;
            let _ = moving.set_len(0);
        }
        Ok(())
    }

    /// Gives the names of a version 1 index journals: one move a generation, at the time of its publication.
    pub(super) fn upgrade(&self) -> Result<(), LibraryError> {
        if self.index.version()? != 1 {
            return Ok(());
        }
        let _lock = self.objects.publishing()?;
        self.index.write(|change| {
            let rows = change.upgrade()?.unwrap_or_default();
            for (at, (name, row, removed)) in rows.iter().enumerate() {
                self.replay_row(change, name, *row)?;
                let is_last = rows.get(at + 1).is_none_or(|(next, ..)| next != name);
                if *removed && is_last {
                    let entry = self.next_move(change, name, MoveKind::Remove, None)?;
                    change.apply(self.objects.put(&journal::to_bytes(&entry))?.digest, &entry)?;
                }
            }
            Ok(())
        })
    }

    pub(super) fn replay_row(&self, change: &Change<'_>, name: &SkillName, row: Row) -> Result<(), LibraryError> {
        let generation = self.generation(row.id).ok();
        let to = Some(Target { generation: row.id, number: row.number });
        let entry = self.next_move(change, name, MoveKind::Publish, to)?;
        let at = generation.as_ref().map_or(entry.at, |generation| generation.manifest.provenance.created);
        let entry = Move { at, ..entry };
        change.apply(self.objects.put(&journal::to_bytes(&entry))?.digest, &entry)?;
        let Some(generation) = generation else { return Ok(()) };
        let features = self.features(row.id, &generation.manifest.blobs).ok().flatten();
        describe(change, &generation, &features)
    }
}

/// Tells the index what it needs of a manifest and of the routing features.
pub(super) fn describe(
    change: &Change<'_>,
    generation: &Generation,
    routing: &Option<RoutingFeatures>,
) -> Result<(), LibraryError> {
    change.describe(generation.id, &About::from(generation))?;
    change.release(Some(generation.id))?;
    generation.manifest.blobs.all().try_for_each(|(_, blob)| change.release(Some(blob.digest)))?;
    let Some(features) = routing else { return Ok(()) };
    let vector: Vec<u8> = features.centroid().iter().flat_map(|value| value.to_le_bytes()).collect();
    change.place(generation.id, features.layer, &vector)
}

#[cfg(test)]
mod tests;
