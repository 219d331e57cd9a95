//! Registers of invented facts, one value a subject: `capitals`, `rooms`, `prices`. Facts, so what is held out is how they are asked
//! for.

use super::super::{
    Form, HeldOut, Info, Level, Wordings, grade,
    task::{Task, fill},
    words,
};
use crate::common::{Rng, Seed};
use serde::{Deserialize, Serialize};

/// A subject and its value.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    subject: String,
    value: String,
}

/// One register of one world; a level is its first so many entries.
#[derive(Clone)]
pub(crate) struct Register {
    kind: &'static Kind,
    world: u64,
    entries: Vec<Entry>,
}

/// What a register is about.
pub(crate) struct Kind {
    name: &'static str,
    description: &'static str,
    /// So many different subjects, and values, in random order.
    subjects: fn(&mut Rng, usize) -> Vec<String>,
    values: fn(&mut Rng, usize) -> Vec<String>,
    wordings: [&'static str; TRAIN + VALIDATION + TEST],
}

const SIZES: [usize; 3] = [12, 24, 48];
const TRAIN: usize = 4;
const VALIDATION: usize = 2;
const TEST: usize = 4;

pub(crate) static CAPITALS: Kind = Kind {
    name: "capitals",
    description: "Knows the capitals of invented countries.",
    subjects: |rng, count| {
        words::invent_distinct(rng, 2, count).iter().map(|word| titled(word.trim_end_matches(VOWELS)) + "ia").collect()
    },
    values: |rng, count| words::invent_distinct(rng, 2, count).iter().map(|word| titled(word)).collect(),
    wordings: [
        "What is the capital of {}?",
        "Capital of {}:",
        "Name the capital of {}.",
        "Which city is the capital of {}?",
        "Tell me the capital city of {}.",
        "{} has which capital?",
        "Give the capital of {}.",
        "Which city governs {}?",
        "What do you call the capital city of {}?",
        "I need to know the capital of {}.",
    ],
};

pub(crate) static ROOMS: Kind = Kind {
    name: "rooms",
    description: "Knows the room numbers of invented people.",
    subjects: |rng, count| owned(words::pick_distinct(rng, &words::NAMES, count)),
    values: |rng, count| numbers(rng, 100..1000, count),
    wordings: [
        "Which room is {} in?",
        "What is {}'s room number?",
        "Room number of {}:",
        "Where does {} work? Give the room.",
        "In which room do I find {}?",
        "Tell me the room of {}.",
        "I want to visit {}. Which room?",
        "Give me {}'s room number.",
        "Which room belongs to {}?",
        "What room does {} sit in?",
    ],
};

pub(crate) static PRICES: Kind = Kind {
    name: "prices",
    description: "Knows what the things in an invented shop cost.",
    subjects: |rng, count| owned(words::pick_distinct(rng, &words::NOUNS, count)),
    values: |rng, count| numbers(rng, 11..100, count),
    wordings: [
        "How much does the {} cost?",
        "What is the price of the {}?",
        "Price of the {}:",
        "What do I pay for the {}?",
        "Tell me the price of the {}.",
        "The {} costs how much?",
        "I want to buy the {}. How much is it?",
        "Give the price of the {}.",
        "How many coins is the {}?",
        "What does the {} sell for?",
    ],
};

const VOWELS: [char; 5] = ['a', 'e', 'i', 'o', 'u'];

fn titled(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

fn owned(words: Vec<&str>) -> Vec<String> {
    words.into_iter().map(str::to_owned).collect()
}

fn numbers(rng: &mut Rng, range: std::ops::Range<u32>, count: usize) -> Vec<String> {
    words::pick_distinct(rng, &range.collect::<Vec<_>>(), count).iter().map(u32::to_string).collect()
}

impl Register {
    /// The register of a world.
    pub(crate) fn new(kind: &'static Kind, world: u64) -> Self {
        let mut rng = Seed::new(world).purpose(kind.name).rng();
        // Endings that are cut off make some invented names alike.
        let mut subjects = (kind.subjects)(&mut rng, 2 * SIZES[2]);
        let mut seen = std::collections::HashSet::new();
        subjects.retain(|subject| seen.insert(subject.clone()));
        let values = (kind.values)(&mut rng, SIZES[2]);
        let entry = |(subject, value)| Entry { subject, value };
        Self { kind, world, entries: subjects.into_iter().zip(values).map(entry).collect() }
    }
}

impl Task for Register {
    type Content = Entry;

    fn info(&self) -> Info {
        Info {
            name: super::world_name(self.kind.name, self.world),
            version: "1".into(),
            description: self.kind.description.into(),
            levels: SIZES.map(|size| Level::new(format!("{size} facts"), 10)).into(),
            wordings: Wordings::apart(TRAIN, VALIDATION, TEST),
            held_out: HeldOut::Wordings,
            forms: vec![Form::Direct],
        }
    }

    fn facts(&self, level: u32, _form: Form) -> Vec<Entry> {
        self.entries[..SIZES[level as usize - 1]].to_vec()
    }

    fn prompt(&self, content: &Entry, wording: usize) -> String {
        fill(self.kind.wordings[wording], &[&content.subject])
    }

    fn answer(&self, content: &Entry) -> String {
        content.value.clone()
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        let span = match answer.parse::<u32>() {
            Ok(_) => grade::number(reply),
            Err(_) => grade::word(reply),
        };
        span.is_some_and(|span| span == answer.to_lowercase())
    }
}
