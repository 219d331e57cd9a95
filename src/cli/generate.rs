//! `socius generate`: one answer.

use super::{
    Terminal, answer,
    flags::{self, BaseFlags, SamplingFlags},
};
use crate::{
    agent::{Prompt, Question, SkillChoice},
    common::Message,
};
use anyhow::Context;
use serde_json::{Value, json};
use std::io::Read;

/// Answer a prompt, under the skill that fits it
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius generate 'Spell the word \"planet\" backwards, letters separated by spaces.'
  socius generate --skill none --temperature 0.7 --seed 3 'Write a haiku about rain.'
  socius generate --skill reverse@2 --json 'Reverse: stone' | tail -n 1 | jq .text
  socius generate --raw 'Once upon a time' --max-tokens 40
  cat question.txt | socius generate -")]
pub(super) struct Args {
    /// What to answer; - reads it from stdin
    prompt: String,
    /// Who answers: a skill (NAME, NAME@NUMBER, NAME@DIGEST), auto for the router's choice, none for the base
    #[arg(long, default_value = "auto", value_parser = flags::skill)]
    skill: SkillChoice,
    /// A system message before the prompt
    #[arg(long, conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the text as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// End the answer where this text begins; may be given several times
    #[arg(long)]
    stop: Vec<String>,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    base: BaseFlags,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let text = read(args.prompt)?;
    let prompt = match args.raw {
        true => Prompt::Raw(text),
        false => {
            let system = args.system.map(flags::system);
            Prompt::Chat(system.into_iter().chain([Message::user(text)]).collect())
        }
    };
    let session = args.base.open(terminal)?;
    let question = Question { prompt, skill: args.skill, sampling: args.sampling.sampling(), stop: args.stop };
    let answer = answer::stream(&session, &question, terminal)?;
    answer::who(&question, answer.generation.as_deref(), terminal);
    Ok(json!({
        "text": answer.text,
        "tokens": answer.tokens,
        "logprobs": answer.logprobs,
        "finish_reason": answer::finish_reason(answer.finish_reason),
        "skill": answer.generation.as_ref().map(|generation| &generation.manifest.name),
        "generation": answer.generation.as_ref().map(|generation| generation.id),
        "prompt_tokens": answer.prompt_tokens,
    }))
}

/// `-` is stdin, without its last line's end.
pub(super) fn read(text: String) -> anyhow::Result<String> {
    if text != "-" {
        return Ok(text);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("stdin is not UTF-8 text")?;
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    Ok(text)
}
