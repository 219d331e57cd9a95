//! `bandit`: words for arms, each of which pays with a hidden probability. Multi-turn; explore, then stay.

use super::{
    super::{
        Draw, EnvError, Environment, Grade, Info, Item, Level, Outcome, Session, grade,
        task::{fill, read, to_value},
        words,
    },
    info,
};
use crate::common::{Message, Seed};
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Clone, Serialize, Deserialize)]
struct Arms {
    arms: Vec<String>,
    /// Index of the arm that pays best.
    best: usize,
    /// Decides every pull, so that an episode can be replayed.
    luck: u32,
    /// Probability that the best arm pays, and that another does, in percent.
    percent: [u32; 2],
    turns: usize,
}

impl Arms {
    fn percent_of(&self, arm: usize) -> u32 {
        self.percent[usize::from(arm != self.best)]
    }

    fn pays(&self, arm: usize, turn: usize) -> bool {
        let mut rng = Seed::new(u64::from(self.luck)).index(turn as u64).index(arm as u64).rng();
        rng.below(100) < self.percent_of(arm) as usize
    }

    fn names(&self, last: &str) -> String {
        let (end, first) = self.arms.split_last().expect("a level has arms");
        format!("{} {last} {end}", first.join(", "))
    }
}

/// The environment.
pub(crate) struct Bandit {
    info: Info,
}

/// Arms, turns, and in percent how often the best arm pays and how often the others do.
const LEVELS: [(usize, usize, [u32; 2]); 3] = [(2, 6, [90, 10]), (3, 9, [80, 20]), (4, 12, [70, 20])];

const TURNS_MAX: usize = 1000;

const WORDINGS: [&str; 5] = [
    "Choose a machine each turn: {}. One pays more often.",
    "Pick one word a turn: {}. Some pay more.",
    "Each turn say {}. Find what pays best.",
    "You may pull {}. Pull what pays most.",
    "Which do you try, {}? One of them pays best.",
];

impl Bandit {
    pub(crate) fn new() -> Self {
        let level = |(arms, turns, percent): (usize, usize, [u32; 2])| Level {
            turns_max: turns,
            ..Level::new(format!("{arms} arms, {turns} turns, {} % against {} %", percent[0], percent[1]), 8)
                .baseline(1.0 / arms as f64)
        };
        let info =
            info("bandit", "Finds by trial which of some words pays best, and stays with it.", LEVELS.map(level));
        Self { info }
    }

    fn read(&self, item: &Item) -> Result<Arms, EnvError> {
        let arms: Arms = read(&self.info, item, &item.content)?;
        let [best, other] = arms.percent;
        let complete = arms.best < arms.arms.len()
            && (1..=TURNS_MAX).contains(&arms.turns)
            && (1..=100).contains(&best)
            && other <= best;
        if complete {
            return Ok(arms);
        }
        let reason =
            format!("best must be an arm, turns 1 to {TURNS_MAX}, percents at most 100 and the best's the most");
        Err(EnvError::Content { env: self.info.name.clone(), reason, content: item.content.to_string() })
    }
}

impl Environment for Bandit {
    fn info(&self) -> &Info {
        &self.info
    }

    fn candidate(&self, level: u32, draw: Draw) -> Result<Value, EnvError> {
        self.info.level(level)?;
        let mut rng = draw.rng();
        let (count, turns, percent) = LEVELS[level as usize - 1];
        let arms = words::pick_distinct(&mut rng, &words::NOUNS, count).into_iter().map(str::to_owned).collect();
        let luck = rng.next_u64() as u32;
        Ok(to_value(&Arms { arms, best: rng.below(count), luck, percent, turns }))
    }

    fn start(&self, item: &Item) -> Result<Box<dyn Session>, EnvError> {
        let arms = self.read(item)?;
        let messages = vec![Message::user(fill(WORDINGS[item.wording], &[&arms.names("or")]))];
        let pulls = vec![[0; 2]; arms.arms.len()];
        Ok(Box::new(Pulling { arms, turn: 0, earned: 0, strict: true, pulls, messages }))
    }

    fn choices(&self, item: &Item) -> Result<Vec<String>, EnvError> {
        Ok(self.read(item)?.arms)
    }
}

struct Pulling {
    arms: Arms,
    turn: usize,
    /// Sum of the percents of the arms pulled by replies that were nothing but an arm.
    earned: u32,
    /// Every reply so far was an arm and nothing else.
    strict: bool,
    /// For each arm, how often it paid nothing and how often it paid.
    pulls: Vec<[u32; 2]>,
    messages: Vec<Message>,
}

impl Session for Pulling {
    fn observe(&self) -> &[Message] {
        &self.messages
    }

    /// Each arm once, then the highest posterior mean (s + 1) / (n + 2) under a uniform prior; the first of equals.
    fn teacher(&self) -> Option<String> {
        let mean = |[missed, paid]: [u32; 2]| f64::from(paid + 1) / f64::from(missed + paid + 2);
        let untried = self.pulls.iter().position(|pulls| *pulls == [0, 0]);
        let rank = |&a: &usize, &b: &usize| mean(self.pulls[a]).total_cmp(&mean(self.pulls[b])).then(b.cmp(&a));
        let arm = untried.or_else(|| (0..self.pulls.len()).max_by(rank))?;
        (self.turn < self.arms.turns).then(|| self.arms.arms[arm].clone())
    }

    fn act(&mut self, reply: &str) -> Result<Outcome, EnvError> {
        assert!(self.turn < self.arms.turns, "a reply after the episode's end");
        self.messages.push(Message::assistant(reply));
        let named = grade::word(reply);
        let arm = self.arms.arms.iter().position(|arm| Some(arm) == named.as_ref());
        let exact = arm.is_some_and(|arm| self.arms.arms[arm] == reply.trim());
        self.strict &= exact;
        let answer = match arm {
            Some(arm) => {
                let paid = self.arms.pays(arm, self.turn);
                self.pulls[arm][usize::from(paid)] += 1;
                self.earned += if exact { self.arms.percent_of(arm) } else { 0 };
                format!("{} pays {}.", self.arms.arms[arm], u8::from(paid))
            }
            None => format!("Say {}.", self.arms.names("or")),
        };
        self.turn += 1;
        if self.turn < self.arms.turns {
            self.messages.push(Message::user(answer));
            return Ok(Outcome::Next);
        }
        let lenient = arm == Some(self.arms.best);
        let most = self.arms.percent[0] * self.arms.turns as u32;
        Ok(Outcome::Done(Grade {
            reward: self.earned as f32 / most as f32,
            strict: lenient && self.strict,
            lenient,
            feedback: Some(self.arms.arms[self.arms.best].clone()),
        }))
    }
}
