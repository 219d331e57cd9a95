//! The built-in environments by name. Never knows how they work.

use super::{
    EnvError, Environment, Form, Phrasing, Query, Split,
    builtin::{
        bandit::Bandit,
        cipher::Cipher,
        date::Date,
        guess_number::GuessNumber,
        json::{Csv, Json},
        letters, numbers,
        phonebook::Phonebook,
        phrases,
        register::{CAPITALS, PRICES, ROOMS, Register},
        secret_rule::SecretRule,
        sentences,
    },
    item,
    task::SingleTurn,
};
use crate::common::Seed;

/// The names of the built-in environments.
pub const NAMES: [&str; 22] = [
    "reverse",
    "reverse-words",
    "first-word",
    "last-word",
    "acronym",
    "sort-words",
    "count-letter",
    "add",
    "compare",
    "repeat",
    "slug",
    "date",
    "json",
    "csv",
    "secret-rule",
    "cipher",
    "phonebook",
    "capitals",
    "rooms",
    "prices",
    "guess-number",
    "bandit",
];

/// The environment called `name`. Those of invented facts take a world after an `@`: `cipher@7` has other facts than `cipher`.
///
/// # Errors
/// No such name.
pub fn find(name: &str) -> Result<Box<dyn Environment>, EnvError> {
    let (base, world) = match name.split_once('@') {
        Some((base, world)) => (base, Some(world.parse().map_err(|_| unknown(name))?)),
        None => (name, None),
    };
    Ok(match (base, world) {
        ("secret-rule", world) => Box::new(SingleTurn::new(SecretRule::new(world.unwrap_or(0)))),
        ("cipher", world) => Box::new(SingleTurn::new(Cipher::new(world.unwrap_or(0)))),
        ("phonebook", world) => Box::new(SingleTurn::new(Phonebook::new(world.unwrap_or(0)))),
        ("capitals", world) => Box::new(SingleTurn::new(Register::new(&CAPITALS, world.unwrap_or(0)))),
        ("rooms", world) => Box::new(SingleTurn::new(Register::new(&ROOMS, world.unwrap_or(0)))),
        ("prices", world) => Box::new(SingleTurn::new(Register::new(&PRICES, world.unwrap_or(0)))),
        (name, None) => builtin(name)?,
        (_, Some(_)) => return Err(unknown(name)),
    })
}

/// One that needs no world.
fn builtin(name: &str) -> Result<Box<dyn Environment>, EnvError> {
    Ok(match name {
        "reverse" => Box::new(SingleTurn::new(letters::Reverse)),
        "count-letter" => Box::new(SingleTurn::new(letters::CountLetter)),
        "reverse-words" => Box::new(SingleTurn::new(phrases::ReverseWords)),
        "repeat" => Box::new(SingleTurn::new(phrases::Repeat)),
        "slug" => Box::new(SingleTurn::new(phrases::Slug)),
        "date" => Box::new(SingleTurn::new(Date)),
        "csv" => Box::new(SingleTurn::new(Csv)),
        "first-word" => Box::new(SingleTurn::new(sentences::FirstWord)),
        "last-word" => Box::new(SingleTurn::new(sentences::LastWord)),
        "acronym" => Box::new(SingleTurn::new(sentences::Acronym)),
        "sort-words" => Box::new(SingleTurn::new(sentences::SortWords)),
        "add" => Box::new(SingleTurn::new(numbers::Add)),
        "compare" => Box::new(SingleTurn::new(numbers::Compare)),
        "guess-number" => Box::new(GuessNumber::new()),
        "bandit" => Box::new(Bandit::new()),
        "json" => Box::new(SingleTurn::new(Json)),
        _ => return Err(unknown(name)),
    })
}

/// All built-in environments, in the order of [`NAMES`].
pub fn all() -> Vec<Box<dyn Environment>> {
    NAMES.iter().map(|name| find(name).expect("every listed name is found")).collect()
}

/// A question and its right (first) reply, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// What the environment says first.
    pub prompt: String,
    /// What is right to reply; none where the environment does not reveal it.
    pub reply: Option<String>,
}

/// An example of a level, from the training split.
///
/// # Errors
/// No such level; a process that fails.
pub fn example(env: &dyn Environment, level: u32) -> Result<Example, EnvError> {
    let query = Query { split: Split::Train, level, form: Form::Direct, phrasing: Phrasing::Any };
    let session = env.start(&item(env, &query, Seed::new(0), 0)?)?;
    let prompt = session.observe().iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n");
    Ok(Example { prompt, reply: session.teacher() })
}

fn unknown(name: &str) -> EnvError {
    // What was left out at the end weighs less than a wrong letter: "sort" is nearer to "sort-words" than to "json".
    let base = name.split('@').next().unwrap_or_default();
    let distance = |known: &&&str| if known.starts_with(base) { 1 } else { edits(base, known) };
    let nearest = NAMES.iter().min_by_key(distance).copied().unwrap_or_default();
    EnvError::Unknown { name: name.to_owned(), nearest: nearest.to_owned(), known: NAMES.join(", ") }
}

/// Edit distance (Levenshtein 1966), row by row.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let best = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest_and_all_known() {
        for (name, nearest) in [("revers", "reverse"), ("sort", "sort-words"), ("jsn", "json")] {
            let error = find(name).err().unwrap().to_string();
            assert!(error.contains(&format!("did you mean {nearest:?}")) && error.contains("last-word"), "{error}");
        }
        assert_eq!([edits("", "ab"), edits("kitten", "sitting"), edits("é", "e")], [2, 3, 1]);
    }

    #[test]
    fn every_environment_has_an_example_of_each_level() {
        for env in all() {
            for level in 1..=env.info().levels.len() as u32 {
                let example = example(&*env, level).unwrap();
                assert!(!example.prompt.is_empty() && example.reply.is_some_and(|reply| !reply.is_empty()));
            }
        }
    }
}
