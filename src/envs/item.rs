//! Items: what is asked, what it is called, and which split it belongs to. Never knows how an item is played.
//!
//! An item is identified by the hash of its canonical content, and the hash decides its split, so no choice of seed can carry a
//! test item into training. Environments of facts (whose facts must be seen to be known) hold out questions instead: there the
//! wording is part of the content, and decides.

use super::{Draw, EnvError, Environment};
use crate::common::{Digest, Rng, Seed};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::HashSet, fmt, ops::Range};

/// What an item may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// To learn from.
    Train,
    /// To choose and to gate by.
    Validation,
    /// To report, once.
    Test,
}

impl Split {
    /// All three.
    pub const ALL: [Split; 3] = [Split::Train, Split::Validation, Split::Test];

    /// The split of a content: 60 % train, 20 % validation, 20 % test.
    pub fn of(id: &Digest) -> Self {
        let bytes = id.bytes();
        match u64::from_le_bytes(std::array::from_fn(|i| bytes[i])) % 10 {
            0..6 => Split::Train,
            6..8 => Split::Validation,
            _ => Split::Test,
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test => "test",
        })
    }
}

/// How a fact is asked for. Forms other than `Direct` are only ever tested, and reported apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// As it was learned.
    #[default]
    Direct,
    /// From the answer back to the subject.
    Reversed,
    /// Through a second fact.
    TwoHop,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Direct => "direct",
            Form::Reversed => "reversed",
            Form::TwoHop => "two-hop",
        })
    }
}

/// What keeps test questions out of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldOut {
    /// The items themselves, by hash.
    Items,
    /// The wordings: every fact is in every split, each split asks in its own words.
    Wordings,
}

/// Which instruction wordings each split draws from, as ranges of one list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wordings {
    /// In training.
    pub train: Range<usize>,
    /// In validation.
    pub validation: Range<usize>,
    /// In test; wordings that are in no other split are the held-out ones.
    pub test: Range<usize>,
}

impl Wordings {
    /// For held-out items: all splits share the first `seen`, test adds `held_out` more.
    pub fn shared(seen: usize, held_out: usize) -> Self {
        Self { train: 0..seen, validation: 0..seen, test: 0..seen + held_out }
    }

    /// For facts: each split has its own.
    pub fn apart(train: usize, validation: usize, test: usize) -> Self {
        let seen = train + validation;
        Self { train: 0..train, validation: train..seen, test: seen..seen + test }
    }

    /// Those of a split.
    pub fn of(&self, split: Split) -> Range<usize> {
        match split {
            Split::Train => self.train.clone(),
            Split::Validation => self.validation.clone(),
            Split::Test => self.test.clone(),
        }
    }

    /// Whether neither training nor validation uses this wording.
    pub fn is_held_out(&self, wording: usize) -> bool {
        !self.train.contains(&wording) && !self.validation.contains(&wording)
    }

    /// The number of wordings.
    pub fn count(&self) -> usize {
        self.test.end
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Hash of the canonical content.
    pub id: Digest,
    /// What the environment needs to ask and to grade it.
    pub content: Value,
    /// Difficulty, from 1.
    pub level: u32,
    /// How it is asked.
    pub form: Form,
    /// Index of the instruction wording.
    pub wording: usize,
}

impl Item {
    /// An item of this content, under the name that the content gives it.
    pub fn new(content: Value, level: u32, form: Form, wording: usize) -> Self {
        Self { id: Digest::of(canonical(&content)), content, level, form, wording }
    }
}

/// JSON with sorted keys and no white space: equal contents have equal text.
pub fn canonical(value: &Value) -> String {
    let list = |parts: Vec<String>| parts.join(",");
    match value {
        Value::Array(values) => format!("[{}]", list(values.iter().map(canonical).collect())),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            let parts = fields.iter().map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)));
            format!("{{{}}}", list(parts.collect()))
        }
        plain => plain.to_string(),
    }
}

/// Which wordings to draw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phrasing {
    /// Any that the split has.
    #[default]
    Any,
    /// Those that training uses too.
    Seen,
    /// Those that only the test split has.
    HeldOut,
}

/// Which items to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// From this split.
    pub split: Split,
    /// At this level, from 1.
    pub level: u32,
    /// In this form.
    pub form: Form,
    /// In these wordings.
    pub phrasing: Phrasing,
}

impl Query {
    /// Direct questions of a split and level, in any of its wordings.
    pub fn new(split: Split, level: u32) -> Self {
        Self { split, level, form: Form::Direct, phrasing: Phrasing::Any }
    }
}

/// Candidates that may be of another split in a row: at 20 % a split, 300 misses are worse luck than 10⁻²⁹.
const CANDIDATES_MAX: usize = 300;
/// Draws in a row that may repeat a known item before `items` takes known items in new wordings.
const REPEATS_MAX: usize = 300;

/// The `index`-th item of a stream: a pure function of its arguments. Facts come in shuffled passes over all of them.
///
/// # Errors
/// A level, form or phrasing that the environment lacks; a process that fails.
pub fn item(env: &dyn Environment, query: &Query, seed: Seed, index: u64) -> Result<Item, EnvError> {
    let wordings = check(env, query)?;
    match env.facts(query.level, query.form) {
        Some(facts) => {
            let pass = (facts.len() * wordings.len()) as u64;
            let mut order: Vec<_> = (0..pass as usize).collect();
            seed.purpose("pass").index(index / pass).rng().shuffle(&mut order);
            let chosen = order[(index % pass) as usize];
            Ok(fact(query, &facts[chosen / wordings.len()], wordings[chosen % wordings.len()]))
        }
        None => open(env, query, &wordings, seed.purpose("item").index(index)),
    }
}

/// Up to `count` different questions of a stream: different items as long as there are any, then known items in other wordings.
/// Fewer than `count` only when the environment has no more.
///
/// # Errors
/// As [`item`].
pub fn items(env: &dyn Environment, query: &Query, seed: Seed, count: usize) -> Result<Vec<Item>, EnvError> {
    let (mut found, mut spare) = (Vec::new(), Vec::new());
    let (mut ids, mut questions) = (HashSet::new(), HashSet::new());
    let mut repeats = 0;
    for index in 0.. {
        if found.len() == count || repeats > REPEATS_MAX {
            break;
        }
        let next = item(env, query, seed, index)?;
        let known_question = !questions.insert((next.id, next.wording));
        if ids.insert(next.id) {
            repeats = 0;
            found.push(next);
        } else {
            repeats += 1;
            spare.extend((!known_question).then_some(next));
        }
    }
    found.extend(spare.into_iter().take(count - found.len()));
    Ok(found)
}

/// The wordings that a query may use, after checking that the environment has what it asks for.
fn check(env: &dyn Environment, query: &Query) -> Result<Vec<usize>, EnvError> {
    let info = env.info();
    info.level(query.level)?;
    let tested_only = query.form != Form::Direct;
    let mut wordings: Vec<_> = info.wordings.of(query.split).collect();
    wordings.retain(|&wording| match query.phrasing {
        Phrasing::Any => true,
        Phrasing::Seen => info.wordings.train.contains(&wording),
        Phrasing::HeldOut => info.wordings.is_held_out(wording),
    });
    if !info.forms.contains(&query.form) || (tested_only && query.split != Split::Test) {
        return Err(EnvError::Form { env: info.name.clone(), form: query.form, split: query.split });
    }
    if wordings.is_empty() {
        let (env, level) = (info.name.clone(), query.level);
        return Err(EnvError::Exhausted { env, level, split: query.split, attempts: 0 });
    }
    Ok(wordings)
}

fn fact(query: &Query, fact: &Value, wording: usize) -> Item {
    let content = serde_json::json!({ "fact": fact, "form": query.form, "wording": wording });
    Item::new(content, query.level, query.form, wording)
}

fn open(env: &dyn Environment, query: &Query, wordings: &[usize], seed: Seed) -> Result<Item, EnvError> {
    let wording = *Rng::pick(&mut seed.purpose("wording").rng(), wordings);
    for attempt in 0..CANDIDATES_MAX as u64 {
        let content = env.candidate(query.level, Draw { seed, attempt })?;
        let item = Item::new(content, query.level, query.form, wording);
        if env.split(&item) == query.split {
            return Ok(item);
        }
    }
    let (env, level) = (env.info().name.clone(), query.level);
    Err(EnvError::Exhausted { env, level, split: query.split, attempts: CANDIDATES_MAX })
}
