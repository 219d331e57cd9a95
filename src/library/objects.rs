//! Files named by the SHA-256 of their bytes: `objects/ab/cdef…`. Written once, whole or not at all; knows nothing of skills.

use super::{BlobRef, LibraryError};
use crate::common::{Digest, sync_dir};
use std::{
    fs::{self, File},
    io::{self, Write},
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
}

impl Objects {
    /// Opens the store inside `library`, makes its folders and sweeps what long-dead writers left.
    pub(super) fn open(library: &Path) -> Result<Self, LibraryError> {
        let objects = Self { root: library.join("objects"), temporary: library.join("tmp") };
        for folder in [&objects.root, &objects.temporary] {
            fs::create_dir_all(folder).map_err(LibraryError::io("create the folder", folder))?;
        }
        objects.sweep();
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
        let mut file = tempfile::NamedTempFile::new_in(&self.temporary)?;
        file.write_all(bytes)?;
        let mut permissions = file.as_file().metadata()?.permissions();
        permissions.set_readonly(true);
        file.as_file().set_permissions(permissions)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        sync_dir(folder)
    }

    /// The bytes named by `digest`.
    ///
    /// # Errors
    /// In words, if the object is missing, unreadable or not what its name says.
    pub(super) fn get(&self, digest: Digest) -> Result<Vec<u8>, String> {
        let bytes = fs::read(self.path(digest)).map_err(|error| error.to_string())?;
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(format!("its {} bytes have the digest {found}", bytes.len()));
        }
        Ok(bytes)
    }

    /// Best effort: what cannot be swept is swept another time.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.temporary) else { return };
        for entry in entries.flatten() {
            let old = entry.metadata().and_then(|meta| meta.modified()).ok();
            let age = old.and_then(|modified| SystemTime::now().duration_since(modified).ok());
            if age.is_some_and(|age| age > LEFTOVER_AGE) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// A lock on the store, shared by publishers, so that a collector of unreferenced objects (which takes it alone) never meets
    /// objects whose generation is about to appear. Freed when the file is dropped, also by a crash.
    pub(super) fn publishing(&self) -> Result<File, LibraryError> {
        let path = self.root.with_file_name("publishing.lock");
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        open.and_then(|file| file.lock_shared().map(|()| file)).map_err(LibraryError::io("lock", &path))
    }
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
            assert!(objects.get(digest).unwrap_err().contains("digest"));
            objects.put(b"some bytes").unwrap();
            assert_eq!(objects.get(digest).unwrap(), b"some bytes");
        }
        fs::remove_file(objects.path(digest)).unwrap();
        assert!(objects.get(digest).is_err());
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
