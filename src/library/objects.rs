//! Files named by the SHA-256 of their bytes: `objects/ab/cdef…`. Written once, whole or not at all; knows nothing of skills.

use super::{BlobRef, LibraryError, kill};
use crate::common::{Digest, sync_dir};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// A temporary file this old belongs to no living writer.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// The content-addressed store under one folder.
#[derive(Clone, Debug)]
pub(super) struct Objects {
    root: PathBuf,
    temporary: PathBuf,
    quarantine: PathBuf,
}

/// Why an object's bytes cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not there.
    Missing(String),
    /// It cannot be read.
    Unreadable(String),
    /// Its bytes are not what its name says.
    Wrong(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Missing(why) | Self::Unreadable(why) | Self::Wrong(why)) = self;
        f.write_str(why)
    }
}

impl Objects {
    /// Opens the store inside `library`, makes its folders and sweeps what long-dead writers left.
    pub(super) fn open(library: &Path) -> Result<Self, LibraryError> {
        let [root, temporary, quarantine] = ["objects", "tmp", "quarantine"].map(|name| library.join(name));
        let objects = Self { root, temporary, quarantine };
        for folder in [&objects.root, &objects.temporary] {
            fs::create_dir_all(folder).map_err(LibraryError::io("create the folder", folder))?;
        }
        objects.sweep(LEFTOVER_AGE);
        Ok(objects)
    }

    /// Where the object lies.
    pub(super) fn path(&self, digest: Digest) -> PathBuf {
        let hex = digest.to_string();
        self.root.join(&hex[..2]).join(&hex[2..])
    }

    /// Stores `bytes` durably: temporary file, fsync, rename, fsync of the folder. An object that is there already is kept if its
    /// bytes are right, and replaced if they are not.
    pub(super) fn put(&self, bytes: &[u8]) -> Result<BlobRef, LibraryError> {
        let digest = Digest::of(bytes);
        let blob = BlobRef { digest, bytes: bytes.len() as u64 };
        let path = self.path(digest);
        if !matches!(Digest::of_file(&path), Ok(found) if found == digest) {
            self.write(&path, bytes).map_err(LibraryError::io("write", &path))?;
        }
        Ok(blob)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let folder = path.parent().expect("an object lies in a folder of the store");
        if !folder.exists() {
            fs::create_dir_all(folder)?;
            sync_dir(&self.root)?;
        }
        kill::point()?;
        let mut file = tempfile::NamedTempFile::new_in(&self.temporary)?;
        file.write_all(bytes)?;
        let mut permissions = file.as_file().metadata()?.permissions();
        permissions.set_readonly(true);
        file.as_file().set_permissions(permissions)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        sync_dir(folder)?;
        kill::point()
    }

    /// The bytes named by `digest`.
    ///
    /// # Errors
    /// If the object is missing, unreadable or not what its name says.
    pub(super) fn get(&self, digest: Digest) -> Result<Vec<u8>, Fault> {
        let bytes = fs::read(self.path(digest)).map_err(|error| self.unreadable(digest, &error))?;
        let found = Digest::of(&bytes);
        match found == digest {
            true => Ok(bytes),
            false => Err(Fault::Wrong(format!("its {} bytes have the digest {found}", bytes.len()))),
        }
    }

    /// Whether the object is there and what its name says, without holding it in memory.
    pub(super) fn check(&self, digest: Digest) -> Result<(), Fault> {
        match Digest::of_file(&self.path(digest)) {
            Ok(found) if found == digest => Ok(()),
            Ok(found) => Err(Fault::Wrong(format!("its bytes have the digest {found}"))),
            Err(error) => Err(self.unreadable(digest, &error)),
        }
    }

    fn unreadable(&self, digest: Digest, error: &io::Error) -> Fault {
        let set_aside = self.quarantine.join(digest.to_string());
        match error.kind() {
            io::ErrorKind::NotFound if set_aside.exists() => {
                Fault::Missing(format!("its bytes were wrong and lie in {}", set_aside.display()))
            }
            io::ErrorKind::NotFound => Fault::Missing(error.to_string()),
            _ => Fault::Unreadable(error.to_string()),
        }
    }

    /// Every object that has an object's name, with its size.
    pub(super) fn all(&self) -> Result<Vec<BlobRef>, LibraryError> {
        let mut found = Vec::new();
        for folder in list(&self.root)? {
            if !folder.is_dir() {
                continue;
            }
            for file in list(&folder)? {
                let [start, rest] = [&folder, &file].map(|path| path.file_name().unwrap_or_default().to_string_lossy());
                // What another program left here is none of ours.
                if let (Ok(digest), Ok(data)) = (format!("{start}{rest}").parse(), fs::metadata(&file)) {
                    found.push(BlobRef { digest, bytes: data.len() });
                }
            }
        }
        found.sort_by_key(|blob| blob.digest);
        Ok(found)
    }

    /// The first bytes of an object, unchecked: enough to tell what it may be.
    pub(super) fn beginning(&self, digest: Digest) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = File::open(self.path(digest)).and_then(|file| file.take(64).read_to_end(&mut bytes));
        if read.is_err() { Vec::new() } else { bytes }
    }

    /// Takes an object away; one that is not there is no error.
    pub(super) fn remove(&self, digest: Digest) -> Result<(), LibraryError> {
        let path = self.path(digest);
        match kill::point().and_then(|()| fs::remove_file(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LibraryError::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Takes records away durably, so that no loss of power brings them back once nothing names them any more.
    pub(super) fn withdraw(&self, records: &[Digest]) -> Result<(), LibraryError> {
        for &record in records {
            let path = self.path(record);
            self.remove(record)?;
            let folder = path.parent().expect("an object lies in a folder of the store");
            if folder.exists() {
                sync_dir(folder).map_err(LibraryError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Puts an object aside whose bytes are wrong, so that the right ones can take its place, and says where it lies.
    pub(super) fn set_aside(&self, digest: Digest) -> Result<PathBuf, LibraryError> {
        let to = self.quarantine.join(digest.to_string());
        fs::create_dir_all(&self.quarantine).map_err(LibraryError::io("create the folder", &self.quarantine))?;
        let path = self.path(digest);
        fs::rename(&path, &to).map_err(LibraryError::io("put aside", &path))?;
        Ok(to)
    }

    /// Removes what writers left that have not touched it for `age`. Best effort: what cannot be swept is swept another time.
    pub(super) fn sweep(&self, age: Duration) {
        let Ok(entries) = fs::read_dir(&self.temporary) else { return };
        for entry in entries.flatten() {
            let modified = entry.metadata().and_then(|meta| meta.modified()).ok();
            let untouched = modified.and_then(|modified| SystemTime::now().duration_since(modified).ok());
            if untouched.is_some_and(|untouched| untouched >= age) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// The store's lock, alone: no publisher is between its objects and their generation. Freed when the file is dropped.
    pub(super) fn collecting(&self) -> Result<File, LibraryError> {
        self.lock(File::lock)
    }

    /// A lock on the store, shared by publishers, so that a collector of unreferenced objects (which takes it alone) never meets
    /// objects whose generation is about to appear. Freed when the file is dropped, also by a crash.
    pub(super) fn publishing(&self) -> Result<File, LibraryError> {
        self.lock(File::lock_shared)
    }

    fn lock(&self, take: fn(&File) -> io::Result<()>) -> Result<File, LibraryError> {
        let path = self.root.with_file_name("publishing.lock");
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        open.and_then(|file| take(&file).map(|()| file)).map_err(LibraryError::io("lock", &path))
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, LibraryError> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    entries.map_err(LibraryError::io("list", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn an_object_is_found_by_its_digest_and_stored_once() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path()).unwrap();
        let blob = objects.put(b"abc").unwrap();
        assert_eq!(objects.put(b"abc").unwrap(), blob);
        assert_eq!((blob.digest, blob.bytes), (Digest::of("abc"), 3));
        assert_eq!(objects.get(blob.digest).unwrap(), b"abc");
        assert!(
            objects.path(blob.digest).ends_with("ba/7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        );
        assert_eq!((count(&folder.path().join("tmp")), count(&folder.path().join("objects/ba"))), (0, 1));
    }

    #[test]
    fn a_damaged_object_is_an_error_and_storing_it_again_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path()).unwrap();
        let digest = objects.put(b"some bytes").unwrap().digest;
        for damage in [&b"some bytez"[..], b"some", b""] {
            fs::remove_file(objects.path(digest)).unwrap();
            fs::write(objects.path(digest), damage).unwrap();
            assert!(matches!(objects.get(digest), Err(Fault::Wrong(_))) && objects.check(digest).is_err());
            objects.put(b"some bytes").unwrap();
            assert_eq!(objects.get(digest).unwrap(), b"some bytes");
        }
        assert_eq!(objects.check(digest), Ok(()));
        objects.set_aside(digest).unwrap();
        assert!(objects.get(digest).unwrap_err().to_string().contains("quarantine"));
        assert_eq!((objects.all().unwrap(), objects.remove(digest).is_ok()), (vec![], true));
    }

    #[test]
    fn only_old_leftovers_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path()).unwrap();
        for (name, age) in [("old", 2 * LEFTOVER_AGE), ("young", Duration::from_secs(60))] {
            let file = File::create(objects.temporary.join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        Objects::open(folder.path()).unwrap();
        assert!(!objects.temporary.join("old").exists() && objects.temporary.join("young").exists());
    }
}
