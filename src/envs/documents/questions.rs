//! Questions made of a passage's words by rule, and how replies to them are graded. Never knows who answers.

use super::Passage;
use crate::envs::{grade, task::fill};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Words before and after a gap.
const AROUND: usize = 10;
/// Words before a continuation.
const STEM: usize = 8;
/// Words of a continuation that is graded, and of one that is recited.
const NEXT: usize = 4;
const RECITED: usize = 40;
/// Words from one continuation to the next. Those that are graded begin halfway between those that are recited, so that their stems have
/// no word in common.
const STRIDE: usize = 2 * STEM;
/// Letters of a word that is worth asking for.
const LETTERS_MIN: usize = 4;
/// Words that stand everywhere.
const COMMON: [&str; 24] = [
    "that", "this", "with", "from", "have", "been", "were", "will", "shall", "which", "such", "other", "their", "them",
    "they", "then", "than", "there", "these", "those", "what", "when", "your", "into",
];

/// A question. The passage that it came from is no part of it: the same words elsewhere are the same question.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Ask {
    /// A word that was left out.
    Gap { title: String, before: String, after: String, answer: String },
    /// The words that come next.
    Next { title: String, stem: String, answer: String },
    /// The same at length.
    Recite { title: String, stem: String, answer: String },
    /// A reader's own question.
    Written { title: String, question: String, answer: String },
}

/// A question and its passage.
pub(super) struct Found {
    pub(super) ask: Ask,
    pub(super) passage: usize,
}

const GAP: [&str; 4] = [
    "Which word is missing in this part of {}? Answer with that word alone.",
    "Fill the gap with the one word that stands there in {}. Answer with that word alone.",
    "What word belongs where the line is, in {}? Answer with that word alone.",
    "One word of {} was left out here. Name it, and nothing else.",
];
const NEXT_WORDS: [&str; 4] = [
    "Which four words come next in {}? Answer with those words alone.",
    "Continue this part of {} with its next four words, and nothing else.",
    "How does {} go on? Give the next four words alone.",
    "Give just the four words that follow here in {}.",
];
const RECITE: [&str; 4] =
    ["Recite {} from here on.", "How does this part of {} go on?", "Continue this text from {}.", "Go on with {}."];
const WRITTEN: [&str; 4] = ["About {}: ", "A question about {}. ", "From {}: ", "This is about {}. "];

/// All questions about `passages`. A stem or gap that stands in several places with different answers is no question.
pub(super) fn all(passages: &[Passage]) -> Vec<Found> {
    let mut found = Vec::new();
    for (passage, Passage { title, text }) in passages.iter().enumerate() {
        let words: Vec<&str> = text.split(' ').collect();
        let asks = gaps(title, &words).chain(continuations(title, &words));
        found.extend(asks.map(|ask| Found { ask, passage }));
    }
    let mut answers: HashMap<String, HashSet<&str>> = HashMap::new();
    for Found { ask, .. } in &found {
        answers.entry(ask.prompt(0)).or_default().insert(ask.answer());
    }
    let doubtful: HashSet<String> =
        answers.iter().filter(|(_, answers)| answers.len() > 1).map(|(prompt, _)| prompt.clone()).collect();
    let mut seen = HashSet::new();
    found.retain(|Found { ask, .. }| !doubtful.contains(&ask.prompt(0)) && seen.insert(ask.clone()));
    found
}

fn gaps(title: &str, words: &[&str]) -> impl Iterator<Item = Ask> {
    (STEM / 2..words.len()).filter_map(move |at| {
        let word = words[at];
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
        let number = !bare.is_empty() && bare.chars().all(|c| c.is_ascii_digit());
        let worth = bare.chars().count() >= LETTERS_MIN && bare.chars().all(char::is_alphabetic);
        if !(number || worth && !COMMON.contains(&bare.to_lowercase().as_str())) {
            return None;
        }
        let (opening, closing) = word.split_once(bare)?;
        let before = [&words[at.saturating_sub(AROUND)..at].join(" "), " ", opening].concat();
        let after = [closing, " ", &words[at + 1..words.len().min(at + 1 + AROUND)].join(" ")].concat();
        Some(Ask::Gap { title: title.to_owned(), before, after: after.trim_end().to_owned(), answer: bare.to_owned() })
    })
}

fn continuations(title: &str, words: &[&str]) -> impl Iterator<Item = Ask> {
    let ask = |at: usize| {
        let (stem, rest) = (words[at - STEM..at].join(" "), &words[at..]);
        let title = title.to_owned();
        if at.is_multiple_of(STRIDE) {
            let answer = rest[..rest.len().min(RECITED)].join(" ");
            Some(Ask::Recite { title, stem, answer })
        } else {
            (rest.len() >= NEXT).then(|| Ask::Next { title, stem, answer: rest[..NEXT].join(" ") })
        }
    };
    (1..).map(|i| i * STEM).take_while(|&at| at < words.len()).filter_map(ask)
}

impl Ask {
    /// The question in a wording.
    pub(super) fn prompt(&self, wording: usize) -> String {
        match self {
            Self::Gap { title, before, after, .. } => {
                format!("{}\n\n“… {before}____{after} …”", fill(GAP[wording], &[title]))
            }
            Self::Next { title, stem, .. } => format!("{}\n\n“… {stem} …”", fill(NEXT_WORDS[wording], &[title])),
            Self::Recite { title, stem, .. } => format!("{}\n\n“… {stem} …”", fill(RECITE[wording], &[title])),
            Self::Written { title, question, .. } => format!("{}{question}", fill(WRITTEN[wording], &[title])),
        }
    }

    /// What is right.
    pub(super) fn answer(&self) -> &str {
        match self {
            Self::Gap { answer, .. }
            | Self::Next { answer, .. }
            | Self::Recite { answer, .. }
            | Self::Written { answer, .. } => answer,
        }
    }

    /// Whether the whole reply is right, and whether its first complete answer is. Letters' case and punctuation count in the first
    /// alone.
    pub(super) fn grade(&self, reply: &str) -> (bool, bool) {
        let answer = self.answer();
        let lenient = match self {
            Self::Gap { .. } => grade::word(reply) == Some(answer.to_lowercase()),
            Self::Next { stem, .. } => continues(reply, stem, answer),
            Self::Recite { .. } | Self::Written { .. } => bare(reply) == bare(answer),
        };
        (reply.trim() == answer, lenient)
    }
}

/// Words in lower case, without what is no letter or digit.
fn bare(text: &str) -> Vec<String> {
    let word =
        |word: &str| word.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    text.split_whitespace().map(word).filter(|word| !word.is_empty()).collect()
}

/// Whether a reply begins with `answer`, after as much of `stem`'s end as it repeats.
fn continues(reply: &str, stem: &str, answer: &str) -> bool {
    let (reply, stem, answer) = (bare(reply), bare(stem), bare(answer));
    (0..=stem.len()).any(|skipped| reply.starts_with(&[&stem[skipped..], &answer].concat()))
}
