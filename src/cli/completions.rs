//! `socius completions`: what a shell needs to complete our commands.

use super::{Cli, Terminal};
use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::{Value, json};

/// Print a shell's completion script
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius completions bash > ~/.local/share/bash-completion/completions/socius
  socius completions zsh > \"${fpath[1]}/_socius\"
  socius completions fish > ~/.config/fish/completions/socius.fish")]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "socius", &mut script);
    let script = String::from_utf8(script)?;
    terminal.line(script.trim_end())?;
    Ok(json!({ "shell": args.shell.to_string(), "script": script }))
}
