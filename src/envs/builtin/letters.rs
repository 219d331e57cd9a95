//! Tasks on the letters of a word: `reverse`, `count-letter`.

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

/// A word.
#[derive(Serialize, Deserialize)]
pub(crate) struct Word {
    word: String,
}

/// The letters of a word, spaced, backwards.
#[derive(Clone)]
pub(crate) struct Reverse;

const REVERSE: [&str; 5] = [
    "Reverse the letters: {}",
    "Write these letters backwards: {}",
    "Give the letters {} from last to first.",
    "Spell in reverse: {}",
    "What is {} in backward order?",
];

impl Task for Reverse {
    type Content = Word;

    fn info(&self) -> Info {
        info(
            "reverse",
            "Gives the letters of a word backwards, a space apart.",
            vec![
                Level::new("words of 3 to 5 letters", 16),
                Level::new("words of 6 or 7 letters", 20),
                Level::new("invented words of 6 to 9 letters", 24),
            ],
        )
    }

    /// A palindrome would be answered by spelling forwards, so it is none.
    fn candidate(&self, level: u32, draw: Draw) -> Word {
        let rng = &mut draw.rng();
        let draw = |rng: &mut Rng| match level {
            1 => (*rng.pick(&words::SHORT)).to_owned(),
            2 => (*rng.pick(&words::LONG)).to_owned(),
            _ => {
                let syllables = 3 + rng.below(2);
                words::invent(rng, syllables)
            }
        };
        loop {
            let word = draw(rng);
            if !word.bytes().eq(word.bytes().rev()) {
                return Word { word };
            }
        }
    }

    fn prompt(&self, content: &Word, wording: usize) -> String {
        fill(REVERSE[wording], &[&spaced(content.word.chars())])
    }

    fn answer(&self, content: &Word) -> String {
        spaced(content.word.chars().rev())
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::letters(reply).as_deref() == Some(answer)
    }
}

/// Letters a space apart. Prompts give them so because a small model does not know the spelling of its own tokens: asked to
/// reverse a whole word, it stays at 3 % after 64 steps of any rate (docs/log.md).
fn spaced(letters: impl Iterator<Item = char>) -> String {
    letters.map(String::from).collect::<Vec<_>>().join(" ")
}

/// How often a letter stands in a word.
#[derive(Clone)]
pub(crate) struct CountLetter;

/// A word and a letter in it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Counted {
    word: String,
    letter: char,
}

const COUNT: [&str; 5] = [
    "How many times is the letter {} in {}?",
    "Count the letter {} in the word {}.",
    "How often does {} occur in {}?",
    "Give the number of letters {} in {}.",
    "The letter {} stands how many times in {}?",
];

/// Words of three to seven letters in which some letter stands exactly `count` times, each with those letters.
fn words_with(count: usize) -> Vec<(&'static str, Vec<char>)> {
    let letters = |word: &str| -> Vec<char> {
        ('a'..='z').filter(|letter| word.chars().filter(|c| c == letter).count() == count).collect()
    };
    words::COMMON.iter().map(|word| (*word, letters(word))).filter(|(_, letters)| !letters.is_empty()).collect()
}

/// Indexed by count: 1, 2, 3.
static BY_COUNT: std::sync::LazyLock<Vec<Vec<(&'static str, Vec<char>)>>> =
    std::sync::LazyLock::new(|| (1..=3).map(words_with).collect());

impl Task for CountLetter {
    type Content = Counted;

    fn info(&self) -> Info {
        info(
            "count-letter",
            "Counts how often a letter stands in a word.",
            vec![
                Level::new("once or twice", 8).baseline(1.0 / 2.0),
                Level::new("up to three times", 8).baseline(1.0 / 3.0),
            ],
        )
    }

    /// Counts are equally likely, so that no constant answer gains from their shares in English.
    fn candidate(&self, level: u32, draw: Draw) -> Counted {
        let rng = &mut draw.rng();
        let count = draw.class().below(level as usize + 1);
        let (word, letters) = rng.pick(&BY_COUNT[count]).clone();
        Counted { word: word.to_owned(), letter: *rng.pick(&letters) }
    }

    fn prompt(&self, content: &Counted, wording: usize) -> String {
        fill(COUNT[wording], &[&content.letter.to_string(), &content.word])
    }

    fn answer(&self, content: &Counted) -> String {
        content.word.chars().filter(|&c| c == content.letter).count().to_string()
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::number(reply).as_deref() == Some(answer)
    }

    fn choices(&self, _content: &Counted, level: u32) -> Vec<String> {
        (1..=level + 1).map(|count| count.to_string()).collect()
    }
}
