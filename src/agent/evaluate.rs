//! Measuring who is there: a skill, the routed skills or the base, on fixed items of an environment. Never trains.

use super::{AgentError, Grades, Routing, Session, SkillChoice, fixed_items_of, judge};
use crate::{
    common::{Digest, Report},
    envs::{Environment, Item, Query},
    library::Generation,
};
use std::{collections::BTreeMap, sync::Arc};

/// Grades, and who earned them.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// In item order.
    pub grades: Grades,
    /// Number of items that each skill (or `base`) answered.
    pub answered_by: BTreeMap<String, usize>,
}

/// One greedy attempt at each of up to `count` fixed items, each by whoever `skill` says.
pub fn evaluate(
    session: &Session,
    env: &dyn Environment,
    query: &Query,
    count: usize,
    skill: &SkillChoice,
    report: &mut dyn Report,
) -> Result<Evaluation, AgentError> {
    let items = fixed_items_of(env, query, count)?;
    let mut teams: BTreeMap<Option<Digest>, (Option<Arc<Generation>>, Vec<usize>)> = BTreeMap::new();
    for (place, chosen) in who_answers(session, env, &items, skill)?.into_iter().enumerate() {
        let id = chosen.as_ref().map(|generation| generation.id);
        teams.entry(id).or_insert_with(|| (chosen, Vec::new())).1.push(place);
    }
    let mut grades = Grades { strict: vec![false; items.len()], lenient: vec![false; items.len()] };
    let mut answered_by = BTreeMap::new();
    for (generation, places) in teams.into_values() {
        let own: Vec<Item> = places.iter().map(|&place| items[place].clone()).collect();
        let adapter = generation.as_ref().map(|generation| session.adapter(generation)).transpose()?;
        let (found, _) = judge(&session.base, env, &own, adapter, report)?;
        for (i, &place) in places.iter().enumerate() {
            (grades.strict[place], grades.lenient[place]) = (found.strict[i], found.lenient[i]);
        }
        let name = generation.map_or_else(|| "base".to_owned(), |generation| generation.manifest.name.to_string());
        *answered_by.entry(name).or_default() += places.len();
    }
    Ok(Evaluation { grades, answered_by })
}

/// Who answers each item. The router sees the first prompt alone: no task id, and nothing that comes later.
fn who_answers(
    session: &Session,
    env: &dyn Environment,
    items: &[Item],
    skill: &SkillChoice,
) -> Result<Vec<Option<Arc<Generation>>>, AgentError> {
    let routing = match skill {
        SkillChoice::Auto => Routing::default(),
        SkillChoice::Routed(routing) => *routing,
        SkillChoice::Named(_) | SkillChoice::None => return Ok(vec![session.choose(skill, &[])?; items.len()]),
    };
    let prompts = items.iter().map(|item| session.base.prompt_ids(env.start(item)?.observe()));
    let routed = session.route_as(&prompts.collect::<Result<Vec<_>, AgentError>>()?, routing)?;
    Ok(routed.into_iter().map(|routed| routed.choice).collect())
}
