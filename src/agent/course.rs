//! A course of lessons: given items in shuffled passes, some to be answered as a teacher would. Never makes items.

use crate::{
    common::{Digest, Seed},
    envs::{Environment, Item},
    train::TrainRow,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;

/// What is studied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course {
    /// All items, each once a pass.
    pub items: Vec<Item>,
    /// How a teacher answers some of them, by the item's id; the others are answered as their environment reveals.
    pub taught: HashMap<Digest, Taught>,
    /// What a prefix begins as: the first tokens of what is studied. Where that is known the items are, so it is not in the summary.
    pub beginning: Vec<u32>,
}

/// A teacher's answer with the distributions that it was drawn from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Taught {
    /// Token ids.
    pub answer: Vec<u32>,
    /// At each token the most probable ones with their probabilities, which sum to 1.
    pub teacher: Vec<Vec<(u32, f32)>>,
}

impl Taught {
    /// Matches the teacher's distributions after `prompt`.
    pub(super) fn row(&self, prompt: Vec<u32>) -> TrainRow {
        TrainRow::soft(prompt, self.answer.clone(), self.teacher.clone())
    }
}

impl Course {
    /// The `index`-th item of a stream, in one of training's wordings.
    ///
    /// # Panics
    /// Without any item.
    pub(super) fn item(&self, env: &dyn Environment, seed: Seed, index: u64) -> Item {
        let pass = self.items.len() as u64;
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        seed.purpose("pass").index(index / pass).rng().shuffle(&mut order);
        let mut item = self.items[order[(index % pass) as usize]].clone();
        let wordings: Vec<usize> = env.info().wordings.train.clone().collect();
        item.wording = *seed.purpose("wording").index(index).rng().pick::<usize>(&wordings);
        item
    }

    /// What identifies it: how many items there are, how many of them taught, and the digest of everything.
    pub(super) fn summary(&self) -> Value {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for item in &self.items {
            parts.push(item.id.bytes().to_vec());
            let taught = self.taught.get(&item.id);
            parts.push(taught.map_or_else(Vec::new, |taught| serde_json::to_vec(taught).expect("plain data")));
        }
        let digest = Digest::of_parts(parts.iter().map(Vec::as_slice));
        json!({ "items": self.items.len(), "taught": self.taught.len(), "digest": digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envs::{Document, Documents};
    use std::collections::HashSet;

    #[test]
    fn a_pass_has_every_item_once_in_an_order_of_its_own() {
        let text = (0..200).map(|i| format!("word{} ", char::from(b'a' + (i % 26) as u8))).collect::<String>();
        let text = (0..40).map(|i| format!("Clause {i} binds party number {}. ", i * 7)).collect::<String>() + &text;
        let env = Documents::new(&[Document { title: "t".into(), text }], 900).unwrap();
        let course = Course { items: env.lessons(), ..Course::default() };
        let pass = |n: usize| -> Vec<Digest> {
            let from = n * course.items.len();
            (from..from + course.items.len()).map(|i| course.item(&env, Seed::new(3), i as u64).id).collect()
        };
        let all: HashSet<Digest> = course.items.iter().map(|item| item.id).collect();
        assert_eq!(pass(0).into_iter().collect::<HashSet<_>>(), all);
        assert_ne!(pass(0), pass(1));
        assert_eq!(course.summary(), course.clone().summary());
    }
}
