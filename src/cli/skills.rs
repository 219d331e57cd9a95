//! `socius skills`: what the library holds, in and out of it. Never samples, never trains.

use super::{Terminal, answer::versioned, flags::BaseFlags, text};
use crate::{
    agent::routing_features,
    common::{Home, Message, Report},
    envs,
    library::{Export, Generation, Import, Library, Listing, Score, SkillName, SkillRef, SkillSummary},
};
use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::path::PathBuf;

/// More prompts than this teach the router nothing new, and each is read by the base.
const PROMPTS_MAX: usize = 64;

/// List, inspect, export, import and remove skills
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius skills list
  socius skills show reverse
  socius skills export reverse ./reverse-lora")]
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
    /// List every generation of a skill, oldest first
    #[command(after_help = "\
Examples:
  socius skills history reverse")]
    History {
        /// The skill
        name: SkillName,
    },
    /// Write a skill's adapter for other programs
    #[command(after_help = "\
Examples:
  socius skills export reverse ./reverse-lora               for peft, vLLM and others
  socius skills export reverse ./reverse-lora --format gguf   for llama.cpp")]
    Export {
        /// NAME, NAME@NUMBER or NAME@DIGEST
        skill: SkillRef,
        /// The folder to write into; made if it is missing
        folder: PathBuf,
        /// PEFT's two files, or one GGUF
        #[arg(long, value_enum, default_value = "peft")]
        format: Format,
        #[command(flatten)]
        base: BaseFlags,
    },
    /// Make a skill of an adapter that another program trained
    #[command(after_help = "\
Examples:
  socius skills import ./my-peft-adapter --name summarise --prompts prompts.jsonl
  socius skills import adapter.gguf --name summarise --description 'one-line summaries'

The router knows a skill by prompts like those that it was trained on: ten or so, each a line
{\"prompt\": \"…\"} or {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}, …]}. Without them the
skill runs only when it is asked for by name.")]
    Import {
        /// A PEFT folder or a GGUF adapter
        path: PathBuf,
        /// What to call it; the file's or folder's name without
        #[arg(long)]
        name: Option<SkillName>,
        /// What it is for, in a sentence
        #[arg(long, default_value = "")]
        description: String,
        /// JSON lines of prompts that it is for: what the router knows it by (the first 64 count)
        #[arg(long, value_name = "FILE")]
        prompts: Option<PathBuf>,
        #[command(flatten)]
        base: BaseFlags,
    },
    /// Take a skill's name out of the library
    #[command(after_help = "\
Examples:
  socius skills remove reverse

Its generations stay on disk, for other skills may have been born from them.")]
    Remove {
        /// The skill
        name: SkillName,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Peft,
    Gguf,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let home = Home::from_env()?;
    let library = Library::open(&home.library())?;
    match args.action {
        Action::List => {
            let listing = library.list()?;
            show_listing(&listing, terminal)?;
            Ok(json!({ "skills": summaries(&listing), "damaged": damaged(&listing) }))
        }
        Action::Show { skill } => show(&*library.show(&skill)?, terminal),
        Action::History { name } => {
            let listing = library.history(&name)?;
            show_listing(&listing, terminal)?;
            Ok(json!({ "name": name, "generations": summaries(&listing), "damaged": damaged(&listing) }))
        }
        Action::Export { skill, folder, format, base } => {
            let generation = library.show(&skill)?;
            let files = match format {
                Format::Peft => library.export(&generation, &folder, Export::Peft)?,
                Format::Gguf => {
                    let base = base.open(terminal)?.base;
                    library.export(&generation, &folder, Export::Gguf { base: &base.id, spec: base.spec() })?
                }
            };
            terminal.lines(files.iter().map(|file| file.display().to_string()))?;
            Ok(json!({ "name": generation.manifest.name, "generation": generation.id, "files": files }))
        }
        Action::Import { path, name, description, prompts, base } => {
            let name = name.map_or_else(|| name_of(&path), Ok)?;
            let prompts = prompts.map(read_prompts).transpose()?;
            let base = base.open(terminal)?.base;
            let routing = prompts.map(|prompts| routing_features(&base, &prompts)).transpose()?;
            let unknown = routing.is_none();
            let generation = library.import(Import {
                path: &path,
                name,
                description,
                base: &base.id,
                spec: base.spec(),
                aliases: &base.aliases,
                routing,
                created: jiff::Timestamp::now(),
            })?;
            terminal.line(format!("{} is now a skill", versioned(&generation)))?;
            if unknown {
                terminal.note(
                    "the router does not know it: it runs when asked for by name (import it again with --prompts FILE)",
                );
            }
            Ok(json!(SkillSummary::from(&*generation)))
        }
        Action::Remove { name } => {
            library.remove(&name)?;
            terminal.line(format!("{name} is removed"))?;
            Ok(json!({ "removed": name }))
        }
    }
}

/// The prompts that the router is to know a skill by.
fn read_prompts(path: PathBuf) -> anyhow::Result<Vec<Vec<Message>>> {
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut prompts = envs::prompts(&text).with_context(|| path.display().to_string())?;
    prompts.truncate(PROMPTS_MAX);
    Ok(prompts)
}

fn name_of(path: &std::path::Path) -> anyhow::Result<SkillName> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    stem.parse().map_err(|error| anyhow::anyhow!("{error}; give one with --name"))
}

fn summaries(listing: &Listing) -> Vec<SkillSummary> {
    listing.generations.iter().map(|generation| SkillSummary::from(&**generation)).collect()
}

fn damaged(listing: &Listing) -> Vec<String> {
    listing.damaged.iter().map(ToString::to_string).collect()
}

fn show_listing(listing: &Listing, terminal: &mut Terminal) -> anyhow::Result<()> {
    let percent = |score: Option<f64>| score.map_or_else(|| "?".to_owned(), |score| format!("{:.1}", 100.0 * score));
    let row = |skill: SkillSummary| {
        let score = match (skill.before, skill.after) {
            (None, None) => "not measured".to_owned(),
            (before, after) => format!("{} → {} %", percent(before), percent(after)),
        };
        let digest = skill.generation.short();
        let created = skill.created.strftime("%Y-%m-%d %H:%M").to_string();
        [
            format!("{}@{}", skill.name, skill.number),
            digest,
            score,
            text::bytes(skill.bytes),
            created,
            skill.description,
        ]
    };
    let rows: Vec<_> = summaries(listing).into_iter().map(row).collect();
    match rows.is_empty() {
        true => terminal.line("no skills yet: `socius learn` makes one")?,
        false => terminal.lines(text::table(&rows))?,
    }
    for error in &listing.damaged {
        terminal.note(&error.to_string());
    }
    Ok(())
}

fn show(generation: &Generation, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let manifest = &generation.manifest;
    let provenance = &manifest.provenance;
    let cost = &provenance.cost;
    let env = provenance.env.as_ref().map(|env| format!("{} {}", env.name, env.version));
    let parents: Vec<_> = provenance.parents.iter().map(|parent| parent.short()).collect();
    terminal.title(&versioned(generation))?;
    let bytes: u64 = manifest.blobs.all().map(|(_, blob)| blob.bytes).sum();
    let mut rows = vec![
        ["generation", &generation.id.to_string()].map(str::to_owned),
        ["for", &manifest.description].map(str::to_owned),
        ["base", &format!("{} ({})", manifest.base.name, manifest.base.digest.short())].map(str::to_owned),
        ["adapter", &format!("rank {}, {} with all that belongs to it", manifest.rank, text::bytes(bytes))]
            .map(str::to_owned),
        ["created", &provenance.created.to_string()].map(str::to_owned),
        ["learner", &provenance.learner].map(str::to_owned),
    ];
    let mut add = |what: &str, value: Option<String>| rows.extend(value.map(|value| [what.to_owned(), value]));
    add("environment", env);
    add("seed", provenance.seed.map(|seed| seed.to_string()));
    add("parents", (!parents.is_empty()).then(|| parents.join(", ")));
    for (what, comparison) in [("validation", provenance.validation), ("test", provenance.test)] {
        add(what, comparison.map(|scores| format!("{} → {}", score(&scores.before), score(&scores.after))));
    }
    for (kind, scores) in &provenance.apart {
        add(kind, Some(format!("{} → {}", score(&scores.before), score(&scores.after))));
    }
    let spent = format!(
        "{} steps, {} tokens sampled, {} trained, {:.0} s",
        cost.steps, cost.sampled_tokens, cost.trained_tokens, cost.seconds
    );
    add("cost", (cost.steps > 0).then_some(spent));
    let router = if manifest.blobs.routing.is_some() { "knows it" } else { "does not know it: ask for it by name" };
    add("router", Some(router.to_owned()));
    add("gate", Some(provenance.gate.reasons.join("; ")));
    terminal.lines(text::table(&rows))?;
    let mut value = serde_json::to_value(manifest)?;
    value["generation"] = json!(generation.id);
    Ok(value)
}

fn score(score: &Score) -> String {
    let [low, high] = score.ci95.map(|bound| 100.0 * bound);
    format!("{:.1} % strict [{low:.1}, {high:.1}] on {}", 100.0 * score.strict, score.items)
}
