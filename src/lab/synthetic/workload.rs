//! Contexts of N items with questions about them, as functions of a seed, and a check of the answers that knows only the items. Never sees
//! models.

use super::symbols::{ANY, BEGIN, FIND, GET, HOP, KEYS, LINK, MARK, MAX, TWICE, VALUES, WHO, value};
use crate::common::{Rng, Seed};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};

/// Two symbols of key, or what stands for them, and a value.
pub type Item = [u32; 3];

/// How much of a context an answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// One item is marked and its value is asked: O(1).
    Needle,
    /// Every key's value may be asked: O(1) a question, O(N) for all; also in other words, backwards, and over two hops.
    Book,
    /// The largest value of one of eight classes: O(N) a question.
    Aggregate,
    /// The value of the only key that occurs twice: O(N²) pairs, and no part knows whether its own items matter.
    Pairs,
}

/// How a question is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As a learner is trained to answer it.
    Forward,
    /// In other words.
    Paraphrased,
    /// From value to key.
    Reversed,
    /// Through a second item.
    TwoHop,
}

/// Three symbols to be answered by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What is asked; the last symbol says how.
    pub tokens: [u32; 3],
    /// What is right.
    pub answer: u32,
    /// How it is put.
    pub form: Form,
}

/// Items, and questions about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// In the order in which they are read.
    pub items: Vec<Item>,
    /// All that may be asked, forward ones first.
    pub questions: Vec<Question>,
}

/// Classes of the aggregate.
const CLASSES: usize = 8;

impl Workload {
    /// All of them, by density.
    pub const ALL: [Self; 4] = [Self::Needle, Self::Book, Self::Aggregate, Self::Pairs];

    /// As it is spelt in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Needle => "needle",
            Self::Book => "book",
            Self::Aggregate => "aggregate",
            Self::Pairs => "pairs",
        }
    }

    /// What answering takes, in words.
    pub fn density(self) -> &'static str {
        match self {
            Self::Needle => "O(1)",
            Self::Book => "O(1) a question, O(N) for all",
            Self::Aggregate => "O(N)",
            Self::Pairs => "O(N²)",
        }
    }

    /// A context of `n` items.
    ///
    /// # Panics
    /// Unless `n` is at least 4 and there are as many keys.
    pub fn context(self, n: usize, seed: Seed) -> Context {
        assert!((4..=(KEYS * KEYS) as usize).contains(&n), "{n} items: from 4 to {}", KEYS * KEYS);
        let mut rng = seed.purpose(self.name()).index(n as u64).rng();
        match self {
            Self::Needle => needle(n, &mut rng),
            Self::Book => book(n, &mut rng),
            Self::Aggregate => aggregate(n, &mut rng),
            Self::Pairs => pairs(n, &mut rng),
        }
    }

    /// Contexts that together have at least `questions` forward questions.
    pub fn contexts(self, n: usize, questions: usize, seed: Seed) -> Vec<Context> {
        let mut contexts = Vec::new();
        let mut held = 0;
        while held < questions {
            let context = self.context(n, seed.index(contexts.len() as u64));
            held += context.forward().len();
            contexts.push(context);
        }
        contexts
    }
}

impl Context {
    /// As a model reads it: a beginning and the items.
    pub fn tokens(&self) -> Vec<u32> {
        tokens(&self.items)
    }

    /// The forward questions.
    pub fn forward(&self) -> &[Question] {
        let end = self.questions.iter().position(|question| question.form != Form::Forward);
        &self.questions[..end.unwrap_or(self.questions.len())]
    }
}

/// A beginning and the items, as a model reads them.
pub fn tokens(items: &[Item]) -> Vec<u32> {
    [BEGIN].into_iter().chain(items.iter().flatten().copied()).collect()
}

/// Every answer to `question` that the items allow, found without knowing how they were made.
pub fn answers(items: &[Item], question: [u32; 3]) -> BTreeSet<u32> {
    let values = |wanted: &dyn Fn(&Item) -> bool| -> BTreeSet<u32> {
        items.iter().filter(|item| wanted(item)).map(|item| item[2]).collect()
    };
    let [a, b, asked] = question;
    match asked {
        GET => values(&|item| item[..2] == [a, b]),
        FIND => values(&|item| item[..2] == [b, a]),
        WHO => items.iter().filter(|item| item[1..] == [b, a]).map(|item| item[0]).collect(),
        MAX => values(&|item| item[0] == a).last().copied().into_iter().collect(),
        TWICE => {
            let mut seen = HashMap::new();
            let twice = items.iter().filter(|item| seen.insert([item[0], item[1]], item[2]).is_some());
            twice.map(|item| item[2]).collect()
        }
        HOP => {
            let first = values(&|item| item[..2] == [a, b]);
            values(&|item| item[0] == LINK && first.contains(&item[1]))
        }
        _ => BTreeSet::new(),
    }
}

/// `n` different keys.
fn keys(n: usize, rng: &mut Rng) -> Vec<[u32; 2]> {
    let mut all: Vec<u32> = (0..KEYS * KEYS).collect();
    // The first n of a shuffle.
    for i in 0..n {
        let j = i + rng.below(all.len() - i);
        all.swap(i, j);
    }
    all[..n].iter().map(|key| [key / KEYS, key % KEYS]).collect()
}

fn any_value(rng: &mut Rng) -> u32 {
    value(rng.below(VALUES as usize) as u32)
}

fn random_items(n: usize, rng: &mut Rng) -> Vec<Item> {
    keys(n, rng).into_iter().map(|[a, b]| [a, b, any_value(rng)]).collect()
}

fn forward(tokens: [u32; 3], answer: u32) -> Question {
    Question { tokens, answer, form: Form::Forward }
}

fn needle(n: usize, rng: &mut Rng) -> Context {
    let mut items = random_items(n, rng);
    let item = rng.below(n);
    items[item][0] = MARK;
    let questions = vec![forward([MARK, ANY, MAX], items[item][2])];
    Context { items, questions }
}

fn pairs(n: usize, rng: &mut Rng) -> Context {
    let mut items = random_items(n, rng);
    let first = rng.below(n);
    let second = (first + 1 + rng.below(n - 1)) % n;
    items[second] = items[first];
    let questions = vec![forward([ANY, ANY, TWICE], items[first][2])];
    Context { items, questions }
}

/// Values of a class are uniform up to its own largest one, so the answers are uniform at any N.
fn aggregate(n: usize, rng: &mut Rng) -> Context {
    let classes = CLASSES.min(n / 2);
    let mut symbols: Vec<u32> = (0..KEYS).collect();
    rng.shuffle(&mut symbols);
    let tops: Vec<usize> = (0..classes).map(|_| rng.below(VALUES as usize)).collect();
    let item = |i: usize, rng: &mut Rng| {
        // One item of each class has its largest value.
        let (class, v) = if i < classes {
            (i, tops[i])
        } else {
            let class = rng.below(classes);
            (class, rng.below(tops[class] + 1))
        };
        [symbols[class], rng.below(KEYS as usize) as u32, value(v as u32)]
    };
    let mut items: Vec<Item> = (0..n).map(|i| item(i, rng)).collect();
    rng.shuffle(&mut items);
    let questions = (0..classes).map(|class| forward([symbols[class], ANY, MAX], value(tops[class] as u32))).collect();
    Context { items, questions }
}

/// From 32 items on, as many of them as there are values lead from one value to another.
fn book(n: usize, rng: &mut Rng) -> Context {
    let links: Vec<Item> = if n >= 2 * VALUES as usize {
        (0..VALUES).map(|v| [LINK, value(v), any_value(rng)]).collect()
    } else {
        Vec::new()
    };
    let own = random_items(n - links.len(), rng);
    let mut items = [&own[..], &links].concat();
    rng.shuffle(&mut items);
    let mut questions: Vec<Question> = own.iter().map(|&[a, b, v]| forward([a, b, GET], v)).collect();
    let mut ask = |tokens, form| {
        // Only what has one answer is asked.
        let found = answers(&items, tokens);
        if let (1, Some(&answer)) = (found.len(), found.first()) {
            questions.push(Question { tokens, answer, form });
        }
    };
    for (form, tokens) in own.iter().take(OTHER_FORMS_MAX).flat_map(|&[a, b, v]| {
        let hop = (!links.is_empty()).then_some((Form::TwoHop, [a, b, HOP]));
        [(Form::Paraphrased, [b, a, FIND]), (Form::Reversed, [v, b, WHO])].into_iter().chain(hop)
    }) {
        ask(tokens, form);
    }
    questions.sort_by_key(|question| question.form);
    Context { items, questions }
}

/// Keys that are also asked for in other forms.
const OTHER_FORMS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::{super::symbols::is_value, *};
    use crate::common::Digest;

    #[test]
    fn every_answer_is_the_only_one_that_its_items_allow() {
        for workload in Workload::ALL {
            for n in [4, 5, 16, 33, 128, 1024, 4096] {
                for seed in 0..3 {
                    let Context { items, questions } = workload.context(n, Seed::new(seed));
                    assert_eq!(items.len(), n);
                    assert!(items.iter().all(|item| is_value(item[2])), "every item ends in a value");
                    assert!(!questions.is_empty());
                    for question in questions {
                        let found = answers(&items, question.tokens);
                        assert_eq!(found, [question.answer].into(), "{workload:?} of {n}: {question:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn answers_are_spread_over_the_values_at_any_size() {
        for workload in Workload::ALL {
            for n in [16, 512] {
                let contexts = workload.contexts(n, 800, Seed::new(7));
                let mut counts = HashMap::new();
                let asked = contexts.iter().flat_map(|context| context.forward());
                asked.for_each(|question| *counts.entry(question.answer).or_insert(0) += 1);
                let most = counts.values().max().unwrap();
                assert!(counts.len() == VALUES as usize && *most < 120, "{workload:?} of {n}: {counts:?}");
            }
        }
    }

    #[test]
    fn a_context_depends_on_seed_and_size_alone_and_seeds_share_none() {
        let digest = |seed, n| {
            let tokens = Workload::Book.context(n, Seed::new(seed)).tokens();
            Digest::of(tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<_>>())
        };
        assert_eq!(digest(1, 64), digest(1, 64));
        let all: BTreeSet<String> = (0..50).flat_map(|seed| [16, 64].map(|n| digest(seed, n).to_string())).collect();
        assert_eq!(all.len(), 100);
    }

    #[test]
    fn books_are_asked_in_every_form_once_they_are_long_enough() {
        let forms = |n| -> BTreeSet<Form> {
            Workload::Book.context(n, Seed::new(3)).questions.iter().map(|question| question.form).collect()
        };
        assert_eq!(forms(16).len(), 3);
        assert_eq!(forms(64).len(), 4);
    }

    #[test]
    fn the_check_finds_several_answers_and_none() {
        let items = [[1, 2, value(3)], [1, 2, value(4)], [5, 2, value(3)], [LINK, value(3), value(9)]];
        for (question, expected) in [
            ([1, 2, GET], vec![value(3), value(4)]),
            ([2, 5, FIND], vec![value(3)]),
            ([value(3), 2, WHO], vec![1, 5]),
            ([1, ANY, MAX], vec![value(4)]),
            ([ANY, ANY, TWICE], vec![value(4)]),
            ([5, 2, HOP], vec![value(9)]),
            ([9, 9, GET], vec![]),
            ([9, 9, ANY], vec![]),
        ] {
            assert_eq!(answers(&items, question), expected.into_iter().collect(), "{question:?}");
        }
    }
}
