//! `socius route`: which skill a prompt calls for, and what the others scored.

use super::{Terminal, flags::BaseFlags, generate, text};
use crate::{
    agent::{Prompt, Routed},
    common::Message,
    library::SkillName,
};
use anyhow::Context;
use serde_json::Value;

/// Say which skill a prompt calls for, and why
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius route 'Spell the word \"planet\" backwards, letters separated by spaces.'
  socius route 'What is the capital of France?' --json | tail -n 1 | jq .choice")]
pub(super) struct Args {
    /// The prompt; - reads it from stdin
    prompt: String,
    #[command(flatten)]
    base: BaseFlags,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let prompt = Prompt::Chat(vec![Message::user(generate::read(args.prompt)?)]);
    let session = args.base.open(terminal)?;
    let ids = session.prompt_ids(&prompt)?;
    let routed = session.route(&[ids])?.pop().context("one prompt gives one route")?;
    let Routed { route, .. } = routed;
    terminal.title(route.choice.as_ref().map_or("the base", SkillName::as_str))?;
    let rows = route.scores.iter().map(|scored| [scored.skill.to_string(), format!("{:7.3}", scored.score)]);
    terminal.lines(text::table(&rows.collect::<Vec<_>>()).into_iter().map(|row| format!("  {row}")))?;
    terminal.line(match route.scores.is_empty() {
        true => "  no skill that the router knows belongs to this base".to_owned(),
        false => format!("  a score of {:.3} is needed; below it the base answers", route.threshold),
    })?;
    Ok(serde_json::to_value(route)?)
}
