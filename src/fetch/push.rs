//! Files onto the hub, as one commit: large ones by Git LFS, the others inside the commit. Never decides what is pushed.

use super::{
    At, FetchError, SourceError,
    hub::{HubSettings, encode},
    transfer::Transfer,
};
use crate::common::{Digest, Phase, Progress, Report, Unit};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::PathBuf};

/// What the hub looks at to tell text from data.
const SAMPLE_BYTES: usize = 512;
const LFS: &str = "application/vnd.git-lfs+json";

/// What is to be on the hub.
pub struct Upload<'a> {
    /// owner/name; made if it is missing.
    pub repository: &'a str,
    /// Whether it is made private.
    pub private: bool,
    /// Files, whose names are theirs in the repository.
    pub files: &'a [PathBuf],
    /// What the commit says.
    pub message: &'a str,
}

/// A file on its way.
struct Part {
    name: String,
    bytes: Vec<u8>,
    digest: Digest,
}

/// Commits `upload` to the main branch and returns where it can be seen.
///
/// # Errors
/// If a file cannot be read, or the hub cannot be reached or refuses.
pub fn push(upload: &Upload<'_>, settings: HubSettings, report: &mut dyn Report) -> Result<String, FetchError> {
    let failed = |source| FetchError::Hub { model: upload.repository.to_owned(), source };
    push_to(upload, settings, report).map_err(failed)
}

fn push_to(upload: &Upload<'_>, settings: HubSettings, report: &mut dyn Report) -> Result<String, SourceError> {
    let endpoint = settings.endpoint.trim_end_matches('/').to_owned();
    let hub = Pusher {
        transfer: Transfer::new(&endpoint, settings.token, settings.wait),
        api: format!("{endpoint}/api/models/{}", encode(upload.repository)),
        git: format!("{endpoint}/{}.git", encode(upload.repository)),
        endpoint: endpoint.clone(),
    };
    if settings.offline {
        return Err(SourceError::Offline { file: upload.repository.to_owned() });
    }
    let parts = upload.files.iter().map(|path| {
        let bytes = fs::read(path).at(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Part { name, digest: Digest::of(&bytes), bytes })
    });
    let parts = parts.collect::<Result<Vec<_>, SourceError>>()?;
    hub.create(upload)?;
    let modes = hub.modes(&parts)?;
    let large: Vec<&Part> =
        parts.iter().filter(|part| modes.get(&part.name).is_some_and(|mode| mode == "lfs")).collect();
    hub.store(&large, report)?;
    hub.commit(upload, &parts, &modes)?;
    Ok(format!("{endpoint}/{}", upload.repository))
}

/// A repository that is written to.
struct Pusher {
    transfer: Transfer,
    endpoint: String,
    api: String,
    git: String,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Stored>,
}

#[derive(Deserialize)]
struct Stored {
    oid: String,
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Action,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, Value>,
}

impl Pusher {
    /// Makes the repository; one that is there already is no error.
    fn create(&self, upload: &Upload<'_>) -> Result<(), SourceError> {
        let (owner, name) = upload.repository.split_once('/').ok_or_else(|| {
            self.transfer.protocol(upload.repository, "nothing: a repository is spelled owner/name".to_owned())
        })?;
        let body = json!({ "type": "model", "name": name, "organization": owner, "private": upload.private });
        let url = format!("{}/api/repos/create", self.endpoint);
        match self.transfer.post(&url, "the making of a repository", "application/json", body.to_string().as_bytes()) {
            Err(SourceError::Status { status: 409, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// How the hub wants each file: `regular` or `lfs`.
    fn modes(&self, parts: &[Part]) -> Result<BTreeMap<String, String>, SourceError> {
        #[derive(Deserialize)]
        struct Modes {
            files: Vec<Mode>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Mode {
            path: String,
            upload_mode: String,
        }
        let file = |part: &Part| {
            let sample = base64(&part.bytes[..part.bytes.len().min(SAMPLE_BYTES)]);
            json!({ "path": part.name, "size": part.bytes.len(), "sample": sample })
        };
        let body = json!({ "files": parts.iter().map(file).collect::<Vec<_>>() });
        let found: Modes = self.ask(&format!("{}/preupload/main", self.api), "application/json", &body)?;
        Ok(found.files.into_iter().map(|mode| (mode.path, mode.upload_mode)).collect())
    }

    /// Large files, each where the hub says; what it has already is not sent again.
    fn store(&self, parts: &[&Part], report: &mut dyn Report) -> Result<(), SourceError> {
        if parts.is_empty() {
            return Ok(());
        }
        let object = |part: &&Part| json!({ "oid": part.digest, "size": part.bytes.len() });
        let objects: Vec<Value> = parts.iter().map(object).collect();
        let body = json!({ "operation": "upload", "transfers": ["basic"], "hash_algo": "sha256", "objects": objects });
        let batch: Batch = self.ask(&format!("{}/info/lfs/objects/batch", self.git), LFS, &body)?;
        for part in parts {
            let stored = batch.objects.iter().find(|stored| stored.oid == part.digest.to_string());
            let stored = stored.ok_or_else(|| self.transfer.protocol(&part.name, "no place for it".to_owned()))?;
            if let Some(error) = &stored.error {
                return Err(self.transfer.protocol(&part.name, error.to_string()));
            }
            let size = part.bytes.len() as u64;
            let mut tell = |done| {
                let (phase, unit) = (Phase::Upload, Unit::Bytes);
                report.progress(Progress { phase, label: &part.name, done, total: Some(size), unit, detail: "" });
            };
            tell(0);
            if let Some(actions) = &stored.actions {
                let headers: Vec<(&str, &str)> = headers(&actions.upload);
                self.transfer.put_unsigned(&actions.upload.href, &part.name, &headers, &part.bytes)?;
                if let Some(verify) = &actions.verify {
                    let body = object(part).to_string();
                    self.transfer.post(&verify.href, &part.name, LFS, body.as_bytes())?;
                }
            }
            tell(size);
        }
        Ok(())
    }

    /// One commit of all files: newline-separated JSON, its head first.
    fn commit(&self, upload: &Upload<'_>, parts: &[Part], modes: &BTreeMap<String, String>) -> Result<(), SourceError> {
        let mut lines = vec![json!({ "key": "header", "value": { "summary": upload.message, "description": "" } })];
        for part in parts {
            let is_large = modes.get(&part.name).is_some_and(|mode| mode == "lfs");
            lines.push(match is_large {
                true => json!({ "key": "lfsFile", "value": {
                    "path": part.name, "algo": "sha256", "oid": part.digest, "size": part.bytes.len() } }),
                false => json!({ "key": "file", "value": {
                    "path": part.name, "content": base64(&part.bytes), "encoding": "base64" } }),
            });
        }
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let url = format!("{}/commit/main", self.api);
        self.transfer.post(&url, "the commit", "application/x-ndjson", body.as_bytes()).map(drop)
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, url: &str, kind: &str, body: &Value) -> Result<T, SourceError> {
        let bytes = self.transfer.post(url, url, kind, body.to_string().as_bytes())?;
        serde_json::from_slice(&bytes).map_err(|error| self.transfer.protocol(url, format!("bad JSON: {error}")))
    }
}

fn headers(action: &Action) -> Vec<(&str, &str)> {
    action.header.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect()
}

/// RFC 4648, §4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648, §10.
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }
}
