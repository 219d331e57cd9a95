//! `socius envs`: what can be learned here, with an example of each level.

use super::Terminal;
use crate::envs::{self, Environment};
use serde_json::{Value, json};

/// List environments and their levels, each with an example
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius envs
  socius envs reverse
  socius envs --json | tail -n 1 | jq -r '.envs[].name'")]
pub(super) struct Args {
    /// Only this one
    name: Option<String>,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let found = args.name.map(|name| envs::find(&name)).transpose()?;
    let chosen = found.map_or_else(envs::all, |env| vec![env]);
    let mut described = Vec::new();
    for env in &chosen {
        described.push(describe(&**env, terminal)?);
    }
    Ok(json!({ "envs": described }))
}

fn describe(env: &dyn Environment, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let info = env.info();
    terminal.title(&info.name)?;
    terminal.line(format!("  {}", info.description))?;
    let mut levels = Vec::new();
    for (number, level) in (1..).zip(&info.levels) {
        let example = envs::example(env, number)?;
        let baseline = level
            .baseline
            .map_or_else(String::new, |share| format!(" (a constant answer is right in {:.0} %)", 100.0 * share));
        terminal.line(format!("  level {number}: {}{baseline}", level.description))?;
        terminal.lines(example.prompt.lines().map(|line| format!("    > {line}")))?;
        let reply = example.reply.iter().flat_map(|reply| reply.lines());
        terminal.lines(reply.map(|line| format!("    < {line}")))?;
        levels.push(json!({
            "level": number,
            "description": level.description,
            "turns": level.turns_max,
            "baseline": level.baseline,
            "prompt": example.prompt,
            "reply": example.reply,
        }));
    }
    terminal.line("")?;
    Ok(json!({
        "name": info.name,
        "version": info.version,
        "description": info.description,
        "wordings": info.wordings.count(),
        "forms": info.forms,
        "levels": levels,
    }))
}
