//! Moving names, and making generations of others: merge and replay. Never judges them.

use crate::{
    agent::{self, Course, MergeRequest, Replayed, Session},
    cli::{
        Terminal, Unwell,
        answer::versioned,
        flags::{BaseFlags, OutlineFlags},
        learn,
    },
    envs::{self, Documents, Environment, Examples},
    library::{Evidence, Finding, Library, Move, SkillName, SkillRef, SkillSummary},
    lora::Merge,
};
use anyhow::Context;
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::PathBuf;

/// What is merged, and how.
#[derive(clap::Args)]
pub(super) struct MergeArgs {
    /// Two skills or more: NAME, NAME@NUMBER or NAME@DIGEST
    #[arg(required = true, num_args = 2..)]
    skills: Vec<SkillRef>,
    /// What the merged skill is called
    #[arg(long)]
    name: SkillName,
    /// How deltas become one
    #[arg(long, value_enum, default_value = "linear")]
    method: Method,
    /// Share of each delta's elements that ties and dare keep [default: 0.2 for ties, 0.5 for dare]
    #[arg(long)]
    density: Option<f64>,
    /// Rank of the outcome; the largest of the parents' without
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    rank: Option<u32>,
    /// The skills' shares, in their order; equal without
    #[arg(long, value_delimiter = ',')]
    weights: Vec<f64>,
    /// Factor on the outcome: 1 averages, the number of skills adds up
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Of what dare drops
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Let the router know it by its parents' prompts: for when the parents are to be removed
    #[arg(long)]
    routed: bool,
    #[command(flatten)]
    base: OutlineFlags,
}

#[derive(Clone, Copy, ValueEnum)]
enum Method {
    Linear,
    Ties,
    Dare,
}

pub(super) fn merge(library: &Library, args: MergeArgs, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let merge = match args.method {
        Method::Linear if args.density.is_some() => anyhow::bail!("--density is of ties and dare: linear keeps all"),
        Method::Linear => Merge::Linear,
        // The share that the paper found to be enough.
        Method::Ties => Merge::Ties { density: args.density.unwrap_or(0.2) },
        Method::Dare => Merge::Dare { density: args.density.unwrap_or(0.5) },
    };
    let weights = match args.weights.len() {
        0 => vec![1.0; args.skills.len()],
        count if count == args.skills.len() => args.weights,
        count => anyhow::bail!("--weights has {count} numbers for {} skills: one each is expected", args.skills.len()),
    };
    let parents = args.skills.iter().map(|skill| library.show(skill)).collect::<Result<Vec<_>, _>>()?;
    let base = args.base.outline(terminal)?;
    let request = MergeRequest {
        name: args.name,
        parents,
        weights,
        merge,
        rank: args.rank.map(|rank| rank as usize),
        scale: args.scale,
        seed: args.seed,
        routed: args.routed,
    };
    let (generation, kept) = agent::merge(library, &base, &request)?;
    terminal.line(format!("{} is now a skill", versioned(&generation)))?;
    terminal.line(format!("rank {} keeps {:.1} % of the merged delta", generation.manifest.rank, 100.0 * kept))?;
    let mut value = json!(SkillSummary::from(&*generation));
    value["kept"] = json!(kept);
    Ok(value)
}

pub(super) fn replay(
    skill: &SkillRef,
    (examples, documents): (Option<PathBuf>, &[PathBuf]),
    base: &BaseFlags,
    terminal: &mut Terminal,
) -> anyhow::Result<Value> {
    let session = base.open(terminal)?;
    let generation = session.library.show(skill)?;
    let provenance = &generation.manifest.provenance;
    let mut course = None;
    let env: Option<Box<dyn Environment>> = match (&examples, &provenance.env) {
        (None, Some(env)) if !documents.is_empty() => {
            let (env, studied) = studied(&session, documents, (&env.name, provenance.seed), terminal)?;
            course = Some(studied);
            Some(Box::new(env))
        }
        (Some(path), _) => {
            let file = path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(|| file.clone())?;
            Some(Box::new(Examples::parse(generation.manifest.name.as_str(), &text).context(file)?))
        }
        // Said again with what would be right.
        (None, Some(_)) if provenance.hyper_parameters.contains_key("course") => None,
        (None, Some(env)) => Some(learn::environment(&env.name, None)?),
        (None, None) => None,
    };
    let Replayed { steps, seconds, adapter, episodes, recorded } =
        agent::replay(&session, &generation, env.as_deref(), course.as_ref(), terminal)?;
    let identical = adapter == recorded.0 && episodes == recorded.1;
    let word = |same: bool| if same { "the same bytes" } else { "OTHER bytes" };
    terminal.line(format!(
        "{}: {steps} steps again in {seconds:.0} s: adapter {}, episodes {}",
        versioned(&generation),
        word(adapter == recorded.0),
        word(episodes == recorded.1)
    ))?;
    let value = json!({
        "name": generation.manifest.name, "generation": generation.id, "steps": steps, "seconds": seconds,
        "identical": identical, "adapter": adapter, "recorded": recorded.0,
    });
    match identical {
        true => Ok(value),
        false => {
            let message = format!("{} came out as other bytes than recorded", versioned(&generation));
            Err(Unwell { message, value }.into())
        }
    }
}

/// What a skill was studied from. One document may have been called otherwise than its file: the recorded name is its title.
fn studied(
    session: &Session,
    paths: &[PathBuf],
    (name, seed): (&str, Option<u64>),
    terminal: &mut Terminal,
) -> anyhow::Result<(Documents, Course)> {
    let mut documents = envs::documents(paths)?;
    if let [document] = &mut documents[..] {
        document.title = name.to_owned();
    }
    Ok(agent::restudy(session, &documents, seed.unwrap_or(0), terminal)?)
}

pub(super) fn moved(entry: &Move, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let to = entry.to.context("a promoted name stands for something")?;
    terminal.line(format!("{} is now generation {} ({})", entry.name, to.number, to.generation.short()))?;
    Ok(json!({ "name": entry.name, "generation": to.generation, "number": to.number, "from": entry.from }))
}

pub(super) fn note(
    library: &Library,
    skill: &SkillRef,
    text: String,
    terminal: &mut Terminal,
) -> anyhow::Result<Value> {
    let generation = library.show(skill)?;
    let evidence = Evidence::new(generation.id, Finding::Note { text }, jiff::Timestamp::now());
    library.attach(evidence.clone())?;
    terminal.line(format!("noted about {}", versioned(&generation)))?;
    Ok(json!(evidence))
}

pub(super) fn remove(library: &Library, name: &SkillName, terminal: &mut Terminal) -> anyhow::Result<Value> {
    library.remove(name)?;
    terminal.line(format!("{name} is removed"))?;
    Ok(json!({ "removed": name }))
}
