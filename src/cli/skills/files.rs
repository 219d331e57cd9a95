//! Skills in and out: adapters of other programs, archives, the hub. Never looks into them.

use super::Format;
use crate::{
    agent::{model_card, routing_features},
    cli::{
        Terminal,
        answer::versioned,
        flags::{BaseFlags, OutlineFlags},
    },
    common::{Message, Report},
    envs,
    fetch::{self, HubSettings, Upload},
    library::{ArchiveImport, Export, Import, Library, SkillName, SkillRef, SkillSummary},
};
use anyhow::Context;
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

/// More prompts than this teach the router nothing new, and each is read by the base.
const PROMPTS_MAX: usize = 64;
/// What an archive's name ends in.
const ARCHIVE: &str = "socius";

/// A skill on its way out.
pub(super) struct Out {
    pub(super) skill: SkillRef,
    pub(super) folder: PathBuf,
    pub(super) format: Format,
    pub(super) base: OutlineFlags,
}

/// An adapter or archive on its way in.
#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// An archive, a PEFT folder or a GGUF adapter
    path: PathBuf,
    #[command(flatten)]
    what: WhatFlags,
}

/// A skill on the hub.
#[derive(clap::Args)]
pub(super) struct PullArgs {
    /// The hub's repository, owner/name
    repository: String,
    #[command(flatten)]
    what: WhatFlags,
}

/// What is to become of it.
#[derive(clap::Args)]
pub(super) struct WhatFlags {
    /// What to call it; an archive's own name, or that of the file or folder, without
    #[arg(long)]
    name: Option<SkillName>,
    /// What it is for, in a sentence
    #[arg(long, default_value = "")]
    description: String,
    /// JSON lines of prompts that it is for: what the router knows it by (the first 64 count)
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    #[command(flatten)]
    base: BaseFlags,
}

pub(super) fn export(library: &Library, out: &Out, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let generation = library.show(&out.skill)?;
    let name = &generation.manifest.name;
    let files = match out.format {
        Format::Peft => library.export(&generation, &out.folder, Export::Peft)?,
        Format::Gguf => {
            let base = out.base.outline(terminal)?;
            library.export(&generation, &out.folder, Export::Gguf { base: &base.id, spec: &base.spec })?
        }
        Format::Archive => {
            fs::create_dir_all(&out.folder).with_context(|| out.folder.display().to_string())?;
            let path = out.folder.join(format!("{name}.{ARCHIVE}"));
            library.export_archive(std::slice::from_ref(name), &path)?;
            vec![path]
        }
    };
    terminal.lines(files.iter().map(|file| file.display().to_string()))?;
    Ok(json!({ "name": name, "generation": generation.id, "files": files }))
}

pub(super) fn bundle(
    library: &Library,
    file: &Path,
    names: &[SkillName],
    terminal: &mut Terminal,
) -> anyhow::Result<Value> {
    let names = library.export_archive(names, file)?;
    terminal.line(format!("{} skills in {}", names.len(), file.display()))?;
    Ok(json!({ "file": file, "skills": names }))
}

pub(super) fn import(library: &Library, args: ImportArgs, terminal: &mut Terminal) -> anyhow::Result<Value> {
    take_in(library, &args.path, args.what, terminal)
}

pub(super) fn pull(library: &Library, args: PullArgs, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let folder = tempfile::tempdir()?;
    let stem = args.repository.rsplit('/').next().unwrap_or_default().to_owned();
    let path = folder.path().join(&stem);
    let files = fetch::pull_adapter(&args.repository, HubSettings::from_env(), &path, terminal)?;
    let archive = files.into_iter().find(|file| file.extension().is_some_and(|end| end == ARCHIVE));
    take_in(library, &archive.unwrap_or(path), args.what, terminal)
}

fn take_in(library: &Library, path: &Path, what: WhatFlags, terminal: &mut Terminal) -> anyhow::Result<Value> {
    if is_archive(path) { archive(library, path, what.name, terminal) } else { adapter(library, path, what, terminal) }
}

/// Whether the file begins as a zip does.
fn is_archive(path: &Path) -> bool {
    let mut start = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *b"PK\x03\x04"
}

fn archive(library: &Library, path: &Path, name: Option<SkillName>, terminal: &mut Terminal) -> anyhow::Result<Value> {
    if let Some(name) = name {
        let generation = library.import_archive_as(path, &name)?;
        terminal.line(format!("{} is now a skill", versioned(&generation)))?;
        return Ok(json!({ "imported": [name], "unchanged": [] }));
    }
    let ArchiveImport { imported, unchanged } = library.import_archive(path)?;
    for name in &imported {
        let generation = library.show(&name.clone().into())?;
        terminal.line(format!("{} is now a skill", versioned(&generation)))?;
    }
    if !unchanged.is_empty() {
        terminal.line(format!("{} were here already", unchanged.len()))?;
    }
    Ok(json!({ "imported": imported, "unchanged": unchanged }))
}

fn adapter(library: &Library, path: &Path, what: WhatFlags, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let name = what.name.map_or_else(|| name_of(path), Ok)?;
    let prompts = what.prompts.map(read_prompts).transpose()?;
    let base = what.base.open(terminal)?.base;
    let routing = prompts.map(|prompts| routing_features(&base, &prompts)).transpose()?;
    let unknown = routing.is_none();
    let generation = library.import(Import {
        path,
        name,
        description: what.description,
        base: &base.id,
        spec: base.spec(),
        aliases: &base.aliases,
        routing,
        created: jiff::Timestamp::now(),
    })?;
    terminal.line(format!("{} is now a skill", versioned(&generation)))?;
    if unknown {
        terminal
            .note("the router does not know it: it runs when asked for by name (import it again with --prompts FILE)");
    }
    Ok(json!(SkillSummary::from(&*generation)))
}

pub(super) fn push(
    library: &Library,
    skill: &SkillRef,
    repository: &str,
    private: bool,
    terminal: &mut Terminal,
) -> anyhow::Result<Value> {
    let generation = library.show(skill)?;
    let name = &generation.manifest.name;
    let folder = tempfile::tempdir()?;
    let mut files = library.export(&generation, folder.path(), Export::Peft)?;
    let card = folder.path().join("README.md");
    fs::write(&card, model_card(&generation, &library.evidence(generation.id)?))?;
    let archive = folder.path().join(format!("{name}.{ARCHIVE}"));
    library.export_archive(std::slice::from_ref(name), &archive)?;
    files.extend([card, archive]);
    let upload = Upload {
        repository,
        private,
        files: &files,
        message: &format!("{} ({})", versioned(&generation), generation.id.short()),
    };
    let url = fetch::push(&upload, HubSettings::from_env(), terminal)?;
    terminal.line(format!("{} is at {url}", versioned(&generation)))?;
    Ok(json!({ "name": name, "generation": generation.id, "url": url }))
}

/// The prompts that the router is to know a skill by.
fn read_prompts(path: PathBuf) -> anyhow::Result<Vec<Vec<Message>>> {
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut prompts = envs::prompts(&text).with_context(|| path.display().to_string())?;
    prompts.truncate(PROMPTS_MAX);
    Ok(prompts)
}

fn name_of(path: &Path) -> anyhow::Result<SkillName> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    stem.parse().map_err(|error| anyhow::anyhow!("{error}; give one with --name"))
}
