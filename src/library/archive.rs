//! Skills as one file: their journals, generations, ancestors and evidence, with every object, in a zip that other tools can look
//! into. Reading one trusts nothing: each object must be what its name says, and nothing becomes visible unless all of it is there.

use super::{
    Evidence, FORMAT, Finding, Generation, Library, LibraryError, Manifest, Move, MoveKind, RoutingFeatures, SkillName,
    Target,
    commit::Records,
    index::Change,
    journal::{self, RecordError},
    store::no_skill,
};
use crate::common::{Digest, sync_dir};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    path::Path,
};
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

const CONTENTS: &str = "socius-archive.json";
const OBJECTS: &str = "objects/";
/// The list of what an archive holds is read into memory: 64 MB are some hundred thousand generations.
const CONTENTS_BYTES_MAX: u64 = 64 << 20;
/// Objects are read into memory: none of ours is near this.
const OBJECT_BYTES_MAX: u64 = 4 << 30;

/// What an archive says about itself.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    socius_archive: u32,
    skills: Vec<Listed>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    name: SkillName,
    /// Its journal, oldest first.
    moves: Vec<Digest>,
    /// Generations that the name still has, with what was found out about each.
    generations: Vec<ListedGeneration>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ListedGeneration {
    id: Digest,
    evidence: Vec<Digest>,
}

/// What came of reading an archive.
#[derive(Debug, Default)]
pub struct ArchiveImport {
    /// Skills that are new or went on.
    pub imported: Vec<SkillName>,
    /// Skills that were here already.
    pub unchanged: Vec<SkillName>,
}

/// Records of an archive, by digest: they are stored when all of them have been found right.
type Unpacked = BTreeMap<Digest, Vec<u8>>;

/// A skill of an archive whose records have been read and checked.
struct Incoming {
    name: SkillName,
    journal: Vec<(Digest, Move)>,
    generations: Vec<(Generation, Vec<Evidence>, Option<RoutingFeatures>)>,
}

impl Library {
    /// Writes `names`, or all skills where there are none, into one file: each with its journal, its generations and their ancestors,
    /// and all evidence. The same skills give the same bytes.
    ///
    /// # Errors
    /// If there is no such skill, one of its objects is damaged, or the file cannot be written.
    pub fn export_archive(&self, names: &[SkillName], path: &Path) -> Result<Vec<SkillName>, LibraryError> {
        let names: Vec<SkillName> = match names.is_empty() {
            true => self.index.skills()?.into_iter().map(|(name, ..)| name).collect(),
            false => names.to_vec(),
        };
        // Nothing is collected while it is read, and no name moves while the contents are. Where no lock can be had, nobody writes.
        let _lock = self.objects.publishing().ok();
        let moving = self.moving().ok();
        let (contents, objects) = self.contents(&names)?;
        drop(moving);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let fail = || LibraryError::io("write", path);
        let file = tempfile::NamedTempFile::new_in(folder).map_err(fail())?;
        let mut zip = ZipWriter::new(BufWriter::new(&file));
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        let mut add = |name: &str, bytes: &[u8]| {
            let options = stored.large_file(bytes.len() as u64 >= u64::from(u32::MAX));
            zip.start_file(name, options).map_err(io::Error::from).and_then(|()| zip.write_all(bytes)).map_err(fail())
        };
        add(CONTENTS, &journal::to_bytes(&contents))?;
        for object in objects {
            let bytes = self.objects.get(object).map_err(|fault| LibraryError::Archive {
                path: self.objects.path(object),
                what: format!("{fault}; `socius skills verify` says which skills need it"),
            })?;
            add(&format!("{OBJECTS}{object}"), &bytes)?;
        }
        zip.finish().map_err(io::Error::from).and_then(|mut buffer| buffer.flush()).map_err(fail())?;
        file.as_file().sync_all().map_err(fail())?;
        file.persist(path).map_err(|error| fail()(error.error))?;
        sync_dir(folder).map_err(fail())?;
        Ok(names)
    }

    /// What an archive of `names` says, and the objects that it holds.
    fn contents(&self, names: &[SkillName]) -> Result<(Contents, BTreeSet<Digest>), LibraryError> {
        let mut objects = BTreeSet::new();
        let mut skills = Vec::with_capacity(names.len());
        let mut ancestors = Vec::new();
        for name in names {
            self.index.current(name)?.ok_or_else(|| no_skill(name))?;
            let moves: Vec<Digest> = self.index.moves(name)?.into_iter().map(|(digest, _)| digest).collect();
            objects.extend(moves.iter().copied());
            let mut generations = Vec::new();
            for row in self.index.history(name)? {
                ancestors.push(row.id);
                let evidence: Vec<Digest> =
                    self.index.evidence(row.id)?.into_iter().map(|(digest, _)| digest).collect();
                objects.extend(evidence.iter().copied());
                generations.push(ListedGeneration { id: row.id, evidence });
            }
            skills.push(Listed { name: name.clone(), moves, generations });
        }
        while let Some(id) = ancestors.pop() {
            if objects.insert(id) {
                let generation = self.generation(id)?;
                objects.extend(generation.manifest.blobs.all().map(|(_, blob)| blob.digest));
                ancestors.extend(&generation.manifest.provenance.parents);
            }
        }
        Ok((Contents { socius_archive: FORMAT, skills }, objects))
    }

    /// Takes the skills of the archive at `path` in: all of them, or none. A name whose journal here is the beginning of the archive's
    /// goes on with it; its generations keep their identity.
    ///
    /// # Errors
    /// If the file is no archive or not a whole one, a name here has another history, or the library cannot be written.
    pub fn import_archive(&self, path: &Path) -> Result<ArchiveImport, LibraryError> {
        let _lock = self.objects.publishing()?;
        let skills = self.read_archive(path)?;
        self.commit(|change| {
            let (mut done, mut records) = (ArchiveImport::default(), Records::default());
            for skill in skills {
                let name = skill.name.clone();
                match self.go_on(change, skill, &mut records)? {
                    true => done.imported.push(name),
                    false => done.unchanged.push(name),
                }
            }
            Ok((done, records))
        })
    }

    /// Publishes the current generation of the one skill in the archive at `path` as the newest of `name`, with its evidence.
    ///
    /// # Errors
    /// As [`Library::import_archive`]; also if the archive holds several skills.
    pub fn import_archive_as(&self, path: &Path, name: &SkillName) -> Result<std::sync::Arc<Generation>, LibraryError> {
        let _lock = self.objects.publishing()?;
        let mut skills = self.read_archive(path)?;
        let (1, Some(skill)) = (skills.len(), skills.pop()) else {
            return Err(archive(path, "it holds several skills, which keep their names: leave out --name"));
        };
        let current = skill.journal.last().and_then(|(_, last)| last.to).map(|to| to.generation);
        let found = skill.generations.into_iter().find(|(generation, ..)| Some(generation.id) == current);
        let (generation, evidence, routing) = found.ok_or_else(|| archive(path, "its name stands for nothing"))?;
        let mut manifest = Manifest { name: name.clone(), ..generation.manifest };
        manifest.provenance.parents.push(generation.id);
        let findings: Vec<(Finding, Timestamp)> = evidence.into_iter().map(|found| (found.finding, found.at)).collect();
        self.publish_manifest(manifest, routing.as_ref(), &findings)
    }

    /// Adds to `records` what takes a name from its journal here to the archive's; false if nothing does.
    fn go_on(&self, change: &Change<'_>, skill: Incoming, records: &mut Records) -> Result<bool, LibraryError> {
        let Incoming { name, journal, generations } = skill;
        let here: Vec<Digest> = change.moves(&name)?.into_iter().map(|(digest, _)| digest).collect();
        let common = here.iter().zip(&journal).take_while(|(here, (there, _))| *here == there).count();
        if common < here.len().min(journal.len()) {
            return Err(LibraryError::Diverged { name: name.to_string(), common });
        }
        let is_gone = change.current(&name)?.is_none() && !here.is_empty();
        let mut moves: Vec<Move> = journal[common..].iter().map(|(_, entry)| entry.clone()).collect();
        if moves.is_empty() && is_gone {
            moves = self.restore(change, &name, &generations, &journal)?;
        }
        let mut is_new = !moves.is_empty();
        records.moves.extend(moves);
        for (generation, evidence, routing) in generations {
            for found in evidence {
                is_new |= !change.has(Digest::of(journal::to_bytes(&found)))?;
                records.evidence.push(found);
            }
            records.described.push((generation, routing));
        }
        Ok(is_new)
    }

    /// Moves that bring back a name which was taken away here: one a generation, the current one last.
    fn restore(
        &self,
        change: &Change<'_>,
        name: &SkillName,
        generations: &[(Generation, Vec<Evidence>, Option<RoutingFeatures>)],
        journal: &[(Digest, Move)],
    ) -> Result<Vec<Move>, LibraryError> {
        let Some(current) = journal.last().and_then(|(_, last)| last.to) else { return Ok(Vec::new()) };
        let live = generations.iter().map(|(own, ..)| Target { generation: own.id, number: own.manifest.number });
        let order = live.filter(|target| *target != current).chain([current]);
        let mut next = self.next_move(change, name, MoveKind::Restore, None)?;
        let mut moves = Vec::new();
        for to in order {
            next = Move { to: Some(to), ..next };
            moves.push(next.clone());
            let previous = Some(Digest::of(journal::to_bytes(&next)));
            next = Move { sequence: next.sequence + 1, previous, from: Some(to), ..next };
        }
        Ok(moves)
    }

    /// Checks that the skills of an archive are whole, and stores all but their moves and evidence.
    fn read_archive(&self, path: &Path) -> Result<Vec<Incoming>, LibraryError> {
        let file = File::open(path).map_err(LibraryError::io("read", path))?;
        let mut zip = open_zip(BufReader::new(file)).map_err(|what| archive(path, what))?;
        let contents = read_contents(&mut zip).map_err(|error| match error {
            RecordError::Newer(found) => {
                LibraryError::Newer { what: path.display().to_string(), found, supported: FORMAT }
            }
            RecordError::Malformed(what) => archive(path, what),
        })?;
        let mut records = Unpacked::new();
        for at in 0..zip.len() {
            let Some((digest, bytes)) = read_object(&mut zip, at).map_err(|what| archive(path, what))? else {
                continue;
            };
            if Digest::of(&bytes) != digest {
                return Err(archive(path, format!("object {digest} is damaged")));
            }
            match is_record(&bytes) {
                true => drop(records.insert(digest, bytes)),
                false => drop(self.objects.put(&bytes)?),
            }
        }
        let skills = contents.skills.into_iter().map(|listed| self.read_skill(listed, &records));
        let skills = skills.collect::<Result<Vec<_>, String>>().map_err(|what| archive(path, what))?;
        let manifests = records.values().filter(|bytes| journal::parse::<Manifest>(bytes).is_ok());
        manifests.map(Vec::as_slice).try_for_each(|bytes| self.objects.put(bytes).map(drop))?;
        Ok(skills)
    }

    fn read_skill(&self, listed: Listed, records: &Unpacked) -> Result<Incoming, String> {
        let Listed { name, moves, generations } = listed;
        let mut journal: Vec<(Digest, Move)> = Vec::with_capacity(moves.len());
        for digest in moves {
            let entry: Move = self.record(digest, records)?;
            let last = journal.last();
            let follows = entry.sequence == last.map_or(1, |(_, last)| last.sequence.saturating_add(1))
                && entry.previous == last.map(|(digest, _)| *digest)
                && entry.name == name;
            if !follows {
                return Err(format!("move {digest} does not follow in the journal of {name}"));
            }
            journal.push((digest, entry));
        }
        check_targets(&name, &journal, &generations)?;
        let own = |listed: ListedGeneration| {
            let generation = self.whole(listed.id, records)?;
            if generation.manifest.name != name {
                return Err(format!("generation {} is not one of {name}", listed.id));
            }
            let evidence = listed.evidence.into_iter().map(|digest| {
                let found: Evidence = self.record(digest, records)?;
                let belongs = found.generation == listed.id;
                if belongs { Ok(found) } else { Err(format!("evidence {digest} is about another generation")) }
            });
            let routing =
                self.features(generation.id, &generation.manifest.blobs).map_err(|error| error.to_string())?;
            Ok((generation, evidence.collect::<Result<_, String>>()?, routing))
        };
        Ok(Incoming { generations: generations.into_iter().map(own).collect::<Result<_, String>>()?, name, journal })
    }

    /// A generation whose objects and ancestors are all stored.
    fn whole(&self, id: Digest, records: &Unpacked) -> Result<Generation, String> {
        let generation = Generation { id, manifest: self.record(id, records)? };
        let mut open = vec![(id, generation.manifest.clone())];
        let mut seen = BTreeSet::from([id]);
        while let Some((id, manifest)) = open.pop() {
            for (what, blob) in manifest.blobs.all() {
                self.objects.check(blob.digest).map_err(|fault| format!("{what} of generation {id}: {fault}"))?;
            }
            for parent in manifest.provenance.parents {
                if seen.insert(parent) {
                    open.push((parent, self.record(parent, records)?));
                }
            }
        }
        Ok(generation)
    }

    /// A record of the archive, or one that is here.
    fn record<T: DeserializeOwned>(&self, digest: Digest, records: &Unpacked) -> Result<T, String> {
        let missing = |fault| format!("{digest} is not in it: {fault}");
        let bytes = records.get(&digest).cloned().map_or_else(|| self.objects.get(digest).map_err(missing), Ok)?;
        journal::parse(&bytes).map_err(|error| match error {
            RecordError::Newer(found) => format!("{digest} is of format {found}: use a newer socius"),
            RecordError::Malformed(why) => format!("{digest} is no such record: {why}"),
        })
    }
}

/// Whether these are the bytes of a manifest, a move or evidence, as far as their beginning tells.
fn is_record(bytes: &[u8]) -> bool {
    bytes.starts_with(b"{") && String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).contains("\"socius_")
}

/// The generations that a journal leaves its name must be those that the archive lists, and no number may be given twice.
fn check_targets(name: &SkillName, journal: &[(Digest, Move)], listed: &[ListedGeneration]) -> Result<(), String> {
    let (mut live, mut numbers) = (BTreeSet::new(), BTreeMap::new());
    for (_, entry) in journal {
        match entry.to {
            None => live.clear(),
            Some(to) => {
                live.insert(to.generation);
                if *numbers.entry(to.number).or_insert(to.generation) != to.generation {
                    return Err(format!("the journal of {name} gives number {} twice", to.number));
                }
            }
        }
    }
    let found: BTreeSet<Digest> = listed.iter().map(|generation| generation.id).collect();
    let ids: BTreeSet<&Digest> = numbers.values().collect();
    match found == live && ids.len() == numbers.len() && !live.is_empty() {
        true => Ok(()),
        false => Err(format!("the generations of {name} are not those of its journal")),
    }
}

fn open_zip<R: Read + Seek>(file: R) -> Result<ZipArchive<R>, String> {
    ZipArchive::new(file).map_err(|error| error.to_string())
}

fn read_contents<R: Read + Seek>(zip: &mut ZipArchive<R>) -> Result<Contents, RecordError> {
    let at = zip.index_for_name(CONTENTS).ok_or_else(|| RecordError::Malformed(format!("it has no {CONTENTS}")))?;
    let bytes = read_entry(zip, at, CONTENTS_BYTES_MAX).map_err(RecordError::Malformed)?;
    journal::parse(&bytes)
}

/// The object at a place of the archive; none for an entry that is no object.
fn read_object<R: Read + Seek>(zip: &mut ZipArchive<R>, at: usize) -> Result<Option<(Digest, Vec<u8>)>, String> {
    let entry = zip.by_index_raw(at).map_err(|error| error.to_string())?;
    let name = entry.name().map_err(|error| error.to_string())?.into_owned();
    drop(entry);
    let Some(digest) = name.strip_prefix(OBJECTS).and_then(|hex| hex.parse().ok()) else { return Ok(None) };
    Ok(Some((digest, read_entry(zip, at, OBJECT_BYTES_MAX)?)))
}

/// An entry's bytes. Only stored ones are taken: they cannot be longer than the file that they lie in.
fn read_entry<R: Read + Seek>(zip: &mut ZipArchive<R>, at: usize, bytes_max: u64) -> Result<Vec<u8>, String> {
    let entry = zip.by_index(at).map_err(|error| error.to_string())?;
    let name = entry.name().map_err(|error| error.to_string())?.into_owned();
    if entry.compression() != CompressionMethod::Stored {
        return Err(format!("{name} is compressed, which no archive of ours is"));
    }
    let mut bytes = Vec::new();
    entry.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| format!("{name}: {error}"))?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("{name} is larger than {bytes_max} bytes"));
    }
    Ok(bytes)
}

fn archive(path: &Path, what: impl Into<String>) -> LibraryError {
    LibraryError::Archive { path: path.to_owned(), what: what.into() }
}

#[cfg(test)]
mod tests;
