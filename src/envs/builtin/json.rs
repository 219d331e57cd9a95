//! `json` and `csv`: strict formats of the same fields. The fields are given; all that can be wrong is how they are written.

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
use serde_json::{Map, Value, json};

/// Fields in the order in which they are named.
#[derive(Serialize, Deserialize)]
pub(crate) struct Fields {
    fields: Vec<(String, Value)>,
}

/// Given fields as one JSON object.
#[derive(Clone)]
pub(crate) struct Json;

/// In these words the base model is right often enough at temperature 0.6 that reward alone can teach it.
const WORDINGS: [&str; 5] = [
    "Convert to JSON: {}",
    "Make a short JSON object: {}",
    "Write this as JSON on one line: {}",
    "Answer only with JSON: {}",
    "Reply with this JSON and nothing else: {}",
];

const TEXTS: [&str; 4] = ["city", "color", "pet", "food"];
const CITIES: [&str; 16] = [
    "Paris", "Rome", "Oslo", "Lima", "Cairo", "Delhi", "Tokyo", "Quito", "Berlin", "Madrid", "Dublin", "Seoul",
    "Hanoi", "Accra", "Boston", "Sydney",
];
const COLORS: [&str; 10] = ["red", "blue", "green", "black", "white", "brown", "pink", "gray", "gold", "purple"];

fn text(rng: &mut Rng, key: &str) -> Value {
    let value = match key {
        "city" => rng.pick(&CITIES),
        "color" => rng.pick(&COLORS),
        "pet" => rng.pick(&words::ANIMALS),
        _ => rng.pick(&words::FOODS),
    };
    Value::from(*value)
}

impl Fields {
    fn draw(level: u32, draw: Draw) -> Self {
        let rng = &mut draw.rng();
        let mut fields = vec![("name".to_owned(), Value::from(*rng.pick(&words::NAMES)))];
        if level > 1 {
            let key = *rng.pick(&TEXTS);
            fields.push((key.to_owned(), text(rng, key)));
        }
        fields.push(("age".to_owned(), json!(1 + rng.below(99))));
        if level > 2 {
            fields.push(("member".to_owned(), json!(rng.below(2) == 1)));
        }
        Self { fields }
    }

    /// `name: Ann, age: 31`.
    fn named(&self) -> String {
        let fields: Vec<_> = self.fields.iter().map(|(key, value)| format!("{key}: {}", plain(value))).collect();
        fields.join(", ")
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn levels(tokens: [usize; 3]) -> Vec<Level> {
    let fields = ["a text and a number", "two texts and a number", "two texts, a number and a truth value"];
    fields.into_iter().zip(tokens).map(|(fields, tokens)| Level::new(fields, tokens)).collect()
}

impl Task for Json {
    type Content = Fields;

    fn info(&self) -> Info {
        let description = "Writes given fields as one JSON object, on one line, and nothing else.";
        Info { version: "2".into(), ..info("json", description, levels([32, 40, 48])) }
    }

    fn candidate(&self, level: u32, draw: Draw) -> Fields {
        Fields::draw(level, draw)
    }

    fn prompt(&self, content: &Fields, wording: usize) -> String {
        fill(WORDINGS[wording], &[&content.named()])
    }

    fn answer(&self, content: &Fields) -> String {
        let field = |(key, value): &(String, Value)| format!("{}: {value}", Value::from(key.as_str()));
        let fields: Vec<_> = content.fields.iter().map(field).collect();
        format!("{{{}}}", fields.join(", "))
    }

    /// One line, as a program that reads lines wants it. Spaces between tokens are free, as they are in JSON; all else is not.
    fn strict(&self, answer: &str, reply: &str) -> bool {
        reply.lines().count() == 1 && grade::compact(reply) == grade::compact(answer)
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        let wanted: Option<Map<String, Value>> = serde_json::from_str(answer).ok();
        grade::object(reply).is_some_and(|object| object.as_object() == wanted.as_ref())
    }
}

/// The values of given fields, separated by commas.
#[derive(Clone)]
pub(crate) struct Csv;

const CSV: [&str; 5] = [
    "Convert to CSV: {}",
    "Make one CSV line: {}",
    "Write only the values as CSV: {}",
    "Answer only with CSV: {}",
    "Reply with one line of CSV and nothing else: {}",
];

impl Task for Csv {
    type Content = Fields;

    fn info(&self) -> Info {
        info("csv", "Writes the values of given fields with commas between them, on one line.", levels([16, 20, 24]))
    }

    fn candidate(&self, level: u32, draw: Draw) -> Fields {
        Fields::draw(level, draw)
    }

    fn prompt(&self, content: &Fields, wording: usize) -> String {
        fill(CSV[wording], &[&content.named()])
    }

    fn answer(&self, content: &Fields) -> String {
        content.fields.iter().map(|(_, value)| plain(value)).collect::<Vec<_>>().join(",")
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::commas(reply).as_deref() == Some(answer)
    }
}
