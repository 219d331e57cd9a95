//! `socius route`: which skill a prompt calls for, what each feature says of it, and what the others scored.

use super::{
    Terminal,
    flags::{self, BaseFlags},
    generate, text,
};
use crate::{
    agent::{Prompt, Routed, Routing},
    common::{Message, Seed},
    library::SkillName,
    router::{Route, RouteBy, Scored},
};
use anyhow::Context;
use serde_json::{Value, json};

/// Say which skill a prompt calls for, and why
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius route 'Reverse the letters: p l a n e t'
  socius route 'What is the capital of France?' --json | tail -n 1 | jq .choice
  socius route 'Reverse the letters: p l a n e t' --by bm25
  socius route 'Reverse the letters: p l a n e t' --reward 0

A score is how well the prompt fits, times how useful the skill has proved: 1 if it keeps what it promised when
it was published, less if its answers earned less. Among skills that score within the margin of the best, the
one whose words fit best is chosen. Decisions are logged in $SOCIUS_HOME/routing/decisions.jsonl, outcomes
beside it.")]
pub(super) struct Args {
    /// The prompt; - reads it from stdin
    prompt: String,
    /// What scores go by: ridge (what the base makes of the prompt), bm25 (its words) or arrow (the skills' weights)
    #[arg(long, default_value = "ridge")]
    by: RouteBy,
    /// Try little-known skills now and then, by draws from this seed, instead of going by what is expected of each
    #[arg(long, value_name = "SEED")]
    explore: Option<u64>,
    /// Record what the chosen skill's answer to this prompt earned, from 0 to 1
    #[arg(long, value_parser = flags::fraction)]
    reward: Option<f32>,
    #[command(flatten)]
    base: BaseFlags,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let prompt = Prompt::Chat(vec![Message::user(generate::read(args.prompt)?)]);
    let session = args.base.open(terminal)?;
    let ids = session.prompt_ids(&prompt)?;
    let routing = Routing { by: args.by, explore: args.explore.map(Seed::new) };
    let Routed { route, .. } = session.route_as(&[ids], routing)?.pop().context("one prompt gives one route")?;
    terminal.title(route.choice.as_ref().map_or("the base", SkillName::as_str))?;
    terminal.lines(text::table(&rows(&route)).into_iter().map(|row| format!("  {row}")))?;
    terminal.line(why(&route))?;
    if let Some(reward) = args.reward {
        let generation =
            route.generation.context("--reward: the base would answer this prompt, so no skill earned it")?;
        session.reward(generation, f64::from(reward))?;
        terminal.line("  its reward is recorded")?;
    }
    let mut value = json!(route);
    value["rewarded"] = json!(args.reward);
    Ok(value)
}

fn rows(route: &Route) -> Vec<[String; 5]> {
    let number = |value: f64| format!("{value:7.3}");
    let row = |s: &Scored| {
        let text = s.text.map_or_else(String::new, number);
        [s.skill.to_string(), number(s.score), number(s.prompt), text, number(s.usefulness)]
    };
    let titles = ["", "  score", " prompt", "  words", " useful"].map(str::to_owned);
    if route.scores.is_empty() {
        Vec::new()
    } else {
        [titles].into_iter().chain(route.scores.iter().map(row)).collect()
    }
}

fn why(route: &Route) -> String {
    let Route { threshold, margin, skills, .. } = route;
    let Some(lead) = route.lead else {
        return "  no skill that the router knows belongs to this base".to_owned();
    };
    let others = match skills.saturating_sub(route.scores.len()) {
        0 => String::new(),
        more => format!("; {more} more score less"),
    };
    match (&route.choice, route.contested) {
        (None, _) => format!("  a score of {threshold:.3} is needed; below it the base answers{others}"),
        (Some(_), true) => format!("  within {margin:.3} of the best score, the words fit this one better{others}"),
        (Some(_), false) => format!("  {lead:.3} above what comes next; a score of {threshold:.3} is needed{others}"),
    }
}
