//! The command line: raw flags → checked values → one call into the modules below → text or JSON. Never computes anything itself.
//!
//! One file a command: its flags and its `run`, which returns what `--json` prints. Exit codes: 0 done, 1 the work failed (one
//! line on stderr), 2 usage.

mod answer;
mod bench;
mod bench_route;
mod chat;
mod completions;
mod compress;
mod doctor;
mod envs;
mod eval;
mod flags;
mod generate;
mod interrupt;
mod lab;
mod learn;
mod models;
mod pull;
mod roofline;
mod route;
mod run;
mod score;
mod serve;
mod skills;
mod teach;
mod terminal;
mod text;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use std::{io, process::ExitCode};
use terminal::Terminal;

/// Many small learners over one frozen transformer: each acts, is graded, trains a LoRA at test time; what proves itself is kept.
#[derive(Parser)]
#[command(name = "socius", version, propagate_version = true, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object as the last line of stdout
    #[arg(long, global = true)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  socius learn                             learn the default environment, with the default model
  socius envs                              what else can be learned here
  socius generate 'Reverse: planet'        answer, under the skill that fits
  socius skills list                       what has been learned

Data lives in $SOCIUS_HOME, else in the platform's data folder.";

#[derive(Subcommand)]
enum Command {
    Learn(learn::Args),
    Teach(teach::Args),
    Compress(compress::Args),
    Run(run::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    Serve(serve::Args),
    Score(score::Args),
    Route(route::Args),
    Eval(eval::Args),
    Envs(envs::Args),
    Skills(skills::Args),
    Models(models::Args),
    Pull(pull::Args),
    Lab(lab::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
}

impl Command {
    fn run(self, terminal: &mut Terminal) -> anyhow::Result<Value> {
        match self {
            Self::Learn(args) => learn::run(args, terminal),
            Self::Teach(args) => teach::run(args, terminal),
            Self::Compress(args) => compress::run(args, terminal),
            Self::Run(args) => run::run(args, terminal),
            Self::Generate(args) => generate::run(args, terminal),
            Self::Chat(args) => chat::run(args, terminal),
            Self::Serve(args) => serve::run(args, terminal),
            Self::Score(args) => score::run(args, terminal),
            Self::Route(args) => route::run(args, terminal),
            Self::Eval(args) => eval::run(args, terminal),
            Self::Envs(args) => envs::run(args, terminal),
            Self::Skills(args) => skills::run(args, terminal),
            Self::Models(args) => models::run(args, terminal),
            Self::Pull(args) => pull::run(args, terminal),
            Self::Lab(args) => lab::run(args, terminal),
            Self::Bench(args) => bench::run(args, terminal),
            Self::Doctor(args) => doctor::run(args, terminal),
            Self::Completions(args) => completions::run(args, terminal),
        }
    }
}

/// Parses the process's arguments, runs the command and says how it went.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    interrupt::install();
    let mut terminal = Terminal::new(cli.json);
    let result = cli.command.run(&mut terminal).and_then(|value| Ok(terminal.finish(&value)?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if reader_left(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let message = one_line(&error);
            terminal.error(&message);
            let mut value = error.downcast_ref::<Unwell>().map_or_else(|| json!({}), |found| found.value.clone());
            value["error"] = json!(message);
            // The reader may be gone; the exit code says enough.
            let _ = terminal.finish(&value);
            ExitCode::FAILURE
        }
    }
}

/// Work that was done and found something wrong: a failure with a result.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Unwell {
    message: String,
    value: Value,
}

/// Whether whoever read our output has closed it, as `| head` does: no failure of ours.
fn reader_left(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The error and its causes in one line, without repeating a cause that the error already quotes.
fn one_line(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !message.contains(&cause) {
            let separator = if message.is_empty() { "" } else { ": " };
            message = format!("{message}{separator}{cause}");
        }
    }
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent_and_every_command_has_examples() {
        let mut commands = vec![Cli::command()];
        Cli::command().debug_assert();
        while let Some(command) = commands.pop() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("socius"), "`{}` has no example in its help", command.get_name());
            commands.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn an_error_is_one_line_that_repeats_nothing() {
        let error = anyhow::anyhow!("disk\n  full").context("a.gguf: disk\n  full").context("pull");
        assert_eq!(one_line(&error), "pull: a.gguf: disk full");
    }
}
