//! What a file's content must hash to, and whether it does. Never fetches.

use super::{error::SourceError, record::hash_file};
use crate::common::{Digest, Report};
use sha1::Sha1;
use sha2::Sha256;
use std::path::Path;

/// The identity that a file must have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expected {
    /// SHA-256: a card's, or the hub's for large files.
    Sha256(Digest),
    /// Git's name of a blob, the hub's for small files: SHA-1 of `blob LENGTH\0` and the content.
    Git(String),
    /// The source names content in a way of its own: only the size can be held against it.
    Unknown,
}

/// What hashing said.
#[derive(Debug)]
pub(super) enum Verdict {
    /// As expected; this is its SHA-256.
    Right(Digest),
    /// Not so.
    Wrong { wanted: String, got: String },
}

impl Expected {
    /// A digest of our own goes before the source's etag.
    pub(super) fn new(wanted: Option<Digest>, etag: &str) -> Self {
        match (wanted, etag.parse()) {
            (Some(digest), _) | (None, Ok(digest)) => Self::Sha256(digest),
            _ if etag.len() == 40 && etag.bytes().all(|b| b.is_ascii_hexdigit()) => Self::Git(etag.to_lowercase()),
            _ => Self::Unknown,
        }
    }

    /// Before anything is downloaded: whether the source's own name of the content excludes that it is ours.
    pub(super) fn agrees_with(&self, etag: &str, file: &str) -> Result<(), SourceError> {
        match (self, etag.parse::<Digest>()) {
            (Self::Sha256(wanted), Ok(got)) if *wanted != got => Err(SourceError::Digest {
                file: file.to_owned(),
                wanted: format!("SHA-256 {wanted}"),
                got: got.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Hashes the file.
    pub(super) fn check(&self, path: &Path, report: &mut dyn Report) -> Result<Verdict, SourceError> {
        use sha1::Digest as _;
        let mut sha256 = Sha256::new();
        let mut git = Sha1::new();
        if let Self::Git(_) = self {
            let bytes = std::fs::metadata(path).map(|file| file.len()).unwrap_or_default();
            git.update(format!("blob {bytes}\0"));
        }
        hash_file(path, report, |bytes| {
            sha256.update(bytes);
            if let Self::Git(_) = self {
                git.update(bytes);
            }
        })?;
        let digest = Digest::from(<[u8; 32]>::from(sha256.finalize()));
        Ok(match self {
            Self::Sha256(wanted) if *wanted != digest => {
                Verdict::Wrong { wanted: format!("SHA-256 {wanted}"), got: digest.to_string() }
            }
            Self::Git(wanted) => {
                let got: String = git.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                match *wanted == got {
                    true => Verdict::Right(digest),
                    false => Verdict::Wrong { wanted: format!("git blob {wanted}"), got },
                }
            }
            Self::Sha256(_) | Self::Unknown => Verdict::Right(digest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Silent;

    #[test]
    fn a_file_is_held_against_our_digest_then_the_hubs_sha256_then_its_git_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hello");
        std::fs::write(&path, "hello\n").unwrap();
        let sha256 = Digest::of("hello\n");
        // `printf 'hello\n' | git hash-object --stdin`
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let other = Digest::of("other");
        let right = |wanted, etag: &str| matches!(Expected::new(wanted, etag).check(&path, &mut Silent).unwrap(), Verdict::Right(d) if d == sha256);
        assert!(right(Some(sha256), git) && right(None, &sha256.to_string()) && right(None, git));
        assert!(right(None, "a-name-of-its-own"));
        assert!(!right(Some(other), git) && !right(None, &other.to_string()) && !right(None, &"0".repeat(40)));
        assert!(Expected::new(Some(other), "").agrees_with(&sha256.to_string(), "hello").is_err());
        assert!(Expected::new(Some(other), "").agrees_with(git, "hello").is_ok(), "cannot be known before it is here");
    }
}
