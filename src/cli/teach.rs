//! `socius teach`: a skill from a file of examples.

use super::{
    Terminal,
    flags::BaseFlags,
    learn::{self, TrainingFlags},
};
use crate::{
    agent::{Lesson, Method, Recipe},
    envs::Examples,
    library::{SkillName, SkillRef},
};
use anyhow::Context;
use serde_json::Value;
use std::path::PathBuf;

/// Make a skill of examples
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius teach examples.jsonl --name support
  socius teach more.jsonl --name support --parent support --steps 30

Each line is one example: {\"prompt\": \"…\", \"completion\": \"…\"}, or {\"messages\": [{\"role\": \"user\",
\"content\": \"…\"}, …]} that ends with the assistant's reply. Of 60 examples or more some are held out
to judge by; fewer are all learned, and judged by recall.")]
pub(super) struct Args {
    /// JSON lines
    file: PathBuf,
    /// What the skill is called
    #[arg(long)]
    name: SkillName,
    /// A skill to start from, instead of the base
    #[arg(long, value_name = "SKILL")]
    parent: Option<SkillRef>,
    #[command(flatten)]
    training: TrainingFlags,
    #[command(flatten)]
    base: BaseFlags,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let file = args.file.display().to_string();
    let text = std::fs::read_to_string(&args.file).with_context(|| file.clone())?;
    let env = Examples::parse(args.name.as_str(), &text).context(file)?;
    let recipe = Recipe { method: Some(Method::Sft), ..args.training.recipe() };
    let session = args.training.open(&args.base, terminal)?;
    let parent = args.parent.map(|parent| session.library.show(&parent)).transpose()?;
    learn::live(
        &session,
        &Lesson { base: &session.base, env: &env, recipe, name: args.name, parent, course: None },
        terminal,
    )
}
