//! `socius score`: how probable a given completion is.

use super::{
    Terminal,
    flags::{self, BaseFlags},
    generate, text,
};
use crate::{
    agent::{Prompt, SkillChoice},
    common::Message,
};
use serde_json::{Value, json};

/// Log-probabilities of a given completion
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius score --prompt 'What is the capital of France?' --completion ' Paris'
  socius score --raw --prompt 'The capital of France is' --completion ' Paris' --json | tail -n 1 | jq .sum
  socius score --prompt 'Reverse: stone' --completion 'e n o t s' --skill reverse --dtype f32")]
pub(super) struct Args {
    /// What comes before; - reads it from stdin
    #[arg(long)]
    prompt: String,
    /// What is scored
    #[arg(long)]
    completion: String,
    /// Under a skill, the router's choice (auto) or the base (none)
    #[arg(long, default_value = "none", value_parser = flags::skill)]
    skill: SkillChoice,
    /// Take the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    base: BaseFlags,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let prompt = generate::read(args.prompt)?;
    let prompt = if args.raw { Prompt::Raw(prompt) } else { Prompt::Chat(vec![Message::user(prompt)]) };
    let session = args.base.open(terminal)?;
    let scored = session.score(&prompt, &args.completion, &args.skill)?;
    let sum: f64 = scored.logprobs.iter().copied().map(f64::from).sum();
    let rows = scored.logprobs.iter().zip(&scored.texts).map(|(p, text)| [format!("{p:9.4}"), format!("{text:?}")]);
    terminal.lines(text::table(&rows.collect::<Vec<_>>()))?;
    terminal.line(format!("{sum:9.4}  nats in all, over {} tokens", scored.tokens.len()))?;
    Ok(json!({ "tokens": scored.tokens, "logprobs": scored.logprobs, "sum": sum, "texts": scored.texts }))
}
