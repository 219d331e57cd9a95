//! Tasks on numbers: `add`, `compare`.

use super::{
    super::{
        Draw, Info, Level, grade,
        task::{Task, fill},
    },
    info,
};
use crate::common::{Rng, Seed};
use serde::{Deserialize, Serialize};

/// Terms in ascending order, so that `2 + 3` and `3 + 2` are one item and fall into one split.
#[derive(Serialize, Deserialize)]
pub(crate) struct Sum {
    terms: Vec<u32>,
}

/// Addition.
#[derive(Clone)]
pub(crate) struct Add;

const ADD: [&str; 5] = ["What is {}?", "Compute {}.", "{} =", "Calculate: {}", "Find the sum {}."];

impl Task for Add {
    type Content = Sum;

    fn info(&self) -> Info {
        let levels = vec![
            Level::new("two numbers up to 99", 8),
            Level::new("two numbers of 3 digits", 10),
            Level::new("three numbers of 2 digits", 10),
        ];
        info("add", "Adds whole numbers.", levels)
    }

    fn candidate(&self, level: u32, draw: Draw) -> Sum {
        let rng = &mut draw.rng();
        let mut draw = |low: u32, high: u32| low + rng.below((high - low + 1) as usize) as u32;
        let mut terms = match level {
            1 => vec![draw(2, 99), draw(2, 99)],
            2 => vec![draw(100, 999), draw(100, 999)],
            _ => vec![draw(10, 99), draw(10, 99), draw(10, 99)],
        };
        terms.sort_unstable();
        Sum { terms }
    }

    fn prompt(&self, content: &Sum, wording: usize) -> String {
        let terms: Vec<_> = content.terms.iter().map(u32::to_string).collect();
        fill(ADD[wording], &[&terms.join(" + ")])
    }

    fn answer(&self, content: &Sum) -> String {
        content.terms.iter().map(|&term| u64::from(term)).sum::<u64>().to_string()
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::result(reply).as_deref() == Some(answer)
    }
}

/// Two numbers in hundredths. The pair decides which is named first, so that no pair is met in both orders.
#[derive(Serialize, Deserialize)]
pub(crate) struct Pair {
    low: u32,
    high: u32,
}

impl Pair {
    fn named(&self) -> [String; 2] {
        let pair = [shown(self.low), shown(self.high)];
        let high_first = Seed::new(u64::from(self.low)).index(u64::from(self.high)).rng().below(2) == 1;
        let [low, high] = pair;
        if high_first { [high, low] } else { [low, high] }
    }
}

/// Hundredths without trailing zeros: 450 is `4.5`.
fn shown(hundredths: u32) -> String {
    let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The larger of two numbers.
#[derive(Clone)]
pub(crate) struct Compare;

const COMPARE: [&str; 5] = [
    "Which is larger, {} or {}?",
    "Which number is bigger: {} or {}?",
    "Give the greater of {} and {}.",
    "Pick the larger number: {}, {}",
    "Of {} and {}, name the higher.",
];

impl Task for Compare {
    type Content = Pair;

    fn info(&self) -> Info {
        let levels = vec![
            Level::new("numbers up to 99", 8).baseline(0.5),
            Level::new("numbers of 3 digits", 8).baseline(0.5),
            Level::new("numbers below 10 with one or two decimals", 10).baseline(0.5),
        ];
        info("compare", "Names the larger of two numbers.", levels)
    }

    fn candidate(&self, level: u32, draw: Draw) -> Pair {
        let rng = &mut draw.rng();
        let draw = |rng: &mut Rng| match level {
            1 => 100 * (1 + rng.below(99)),
            2 => 100 * (100 + rng.below(900)),
            _ => 1 + rng.below(999),
        } as u32;
        loop {
            let (a, b) = (draw(rng), draw(rng));
            if a != b {
                return Pair { low: a.min(b), high: a.max(b) };
            }
        }
    }

    fn prompt(&self, content: &Pair, wording: usize) -> String {
        let [first, second] = content.named();
        fill(COMPARE[wording], &[&first, &second])
    }

    fn answer(&self, content: &Pair) -> String {
        shown(content.high)
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::number(reply).as_deref() == Some(answer)
    }

    fn choices(&self, content: &Pair, _level: u32) -> Vec<String> {
        content.named().into()
    }
}
