//! `socius run`: a stream of tasks, each of which births a subagent.

use super::{Terminal, flags::BaseFlags, text};
use crate::{
    agent::{self, AgentError, Outcome, Spread, Stream, Summary},
    common::{Home, write_atomic},
};
use anyhow::Context;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Run a stream of tasks: each births a subagent, the library grows, and what it keeps is measured
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius run docs/stream/two.toml               two small tasks, some minutes
  socius run docs/stream/eight.toml --report docs/stream/eight.html
  socius run curriculum.toml --folder runs/mine --json | tail -n 1 | jq .acc

A stream is a TOML file (docs/stream/README.md). An interrupted run goes on when the same command is
given again: what was learned or measured is never computed twice, not even for a changed file.")]
pub(super) struct Args {
    /// The stream's file
    stream: PathBuf,
    /// Where the run is kept; streams/NAME in the data folder without
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Also write the report to this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    base: BaseFlags,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let file = args.stream.display().to_string();
    let text = std::fs::read_to_string(&args.stream).with_context(|| file.clone())?;
    let stream = Stream::parse(&text).with_context(|| file.clone())?;
    let folder = match args.folder {
        Some(folder) => folder,
        None => Home::from_env()?.streams().join(stream.name.as_str()),
    };
    if let Some(report) = &args.report {
        // Hours of work should not end at a folder that is not there.
        let parent = report.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        anyhow::ensure!(parent.is_dir(), "--report: there is no folder {}", parent.display());
    }
    let session = args.base.open(terminal)?;
    let outcome = agent::run_stream(&session, &stream, &folder, terminal).map_err(|error| match error {
        AgentError::Cancelled => {
            let what = "interrupted; what was learned and measured is kept, and the same command goes on from there";
            anyhow::anyhow!("{what} ({})", folder.display())
        }
        other => other.into(),
    })?;
    let html = outcome.html(&format!("socius run {file}"));
    let own = folder.join("report.html");
    for path in [Some(&own), args.report.as_ref()].into_iter().flatten() {
        write_atomic(path, html.as_bytes()).with_context(|| path.display().to_string())?;
    }
    show(&outcome, terminal)?;
    terminal.line(format!("report: {}", args.report.as_ref().unwrap_or(&own).display()))?;
    let mut value = outcome.to_json();
    value["report"] = own.display().to_string().into();
    Ok(value)
}

fn show(outcome: &Outcome, terminal: &mut Terminal) -> anyhow::Result<()> {
    let stream = &outcome.stream;
    terminal.title(&format!("{}: {} tasks, {} items an evaluation", stream.name, stream.tasks.len(), stream.items))?;
    let percent = |value: f64| format!("{:.1}", 100.0 * value);
    let figure = |spread: Option<Spread>| match spread {
        None => "–".to_owned(),
        Some(Spread { mean, ci95: Some([_, high]), .. }) => format!("{} ± {}", percent(mean), percent(high - mean)),
        Some(Spread { mean, .. }) => percent(mean),
    };
    let row = |summary: &Summary| {
        let Summary { acc, bwt, fwt, forgetting, kept, .. } = *summary;
        let figures = [acc, bwt, fwt, forgetting, kept].map(figure);
        [vec![summary.arm.clone()], figures.to_vec()].concat()
    };
    let head = ["", "ACC %", "BWT", "FWT", "forgetting", "kept %"].map(str::to_owned).to_vec();
    let rows: Vec<[String; 6]> = std::iter::once(head)
        .chain(outcome.summaries().iter().map(row))
        .map(|row| row.try_into().expect("six columns"))
        .collect();
    terminal.lines(text::table(&rows))?;
    Ok(())
}
