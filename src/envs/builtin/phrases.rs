//! Tasks that write words another way: `reverse-words`, `repeat`, `slug`.

use super::{
    super::{
        Draw, Info, Level, grade,
        task::{Task, fill},
        words,
    },
    info,
};
use serde::{Deserialize, Serialize};

/// Some words.
#[derive(Serialize, Deserialize)]
pub(crate) struct Words {
    words: Vec<String>,
}

impl Words {
    fn draw(draw: Draw, count: usize) -> Self {
        let words = words::pick_distinct(&mut draw.rng(), &words::COMMON, count);
        Self { words: words.into_iter().map(str::to_owned).collect() }
    }
}

/// Some words from last to first.
#[derive(Clone)]
pub(crate) struct ReverseWords;

const REVERSE: [&str; 5] = [
    "Reverse the order of these words: {}",
    "Write these words from last to first: {}",
    "Give the words {} in backward order.",
    "Say these words in reverse: {}",
    "What is {} with its words in reverse order?",
];

impl Task for ReverseWords {
    type Content = Words;

    fn info(&self) -> Info {
        let levels = [2, 3, 4].map(|count| Level::new(format!("{count} words"), 6 * count));
        info("reverse-words", "Gives some words from last to first, a space apart.", levels)
    }

    fn candidate(&self, level: u32, draw: Draw) -> Words {
        Words::draw(draw, level as usize + 1)
    }

    fn prompt(&self, content: &Words, wording: usize) -> String {
        fill(REVERSE[wording], &[&content.words.join(" ")])
    }

    fn answer(&self, content: &Words) -> String {
        content.words.iter().rev().map(String::as_str).collect::<Vec<_>>().join(" ")
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::words(reply).as_deref() == Some(answer)
    }
}

/// A title as a part of an address.
#[derive(Clone)]
pub(crate) struct Slug;

const SLUG: [&str; 5] = [
    "Make a URL slug: {}",
    "Write as a file name with dashes: {}",
    "Join with dashes, in lower case: {}",
    "Turn this title into a slug: {}",
    "Which slug has the title {}?",
];

impl Task for Slug {
    type Content = Words;

    fn info(&self) -> Info {
        let levels = [2, 3, 4].map(|count| Level::new(format!("titles of {count} words"), 7 * count));
        info("slug", "Writes a title in lower case with dashes between its words.", levels)
    }

    fn candidate(&self, level: u32, draw: Draw) -> Words {
        Words::draw(draw, level as usize + 1)
    }

    fn prompt(&self, content: &Words, wording: usize) -> String {
        let title = |word: &String| word[..1].to_uppercase() + &word[1..];
        fill(SLUG[wording], &[&content.words.iter().map(title).collect::<Vec<_>>().join(" ")])
    }

    fn answer(&self, content: &Words) -> String {
        content.words.join("-")
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::dashed(reply).as_deref() == Some(answer)
    }
}

/// A word, and how often it is to be said.
#[derive(Serialize, Deserialize)]
pub(crate) struct Repeated {
    word: String,
    times: usize,
}

/// A word several times.
#[derive(Clone)]
pub(crate) struct Repeat;

const REPEAT: [&str; 5] = [
    "Say the word {} {} times.",
    "Repeat {} {} times.",
    "Write {} {} times in a row.",
    "Type the word {} {} times:",
    "I want to read {} {} times.",
];
const TIMES: [&str; 7] = ["zero", "one", "two", "three", "four", "five", "six"];

impl Task for Repeat {
    type Content = Repeated;

    fn info(&self) -> Info {
        let levels = [(2, 3, 16), (2, 4, 20), (2, 6, 28)]
            .map(|(low, high, tokens)| Level::new(format!("{} to {} times", TIMES[low], TIMES[high]), tokens));
        info("repeat", "Says a word as often as it is asked to, a space apart.", levels)
    }

    fn candidate(&self, level: u32, draw: Draw) -> Repeated {
        let rng = &mut draw.rng();
        let times = 2 + rng.below([2, 3, 5][level as usize - 1]);
        Repeated { word: (*rng.pick(&words::COMMON)).to_owned(), times }
    }

    fn prompt(&self, content: &Repeated, wording: usize) -> String {
        // A content may come from outside.
        let times = TIMES.get(content.times).map_or_else(|| content.times.to_string(), |word| (*word).to_owned());
        fill(REPEAT[wording], &[&content.word, &times])
    }

    fn answer(&self, content: &Repeated) -> String {
        vec![content.word.as_str(); content.times].join(" ")
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::words(reply).as_deref() == Some(answer)
    }
}
