//! A run's folder as a page that is read without the code, and its measurements as tables that other programs read. Never knows what an
//! experiment asks: it writes the page that the experiment fills.

use super::{LabError, Run, find};
use crate::{
    common::write_atomic,
    report::{Page, Table},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Writes the report of one run, or of two beside each other, into `out` (`report` in the first run's folder without), and
/// says where the page is.
///
/// # Errors
/// If a folder holds no run, the two are of different experiments, or `out` cannot be written.
pub fn report(folders: &[PathBuf], out: Option<&Path>) -> Result<PathBuf, LabError> {
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
    again(&runs, &mut page);
    for (i, figure) in page.figures().iter().enumerate() {
        let path = out.join(format!("figure-{:02}.svg", i + 1));
        write_atomic(&path, figure.as_bytes()).map_err(LabError::file(&path))?;
    }
    let path = out.join("measurements.csv");
    write_atomic(&path, csv(&runs).as_bytes()).map_err(LabError::file(&path))?;
    let path = out.join("index.html");
    write_atomic(&path, page.finish().as_bytes()).map_err(LabError::file(&path))?;
    Ok(path)
}

/// A row a measurement: run, cell, values and cost, each name once in the head. What is nested has its names joined by dots.
fn csv(runs: &[Run]) -> String {
    let mut head: Vec<String> = Vec::new();
    let mut rows: Vec<BTreeMap<String, String>> = Vec::new();
    for run in runs {
        for measurement in run.measurements() {
            let mut row = BTreeMap::new();
            let name = run.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let cost = serde_json::to_value(&measurement.cost).expect("a cost is plain data");
            let parts = [
                ("run", Value::String(name)),
                ("cell", Value::Object(measurement.cell.parameters().clone())),
                ("found", Value::Object(measurement.values.clone())),
                ("cost", cost),
            ];
            parts.iter().for_each(|(name, value)| flatten(name, value, &mut head, &mut row));
            rows.push(row);
        }
    }
    let quoted = |text: &str| {
        if text.contains(['"', ',', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
    };
    let line = |cells: &mut dyn Iterator<Item = String>| cells.collect::<Vec<_>>().join(",") + "\n";
    let mut text = line(&mut head.iter().map(|name| quoted(name)));
    for row in rows {
        text += &line(&mut head.iter().map(|name| row.get(name).map(|value| quoted(value)).unwrap_or_default()));
    }
    text
}

fn flatten(name: &str, value: &Value, head: &mut Vec<String>, row: &mut BTreeMap<String, String>) {
    let mut inner = |key: &str, value: &Value| flatten(&format!("{name}.{key}"), value, head, row);
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| inner(key, value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, value)| inner(&i.to_string(), value)),
        leaf => {
            let text = match leaf {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            if !head.iter().any(|known| known == name) {
                head.push(name.to_owned());
            }
            row.insert(name.to_owned(), text);
        }
    }
}

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
        let machine = &manifest.machine;
        let model = manifest.model.as_ref().map(|id| format!("model {} ({})", id.name, id.digest.short()));
        page.text(&format!(
            "Configuration {}, seeds {:?}, {}; socius {}, {} threads of {} ({} cores, {}, {}).",
            manifest.config_digest.short(),
            manifest.seeds,
            model.unwrap_or_else(|| "models trained here from scratch".to_owned()),
            manifest.version,
            manifest.threads,
            machine.processor.as_deref().unwrap_or("an unnamed processor"),
            machine.cores,
            machine.simd,
            machine.system,
        ));
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
