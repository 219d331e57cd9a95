//! Documents as an environment: questions that a program makes of their words, answered by what stands there. Never sees tokens or models.
//!
//! Every question is identified by its content, and its hash decides its split: no gap and no continuation that is tested was ever asked
//! in training. What training does see is the text itself, which is what is to be remembered.

mod questions;
#[cfg(test)]
mod tests;
mod text;

pub use text::{Document, DocumentError, Passage, documents};

use super::{Draw, EnvError, Environment, Form, Grade, HeldOut, Info, Item, Level, Outcome, Session, Wordings, task};
use crate::common::{Digest, Message};
use questions::{Ask, Found};
use serde_json::Value;
use std::{collections::HashMap, ops::Range};

/// Bytes of an answer a token, at least: what the reply limit is derived from.
const BYTES_PER_TOKEN_MIN: usize = 2;
/// Wordings that all splits share, and those that only the test has.
const WORDINGS: (usize, usize) = (3, 1);

/// Documents cut into passages, and the questions about them.
pub struct Documents {
    info: Info,
    passages: Vec<Passage>,
    /// Questions that are graded: gaps and continuations.
    asked: Vec<Value>,
    /// Longer continuations, for training alone.
    recited: Vec<Value>,
    /// The passage that each content is about.
    places: HashMap<Digest, usize>,
}

impl Documents {
    /// Of `documents`, in passages of at most `passage_bytes`.
    ///
    /// # Errors
    /// If there is too little text to ask about.
    pub fn new(documents: &[Document], passage_bytes: usize) -> Result<Self, DocumentError> {
        let passages: Vec<Passage> = documents.iter().flat_map(|document| text::cut(document, passage_bytes)).collect();
        let (mut asked, mut recited, mut places) = (Vec::new(), Vec::new(), HashMap::new());
        for Found { ask, passage } in questions::all(&passages) {
            let content = serde_json::to_value(&ask).expect("a question is plain data");
            places.insert(id(&content), passage);
            let list = if matches!(ask, Ask::Recite { .. }) { &mut recited } else { &mut asked };
            list.push(content);
        }
        let splits = super::Split::ALL.map(|split| asked.iter().filter(|c| super::Split::of(&id(c)) == split).count());
        if splits.contains(&0) {
            let words = passages.iter().map(Passage::words).sum();
            return Err(DocumentError::TooShort { words, questions: asked.len() });
        }
        let longest = asked.iter().filter_map(|content| content["answer"].as_str()).map(str::len).max().unwrap_or(0);
        let titles: Vec<&str> = documents.iter().map(|document| document.title.as_str()).collect();
        let digests: Vec<&[u8]> = documents.iter().flat_map(|d| [d.title.as_bytes(), d.text.as_bytes()]).collect();
        let info = Info {
            name: titles.join(", "),
            version: Digest::of_parts(digests).short(),
            description: format!("Answers questions about {}.", titles.join(", ")),
            levels: vec![Level::new("gaps and continuations", longest / BYTES_PER_TOKEN_MIN + 8)],
            wordings: Wordings::shared(WORDINGS.0, WORDINGS.1),
            held_out: HeldOut::Items,
            forms: vec![Form::Direct],
        };
        Ok(Self { info, passages, asked, recited, places })
    }

    /// The passages, in order.
    pub fn passages(&self) -> &[Passage] {
        &self.passages
    }

    /// What may be trained on: long continuations all over the text, and the graded questions of the training split.
    pub fn lessons(&self) -> Vec<Item> {
        self.recited.iter().map(item).chain(self.trained()).collect()
    }

    /// The graded questions of the training split.
    fn trained(&self) -> impl Iterator<Item = Item> {
        self.asked.iter().map(item).filter(|item| self.split(item) == super::Split::Train)
    }

    /// Up to `count` questions of the training split about `passages`, gaps and continuations in turn: what shows a reader how to answer.
    pub fn examples(&self, passages: Range<usize>, count: usize) -> Vec<Item> {
        let about = |item: &Item| self.passage_of(item).is_some_and(|passage| passages.contains(&passage));
        let mut items: Vec<Item> = self.trained().filter(about).collect();
        // By hash, so that they come from all over the text.
        items.sort_by_key(|item| item.id);
        let (gaps, others): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.content["kind"] == "gap");
        let mut kinds = [gaps.into_iter(), others.into_iter()];
        (0..count).filter_map(|i| kinds[i % 2].next()).collect()
    }

    /// The question of a reader's own about passage `passage`, with its answer: an item that is never graded.
    pub fn written(&self, passage: usize, question: &str, answer: &str) -> Item {
        let title = self.passages[passage].title.clone();
        let ask = Ask::Written { title, question: question.to_owned(), answer: answer.to_owned() };
        Item::new(serde_json::to_value(ask).expect("a question is plain data"), 1, Form::Direct, 0)
    }

    /// The passage that a graded question, or a continuation, is about.
    pub fn passage_of(&self, item: &Item) -> Option<usize> {
        self.places.get(&item.id).copied()
    }

    /// Number of graded questions, all splits together.
    pub fn questions(&self) -> usize {
        self.asked.len()
    }
}

/// A question to somebody who has `text` before their eyes.
pub fn informed(title: &str, text: &str, question: &str) -> Message {
    Message::user(format!("Here is {title}:\n\n{text}\n\n{question}"))
}

/// A question in its first wording.
fn item(content: &Value) -> Item {
    Item::new(content.clone(), 1, Form::Direct, 0)
}

fn id(content: &Value) -> Digest {
    Digest::of(super::canonical(content))
}

impl Environment for Documents {
    fn info(&self) -> &Info {
        &self.info
    }

    fn candidate(&self, level: u32, draw: Draw) -> Result<Value, EnvError> {
        self.info.level(level)?;
        Ok(draw.rng().pick(&self.asked).clone())
    }

    fn start(&self, item: &Item) -> Result<Box<dyn Session>, EnvError> {
        let ask: Ask = task::read(&self.info, item, &item.content)?;
        Ok(Box::new(Asked { messages: [Message::user(ask.prompt(item.wording))], ask }))
    }
}

/// A question being asked.
struct Asked {
    ask: Ask,
    messages: [Message; 1],
}

impl Session for Asked {
    fn observe(&self) -> &[Message] {
        &self.messages
    }

    fn teacher(&self) -> Option<String> {
        Some(self.ask.answer().to_owned())
    }

    fn act(&mut self, reply: &str) -> Result<Outcome, EnvError> {
        let (strict, lenient) = self.ask.grade(reply);
        let feedback = Some(self.ask.answer().to_owned());
        Ok(Outcome::Done(Grade { reward: f32::from(strict), strict, lenient, feedback }))
    }
}
