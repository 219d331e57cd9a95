//! `socius models`: which checkpoints are known, and which are here.

use super::{Terminal, text};
use crate::{
    common::Home,
    fetch::{self, Card, LocalModel},
};
use serde_json::{Value, json};

/// List known and present checkpoints
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius models
  socius models --json | tail -n 1 | jq -r '.models[] | select(.present) | .path'")]
pub(super) struct Args {}

pub(super) fn run(_: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let home = Home::from_env()?;
    let present = fetch::present(&home);
    let absent = || fetch::known().iter().filter(|card| present.iter().all(|model| model.name != card.name));
    let rows: Vec<_> = present.iter().map(present_row).chain(absent().map(absent_row)).collect();
    terminal.lines(text::table(&rows))?;
    let models: Vec<_> = present.iter().map(present_json).chain(absent().map(absent_json)).collect();
    Ok(json!({ "models": models, "default": fetch::DEFAULT_MODEL, "home": home.root() }))
}

fn present_row(model: &LocalModel) -> [String; 4] {
    let description = model.card.map_or_else(|| model.source.clone(), |card| card.description.clone());
    [model.name.clone(), "present".to_owned(), text::bytes(model.bytes), description]
}

fn absent_row(card: &Card) -> [String; 4] {
    [card.name.clone(), "not fetched".to_owned(), text::bytes(card.bytes()), card.description.clone()]
}

fn present_json(model: &LocalModel) -> Value {
    json!({
        "name": model.name,
        "present": true,
        "bytes": model.bytes,
        "path": model.path,
        "digest": model.digest,
        "source": model.source,
        "description": model.card.map(|card| &card.description),
        "licence": model.card.map(|card| &card.licence),
    })
}

fn absent_json(card: &Card) -> Value {
    json!({
        "name": card.name,
        "present": false,
        "bytes": card.bytes(),
        "description": card.description,
        "licence": card.licence,
    })
}
