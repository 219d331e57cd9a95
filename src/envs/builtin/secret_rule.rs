//! `secret-rule`: an invented word for each category, unknowable without experience. What is held out are members of the
//! categories: the rule must be learned, not the list.

use super::super::{
    Draw, Form, HeldOut, Info, Level, Wordings, grade,
    task::{Task, fill},
    words,
};
use crate::common::Seed;
use serde::{Deserialize, Serialize};

/// A thing and the secret word of its category.
#[derive(Serialize, Deserialize)]
pub(crate) struct Thing {
    thing: String,
    secret: String,
}

/// The secret words of one world: animals, foods, tools, clothes.
#[derive(Clone)]
pub(crate) struct SecretRule {
    world: u64,
    secrets: Vec<String>,
}

const WORDINGS: [&str; 5] = [
    "What is the secret word for {}?",
    "Secret word for {}:",
    "Which secret word does {} get?",
    "Give the secret word for {}.",
    "Name the secret word that goes with {}.",
];

/// Indices of the categories that a level chooses from.
fn categories(level: u32) -> &'static [usize] {
    match level {
        1 => &[0, 1],
        2 => &[2, 3],
        _ => &[0, 1, 2, 3],
    }
}

fn members(category: usize) -> &'static [&'static str] {
    [&words::ANIMALS, &words::FOODS, &words::TOOLS, &words::CLOTHES][category]
}

impl SecretRule {
    /// The rule of a world.
    pub(crate) fn new(world: u64) -> Self {
        let mut rng = Seed::new(world).purpose("secret-rule").rng();
        Self { world, secrets: words::invent_distinct(&mut rng, 2, 4) }
    }
}

impl Task for SecretRule {
    type Content = Thing;

    fn info(&self) -> Info {
        Info {
            name: super::world_name("secret-rule", self.world),
            version: "1".into(),
            description: "Answers a thing with the secret word of its kind.".into(),
            levels: vec![
                Level::new("animals and foods", 10).baseline(1.0 / 2.0),
                Level::new("tools and clothes", 10).baseline(1.0 / 2.0),
                Level::new("animals, foods, tools and clothes", 10).baseline(1.0 / 4.0),
            ],
            wordings: Wordings::shared(4, 1),
            held_out: HeldOut::Items,
            forms: vec![Form::Direct],
        }
    }

    fn candidate(&self, level: u32, draw: Draw) -> Thing {
        let rng = &mut draw.rng();
        let category = *draw.class().pick(categories(level));
        Thing { thing: (*rng.pick(members(category))).to_owned(), secret: self.secrets[category].clone() }
    }

    fn prompt(&self, content: &Thing, wording: usize) -> String {
        fill(WORDINGS[wording], &[&content.thing])
    }

    fn answer(&self, content: &Thing) -> String {
        content.secret.clone()
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::word(reply).as_deref() == Some(answer)
    }

    fn choices(&self, _content: &Thing, level: u32) -> Vec<String> {
        categories(level).iter().map(|&category| self.secrets[category].clone()).collect()
    }
}
