//! `socius compress`: a skill from documents.

use super::{Terminal, answer::versioned, flags::BaseFlags, learn::TrainingFlags, text};
use crate::{
    agent::{self, Arm, Compressed, Compression, Method, PassedOver, Price, Quality, Recipe},
    envs,
    library::{Score, SkillName},
};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Make a skill of documents: it answers questions about them without reading them again
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius compress LICENSE-APACHE --name licence --title 'the Apache License 2.0'
  socius compress notes/ manual.txt --name manual --budget 10m
  socius compress chapter.txt --name chapter --rank 8 --json | tail -n 1 | jq .quality
  socius compress manual.txt --name manual --arm best

The text is cut into passages. Questions are made of its words, and the model writes some of its own and
answers them with the passage in context; an adapter learns to answer without, or keys and values that
stand before the prompt (--arm prefix), or both, of which the better is taken (--arm best). The report says how
questions that training never had are answered with the documents in context, by the skill and by
neither, what memory a query takes, and after how many queries the skill has cost less than reading the
documents again. docs/compress.md has the details. An interrupted run goes on when the same command is
given again. A candidate that the gate refuses is a finished run: exit code 0, with the reason.")]
pub(super) struct Args {
    /// Plain-text files, or folders of them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What the skill is called
    #[arg(long)]
    name: SkillName,
    /// What questions call the document; its file's name without
    #[arg(long)]
    title: Option<String>,
    /// Questions of the test that is reported
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    test_items: u32,
    /// adapter, prefix, or best
    #[arg(long, default_value = "adapter", value_parser = arm)]
    arm: Arm,
    #[command(flatten)]
    training: TrainingFlags,
    #[command(flatten)]
    base: BaseFlags,
}

fn arm(text: &str) -> Result<Arm, String> {
    let found = Arm::ALL.into_iter().find(|arm| arm.name() == text);
    found.ok_or_else(|| "adapter, prefix or best is expected".to_owned())
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let mut documents = envs::documents(&args.files)?;
    match (args.title, &mut documents[..]) {
        (Some(title), [document]) => document.title = title,
        (Some(_), several) => anyhow::bail!("--title names one document, and these are {}", several.len()),
        (None, _) => {}
    }
    let session = args.training.open(&args.base, terminal)?;
    let recipe = Recipe { method: Some(Method::Sft), test_items: args.test_items as usize, ..args.training.recipe() };
    let rank_given = args.training.rank_given();
    let compression =
        Compression { session: &session, documents: &documents, name: args.name, recipe, rank_given, arm: args.arm };
    let compressed = agent::compress(&compression, terminal)?;
    show(&compression, &compressed, terminal)?;
    Ok(to_json(&compression, &compressed))
}

fn show(compression: &Compression<'_>, compressed: &Compressed, terminal: &mut Terminal) -> anyhow::Result<()> {
    let Compressed { learned, quality, price, passages, arm, size, passed_over, written } = compressed;
    let named = |arm: Arm, size: usize| match arm {
        Arm::Prefix => format!("a prefix of {size} positions"),
        Arm::Adapter | Arm::Best => format!("an adapter of rank {size}"),
    };
    let what = named(*arm, *size);
    let titles: Vec<&str> = compression.documents.iter().map(|document| document.title.as_str()).collect();
    terminal.title(&format!(
        "{}: {} tokens in {passages} passages → {what}, {}",
        titles.join(", "),
        price.document_tokens,
        text::bytes(price.skill.bytes)
    ))?;
    let Quality { questions, in_context, passage_in_context, skill, neither, difference95, nats, .. } = quality;
    terminal.line(format!("  {questions} questions that training never had:"))?;
    let percent = |score: &Score| [format!("{:.1} %", 100.0 * score.lenient), format!("{:.1} %", 100.0 * score.strict)];
    let row = |name: &str, score: &Score, nats: String| {
        let [lenient, strict] = percent(score);
        [name.to_owned(), lenient, strict, nats]
    };
    let nat = |value: f64| format!("{value:.2}");
    let head = ["".to_owned(), "answered".into(), "to the letter".into(), "nats a token".into()];
    let rows = [
        head,
        row("    documents in context", in_context, nat(nats.in_context)),
        row("    their passage in context", passage_in_context, String::new()),
        row("    the skill", skill, nat(nats.skill)),
        row("    neither", neither, nat(nats.neither)),
    ];
    terminal.lines(text::table(&rows))?;
    let [low, high] = difference95.map(|bound| 100.0 * bound);
    terminal.line(format!("  skill less documents in context: {low:+.1} … {high:+.1} points (95 %)"))?;
    if let Some(own) = &quality.written {
        terminal.line(format!(
            "  the model's own answers to {} questions of its own, in nats a token: {:.2} with their passage in context, {:.2} by the skill, {:.2} by neither",
            own.questions, own.in_context, own.skill, own.neither
        ))?;
    }
    show_price(price, terminal)?;
    terminal.line(format!(
        "  {} steps, {:.0} s, {written} questions written, {} tokens trained",
        learned.steps, learned.seconds, learned.trained_tokens
    ))?;
    terminal.line(format!("  {}", learned.decision.reason))?;
    if let Some(PassedOver { arm, size, reason }) = passed_over {
        terminal.line(format!("  not taken: {}, {reason}", named(*arm, *size)))?;
    }
    match &learned.generation {
        Some(generation) => {
            terminal.line(format!("  skill {} ({})", versioned(generation), generation.id.short()))?;
        }
        None => terminal.line("  not admitted: no skill was published")?,
    }
    Ok(())
}

fn show_price(price: &Price, terminal: &mut Terminal) -> anyhow::Result<()> {
    let Price { in_context, skill, memory_ratio, .. } = price;
    terminal.line(format!(
        "  memory a query: {} of keys and values, or {} of skill: {memory_ratio:.1} times less",
        text::bytes(in_context.bytes),
        text::bytes(skill.bytes)
    ))?;
    let times = |queries: Option<u64>| queries.map_or_else(|| "never".to_owned(), |n| format!("after {n} queries"));
    terminal.line(format!(
        "  a query: {:.1} GFLOP and {:.2} s with the documents read again, {:.1} GFLOP and {:.2} s by the skill",
        in_context.flops / 1e9,
        in_context.seconds,
        skill.flops / 1e9,
        skill.seconds
    ))?;
    terminal.line(format!(
        "  the skill took {:.0} TFLOP and {:.0} s: it pays {} by operations, {} by time",
        price.flops / 1e12,
        price.seconds,
        times(price.pays_after_flops),
        times(price.pays_after_seconds)
    ))?;
    Ok(())
}

fn to_json(compression: &Compression<'_>, compressed: &Compressed) -> Value {
    let Compressed { learned, quality, price, passages, arm, size, passed_over, written } = compressed;
    let documents: Vec<&str> = compression.documents.iter().map(|document| document.title.as_str()).collect();
    json!({
        "skill": compression.name,
        "generation": learned.generation.as_ref().map(|generation| generation.id),
        "documents": documents,
        "passages": passages,
        "arm": arm,
        (if *arm == Arm::Prefix { "positions" } else { "rank" }): size,
        "passed_over": passed_over,
        "seed": compression.recipe.seed,
        "steps": learned.steps,
        "written_questions": written,
        "quality": quality,
        "price": price,
        "sampled_tokens": learned.sampled_tokens,
        "trained_tokens": learned.trained_tokens,
        "seconds": learned.seconds,
        "admitted": learned.decision.admitted,
        "reason": learned.decision.reason,
        "improvement95": learned.decision.improvement95,
    })
}
