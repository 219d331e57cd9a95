//! `socius doctor`: what this machine has, and what is wrong with what is kept here.

use super::{Terminal, text};
use crate::{
    common::Home,
    fetch::{self, LocalModel},
    library::{Library, LibraryError},
};
use serde_json::{Value, json};
use socius_models::{DeviceChoice, ModelError, device};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

/// A model and a few skills with their runs fit into this.
const FREE_BYTES_MIN: u64 = 1_000_000_000;

/// Check the machine, the models and the library
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius doctor
  socius doctor --json | tail -n 1 | jq '.problems'

Every file of models and skills is hashed again. What is damaged of a skill is put aside; other problems are reported, not
mended. The exit code is 0.")]
pub(super) struct Args {}

pub(super) fn run(_: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let home = Home::from_env()?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let simd: Vec<_> = socius_kernels::variants().iter().map(|variant| variant.name()).collect();
    let memory = memory_bytes();
    let (devices, no_cuda) = devices();
    let models = fetch::present(&home);
    let (skills, mut problems) = library(&home);
    problems.splice(0..0, disk(home.root()));
    problems.extend(socius_kernels::selected().err().map(|error| error.to_string()));
    problems.extend(fetch::verify(&home, terminal).into_iter().map(|(model, error)| format!("model {model}: {error}")));

    let free = free_bytes(home.root()).map_or_else(|| "unknown".to_owned(), text::bytes);
    let rows = [
        ("cores", cores.to_string()),
        ("simd", simd.join(", ")),
        ("memory", memory.map_or_else(|| "unknown".to_owned(), text::bytes)),
        ("devices", [devices.join(", "), no_cuda.map(|why| format!(" ({why})")).unwrap_or_default()].concat()),
        ("home", format!("{} ({free} free)", home.root().display())),
        ("models", if models.is_empty() { "none yet".to_owned() } else { names(&models) }),
        ("skills", skills.to_string()),
    ];
    terminal.lines(text::table(&rows.map(|(what, value)| [what.to_owned(), value])))?;
    terminal.line("")?;
    match problems.is_empty() {
        true => terminal.line("no problems")?,
        false => terminal.lines(problems.iter().map(|problem| format!("problem: {problem}")))?,
    }
    let models: Vec<_> = models.iter().map(|model| &model.name).collect();
    Ok(json!({
        "cores": cores,
        "simd": simd,
        "memory_bytes": memory,
        "devices": devices,
        "home": home.root(),
        "models": models,
        "skills": skills,
        "problems": problems,
    }))
}

fn names(models: &[LocalModel]) -> String {
    models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Every CUDA device that opens, and `cpu`; why there is no CUDA device, if there is none.
fn devices() -> (Vec<String>, Option<String>) {
    let cuda = (0..).map(DeviceChoice::Cuda).take_while(|&choice| device(choice).is_ok());
    let devices: Vec<_> = cuda.chain([DeviceChoice::Cpu]).map(|choice| choice.to_string()).collect();
    let why = match device(DeviceChoice::Cuda(0)) {
        Err(ModelError::NoCuda { why, .. }) => Some(why),
        _ => None,
    };
    (devices, why)
}

/// Physical memory, where the system says it.
fn memory_bytes() -> Option<u64> {
    if let Ok(info) = fs::read_to_string("/proc/meminfo") {
        let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        return line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024);
    }
    let output = Command::new("sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Number of skills, and what is wrong with the library.
fn library(home: &Home) -> (usize, Vec<String>) {
    // Looking must not create.
    if !home.library().exists() {
        return (0, Vec::new());
    }
    let looked = || {
        let library = Library::open(&home.library())?;
        let found = library.verify()?;
        Ok::<_, LibraryError>((library.heads()?.len(), found))
    };
    match looked() {
        Ok((skills, found)) => {
            let damaged = found.damaged.iter().map(|damage| format!("library: {damage}"));
            let index = found.index.iter().map(|problem| format!("library's index: {problem}"));
            (skills, damaged.chain(index).collect())
        }
        Err(error) => (0, vec![format!("library: {error}")]),
    }
}

fn disk(home: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    if let Err(error) = writable(home) {
        problems.push(format!("{} cannot be written ({error}): set SOCIUS_HOME to a folder that can", home.display()));
    }
    if let Some(free) = free_bytes(home).filter(|free| *free < FREE_BYTES_MIN) {
        let (free, least) = (text::bytes(free), text::bytes(FREE_BYTES_MIN));
        problems.push(format!("only {free} are free at {}: models and skills want {least}", home.display()));
    }
    problems
}

fn free_bytes(home: &Path) -> Option<u64> {
    fs4::available_space(existing(home)).ok()
}

/// Tries it: permissions alone do not know read-only disks and quotas.
fn writable(home: &Path) -> io::Result<()> {
    tempfile::tempfile_in(existing(home)).map(drop)
}

/// The folder itself, or the nearest one above it that is there.
fn existing(folder: &Path) -> PathBuf {
    folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}
