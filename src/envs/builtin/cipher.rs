//! `cipher`: words of an invented language. Facts, so what is held out is how they are asked for.

use super::super::{Form, HeldOut, Info, Level, Wordings, grade, task::Task, words};
use crate::common::Seed;
use serde::{Deserialize, Serialize};

/// An English word and what the language calls it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    language: String,
    word: String,
    meaning: String,
}

/// The dictionary of one world; a level is its first so many words.
#[derive(Clone)]
pub(crate) struct Cipher {
    world: u64,
    entries: Vec<Entry>,
}

const SIZES: [usize; 3] = [10, 24, 64];
const TRAIN: [&str; 4] = [
    "What is the {language} word for {word}?",
    "Translate into {language}: {word}",
    "How do you say {word} in {language}?",
    "{word} in {language}:",
];
const VALIDATION: [&str; 2] = ["Which {language} word stands for {word}?", "Say {word} in {language}."];
const TEST: [&str; 4] = [
    "Give the {language} translation of {word}.",
    "What do you call {word} in {language}?",
    "Put the word {word} into {language}.",
    "I need the {language} word for {word}.",
];

impl Cipher {
    /// The language of a world.
    pub(crate) fn new(world: u64) -> Self {
        let mut rng = Seed::new(world).purpose("cipher").rng();
        let name = words::invent(&mut rng, 3);
        let language = name[..1].to_uppercase() + &name[1..];
        let english = words::pick_distinct(&mut rng, &words::NOUNS, SIZES[2]);
        let invented = words::invent_distinct(&mut rng, 2, SIZES[2]);
        let entry = |(word, meaning): (&str, String)| Entry { language: language.clone(), word: word.into(), meaning };
        Self { world, entries: english.into_iter().zip(invented).map(entry).collect() }
    }
}

impl Task for Cipher {
    type Content = Entry;

    fn info(&self) -> Info {
        Info {
            name: super::world_name("cipher", self.world),
            version: "1".into(),
            description: format!("Translates words into {}, an invented language.", self.entries[0].language),
            levels: SIZES.map(|size| Level::new(format!("{size} words"), 10)).into(),
            wordings: Wordings::apart(TRAIN.len(), VALIDATION.len(), TEST.len()),
            held_out: HeldOut::Wordings,
            forms: vec![Form::Direct],
        }
    }

    fn facts(&self, level: u32, _form: Form) -> Vec<Entry> {
        self.entries[..SIZES[level as usize - 1]].to_vec()
    }

    fn prompt(&self, content: &Entry, wording: usize) -> String {
        let template = [&TRAIN[..], &VALIDATION, &TEST].concat()[wording];
        template.replace("{language}", &content.language).replace("{word}", &content.word)
    }

    fn answer(&self, content: &Entry) -> String {
        content.meaning.clone()
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::word(reply).as_deref() == Some(answer)
    }
}
