//! `phonebook`: invented people with a number and a best friend each. Learned directly; tested by paraphrase and, apart, by
//! reversed and two-hop questions, which memorised strings do not answer.

use super::super::{
    Form, HeldOut, Info, Level, Wordings, grade,
    task::{Task, fill},
    words,
};
use crate::common::Seed;
use serde::{Deserialize, Serialize};

/// What is asked.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ask {
    Number,
    Friend,
    OwnerOfNumber,
    FriendOfFriend,
    NumberOfFriend,
}

/// A question and its answer.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Fact {
    ask: Ask,
    subject: String,
    answer: String,
}

/// The people of one world.
#[derive(Clone)]
pub(crate) struct Phonebook {
    world: u64,
    levels: Vec<Vec<Person>>,
}

#[derive(Clone)]
struct Person {
    name: &'static str,
    number: usize,
    /// Index among the people; everybody is the best friend of one other.
    friend: usize,
}

/// Two facts a person.
const PEOPLE: [usize; 3] = [16, 32, 64];
const TRAIN: usize = 4;
const VALIDATION: usize = 2;
const TEST: usize = 4;

const NUMBER: [&str; TRAIN + VALIDATION + TEST] = [
    "What is {}'s phone number?",
    "Which number do I dial for {}?",
    "Give me the number of {}.",
    "Phone number of {}:",
    "Look up the number for {}.",
    "What number does {} have?",
    "I want to call {}. Which number?",
    "Tell me {}'s telephone number.",
    "Which digits do I dial to ring {}?",
    "What number belongs to {}?",
];
const FRIEND: [&str; TRAIN + VALIDATION + TEST] = [
    "Who is {}'s best friend?",
    "Name the best friend of {}.",
    "Which person is closest to {}?",
    "Best friend of {}:",
    "Tell me who {}'s best friend is.",
    "Who is the closest friend of {}?",
    "What is the name of {}'s best friend?",
    "Who does {} call a best friend?",
    "Say which person is {}'s best friend.",
    "{} is best friends with whom?",
];
const OWNER: [&str; TEST] =
    ["Whose phone number is {}?", "Who answers at {}?", "Which person has the number {}?", "I dial {}. Who is there?"];
const FRIEND_OF: [&str; TEST] = [
    "Whose best friend is {}?",
    "Who has {} as best friend?",
    "Which person calls {} a best friend?",
    "Name who is best friends with {}.",
];
const NUMBER_OF_FRIEND: [&str; TEST] = [
    "What is the phone number of {}'s best friend?",
    "Which number do I dial for {}'s best friend?",
    "Give me the number of the best friend of {}.",
    "I want to call {}'s best friend. Which number?",
];

impl Phonebook {
    /// The phonebook of a world.
    pub(crate) fn new(world: u64) -> Self {
        let levels = (1..).zip(PEOPLE).map(|(level, count)| people(Seed::new(world).index(level), count));
        Self { world, levels: levels.collect() }
    }
}

fn people(seed: Seed, count: usize) -> Vec<Person> {
    let mut rng = seed.purpose("phonebook").rng();
    let names = words::pick_distinct(&mut rng, &words::NAMES, count);
    let numbers = words::pick_distinct(&mut rng, &(1000..10_000).collect::<Vec<_>>(), count);
    // Names are in random order already, so a circle through them is a random one, and nobody befriends themselves.
    let person = |(i, (name, number))| Person { name, number, friend: (i + 1) % count };
    names.into_iter().zip(numbers).enumerate().map(person).collect()
}

impl Task for Phonebook {
    type Content = Fact;

    fn info(&self) -> Info {
        Info {
            name: super::world_name("phonebook", self.world),
            version: "1".into(),
            description: "Knows the phone numbers and best friends of invented people.".into(),
            levels: PEOPLE.map(|people| Level::new(format!("{people} people, {} facts", 2 * people), 10)).into(),
            wordings: Wordings::apart(TRAIN, VALIDATION, TEST),
            held_out: HeldOut::Wordings,
            forms: vec![Form::Direct, Form::Reversed, Form::TwoHop],
        }
    }

    fn facts(&self, level: u32, form: Form) -> Vec<Fact> {
        let people = &self.levels[level as usize - 1];
        let of = |person: &Person| {
            let friend = &people[person.friend];
            let [name, friend_name] = [person.name, friend.name].map(str::to_owned);
            let [number, friend_number] = [person.number, friend.number].map(|number| number.to_string());
            let fact = |ask, subject, answer| Fact { ask, subject, answer };
            match form {
                Form::Direct => vec![fact(Ask::Number, name.clone(), number), fact(Ask::Friend, name, friend_name)],
                Form::Reversed => {
                    vec![fact(Ask::OwnerOfNumber, number, name.clone()), fact(Ask::FriendOfFriend, friend_name, name)]
                }
                Form::TwoHop => vec![fact(Ask::NumberOfFriend, name, friend_number)],
            }
        };
        people.iter().flat_map(of).collect()
    }

    fn prompt(&self, content: &Fact, wording: usize) -> String {
        // Reversed and two-hop questions exist in the test split alone, so their wordings begin with the test wordings.
        let tested = wording.saturating_sub(TRAIN + VALIDATION);
        let template = match content.ask {
            Ask::Number => NUMBER[wording],
            Ask::Friend => FRIEND[wording],
            Ask::OwnerOfNumber => OWNER[tested],
            Ask::FriendOfFriend => FRIEND_OF[tested],
            Ask::NumberOfFriend => NUMBER_OF_FRIEND[tested],
        };
        fill(template, &[&content.subject])
    }

    fn answer(&self, content: &Fact) -> String {
        content.answer.clone()
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        let span = match answer.parse::<usize>() {
            Ok(_) => grade::number(reply),
            Err(_) => grade::word(reply),
        };
        span.is_some_and(|span| span == answer.to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn reversed_and_two_hop_answers_follow_from_the_direct_facts() {
        for level in 1..=3 {
            let book = Phonebook::new(3);
            let known: HashMap<(String, bool), String> = (book.facts(level, Form::Direct).into_iter())
                .map(|fact| ((fact.subject, matches!(fact.ask, Ask::Number)), fact.answer))
                .collect();
            assert_eq!(known.len(), 2 * PEOPLE[level as usize - 1]);
            assert_eq!(known.values().collect::<HashSet<_>>().len(), known.len(), "every answer has one subject");
            for fact in book.facts(level, Form::Reversed) {
                let number = matches!(fact.ask, Ask::OwnerOfNumber);
                assert_eq!(known[&(fact.answer, number)], fact.subject);
            }
            for fact in book.facts(level, Form::TwoHop) {
                let friend = known[&(fact.subject.clone(), false)].clone();
                assert_ne!(friend, fact.subject);
                assert_eq!(known[&(friend, true)], fact.answer);
            }
        }
    }
}
