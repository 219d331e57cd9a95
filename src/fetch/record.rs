//! What was verified, and how to tell cheaply that it is still the same. Never fetches.

use super::{Card, FetchError, SourceError, error::At, known};
use crate::common::{Digest, Phase, Progress, Report, Unit, write_atomic};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

const RECORD: &str = "record.json";

/// A checkpoint on this machine, every byte of which has been verified.
#[derive(Clone, Debug)]
pub struct LocalModel {
    /// What `--model` takes.
    pub name: String,
    /// A GGUF file, or a folder with `config.json`, `tokenizer.json` and safetensors.
    pub path: PathBuf,
    /// The file's SHA-256; for a folder, of its files' names and digests. The same wherever it came from.
    pub digest: Digest,
    /// Size of all files.
    pub bytes: u64,
    /// Where it came from.
    pub source: String,
    /// The card, if it has one.
    pub card: Option<&'static Card>,
}

/// The record of a checkpoint, `record.json` in its folder under the home's models.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) source: String,
    /// Relative to the record's folder if inside it, so that a home can be moved.
    path: PathBuf,
    digest: Digest,
    verified: jiff::Timestamp,
    files: Vec<FileRecord>,
}

/// One file at the moment of its verification.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct FileRecord {
    /// Relative to the checkpoint's path if that is a folder; empty if it is the file.
    name: PathBuf,
    bytes: u64,
    modified_ns: u64,
    sha256: Digest,
}

impl Record {
    /// Of files that have just been verified. `path` is the checkpoint; `files` are the names inside it with their digests, or
    /// one empty name if it is a file.
    pub(super) fn new(
        name: String,
        source: String,
        path: PathBuf,
        files: Vec<(PathBuf, Digest)>,
    ) -> Result<Self, FetchError> {
        let digest = match &files[..] {
            [(name, digest)] if name.as_os_str().is_empty() => *digest,
            files => folder_digest(files),
        };
        let files = files.into_iter().map(|(name, sha256)| {
            let place = join(&path, &name);
            let (bytes, modified_ns) = stamp(&place).fetching(&place)?;
            Ok(FileRecord { name, bytes, modified_ns, sha256 })
        });
        let files = files.collect::<Result<_, FetchError>>()?;
        Ok(Self { name, source, path, digest, verified: jiff::Timestamp::now(), files })
    }

    /// The record in `slot`, if there is a readable one.
    pub(super) fn load(slot: &Path) -> Option<Self> {
        let mut record: Self = serde_json::from_slice(&fs::read(slot.join(RECORD)).ok()?).ok()?;
        record.path = slot.join(&record.path);
        Some(record)
    }

    /// Writes the record into `slot`: from now on the checkpoint is present.
    pub(super) fn store(&self, slot: &Path) -> Result<(), FetchError> {
        let mut record = self.clone();
        if let Ok(inside) = self.path.strip_prefix(slot) {
            record.path = inside.to_owned();
        }
        let text = serde_json::to_vec_pretty(&record).expect("a record is plain data");
        write_atomic(&slot.join(RECORD), &text).fetching(slot)
    }

    /// Removes the record, and with it the checkpoint's presence.
    pub(super) fn forget(slot: &Path) -> Result<(), FetchError> {
        match fs::remove_file(slot.join(RECORD)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).fetching(slot),
            _ => Ok(()),
        }
    }

    /// Whether one of the files has this digest.
    pub(super) fn has(&self, sha256: Digest) -> bool {
        self.files.iter().any(|file| file.sha256 == sha256)
    }

    /// Whether every file has the size and time of its verification: cheap enough for every start.
    pub(super) fn looks_unchanged(&self) -> bool {
        self.files
            .iter()
            .all(|file| stamp(&join(&self.path, &file.name)).is_ok_and(|now| now == (file.bytes, file.modified_ns)))
    }

    /// Hashes every file again.
    pub(super) fn verify(&self, report: &mut dyn Report) -> Result<(), FetchError> {
        for file in &self.files {
            let path = join(&self.path, &file.name);
            let is = match digest_of(&path, report) {
                Ok(digest) if digest == file.sha256 => continue,
                Ok(digest) => digest.to_string(),
                Err(FetchError::Io { source, .. }) => source.to_string(),
                Err(error) => return Err(error),
            };
            return Err(FetchError::Changed { path, was: file.sha256, is });
        }
        Ok(())
    }

    /// As users see it.
    pub(super) fn model(self) -> LocalModel {
        LocalModel {
            card: known().iter().find(|card| card.name == self.name),
            bytes: self.files.iter().map(|file| file.bytes).sum(),
            name: self.name,
            path: self.path,
            digest: self.digest,
            source: self.source,
        }
    }

    /// The names and digests of the files, to make the record again after a verification.
    pub(super) fn refreshed(self) -> Result<Self, FetchError> {
        let files = self.files.into_iter().map(|file| (file.name, file.sha256)).collect();
        Self::new(self.name, self.source, self.path, files)
    }
}

/// SHA-256 of a file, with progress.
pub(super) fn digest_of(path: &Path, report: &mut dyn Report) -> Result<Digest, FetchError> {
    let mut hasher = Sha256::new();
    match hash_file(path, report, |bytes| hasher.update(bytes)) {
        Ok(()) => Ok(Digest::from(<[u8; 32]>::from(hasher.finalize()))),
        Err(SourceError::Io { path, source }) => Err(FetchError::Io { path, source }),
        Err(_) => Err(FetchError::Cancelled),
    }
}

/// Hands a file's content to `update`, in order, with progress.
pub(super) fn hash_file(
    path: &Path,
    report: &mut dyn Report,
    mut update: impl FnMut(&[u8]),
) -> Result<(), SourceError> {
    let mut file = File::open(path).at(path)?;
    let total = file.metadata().at(path)?.len();
    let label = path.file_name().unwrap_or_default().to_string_lossy();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let read = file.read(&mut buffer).at(path)?;
        if read == 0 {
            return Ok(());
        }
        if report.cancelled() {
            return Err(SourceError::Cancelled);
        }
        update(&buffer[..read]);
        done += read as u64;
        report.progress(Progress {
            phase: Phase::Verification,
            label: &label,
            done,
            total: Some(total),
            unit: Unit::Bytes,
            detail: "",
        });
    }
}

/// One digest for several files: of their sorted names and digests.
fn folder_digest(files: &[(PathBuf, Digest)]) -> Digest {
    let mut files: Vec<_> = files.iter().map(|(name, digest)| (name.to_string_lossy(), digest)).collect();
    files.sort();
    Digest::of_parts(files.iter().flat_map(|(name, digest)| [name.as_bytes(), &digest.bytes()[..]]))
}

/// `Path::join` would add a separator to a file's path for an empty name.
fn join(path: &Path, name: &Path) -> PathBuf {
    if name.as_os_str().is_empty() { path.to_owned() } else { path.join(name) }
}

/// Size and modification time in nanoseconds since 1970.
fn stamp(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((metadata.len(), modified.as_nanos() as u64))
}
