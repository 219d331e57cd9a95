//! The Hugging Face hub: listings and files, into the hub's own cache, verified before they get their name. Never decides which
//! files make a checkpoint.
//!
//! The cache's layout and token are the `hf-hub` crate's, so other tools share what is downloaded. The transfer is ours because
//! that crate's waits for ever on a silent server, appends whatever an ignored `Range` returns, and names a file before anyone
//! has hashed it.

use super::{
    At, Lock,
    error::SourceError,
    expected::{Expected, Verdict},
    transfer::{Transfer, Wait},
};
use crate::common::{Digest, Report};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};
use ureq::http::{Response, header::LOCATION};

/// How the hub is reached.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// `$HF_ENDPOINT`, without a final slash.
    pub endpoint: String,
    /// `$HF_TOKEN`, or the token file that `hf auth login` writes.
    pub token: Option<String>,
    /// `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// `$HF_HUB_OFFLINE`: only the cache is looked at.
    pub offline: bool,
    /// How long to wait for the network.
    pub wait: Wait,
}

impl HubSettings {
    /// As the environment says.
    pub fn from_env() -> Self {
        let set = |name| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let token_file = || {
            let home = set("HF_HOME").map(PathBuf::from);
            let home = home.or_else(|| Some(directories::BaseDirs::new()?.home_dir().join(".cache/huggingface")))?;
            Cache::new(home.join("hub")).token()
        };
        let cache = || match set("HF_HOME") {
            Some(home) => PathBuf::from(home).join("hub"),
            // Without a home directory there is nothing to share: a folder that others cannot have prepared.
            None => directories::BaseDirs::new()
                .map(|dirs| dirs.home_dir().join(".cache/huggingface/hub"))
                .unwrap_or_else(|| env::temp_dir().join("socius-hub")),
        };
        Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: set("HF_TOKEN").or_else(token_file),
            cache: set("HF_HUB_CACHE").map(PathBuf::from).unwrap_or_else(cache),
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|value| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on")),
            wait: Wait::default(),
        }
    }
}

/// A repository at a revision.
#[derive(Clone, Debug)]
pub(super) struct HubRepo {
    pub(super) id: String,
    pub(super) revision: String,
}

/// A repository's files at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// A verified file of the cache.
#[derive(Debug)]
pub(super) struct HubFile {
    pub(super) path: PathBuf,
    pub(super) digest: Digest,
}

/// What the hub says about a file.
struct Metadata {
    commit: String,
    etag: String,
    bytes: u64,
}

/// A client of the hub.
pub(super) struct Hub {
    settings: HubSettings,
    transfer: Transfer,
}

impl Hub {
    pub(super) fn new(mut settings: HubSettings) -> Self {
        settings.endpoint.truncate(settings.endpoint.trim_end_matches('/').len());
        let transfer = Transfer::new(&settings.endpoint, settings.token.clone(), settings.wait);
        Self { settings, transfer }
    }

    /// The files of `repo`: the hub's answer or, offline, what the cache has.
    pub(super) fn list(&self, repo: &HubRepo) -> Result<Listing, SourceError> {
        if self.settings.offline {
            return self.list_cached(repo).ok_or_else(|| SourceError::Offline { file: repo.id.clone() });
        }
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let revision = encode(&repo.revision).replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.settings.endpoint, repo.id);
        let info: Info = self.transfer.json(&url, &repo.id)?;
        Ok(Listing {
            commit: self.checked(&info.sha, &repo.id)?,
            files: info.siblings.into_iter().map(|sibling| sibling.rfilename).collect(),
        })
    }

    /// `file` of `repo`, from the cache or the hub, verified against `wanted` or else the hub's own etag. Only a verified file
    /// ever has its name in the cache.
    pub(super) fn file(
        &self,
        repo: &HubRepo,
        file: &str,
        wanted: Option<Digest>,
        report: &mut dyn Report,
    ) -> Result<HubFile, SourceError> {
        if let Some(path) = self.cached(repo, file) {
            let etag =
                fs::canonicalize(&path).at(&path)?.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match Expected::new(wanted, &etag).check(&path, report)? {
                Verdict::Right(digest) => return Ok(HubFile { path, digest }),
                Verdict::Wrong { .. } => {
                    report.note(&format!("the hub's cache has a damaged or different {file}; it is not used"));
                    if self.settings.offline {
                        return Err(SourceError::Offline { file: file.to_owned() });
                    }
                }
            }
        }
        if self.settings.offline {
            return Err(SourceError::Offline { file: format!("{} of {}", file, repo.id) });
        }
        self.download(repo, file, wanted, report)
    }

    fn download(
        &self,
        repo: &HubRepo,
        file: &str,
        wanted: Option<Digest>,
        report: &mut dyn Report,
    ) -> Result<HubFile, SourceError> {
        let what = format!("{} of {}", file, repo.id);
        let url = format!(
            "{}/{}/resolve/{}/{}",
            self.settings.endpoint,
            repo.id,
            encode(&repo.revision).replace('/', "%2F"),
            encode(file)
        );
        let metadata = self.metadata(&url, &what)?;
        let expected = Expected::new(wanted, &metadata.etag);
        expected.agrees_with(&metadata.etag, file)?;
        let folder = self.repo_folder(&repo.id);
        let blob = folder.join("blobs").join(&metadata.etag);
        let blobs = blob.parent().expect("a blob lies in a folder");
        fs::create_dir_all(blobs).at(blobs)?;
        // The lock of the `hf-hub` crate, so that its users and we do not write the same file.
        let _lock = Lock::take(&blob.with_extension("lock"), report)?;
        let digest = match blob.exists().then(|| expected.check(&blob, report)).transpose()? {
            Some(Verdict::Right(digest)) => digest,
            _ => self.fetch_blob(&url, &blob, &expected, &metadata, file, report)?,
        };
        let pointer = folder.join("snapshots").join(&metadata.commit).join(file);
        point(&blob, &pointer).at(&pointer)?;
        if metadata.commit != repo.revision {
            let reference = folder.join("refs").join(&repo.revision);
            fs::create_dir_all(reference.parent().expect("refs")).at(&reference)?;
            fs::write(&reference, &metadata.commit).at(&reference)?;
        }
        Ok(HubFile { path: pointer, digest })
    }

    /// Downloads to `blob.incomplete`, going on from what an interrupted run left; verifies; renames.
    fn fetch_blob(
        &self,
        url: &str,
        blob: &Path,
        expected: &Expected,
        metadata: &Metadata,
        file: &str,
        report: &mut dyn Report,
    ) -> Result<Digest, SourceError> {
        let part = blob.with_extension("incomplete");
        loop {
            let resumed = part.exists();
            self.transfer.file(url, &part, metadata.bytes, file, report)?;
            match expected.check(&part, report)? {
                Verdict::Right(digest) => {
                    fs::File::open(&part).and_then(|file| file.sync_all()).at(&part)?;
                    fs::rename(&part, blob).at(blob)?;
                    return Ok(digest);
                }
                Verdict::Wrong { wanted, got } => {
                    fs::remove_file(&part).at(&part)?;
                    if !resumed {
                        return Err(SourceError::Digest { file: file.to_owned(), wanted, got });
                    }
                    report.note(&format!("what an earlier download of {file} had left was damaged; starting again"));
                }
            }
        }
    }

    /// Asks for a file's headers, following redirects inside the hub but not to its storage, which has no commit and another etag.
    fn metadata(&self, url: &str, what: &str) -> Result<Metadata, SourceError> {
        let mut url = url.to_owned();
        let mut commit = None;
        for _ in 0..5 {
            let response = self.transfer.head(&url, what)?;
            commit = commit.or_else(|| header(&response, "x-repo-commit"));
            let etag = header(&response, "x-linked-etag");
            let inside = header(&response, LOCATION.as_str())
                .filter(|to| response.status().is_redirection() && to.starts_with('/') && !to.starts_with("//"));
            match inside {
                Some(location) if etag.is_none() => url = format!("{}{location}", self.transfer.origin()),
                _ => {
                    let etag = etag.or_else(|| header(&response, "etag"));
                    let bytes = header(&response, "x-linked-size").or_else(|| header(&response, "content-length"));
                    let missing = |name| self.transfer.protocol(what, format!("no {name}"));
                    let etag = etag.ok_or_else(|| missing("etag"))?;
                    let etag = etag.trim_start_matches("W/").trim_matches('"');
                    return Ok(Metadata {
                        commit: self.checked(&commit.ok_or_else(|| missing("x-repo-commit"))?, what)?,
                        etag: self.checked(etag, what)?,
                        bytes: bytes.and_then(|n| n.parse().ok()).ok_or_else(|| missing("size"))?,
                    });
                }
            }
        }
        Err(self.transfer.protocol(what, "too many redirects".to_owned()))
    }

    /// A commit or etag becomes a file's name: it must be one.
    fn checked(&self, name: &str, what: &str) -> Result<String, SourceError> {
        let plain =
            !name.is_empty() && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        plain.then(|| name.to_owned()).ok_or_else(|| self.transfer.protocol(what, format!("the name {name:?}")))
    }

    fn repo_folder(&self, id: &str) -> PathBuf {
        self.settings.cache.join(Repo::new(id.to_owned(), RepoType::Model).folder_name())
    }

    /// The commit that the cache has for a revision, which may be the commit itself.
    fn cached_snapshot(&self, repo: &HubRepo) -> Option<(String, PathBuf)> {
        let folder = self.repo_folder(&repo.id);
        let reference = fs::read_to_string(folder.join("refs").join(&repo.revision));
        let commit = reference.map_or_else(|_| repo.revision.clone(), |text| text.trim().to_owned());
        let snapshot = folder.join("snapshots").join(&commit);
        snapshot.is_dir().then_some((commit, snapshot))
    }

    fn cached(&self, repo: &HubRepo, file: &str) -> Option<PathBuf> {
        let path = self.cached_snapshot(repo)?.1.join(file);
        path.exists().then_some(path)
    }

    fn list_cached(&self, repo: &HubRepo) -> Option<Listing> {
        let (commit, snapshot) = self.cached_snapshot(repo)?;
        let entries = fs::read_dir(snapshot).ok()?.flatten();
        let files = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        Some(Listing { commit, files })
    }
}

fn header<B>(response: &Response<B>, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// Makes `pointer` show the blob: a relative link where the system has them, as other tools of the hub do.
fn point(blob: &Path, pointer: &Path) -> io::Result<()> {
    let folder = pointer.parent().expect("a pointer lies in a folder");
    fs::create_dir_all(folder)?;
    if fs::symlink_metadata(pointer).is_ok() {
        fs::remove_file(pointer)?;
    }
    #[cfg(unix)]
    {
        let root = blob.ancestors().nth(2).expect("a blob lies in a repository's folder");
        let depth = folder.strip_prefix(root).expect("both lie in the repository's folder").components().count();
        let inside = blob.strip_prefix(root).expect("a blob lies in the repository's folder");
        std::os::unix::fs::symlink(PathBuf::from("../".repeat(depth)).join(inside), pointer)
    }
    #[cfg(not(unix))]
    fs::hard_link(blob, pointer)
}

/// Percent-encodes what may not stand in a URL's path; slashes stay.
pub(super) fn encode(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
