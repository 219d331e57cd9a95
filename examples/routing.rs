//! Measures routing over the skills of a home: prompts of their test splits, prompts of built-in environments that no skill was
//! learned in, and `benches/none.txt`; among distractors, by the router, by words and by weights. Prints the tables of
//! docs/results.md. Never learns, and leaves the library as it is.
//!
//!     SOCIUS_HOME=… cargo run --release --example routing [PROMPTS [DISTRACTORS [SEED [NONE.txt]]]]
//!
//! `PROMPTS` (default 500) are spread over the environments of the skills. A prompt is routed right if the choice is a skill of its
//! environment and level; of several, any is. `SEED` (default 0) draws other test prompts. `DISTRACTORS` (default 500) are skills known
//! by eight made-up requests each, an instruction and a topic that no other has; they have no adapter, so an answer under one is
//! wrong, and weights cannot choose them.

use anyhow::{Context, ensure};
use socius::{
    agent::{BaseChoice, Grades, Prompt, Routing, Session, SkillChoice, judge, routing_features, wilson},
    common::{Digest, Home, Message, Seed, Silent, write_atomic},
    envs::{self, Item, Query, Split},
    fetch,
    library::{RoutingFeatures, SkillName},
    router::{Evidence, Index, Newcomer, Outcomes, RouteBy, Settings, Terms, layer},
};
use socius_models::{DeviceChoice, Dtype};
use std::{collections::BTreeMap, fs};

/// Prompts that a distractor is known by.
const KNOWN_BY: usize = 8;
const VERBS: [&str; 25] = [
    "summarise",
    "translate",
    "improve",
    "criticise",
    "explain",
    "draft",
    "rate",
    "classify",
    "shorten",
    "illustrate",
    "research",
    "simplify",
    "outline",
    "review",
    "defend",
    "question",
    "estimate",
    "rank",
    "imagine",
    "plan",
    "debug",
    "teach",
    "proofread",
    "advertise",
    "predict",
];
const TOPICS: [&str; 20] = [
    "a recipe with",
    "the weather over",
    "a film about",
    "a letter on",
    "the market for",
    "the history of",
    "the rules for",
    "a poem about",
    "an allergy to",
    "the route to",
    "a joke on",
    "the chemistry of",
    "a workout with",
    "a lawsuit over",
    "the taxes on",
    "a lesson about",
    "the repair of",
    "a photograph of",
    "the transport of",
    "a museum of",
];
const THINGS: [&str; 40] = [
    "olives",
    "glaciers",
    "violins",
    "sheep",
    "railways",
    "tulips",
    "coins",
    "lanterns",
    "volcanoes",
    "bicycles",
    "satellites",
    "mushrooms",
    "pyramids",
    "carpets",
    "dolphins",
    "clocks",
    "bridges",
    "spices",
    "marble",
    "kites",
    "tea",
    "wolves",
    "paper",
    "helmets",
    "drums",
    "silk",
    "engines",
    "honey",
    "chess",
    "rivers",
    "ladders",
    "masks",
    "salt",
    "comets",
    "boots",
    "glass",
    "forests",
    "ships",
    "mirrors",
    "wheat",
];

/// What is asked, and whose skills should answer; none for the base.
struct Asked {
    text: String,
    task: Option<Task>,
    item: Option<Item>,
    held_out: bool,
}

/// Environment and level.
type Task = (String, u32);
/// The names of a task's skills.
type Skills = BTreeMap<Task, Vec<SkillName>>;
/// Who answers; none is the base.
type Choices = Vec<Option<SkillName>>;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, usual: usize| arguments.get(place).map_or(Ok(usual), |n| n.parse::<usize>());
    let wanted = number(0, 500).context("PROMPTS is a number")?;
    let distractors = number(1, 500).context("DISTRACTORS is a number")?;
    ensure!(distractors <= VERBS.len() * TOPICS.len(), "there are no more than {}", VERBS.len() * TOPICS.len());
    let seed = Seed::new(number(2, 0).context("SEED is a number")? as u64).purpose("routing");
    let none = arguments.get(3).map_or("benches/none.txt", String::as_str);
    let none = fs::read_to_string(none).with_context(|| none.to_owned())?;
    let choice = BaseChoice { model: fetch::DEFAULT_MODEL.into(), device: DeviceChoice::Auto, dtype: Dtype::Bf16 };
    let session = Session::open(&choice, Home::from_env()?, &mut Silent)?;
    let learned = learned(&session)?;
    ensure!(!learned.is_empty(), "no skill of this home was learned in a built-in environment: `socius learn` one");

    let mut asked = Vec::new();
    for (i, task) in learned.keys().enumerate() {
        // What an environment of few questions lacks, the others make up for.
        let share = (wanted - asked.len()).div_ceil(learned.len() - i);
        asked.extend(test_prompts(task, share, seed)?);
    }
    let of_skills = asked.len();
    let unseen = envs::NAMES.iter().filter(|env| !learned.keys().any(|(name, _)| name.split('@').next() == Some(env)));
    for env in unseen {
        let prompts = test_prompts(&((*env).to_owned(), 1), 25, seed)?;
        asked.extend(prompts.into_iter().map(|asked| Asked { task: None, ..asked }));
    }
    let tasks = asked.len();
    let line = |text: &str| Asked { text: text.to_owned(), task: None, item: None, held_out: false };
    asked.extend(none.lines().map(line));

    let index = index(&session, distractors)?;
    let mut by = vec![("router", ridge(&session, &index, &asked)?), ("BM25", bm25(&index, &asked))];
    by.push(("Arrow", arrow(&session, &asked)?));
    println!("{} skills and {distractors} distractors\n", learned.values().map(Vec::len).sum::<usize>());
    println!("| prompts | n | {} |", by.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" | "));
    println!("|---|---|{}", "---|".repeat(by.len()));
    let right: Vec<Vec<bool>> = by.iter().map(|(_, choices)| right(&learned, &asked, choices)).collect();
    let row = |what: &str, counts: &dyn Fn(usize) -> bool| row(what, &right, counts);
    row("of the skills' test splits, to the right skill", &|i| i < of_skills);
    row("… in wordings that only the test split has", &|i| i < of_skills && asked[i].held_out);
    for task in learned.keys() {
        row(&format!("… {} {}", task.0, task.1), &|i| asked[i].task.as_ref() == Some(task));
    }
    row("that belong to none, to the base", &|i| i >= of_skills);
    row("… tasks that no skill has learned", &|i| (of_skills..tasks).contains(&i));
    row("… requests and small tasks of many kinds", &|i| i >= tasks);
    scores(&session, &learned, &asked[..of_skills], &by)
}

fn learned(session: &Session) -> anyhow::Result<Skills> {
    let mut skills = Skills::new();
    for (name, id) in session.library.heads()? {
        let generation = session.library.generation(id)?;
        let Some(env) = &generation.manifest.provenance.env else { continue };
        if envs::find(&env.name).is_ok() {
            let level = env.level.as_deref().unwrap_or("1").parse()?;
            skills.entry((env.name.clone(), level)).or_default().push(name);
        }
    }
    Ok(skills)
}

fn test_prompts(task: &Task, count: usize, seed: Seed) -> anyhow::Result<Vec<Asked>> {
    let env = envs::find(&task.0)?;
    let asked = |item: &Item| {
        let text = env.start(item)?.observe()[0].content.clone();
        let held_out = env.info().wordings.is_held_out(item.wording);
        Ok(Asked { text, task: Some(task.clone()), item: Some(item.clone()), held_out })
    };
    let query = Query::new(Split::Test, task.1);
    envs::items(&*env, &query, seed, count)?.iter().map(asked).collect()
}

/// The router over the library and the distractors.
fn index(session: &Session, distractors: usize) -> anyhow::Result<Index> {
    let mut ledger = session.ledger()?;
    if distractors > 0 {
        let prompts: Vec<String> = (0..distractors).flat_map(distractor).collect();
        let features = kept(session, &prompts)?;
        for (i, own) in prompts.chunks_exact(KNOWN_BY).enumerate() {
            let rows: Vec<Vec<f32>> = features.rows().skip(i * KNOWN_BY).take(KNOWN_BY).map(<[f32]>::to_vec).collect();
            let features = RoutingFeatures::new(features.layer, &rows).map_err(anyhow::Error::msg)?;
            let words = Terms::of(&own.join("\n"));
            let generation = Digest::of(i.to_le_bytes());
            ledger.add(
                format!("distractor-{i:03}").parse()?,
                Newcomer { generation, features: &features, words: &words, promise: 0.9 },
            )?;
        }
    }
    Ok(ledger.solve(Settings::default()))
}

/// The prompts of a distractor: one instruction and one topic, in four frames, about things that differ.
fn distractor(i: usize) -> Vec<String> {
    let (verb, topic) = (VERBS[i % VERBS.len()], TOPICS[i / VERBS.len()]);
    let mut rng = Seed::new(0).purpose("distractor").index(i as u64).rng();
    let capital = verb[..1].to_uppercase() + &verb[1..];
    let prompt = |place: usize| {
        let thing = rng.pick(&THINGS);
        match place % 4 {
            0 => format!("{capital} {topic} {thing}."),
            1 => format!("Please {verb} {topic} {thing} for me."),
            2 => format!("Can you {verb} {topic} {thing}?"),
            _ => format!("I need you to {verb} {topic} {thing}"),
        }
    };
    (0..KNOWN_BY).map(prompt).collect()
}

/// Features of prompts, which the home keeps: some thousands take minutes.
fn kept(session: &Session, prompts: &[String]) -> anyhow::Result<RoutingFeatures> {
    let key = Digest::of(prompts.join("\n")).short();
    let path = session.home.derived().join(format!("distractors-{key}.safetensors"));
    let layer = layer(session.base.spec());
    if let Some(features) = fs::read(&path).ok().and_then(|bytes| RoutingFeatures::from_bytes(&bytes, layer).ok()) {
        return Ok(features);
    }
    let said: Vec<_> = prompts.iter().map(|prompt| vec![Message::user(prompt.as_str())]).collect();
    let features = routing_features(&session.base, &said)?.of_prompts(Vec::new());
    write_atomic(&path, &features.to_bytes())?;
    Ok(features)
}

fn ridge(session: &Session, index: &Index, asked: &[Asked]) -> anyhow::Result<Choices> {
    let said: Vec<_> = asked.iter().map(|asked| vec![Message::user(asked.text.as_str())]).collect();
    let features = routing_features(&session.base, &said)?;
    let choose = |(row, asked): (&[f32], &Asked)| {
        let evidence = Evidence { words: Some(&asked.text), outcomes: &Outcomes::new(), explore: None };
        let route = index.choose(RouteBy::Ridge, &index.by_features(row)?, &evidence);
        if std::env::var_os("VERBOSE").is_some() {
            eprintln!("{}", serde_json::json!({ "asked": asked.text, "task": asked.task, "route": route }));
        }
        Ok(route.choice)
    };
    features.rows().zip(asked).map(choose).collect()
}

fn bm25(index: &Index, asked: &[Asked]) -> Choices {
    let evidence = Evidence { words: None, outcomes: &Outcomes::new(), explore: None };
    let choose = |asked: &Asked| index.choose(RouteBy::Bm25, &index.by_text(&asked.text), &evidence).choice;
    asked.iter().map(choose).collect()
}

fn arrow(session: &Session, asked: &[Asked]) -> anyhow::Result<Choices> {
    let ids = asked.iter().map(|a| session.prompt_ids(&Prompt::Chat(vec![Message::user(a.text.as_str())])));
    let routing = Routing { by: RouteBy::Arrow, explore: None };
    let routed = session.route_as(&ids.collect::<Result<Vec<_>, _>>()?, routing)?;
    Ok(routed.into_iter().map(|routed| routed.route.choice).collect())
}

/// Whether each prompt went where it belongs.
fn right(learned: &Skills, asked: &[Asked], choices: &Choices) -> Vec<bool> {
    let right = |(asked, choice): (&Asked, &Option<SkillName>)| match (&asked.task, choice) {
        (None, choice) => choice.is_none(),
        (Some(task), Some(choice)) => learned[task].contains(choice),
        (Some(_), None) => false,
    };
    asked.iter().zip(choices).map(right).collect()
}

fn row(what: &str, right: &[Vec<bool>], counts: &dyn Fn(usize) -> bool) {
    let n = (0..right[0].len()).filter(|&i| counts(i)).count();
    if n == 0 {
        return;
    }
    let cell = |right: &Vec<bool>| {
        let hits = right.iter().enumerate().filter(|(i, right)| counts(*i) && **right).count();
        let [low, high] = wilson(hits, n).map(|bound| 100.0 * bound);
        format!("{:.1} ({low:.1}–{high:.1})", 100.0 * hits as f64 / n as f64)
    };
    println!("| {what} | {n} | {} |", right.iter().map(cell).collect::<Vec<_>>().join(" | "));
}

/// Strict accuracy of the answers under each way of choosing, beside that of the base and of an oracle that knows the task.
fn scores(session: &Session, learned: &Skills, asked: &[Asked], by: &[(&'static str, Choices)]) -> anyhow::Result<()> {
    let own = asked.iter().map(|asked| asked.task.as_ref().map(|task| learned[task][0].clone()));
    let ways = [("base", vec![None; asked.len()]), ("oracle", own.collect())];
    println!("\n| answers | strict | of the oracle's |\n|---|---|---|");
    let mut known = BTreeMap::new();
    let mut oracle = None;
    for (name, choices) in
        ways.iter().rev().map(|(name, choices)| (*name, choices)).chain(by.iter().map(|(n, c)| (*n, c)))
    {
        let mut hits = 0;
        for (skill, places) in teams(asked, choices, learned) {
            let new: Vec<usize> =
                places.iter().copied().filter(|&place| !known.contains_key(&(place, skill.clone()))).collect();
            for (place, strict) in new.iter().zip(answers(session, asked, &new, skill.as_ref())?) {
                known.insert((*place, skill.clone()), strict);
            }
            hits += places.iter().filter(|&&place| known[&(place, skill.clone())]).count();
        }
        let part = hits as f64 / asked.len() as f64;
        let oracle = *oracle.get_or_insert(part);
        println!("| {name} | {:.1} | {:.1} |", 100.0 * part, 100.0 * part / oracle);
    }
    Ok(())
}

/// Places by who answers them; what a distractor is asked nobody answers.
fn teams(asked: &[Asked], choices: &Choices, learned: &Skills) -> BTreeMap<Option<SkillName>, Vec<usize>> {
    let mut teams: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (place, choice) in choices.iter().take(asked.len()).enumerate() {
        if choice.as_ref().is_none_or(|choice| learned.values().any(|names| names.contains(choice))) {
            teams.entry(choice.clone()).or_default().push(place);
        }
    }
    teams
}

/// Whether each of these is answered right under `skill`.
fn answers(
    session: &Session,
    asked: &[Asked],
    places: &[usize],
    skill: Option<&SkillName>,
) -> anyhow::Result<Vec<bool>> {
    let choice = skill.map_or(SkillChoice::None, |name| SkillChoice::Named(name.clone().into()));
    let generation = session.choose(&choice, &[])?;
    let mut strict = vec![false; places.len()];
    let mut by_env: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, &place) in places.iter().enumerate() {
        by_env.entry(&asked[place].task.as_ref().expect("a task").0).or_default().push(i);
    }
    for (env, own) in by_env {
        let items = own.iter().map(|&i| asked[places[i]].item.clone().context("an item"));
        let items = items.collect::<anyhow::Result<Vec<_>>>()?;
        let adapter = generation.as_ref().map(|generation| session.adapter(generation)).transpose()?;
        let (Grades { strict: found, .. }, _) = judge(&session.base, &*envs::find(env)?, &items, adapter, &mut Silent)?;
        own.iter().zip(found).for_each(|(&i, right)| strict[i] = right);
    }
    Ok(strict)
}
