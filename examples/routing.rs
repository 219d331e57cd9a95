//! Measures `route` over the skills of a home: prompts of their test splits, prompts of built-in environments that no skill was
//! learned in, and `benches/none.txt`. Prints the table of docs/results.md. Never learns.
//!
//!     SOCIUS_HOME=… cargo run --release --example routing [PROMPTS [NONE.txt]]
//!
//! `PROMPTS` (default 500) are spread over the environments of the skills. A prompt is routed right if the choice is a skill of its
//! environment; of several skills learned in one environment, any is.

use anyhow::{Context, ensure};
use socius::{
    agent::{BaseChoice, Prompt, Session, wilson},
    common::{Home, Message, Seed, Silent},
    envs::{self, Query, Split},
    fetch,
};
use socius_models::{DeviceChoice, Dtype};
use std::collections::BTreeMap;

/// What is asked, and the environment whose skill should answer; none for the base.
struct Asked {
    text: String,
    env: Option<String>,
    held_out: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted: usize = arguments.first().map_or(Ok(500), |n| n.parse()).context("PROMPTS is a number")?;
    let none = arguments.get(1).map_or("benches/none.txt", String::as_str);
    let none = std::fs::read_to_string(none).with_context(|| none.to_owned())?;
    let choice = BaseChoice { model: fetch::DEFAULT_MODEL.into(), device: DeviceChoice::Auto, dtype: Dtype::Bf16 };
    let session = Session::open(&choice, Home::from_env()?, &mut Silent)?;
    let learned = learned(&session)?;
    ensure!(
        !learned.is_empty(),
        "no skill in this home was learned in a built-in environment: `socius learn` one first"
    );

    let mut skills = Vec::new();
    for (i, (env, (_, level))) in learned.iter().enumerate() {
        // What an environment of few questions lacks, the others make up for.
        let share = (wanted - skills.len()).div_ceil(learned.len() - i);
        skills.extend(test_prompts(env, *level, share)?);
    }
    let mut unseen = Vec::new();
    for env in envs::NAMES.iter().filter(|env| !learned.contains_key(**env)) {
        unseen.extend(test_prompts(env, 1, 50)?.into_iter().map(|asked| Asked { env: None, ..asked }));
    }
    let none: Vec<Asked> =
        none.lines().map(|line| Asked { text: line.to_owned(), env: None, held_out: false }).collect();

    println!("{} environments: {}\n", learned.len(), learned.keys().cloned().collect::<Vec<_>>().join(", "));
    println!("| prompts | routed right (95 %) | n |\n|---|---|---|");
    let right = judge(&session, &learned, &skills)?;
    row("of the skills' test splits, to the right skill", &right);
    let held_out: Vec<bool> = right.iter().zip(&skills).filter(|(_, a)| a.held_out).map(|(right, _)| *right).collect();
    row("… in wordings that only the test split has", &held_out);
    for env in learned.keys() {
        let own = right.iter().zip(&skills).filter(|(_, a)| a.env.as_ref() == Some(env)).map(|(right, _)| *right);
        row(&format!("… {env}"), &own.collect::<Vec<_>>());
    }
    let everyday = judge(&session, &learned, &none)?;
    let tasks = judge(&session, &learned, &unseen)?;
    row("that belong to none, to the base", &[&everyday[..], &tasks].concat());
    row("… requests and small tasks of many kinds", &everyday);
    row("… tasks that no skill has learned", &tasks);
    Ok(())
}

/// By built-in environment: the names of its skills, and the level of one.
type Skills = BTreeMap<String, (Vec<String>, u32)>;

fn learned(session: &Session) -> anyhow::Result<Skills> {
    let mut skills = Skills::new();
    for (skill, id) in session.library.heads()? {
        let generation = session.library.generation(id)?;
        let Some(env) = &generation.manifest.provenance.env else { continue };
        if envs::find(&env.name).is_ok() {
            let level = env.level.as_deref().unwrap_or("1").parse()?;
            skills.entry(env.name.clone()).or_insert((Vec::new(), level)).0.push(skill.to_string());
        }
    }
    Ok(skills)
}

fn test_prompts(name: &str, level: u32, count: usize) -> anyhow::Result<Vec<Asked>> {
    let env = envs::find(name)?;
    let query = Query::new(Split::Test, level);
    let asked = |item: &envs::Item| {
        let session = env.start(item)?;
        let text = session.observe()[0].content.clone();
        let held_out = env.info().wordings.is_held_out(item.wording);
        Ok(Asked { text, env: Some(name.to_owned()), held_out })
    };
    envs::items(&*env, &query, Seed::new(0).purpose("routing"), count)?.iter().map(asked).collect()
}

/// Whether each prompt went where it belongs.
fn judge(session: &Session, learned: &Skills, asked: &[Asked]) -> anyhow::Result<Vec<bool>> {
    let ids = asked.iter().map(|a| session.prompt_ids(&Prompt::Chat(vec![Message::user(a.text.as_str())])));
    let routed = session.route(&ids.collect::<Result<Vec<_>, _>>()?)?;
    let mut right = Vec::new();
    for (asked, routed) in asked.iter().zip(routed) {
        let choice = routed.route.choice.map(|name| name.to_string());
        right.push(match (&asked.env, &choice) {
            (None, choice) => choice.is_none(),
            (Some(env), Some(choice)) => learned[env].0.contains(choice),
            (Some(_), None) => false,
        });
        if !right[right.len() - 1] {
            let to = choice.unwrap_or_else(|| "the base".into());
            eprintln!("{} → {to}: {}", asked.env.as_deref().unwrap_or("none"), asked.text);
        }
    }
    Ok(right)
}

fn row(what: &str, right: &[bool]) {
    let (hits, n) = (right.iter().filter(|&&right| right).count(), right.len());
    if n > 0 {
        let [low, high] = wilson(hits, n).map(|bound| 100.0 * bound);
        println!("| {what} | {:.1} ({low:.1}–{high:.1}) | {n} |", 100.0 * hits as f64 / n as f64);
    }
}
