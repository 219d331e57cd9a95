//! Tasks on the words of a phrase: `first-word`, `last-word`, `acronym`, `sort-words`.

use super::{
    super::{
        Draw, Info, Level, grade,
        task::{Task, fill},
        words,
    },
    info,
};
use crate::common::Rng;
use serde::{Deserialize, Serialize};

/// A sentence.
#[derive(Serialize, Deserialize)]
pub(crate) struct Sentence {
    text: String,
}

/// The last word of a sentence.
#[derive(Clone)]
pub(crate) struct LastWord;

const LAST_WORD: [&str; 5] = [
    "What is the last word of this sentence? {}",
    "Give only the final word: {}",
    "Which word ends this sentence? {}",
    "Repeat just the last word. {}",
    "Read this and say its very last word: {}",
];

const ADJECTIVES: [&str; 36] = [
    "old", "young", "red", "blue", "green", "small", "big", "quiet", "happy", "brave", "tall", "tired", "clever",
    "lucky", "strange", "gentle", "proud", "lonely", "hungry", "busy", "polite", "angry", "famous", "lazy", "kind",
    "poor", "rich", "wise", "calm", "silly", "warm", "cold", "dusty", "shiny", "heavy", "golden",
];
const PEOPLE: [&str; 24] = [
    "farmer", "baker", "teacher", "doctor", "pilot", "sailor", "singer", "dancer", "painter", "writer", "gardener",
    "student", "soldier", "hunter", "driver", "tailor", "lawyer", "nurse", "king", "queen", "child", "woman", "man",
    "girl",
];
const VERBS: [&str; 24] = [
    "found", "sold", "bought", "painted", "carried", "saw", "liked", "lost", "drew", "wanted", "moved", "cleaned",
    "touched", "followed", "watched", "forgot", "loved", "hid", "fixed", "took", "brought", "left", "heard", "chose",
];
const PLACES: [&str; 8] = ["near", "behind", "beside", "under", "with", "without", "before", "after"];

impl Task for LastWord {
    type Content = Sentence;

    fn info(&self) -> Info {
        let levels = vec![Level::new("6 words", 8), Level::new("10 words", 8), Level::new("15 words, two clauses", 8)];
        info("last-word", "Repeats only the last word of a sentence.", levels)
    }

    fn candidate(&self, level: u32, draw: Draw) -> Sentence {
        let rng = &mut draw.rng();
        let nouns = words::pick_distinct(rng, &words::NOUNS, 3);
        let clause = |rng: &mut Rng, noun: &str| format!("{} {} the {noun}", rng.pick(&PEOPLE), rng.pick(&VERBS));
        let mut text = format!("The {} {}", rng.pick(&ADJECTIVES), clause(rng, nouns[0]));
        if level > 1 {
            text += &format!(" {} the {} {}", rng.pick(&PLACES), rng.pick(&ADJECTIVES), nouns[1]);
        }
        if level > 2 {
            text += &format!(", and the {}", clause(rng, nouns[2]));
        }
        Sentence { text: text + "." }
    }

    fn prompt(&self, content: &Sentence, wording: usize) -> String {
        fill(LAST_WORD[wording], &[&content.text])
    }

    fn answer(&self, content: &Sentence) -> String {
        let last = content.text.split_whitespace().last().unwrap_or_default();
        last.trim_end_matches('.').to_owned()
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::word(reply).as_deref() == Some(answer)
    }
}

/// The first word of a sentence.
#[derive(Clone)]
pub(crate) struct FirstWord;

const FIRST_WORD: [&str; 5] = [
    "What is the first word of this sentence? {}",
    "Give only the opening word: {}",
    "Which word begins this sentence? {}",
    "Repeat just the first word. {}",
    "Read this and say its very first word: {}",
];

impl Task for FirstWord {
    type Content = Sentence;

    fn info(&self) -> Info {
        let levels = vec![Level::new("5 words", 8), Level::new("9 words", 8), Level::new("14 words, two clauses", 8)];
        info("first-word", "Repeats only the first word of a sentence.", levels)
    }

    fn candidate(&self, level: u32, draw: Draw) -> Sentence {
        let rng = &mut draw.rng();
        let nouns = words::pick_distinct(rng, &words::NOUNS, 3);
        let subject = match rng.below(2) {
            0 => format!("{} the {}", rng.pick(&words::NAMES), rng.pick(&PEOPLE)),
            _ => format!("{} {}s", title(rng.pick::<&str>(&ADJECTIVES)), rng.pick(&PEOPLE)),
        };
        let mut text = format!("{subject} {} the {}", rng.pick(&VERBS), nouns[0]);
        if level > 1 {
            text += &format!(" {} the {} {}", rng.pick(&PLACES), rng.pick(&ADJECTIVES), nouns[1]);
        }
        if level > 2 {
            text += &format!(", and the {} {} the {}", rng.pick(&PEOPLE), rng.pick(&VERBS), nouns[2]);
        }
        Sentence { text: text + "." }
    }

    fn prompt(&self, content: &Sentence, wording: usize) -> String {
        fill(FIRST_WORD[wording], &[&content.text])
    }

    fn answer(&self, content: &Sentence) -> String {
        content.text.split_whitespace().next().unwrap_or_default().to_owned()
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::word(reply).is_some_and(|word| word == answer.to_lowercase())
    }
}

fn title(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

/// Some words.
#[derive(Serialize, Deserialize)]
pub(crate) struct Words {
    words: Vec<String>,
}

/// The first letters of some words, as capitals.
#[derive(Clone)]
pub(crate) struct Acronym;

const ACRONYM: [&str; 5] = [
    "Write the acronym: {}",
    "What is the acronym of {}?",
    "Abbreviate to initials: {}",
    "Join the first letters of {}.",
    "Which initials stand for {}?",
];

impl Task for Acronym {
    type Content = Words;

    fn info(&self) -> Info {
        let levels = [3, 4, 5].map(|count| Level::new(format!("{count} words"), 12));
        info("acronym", "Joins the first letters of some words to an acronym in capitals.", levels)
    }

    fn candidate(&self, level: u32, draw: Draw) -> Words {
        let rng = &mut draw.rng();
        let chosen = words::pick_distinct(rng, &words::COMMON, level as usize + 2);
        Words { words: chosen.into_iter().map(title).collect() }
    }

    fn prompt(&self, content: &Words, wording: usize) -> String {
        fill(ACRONYM[wording], &[&content.words.join(" ")])
    }

    fn answer(&self, content: &Words) -> String {
        content.words.iter().filter_map(|word| word.chars().next()).collect()
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::capitals(reply).as_deref() == Some(answer)
    }
}

/// Some words in the order of the alphabet.
#[derive(Clone)]
pub(crate) struct SortWords;

const SORT: [&str; 5] = [
    "Sort these words alphabetically: {}",
    "Put in alphabetical order: {}",
    "Write these words from A to Z: {}",
    "Alphabetize: {}",
    "Which order would a dictionary give these words? {}",
];

impl Task for SortWords {
    type Content = Words;

    fn info(&self) -> Info {
        let levels = vec![
            Level::new("3 words with different first letters", 16),
            Level::new("4 words with different first letters", 20),
            Level::new("5 words, at least two with the same first letter", 26),
        ];
        info("sort-words", "Puts words into alphabetical order, a space apart.", levels)
    }

    fn candidate(&self, level: u32, draw: Draw) -> Words {
        let rng = &mut draw.rng();
        loop {
            let words = words::pick_distinct(rng, &words::COMMON, level as usize + 2);
            let mut first: Vec<_> = words.iter().map(|word| word.as_bytes()[0]).collect();
            first.sort_unstable();
            first.dedup();
            // Words that stand in order already would be answered by an echo.
            if !words.is_sorted() && (first.len() == words.len()) == (level < 3) {
                return Words { words: words.into_iter().map(str::to_owned).collect() };
            }
        }
    }

    fn prompt(&self, content: &Words, wording: usize) -> String {
        fill(SORT[wording], &[&content.words.join(" ")])
    }

    fn answer(&self, content: &Words) -> String {
        let mut words: Vec<&str> = content.words.iter().map(String::as_str).collect();
        words.sort_unstable();
        words.join(" ")
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::words(reply).as_deref() == Some(answer)
    }
}
