//! `socius skills`: what the library holds, in and out of it. Never samples; trains only to replay.

mod files;
mod health;
mod names;
mod show;

use super::{
    Terminal,
    flags::{BaseFlags, OutlineFlags},
};
use crate::{
    common::Home,
    library::{Library, SkillName, SkillRef},
};
use clap::{Subcommand, ValueEnum};
use serde_json::Value;
use std::path::PathBuf;

/// List, inspect, move, merge, check, export and import skills
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius skills list
  socius skills show reverse
  socius skills export reverse ./reverse-lora
  socius skills rollback reverse

A generation is never changed, and a name's history never rewritten: names move, and every move is in the history.")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the current generation of every skill
    #[command(after_help = "\
Examples:
  socius skills list
  socius skills list --json | tail -n 1 | jq -r '.skills[].name'")]
    List,
    /// Show where a skill comes from, what it cost and what it is worth
    #[command(after_help = "\
Examples:
  socius skills show reverse
  socius skills show reverse@2
  socius skills show reverse@1f00ba")]
    Show {
        /// NAME, NAME@NUMBER or NAME@DIGEST
        skill: SkillRef,
    },
    /// List every generation of a skill, and where its name has moved
    #[command(after_help = "\
Examples:
  socius skills history reverse")]
    History {
        /// The skill
        name: SkillName,
    },
    /// Find skills by words, or by prompts like those of another
    #[command(after_help = "\
Examples:
  socius skills search letters
  socius skills search --like reverse

Every word must be a part of the name, environment, description or notes.")]
    Search {
        /// Words
        #[arg(required_unless_present = "like")]
        text: Vec<String>,
        /// A skill: others are ranked by how similar the base finds their prompts
        #[arg(long, value_name = "SKILL", conflicts_with = "text")]
        like: Option<SkillRef>,
    },
    /// Compare two generations: settings, scores, and the adapters site by site
    #[command(after_help = "\
Examples:
  socius skills diff reverse@1 reverse@2
  socius skills diff reverse json --json | tail -n 1 | jq '.sites[0]'")]
    Diff {
        /// NAME, NAME@NUMBER or NAME@DIGEST
        one: SkillRef,
        /// The same
        other: SkillRef,
        #[command(flatten)]
        base: OutlineFlags,
    },
    /// Write something down about a generation
    #[command(after_help = "\
Examples:
  socius skills note reverse 'also turns words of other alphabets around'")]
    Note {
        /// NAME, NAME@NUMBER or NAME@DIGEST
        skill: SkillRef,
        /// What `skills show` will say and `skills search` will find
        text: String,
    },
    /// Move a name to a generation of its history
    #[command(after_help = "\
Examples:
  socius skills promote reverse 3")]
    Promote {
        /// The skill
        name: SkillName,
        /// The generation's number
        generation: u32,
    },
    /// Move a name back to an earlier generation
    #[command(after_help = "\
Examples:
  socius skills rollback reverse       to the generation before the one that it stands for
  socius skills rollback reverse 1")]
    Rollback {
        /// The skill
        name: SkillName,
        /// The generation's number; the one before without
        generation: Option<u32>,
    },
    /// Make one skill of several
    #[command(after_help = "\
Examples:
  socius skills merge reverse json --name both
  socius skills merge reverse json cipher --name all --method ties --density 0.2 --rank 32
  socius skills merge reverse json --weights 2,1 --name mostly-reverse

linear averages the adapters' deltas; ties keeps the largest elements of each and averages those that agree in sign
(arXiv 2306.01708); dare drops random elements and rescales the others (arXiv 2311.03099). The outcome is cut back to
the rank by its singular values. The router does not know a merged skill, whose prompts are those of its parents.")]
    Merge(names::MergeArgs),
    /// Learn a generation again from its recorded settings, and compare the bytes
    #[command(after_help = "\
Examples:
  socius skills replay reverse
  socius skills replay support --examples examples.jsonl     a skill of `socius teach`
  socius skills replay licence --document LICENSE-APACHE     a skill of `socius compress`

Exit code 1 if the bytes differ: another machine, another version, or other --dtype or --weights than were recorded.")]
    Replay {
        /// NAME, NAME@NUMBER or NAME@DIGEST
        skill: SkillRef,
        /// The file that a taught skill was taught from
        #[arg(long, value_name = "FILE")]
        examples: Option<PathBuf>,
        /// The files or folders that a skill was compressed from, in the same order
        #[arg(long = "document", value_name = "FILE", conflicts_with = "examples")]
        documents: Vec<PathBuf>,
        #[command(flatten)]
        base: BaseFlags,
    },
    /// Read everything stored; put aside what is damaged
    #[command(after_help = "\
Examples:
  socius skills verify
  socius skills verify --rebuild     makes the index again from the objects first

Exit code 1 if something is wrong. Damaged generations are left out by the router until they are mended.")]
    Verify {
        /// Make the index again from the objects alone
        #[arg(long)]
        rebuild: bool,
    },
    /// Remove what no skill needs any more
    #[command(after_help = "\
Examples:
  socius skills gc --dry-run
  socius skills gc

What names that were removed leave behind goes, unless another skill was born from it. Generations that a name has
left stay: it may be rolled back to them.")]
    Gc {
        /// Only count
        #[arg(long)]
        dry_run: bool,
    },
    /// Write a skill for other programs, or with all that is known of it into one file
    #[command(after_help = "\
Examples:
  socius skills export reverse ./reverse-lora                   for peft, vLLM and others
  socius skills export reverse ./reverse-lora --format gguf     for llama.cpp
  socius skills export reverse . --format archive               reverse.socius, with history and evidence")]
    Export {
        /// NAME, NAME@NUMBER or NAME@DIGEST; an archive holds the whole history of NAME
        skill: SkillRef,
        /// The folder to write into; made if it is missing
        folder: PathBuf,
        /// PEFT's two files, one GGUF, or an archive
        #[arg(long, value_enum, default_value = "peft")]
        format: Format,
        #[command(flatten)]
        base: OutlineFlags,
    },
    /// Write all skills into one archive
    #[command(after_help = "\
Examples:
  socius skills bundle library.socius
  socius skills bundle some.socius reverse json")]
    Bundle {
        /// The file
        file: PathBuf,
        /// Only these
        names: Vec<SkillName>,
    },
    /// Take in an archive, or make a skill of an adapter that another program trained
    #[command(after_help = "\
Examples:
  socius skills import reverse.socius
  socius skills import ./my-peft-adapter --name summarise --prompts prompts.jsonl
  socius skills import adapter.gguf --name summarise --description 'one-line summaries'

The router knows a skill by prompts like those that it was trained on: ten or so, each a line
{\"prompt\": \"…\"} or {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}, …]}. Without them the
skill runs only when it is asked for by name. An archive brings its own, and needs no base.")]
    Import(files::ImportArgs),
    /// Put a skill on the hub: its PEFT files, its archive and a model card
    #[command(after_help = "\
Examples:
  socius skills push reverse me/smollm2-reverse-lora
  socius skills push reverse me/smollm2-reverse-lora --private

The token is $HF_TOKEN, or the one of `hf auth login`. The repository is made if it is missing.")]
    Push {
        /// NAME, NAME@NUMBER or NAME@DIGEST
        skill: SkillRef,
        /// The hub's repository, owner/name
        repository: String,
        /// Make the repository private, if it is made
        #[arg(long)]
        private: bool,
    },
    /// Fetch a skill from the hub: an archive of ours, or an adapter in PEFT's form
    #[command(after_help = "\
Examples:
  socius skills pull me/smollm2-reverse-lora
  socius skills pull someone/adapter --name theirs --prompts prompts.jsonl")]
    Pull(files::PullArgs),
    /// Take a skill's name out of the library
    #[command(after_help = "\
Examples:
  socius skills remove reverse

Its generations stay on disk until `socius skills gc`, for other skills may have been born from them.")]
    Remove {
        /// The skill
        name: SkillName,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Peft,
    Gguf,
    Archive,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let home = Home::from_env()?;
    if let Action::Verify { rebuild } = args.action {
        // The index may be what is damaged.
        return health::verify(&home, rebuild, terminal);
    }
    let library = Library::open(&home.library())?;
    match args.action {
        Action::List => show::list(&library, terminal),
        Action::Show { skill } => show::show(&library, &skill, terminal),
        Action::History { name } => show::history(&library, &name, terminal),
        Action::Search { text, like } => show::search(&library, &text.join(" "), like.as_ref(), terminal),
        Action::Diff { one, other, base } => show::diff(&library, [&one, &other], &base, terminal),
        Action::Note { skill, text } => names::note(&library, &skill, text, terminal),
        Action::Promote { name, generation } => names::moved(&library.promote(&name, generation)?, terminal),
        Action::Rollback { name, generation } => names::moved(&library.rollback(&name, generation)?, terminal),
        Action::Merge(args) => names::merge(&library, args, terminal),
        Action::Replay { skill, examples, documents, base } => {
            names::replay(&skill, (examples, &documents), &base, terminal)
        }
        Action::Verify { .. } => unreachable!("it is done above"),
        Action::Gc { dry_run } => health::collect(&library, dry_run, terminal),
        Action::Export { skill, folder, format, base } => {
            files::export(&library, &files::Out { skill, folder, format, base }, terminal)
        }
        Action::Bundle { file, names } => files::bundle(&library, &file, &names, terminal),
        Action::Import(args) => files::import(&library, args, terminal),
        Action::Push { skill, repository, private } => files::push(&library, &skill, &repository, private, terminal),
        Action::Pull(args) => files::pull(&library, args, terminal),
        Action::Remove { name } => names::remove(&library, &name, terminal),
    }
}
