//! `socius lab`: registered experiments, run and reported. Never measures anything itself.

use super::{Terminal, flags, text};
use crate::{
    agent::Budget,
    common::{Home, Progress, Report, Silent},
    lab::{self, Experiment, LabError, Limits, Manifest, Processes, Progressed, Size, Told, Written},
};
use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};
use std::{
    io::Write,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Run an experiment and report what it found
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius lab list
  socius lab run attention-vs-compression --quick
  socius lab report attention-vs-compression-quick-1a2b3c4d

docs/lab/README.md says what the experiments ask and how they are measured.")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List experiments, and the runs in the data folder
    #[command(after_help = "\
Examples:
  socius lab list
  socius lab list --json | tail -n 1 | jq '.runs'")]
    List,
    /// Run an experiment: what is measured already is not measured again
    #[command(after_help = "\
Examples:
  socius lab run attention-vs-compression --quick
  socius lab run attention-vs-compression --full --for 90m     a sitting; the same command goes on
  socius lab run attention-vs-compression --config mine.toml --jobs 2
  socius lab run bandwidth --quick --print-config > mine.toml")]
    Run(RunArgs),
    /// Write the report of a run, or of two beside each other
    #[command(after_help = "\
Examples:
  socius lab report attention-vs-compression-quick-1a2b3c4d
  socius lab report docs/lab/full runs/mine --out compared")]
    Report {
        /// A run's name in the data folder, or its folder
        #[arg(required = true, num_args = 1..=2)]
        runs: Vec<PathBuf>,
        /// Where the report goes; `report` in the first run's folder without
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Measure one cell of a run, telling in JSON lines: what `run` starts for each
    #[command(
        hide = true,
        after_help = "\
Examples:
  socius lab cell FOLDER KEY"
    )]
    Cell {
        folder: PathBuf,
        key: String,
        #[arg(long)]
        threads: Option<NonZeroUsize>,
    },
}

#[derive(clap::Args)]
struct RunArgs {
    /// Its name, as `socius lab list` has it
    experiment: String,
    /// Minutes: shows that everything runs and claims nothing
    #[arg(long, conflicts_with_all = ["full", "config"])]
    quick: bool,
    /// What claims rest on; resumed over as many sittings as it takes
    #[arg(long, conflicts_with = "config")]
    full: bool,
    /// A configuration of one's own
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the configuration and run nothing
    #[arg(long)]
    print_config: bool,
    /// Where the run is kept; lab/NAME in the data folder without
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Begin no cell after so long, such as 90m
    #[arg(long = "for", value_name = "TIME", value_parser = flags::budget)]
    time: Option<Budget>,
    /// Measure cells again that failed before
    #[arg(long)]
    retry: bool,
    /// Cells at a time; two with a thread each get through more than one with two
    #[arg(long, default_value_t = NonZeroUsize::MIN)]
    jobs: NonZeroUsize,
    /// CPU threads of a cell; its part of all cores without
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    match args.command {
        Command::List => list(terminal),
        Command::Run(args) => run_cells(&args, terminal),
        Command::Report { runs, out } => report(&runs, out.as_deref(), terminal),
        Command::Cell { folder, key, threads } => cell(&folder, &key, threads, terminal),
    }
}

fn list(terminal: &mut Terminal) -> anyhow::Result<Value> {
    let experiments = lab::experiments();
    terminal.title("experiments")?;
    let rows: Vec<_> = experiments.iter().map(|e| [e.name().to_owned(), e.summary().to_owned()]).collect();
    terminal.lines(text::table(&rows))?;
    let runs = runs(&Home::from_env()?.lab());
    if !runs.is_empty() {
        terminal.line("")?;
        terminal.title("runs")?;
        let row = |(name, through, failed, left): &(String, usize, usize, usize)| {
            [name.clone(), format!("{through} cells measured, {failed} failed, {left} left")]
        };
        terminal.lines(text::table(&runs.iter().map(row).collect::<Vec<_>>()))?;
    }
    let experiment = |e: &&dyn Experiment| json!({"name": e.name(), "summary": e.summary()});
    let run = |(name, through, failed, left)| json!({"run": name, "measured": through, "failed": failed, "left": left});
    Ok(json!({
        "experiments": experiments.iter().map(experiment).collect::<Vec<_>>(),
        "runs": runs.into_iter().map(run).collect::<Vec<_>>(),
    }))
}

/// Name of every run in `folder`, and how many cells are measured, failed and left.
fn runs(folder: &Path) -> Vec<(String, usize, usize, usize)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut runs: Vec<_> = entries
        .filter_map(|entry| {
            let run = lab::Run::read(&entry.path()).ok()?;
            let (through, failed, left) = run.tally();
            Some((entry.file_name().to_string_lossy().into_owned(), through, failed, left))
        })
        .collect();
    runs.sort();
    runs
}

fn run_cells(args: &RunArgs, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let experiment = lab::find(&args.experiment)?;
    let (size, config) = configuration(experiment, args)?;
    if args.print_config {
        terminal.line(config.trim_end())?;
        return Ok(json!({ "config": config }));
    }
    let plan = experiment.plan(&config)?;
    let home = Home::from_env()?;
    let folder = match &args.folder {
        Some(folder) => std::path::absolute(folder).with_context(|| folder.display().to_string())?,
        None => home.lab().join(Manifest::folder_name(experiment.name(), &size, &config)),
    };
    let part = || thread::available_parallelism().map_or(1, |cores| (cores.get() / args.jobs).max(1));
    let threads = args.threads.map_or_else(part, NonZeroUsize::get);
    Manifest::new(experiment, (&size, &config), &plan, (&home, threads), terminal)?.settle(&folder)?;
    let time = args.time.map(|budget| match budget {
        Budget::Seconds(seconds) => Duration::from_secs_f64(seconds),
        Budget::Steps(_) => unreachable!("a time is asked for"),
    });
    let launch = Processes { program: std::env::current_exe()?, threads };
    let done =
        lab::run(&folder, &launch, Limits { time, retry: args.retry, jobs: args.jobs }, terminal).map_err(|error| {
            match error {
                LabError::Cancelled => anyhow::anyhow!("{error} ({})", folder.display()),
                other => other.into(),
            }
        })?;
    let Progressed { through, failed, left } = done;
    terminal.line(format!("{through} cells measured, {failed} failed, {left} left: {}", folder.display()))?;
    if failed > 0 {
        terminal.line("what failed is measured again with --retry")?;
    }
    let page = written(lab::report(std::slice::from_ref(&folder), None)?, terminal)?;
    Ok(json!({
        "experiment": experiment.name(),
        "folder": folder,
        "measured": through,
        "failed": failed,
        "left": left,
        "report": page,
    }))
}

/// Where the configuration comes from, in a word, and the configuration.
fn configuration(experiment: &dyn Experiment, args: &RunArgs) -> anyhow::Result<(String, String)> {
    if let Some(file) = &args.config {
        let config = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        return Ok((stem.chars().map(plain).collect(), config));
    }
    let size = if args.full { Size::Full } else { Size::Quick };
    Ok((size.name().to_owned(), experiment.config(size).to_owned()))
}

fn report(runs: &[PathBuf], out: Option<&Path>, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let lab = Home::from_env()?.lab();
    let folder = |run: &PathBuf| if run.join("manifest.json").exists() { run.clone() } else { lab.join(run) };
    let folders: Vec<PathBuf> = runs.iter().map(folder).collect();
    let page = written(lab::report(&folders, out)?, terminal)?;
    Ok(json!({ "report": page }))
}

/// Says where a report is, and what is to be known of it.
fn written(Written { page, notes }: Written, terminal: &mut Terminal) -> anyhow::Result<PathBuf> {
    terminal.line(format!("report: {}", page.display()))?;
    notes.iter().try_for_each(|note| terminal.line(note))?;
    Ok(page)
}

/// Whether the user asked for an end, to a cell that tells its progress in JSON.
struct Quiet<'a>(&'a Terminal);

impl Report for Quiet<'_> {
    fn progress(&mut self, progress: Progress<'_>) {
        Silent.progress(progress);
    }

    fn note(&mut self, line: &str) {
        eprintln!("{line}");
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

fn cell(folder: &Path, key: &str, threads: Option<NonZeroUsize>, terminal: &mut Terminal) -> anyhow::Result<Value> {
    if let Some(threads) = threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global()?;
    }
    let mut tell = |told: Told| {
        let line = serde_json::to_string(&told).expect("what is told is plain data");
        let mut stdout = std::io::stdout().lock();
        let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        written.map_err(|error| LabError::Process(error.to_string()))
    };
    lab::measure_cell((Home::from_env()?, folder), key, &mut tell, &mut Quiet(terminal))?;
    Ok(json!({}))
}
