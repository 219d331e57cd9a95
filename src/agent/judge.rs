//! Being judged: greedy attempts at fixed items of a split, and their grades. Never trains.

use super::{AgentError, Base, Place, Play, measure::Grades, play};
use crate::{
    common::{Report, Seed},
    envs::{self, Environment, Form, Item, Query, Split},
    episode::Episode,
    lora::ActiveAdapter,
};
use std::sync::Arc;

/// Items of each form of question that is reported apart.
pub(super) const APART_ITEMS: usize = 64;

/// Items of a split, the same for every run and every skill, so that figures can be compared.
pub fn fixed_items(env: &dyn Environment, split: Split, level: u32, count: usize) -> Result<Vec<Item>, AgentError> {
    fixed_items_of(env, &Query::new(split, level), count)
}

/// As [`fixed_items`], of a form or in a phrasing of its own.
pub fn fixed_items_of(env: &dyn Environment, query: &Query, count: usize) -> Result<Vec<Item>, AgentError> {
    Ok(envs::items(env, query, Seed::new(0).purpose("judged items"), count)?)
}

/// Forms of question that are reported apart.
pub fn forms_apart(env: &dyn Environment) -> Vec<Form> {
    env.info().forms.iter().copied().filter(|form| *form != Form::Direct).collect()
}

/// One greedy attempt at each item.
pub fn judge(
    base: &Base,
    env: &dyn Environment,
    items: &[Item],
    adapter: Option<Arc<ActiveAdapter>>,
    report: &mut dyn Report,
) -> Result<(Grades, Vec<Episode>), AgentError> {
    let episodes: Vec<Episode> = play(base, &Play::greedy(&Place::all(env, items, adapter.as_ref())), report)?.concat();
    let grades = Grades {
        strict: episodes.iter().map(|episode| episode.strict).collect(),
        lenient: episodes.iter().map(|episode| episode.lenient).collect(),
    };
    Ok((grades, episodes))
}
