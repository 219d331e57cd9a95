//! `guess-number`: a hidden number, told apart by "higher" and "lower". Multi-turn; halving the interval always wins.

use super::{
    super::{
        Draw, EnvError, Environment, Grade, Info, Item, Level, Outcome, Session, grade,
        task::{fill, read, to_value},
    },
    info,
};
use crate::common::Message;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Clone, Serialize, Deserialize)]
struct Hidden {
    low: u32,
    high: u32,
    secret: u32,
}

impl Hidden {
    /// Guesses that halving needs at worst: ⌊log₂ n⌋ + 1 among n numbers.
    fn guesses(&self) -> usize {
        (self.high.abs_diff(self.low) + 1).ilog2() as usize + 1
    }
}

/// The environment.
pub(crate) struct GuessNumber {
    info: Info,
}

/// Least and most numbers to choose from.
const WIDTHS: [(u32, u32); 3] = [(5, 8), (12, 16), (40, 64)];
const LOW_MAX: usize = 200;
const NUMBER_MAX: u32 = 1_000_000;

const WORDINGS: [&str; 5] = [
    "Guess my number from {} to {}. I say higher or lower.",
    "I chose a number from {} to {}. Which one?",
    "Find my number. It is from {} to {}.",
    "My number is from {} to {}. Guess it.",
    "Which number from {} to {} do I think of?",
];

impl GuessNumber {
    pub(crate) fn new() -> Self {
        let level = |(least, most): (u32, u32)| Level {
            turns_max: most.ilog2() as usize + 1,
            ..Level::new(format!("{least} to {most} numbers, as many guesses as halving needs"), 6)
        };
        let info = info(
            "guess-number",
            "Finds a hidden number by guesses that are answered with higher or lower.",
            WIDTHS.map(level),
        );
        Self { info }
    }
}

impl Environment for GuessNumber {
    fn info(&self) -> &Info {
        &self.info
    }

    fn candidate(&self, level: u32, draw: Draw) -> Result<Value, EnvError> {
        self.info.level(level)?;
        let mut rng = draw.rng();
        let (least, most) = WIDTHS[level as usize - 1];
        let width = least + rng.below((most - least + 1) as usize) as u32;
        let low = 1 + rng.below(LOW_MAX) as u32;
        Ok(to_value(&Hidden { low, high: low + width - 1, secret: low + rng.below(width as usize) as u32 }))
    }

    fn start(&self, item: &Item) -> Result<Box<dyn Session>, EnvError> {
        let hidden: Hidden = read(&self.info, item, &item.content)?;
        if !(hidden.low..=hidden.high).contains(&hidden.secret) || hidden.high > NUMBER_MAX {
            let reason = format!("low ≤ secret ≤ high ≤ {NUMBER_MAX} must hold");
            let (env, content) = (self.info.name.clone(), item.content.to_string());
            return Err(EnvError::Content { env, reason, content });
        }
        let prompt = fill(WORDINGS[item.wording], &[&hidden.low.to_string(), &hidden.high.to_string()]);
        let (left, possible) = (hidden.guesses(), (hidden.low, hidden.high));
        Ok(Box::new(Guessing { hidden, left, possible, strict: true, messages: vec![Message::user(prompt)] }))
    }
}

struct Guessing {
    hidden: Hidden,
    /// Guesses left.
    left: usize,
    /// Least and greatest number that what was said allows.
    possible: (u32, u32),
    /// Every reply so far was a number and nothing else.
    strict: bool,
    messages: Vec<Message>,
}

impl Guessing {
    fn answer(&mut self, guess: Option<u32>) -> String {
        let (low, high) = self.possible;
        match guess {
            Some(guess) if guess < self.hidden.secret => {
                self.possible.0 = low.max(guess + 1);
                "Higher.".into()
            }
            Some(guess) => {
                self.possible.1 = high.min(guess - 1);
                "Lower.".into()
            }
            None => format!("Guess one number from {} to {}.", self.hidden.low, self.hidden.high),
        }
    }
}

impl Session for Guessing {
    fn observe(&self) -> &[Message] {
        &self.messages
    }

    fn teacher(&self) -> Option<String> {
        (self.left > 0).then(|| u32::midpoint(self.possible.0, self.possible.1).to_string())
    }

    fn act(&mut self, reply: &str) -> Result<Outcome, EnvError> {
        assert!(self.left > 0, "a reply after the episode's end");
        self.left -= 1;
        self.messages.push(Message::assistant(reply));
        let guess: Option<u32> = grade::number(reply).and_then(|number| number.parse().ok());
        self.strict &= guess.is_some_and(|guess| guess.to_string() == reply.trim());
        let found = guess == Some(self.hidden.secret);
        if found || self.left == 0 {
            self.left = 0;
            let strict = found && self.strict;
            let feedback = Some(self.hidden.secret.to_string());
            let reward = f32::from(u8::from(strict));
            return Ok(Outcome::Done(Grade { reward, strict, lenient: found, feedback }));
        }
        let answer = self.answer(guess);
        self.messages.push(Message::user(answer));
        Ok(Outcome::Next)
    }
}
