//! A run's folder as a page that is read without the code, and its measurements as tables that other programs read. Never knows what an
//! experiment asks: it writes the page that the experiment fills.

use super::{LabError, Machine, Run, counted, find, table::Flat};
use crate::{
    common::write_atomic,
    report::{Page, Painter, Table},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A report that has been written.
pub struct Written {
    /// The page.
    pub page: PathBuf,
    /// What whoever reads it should know of how it was written.
    pub notes: Vec<String>,
}

/// Writes the report of one run, or of two beside each other, into `out` (`report` in the first run's folder without): the page, every
/// figure as SVG and PNG, the measurements as CSV and Parquet.
///
/// # Errors
/// If a folder holds no run, the two are of different experiments, or `out` cannot be written.
pub fn report(folders: &[PathBuf], out: Option<&Path>) -> Result<Written, LabError> {
    let runs = folders.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<_>, _>>()?;
    let experiment = find(&runs[0].manifest.experiment)?;
    if let Some(other) = runs.iter().find(|run| run.manifest.experiment != experiment.name()) {
        let what = format!("a run of {}, and {} is asked beside it", other.manifest.experiment, experiment.name());
        return Err(LabError::File { path: other.folder.clone(), what });
    }
    let out = out.map_or_else(|| runs[0].folder.join("report"), Path::to_owned);
    fs::create_dir_all(&out).map_err(LabError::file(&out))?;
    let mut page = Page::new(&format!("{}: {}", experiment.name(), experiment.summary()));
    caution(&runs, &mut page);
    experiment.report(&runs, &mut page);
    counted::section(&runs, &mut page);
    again(&runs, &mut page);
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        write_atomic(&path, bytes).map_err(LabError::file(&path))
    };
    let painter = Painter::new();
    for (i, figure) in page.figures().iter().enumerate() {
        let name = format!("figure-{:02}", i + 1);
        write(&format!("{name}.svg"), figure.as_bytes())?;
        let painted =
            painter.png(figure).map_err(|error| LabError::File { path: out.join(&name), what: error.to_string() })?;
        write(&format!("{name}.png"), &painted)?;
    }
    let table = Flat::of(&runs);
    write("measurements.csv", table.csv().as_bytes())?;
    let packed = table.parquet();
    let path = out.join("measurements.parquet");
    write("measurements.parquet", &packed.map_err(|error| LabError::File { path, what: error.to_string() })?)?;
    write("index.html", page.finish().as_bytes())?;
    let notes = if painter.has_fonts() { Vec::new() } else { vec![NO_FONTS.to_owned()] };
    Ok(Written { page: out.join("index.html"), notes })
}

/// What is said where the system has no fonts.
const NO_FONTS: &str = "no font was found on this machine, so the PNGs have no letters; the SVGs and the page have";

/// What the figures may be taken for.
fn caution(runs: &[Run], page: &mut Page) {
    if runs.iter().any(|run| run.manifest.size == "quick") {
        page.text(
            "A quick run: it shows that everything runs from end to end. Its sizes and seeds are too few for a claim, and it makes none.",
        );
    }
    for run in runs {
        let (through, failed, left) = run.tally();
        if failed + left > 0 {
            let name = run.folder.file_name().unwrap_or_default().to_string_lossy();
            page.text(&format!("{name} is not complete: {through} cells measured, {failed} failed, {left} left."));
        }
    }
}

/// What was run on what, what failed, and how to run it again.
fn again(runs: &[Run], page: &mut Page) {
    page.section("Again");
    for run in runs {
        let manifest = &run.manifest;
        let failures = run.cells.iter().filter_map(|(cell, finished, _)| {
            let why = finished.as_ref()?.error.as_ref()?;
            Some(vec![cell.to_string(), why.clone()])
        });
        let failures: Vec<_> = failures.collect();
        if !failures.is_empty() {
            page.table(&Table { head: vec!["cell that failed", "why"], rows: failures });
        }
        let machines = std::iter::once(&manifest.machine).chain(&manifest.continued_on);
        let machines: Vec<String> = machines.map(Machine::to_string).collect();
        let model = manifest.model.as_ref().map(|id| format!("model {} ({})", id.name, id.digest.short()));
        page.text(&format!(
            "Configuration {}, seeds {:?}, {}; socius {}, {} threads of {}.",
            manifest.config_digest.short(),
            manifest.seeds,
            model.unwrap_or_else(|| "models trained here from scratch".to_owned()),
            manifest.version,
            manifest.threads,
            machines.join(", and then "),
        ));
        if machines.len() > 1 {
            page.text("So its seconds were taken on more than one machine; everything else does not depend on that.");
        }
        let how = match manifest.known_size() {
            Some(size) => format!("--{}", size.name()),
            None => "--config FILE".to_owned(),
        };
        page.lines(&format!(
            "socius lab run {} {how} --threads {}\n\n{}",
            manifest.experiment,
            manifest.threads,
            manifest.config.trim_end()
        ));
    }
}
