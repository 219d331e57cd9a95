//! A stream as its file says it, checked before anything is learned. Never runs anything.

use crate::{
    agent::{Budget, Gate, Method, Recipe},
    common::Seed,
    envs,
    library::SkillName,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, ops::RangeInclusive};

const TASKS: RangeInclusive<usize> = 1..=1000;
const ITEMS: RangeInclusive<usize> = 1..=10_000;
const STEPS: RangeInclusive<usize> = 1..=100_000;
const RANK: RangeInclusive<usize> = 1..=256;
const AT_ONCE: RangeInclusive<usize> = 1..=16;
/// Seeds, and orders.
const REPEATS: RangeInclusive<usize> = 1..=100;

/// What is wrong with a stream's file.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {what}")]
pub struct StreamError {
    /// Which line, setting or task.
    pub place: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// Something that the routed library is measured beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Baseline {
    /// One adapter, trained on each task in turn.
    Sequential,
    /// The same, with two items of earlier tasks in every batch of eight.
    Replay,
    /// One adapter, trained on all tasks at once for as many steps together.
    Joint,
    /// The uniform average of the library's adapters.
    Average,
    /// Their TIES merge (arXiv 2306.01708).
    Ties,
    /// The library, each prompt to the adapter that its tokens point to by the adapters' weights alone (Arrow, arXiv 2405.11157).
    Arrow,
    /// The library, told which task each prompt belongs to.
    Oracle,
}

impl Baseline {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Sequential, Self::Replay, Self::Joint, Self::Average, Self::Ties, Self::Arrow, Self::Oracle];

    /// Whether it trains an adapter of its own.
    pub fn trains(self) -> bool {
        matches!(self, Self::Sequential | Self::Replay | Self::Joint)
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sequential => "sequential",
            Self::Replay => "replay",
            Self::Joint => "joint",
            Self::Average => "average",
            Self::Ties => "ties",
            Self::Arrow => "arrow",
            Self::Oracle => "oracle",
        })
    }
}

/// One task of a stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Task {
    /// What it, and the skill that comes of it, is called.
    pub name: SkillName,
    /// The environment.
    pub env: String,
    /// Its level, from 1.
    pub level: u32,
    /// How it is learned; none measures the base and chooses.
    pub learner: Option<Method>,
    /// Optimiser steps; none is the learner's own number.
    pub steps: Option<usize>,
    /// Rank of its adapter.
    pub rank: usize,
    /// Peak learning rate; none is the learner's own.
    pub lr: Option<f64>,
    /// Whether its subagent is born from the base whatever was learned before, and so may learn beside others.
    pub independent: bool,
}

impl Task {
    /// How its subagent learns under `seed`, tested on `items` items.
    pub fn recipe(&self, seed: u64, items: usize) -> Recipe {
        Recipe {
            method: self.learner,
            seed,
            budget: self.steps.map(Budget::Steps),
            rank: self.rank,
            alpha: 2.0 * self.rank as f64,
            lr: self.lr,
            level: self.level,
            test_items: items,
            gate: Gate::default(),
            ..Recipe::default()
        }
    }
}

/// A checked stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stream {
    /// What its run is called.
    pub name: SkillName,
    /// The tasks, in the order of the file or as they were drawn.
    pub tasks: Vec<Task>,
    /// Orders in which the routed library meets them, as indices; baselines have the first.
    pub orders: Vec<Vec<usize>>,
    /// Each is a repetition of everything.
    pub seeds: Vec<u64>,
    /// Test items of an evaluation.
    pub items: usize,
    /// What it is measured beside.
    pub baselines: Vec<Baseline>,
    /// Subagents of independent tasks that learn in one batch.
    pub at_once: usize,
    /// Whether what the first order and seed learn becomes skills of the user's own library.
    pub publish: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: SkillName,
    task: Vec<RawTask>,
    sample: Option<usize>,
    #[serde(default)]
    draw_seed: u64,
    #[serde(default)]
    orders: Orders,
    #[serde(default = "first_seed")]
    seeds: Vec<u64>,
    #[serde(default = "default_items")]
    items: usize,
    #[serde(default)]
    baselines: Vec<Baseline>,
    #[serde(default = "one")]
    at_once: usize,
    #[serde(default = "yes")]
    publish: bool,
    learner: Option<Learner>,
    steps: Option<usize>,
    rank: Option<usize>,
    lr: Option<f64>,
    independent: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTask {
    env: String,
    name: Option<SkillName>,
    level: Option<u32>,
    learner: Option<Learner>,
    steps: Option<usize>,
    rank: Option<usize>,
    lr: Option<f64>,
    independent: Option<bool>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Learner {
    Auto,
    Sft,
    Raft,
    Rloo,
    Grpo,
}

impl Learner {
    fn method(self) -> Option<Method> {
        match self {
            Self::Auto => None,
            Self::Sft => Some(Method::Sft),
            Self::Raft => Some(Method::Raft),
            Self::Rloo => Some(Method::Rloo),
            Self::Grpo => Some(Method::Grpo),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number of orders, or a list of orders that are each a list of task names")]
enum Orders {
    Count(usize),
    Listed(Vec<Vec<String>>),
}

impl Default for Orders {
    fn default() -> Self {
        Self::Count(1)
    }
}

fn first_seed() -> Vec<u64> {
    vec![0]
}
fn default_items() -> usize {
    128
}
fn one() -> usize {
    1
}
fn yes() -> bool {
    true
}

impl Stream {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// The first thing that is wrong: the syntax, a setting that does not exist or is out of range, an environment or level that
    /// does not exist, a name that stands twice, a baseline that a task does not allow.
    pub fn parse(text: &str) -> Result<Self, StreamError> {
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| text.get(..span.start).map_or(0, |t| t.matches('\n').count() + 1));
            fault(format!("line {line}"), error.message())
        })?;
        raw.check()
    }
}

impl Raw {
    fn check(self) -> Result<Stream, StreamError> {
        within("the number of tasks", self.task.len(), TASKS)?;
        within("items", self.items, ITEMS)?;
        within("at_once", self.at_once, AT_ONCE)?;
        within("the number of seeds", self.seeds.len(), REPEATS)?;
        no_repeat("seeds", self.seeds.iter())?;
        no_repeat("baselines", self.baselines.iter())?;
        let tasks = self.task.iter().map(|task| self.task(task)).collect::<Result<Vec<_>, _>>()?;
        no_repeat("task names", tasks.iter().map(|task| &task.name))?;
        let tasks = self.drawn(tasks)?;
        if let Some(baseline) = self.baselines.iter().find(|baseline| baseline.trains())
            && let Some(task) = tasks.iter().find(|task| task.learner != Some(Method::Sft))
        {
            let what = "imitates revealed answers, so every task needs learner = \"sft\"";
            return Err(fault(format!("task {}", task.name), format!("the baseline {baseline} {what}")));
        }
        let orders = self.orders(&tasks)?;
        let Self { name, seeds, items, baselines, at_once, publish, .. } = self;
        Ok(Stream { name, tasks, orders, seeds, items, baselines, at_once, publish })
    }

    /// A task with the file's own settings where it has none.
    fn task(&self, raw: &RawTask) -> Result<Task, StreamError> {
        let level = raw.level.unwrap_or(1);
        let called = raw.name.as_ref().map_or(raw.env.as_str(), SkillName::as_str);
        let place = || format!("task {called}");
        let env = envs::find(&raw.env).map_err(|error| fault(place(), error.to_string()))?;
        env.info().level(level).map_err(|error| fault(place(), error.to_string()))?;
        let name = match &raw.name {
            Some(name) => name.clone(),
            None => {
                let suffix = if level == 1 { String::new() } else { format!("-{level}") };
                let name = format!("{}{suffix}", raw.env.replace('@', "-")).parse();
                name.map_err(|error| fault(place(), format!("{error}; give it a name")))?
            }
        };
        let task = Task {
            env: raw.env.clone(),
            level,
            learner: raw.learner.or(self.learner).and_then(Learner::method),
            steps: raw.steps.or(self.steps),
            rank: raw.rank.or(self.rank).unwrap_or(Recipe::default().rank),
            lr: raw.lr.or(self.lr),
            independent: raw.independent.or(self.independent).unwrap_or(false),
            name,
        };
        task.steps.map_or(Ok(()), |steps| within(&format!("task {}: steps", task.name), steps, STEPS))?;
        within(&format!("task {}: rank", task.name), task.rank, RANK)?;
        match task.lr {
            Some(lr) if !(lr > 0.0 && lr <= 1.0) => {
                Err(fault(format!("task {}: lr", task.name), format!("{lr} is not above 0 and at most 1")))
            }
            _ => Ok(task),
        }
    }

    /// The sample that is asked for, without replacement.
    fn drawn(&self, mut tasks: Vec<Task>) -> Result<Vec<Task>, StreamError> {
        if let Some(count) = self.sample {
            within("sample", count, 1..=tasks.len())?;
            Seed::new(self.draw_seed).purpose("stream sample").rng().shuffle(&mut tasks);
            tasks.truncate(count);
        }
        Ok(tasks)
    }

    fn orders(&self, tasks: &[Task]) -> Result<Vec<Vec<usize>>, StreamError> {
        match &self.orders {
            Orders::Listed(listed) => {
                within("the number of orders", listed.len(), REPEATS)?;
                let orders = listed.iter().map(|names| order_of(names, tasks)).collect::<Result<Vec<_>, _>>()?;
                no_repeat("orders", orders.iter().map(|order| format!("{order:?}")).collect::<Vec<_>>().iter())?;
                Ok(orders)
            }
            &Orders::Count(count) => {
                within("orders", count, REPEATS)?;
                let possible = (1..=tasks.len()).try_fold(1usize, |all, n| all.checked_mul(n)).unwrap_or(usize::MAX);
                within("orders", count, 1..=possible)?;
                Ok(shuffles(tasks.len(), count, Seed::new(self.draw_seed)))
            }
        }
    }
}

/// `count` different orders of `tasks` things: first as they stand, then at random.
fn shuffles(tasks: usize, count: usize, seed: Seed) -> Vec<Vec<usize>> {
    let mut orders: Vec<Vec<usize>> = vec![(0..tasks).collect()];
    for draw in 0.. {
        if orders.len() == count {
            break;
        }
        let mut order = orders[0].clone();
        seed.purpose("stream order").index(draw).rng().shuffle(&mut order);
        if !orders.contains(&order) {
            orders.push(order);
        }
    }
    orders
}

fn order_of(names: &[String], tasks: &[Task]) -> Result<Vec<usize>, StreamError> {
    let place = |name: &String| {
        let found = tasks.iter().position(|task| task.name.as_str() == name);
        found.ok_or_else(|| fault("orders", format!("{name:?} is no task of this stream")))
    };
    let order = names.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    if order.iter().collect::<BTreeSet<_>>().len() != tasks.len() || order.len() != tasks.len() {
        return Err(fault(
            "orders",
            format!("an order names each of the {} tasks once, unlike {names:?}", tasks.len()),
        ));
    }
    Ok(order)
}

fn fault(place: impl Into<String>, what: impl Into<String>) -> StreamError {
    StreamError { place: place.into(), what: what.into() }
}

fn within(place: &str, value: usize, range: RangeInclusive<usize>) -> Result<(), StreamError> {
    let (low, high) = (range.start(), range.end());
    if range.contains(&value) { Ok(()) } else { Err(fault(place, format!("{value} is not in {low} to {high}"))) }
}

fn no_repeat<T: Ord + fmt::Display>(place: &str, values: impl IntoIterator<Item = T>) -> Result<(), StreamError> {
    let mut seen = BTreeSet::new();
    for value in values {
        if seen.contains(&value) {
            return Err(fault(place, format!("{value} stands there twice")));
        }
        seen.insert(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "name = \"s\"\n";

    fn tasks(lines: &str, envs: &[&str]) -> String {
        let tasks = envs.iter().map(|env| format!("[[task]]\nenv = \"{env}\"\n"));
        format!("{HEAD}{lines}\n{}", tasks.collect::<String>())
    }

    #[test]
    fn a_short_file_has_the_defaults_and_a_tasks_own_settings_come_before_the_files() {
        let stream = Stream::parse(&tasks("", &["reverse", "cipher@7"])).unwrap();
        assert_eq!((&stream.seeds[..], stream.items, stream.at_once, stream.publish), (&[0][..], 128, 1, true));
        assert_eq!(stream.orders, [[0, 1]]);
        assert_eq!(stream.tasks.iter().map(|task| task.name.as_str()).collect::<Vec<_>>(), ["reverse", "cipher-7"]);
        let text = "name = \"s\"\nlearner = \"sft\"\nsteps = 9\nindependent = true\n[[task]]\nenv = \"json\"\nlevel = 2\n\
                    [[task]]\nenv = \"add\"\nlearner = \"auto\"\nsteps = 3\nrank = 2\nindependent = false";
        let stream = Stream::parse(text).unwrap();
        let row = |i: usize| {
            let task: &Task = &stream.tasks[i];
            (task.name.as_str(), task.learner, task.steps, task.rank, task.independent)
        };
        assert_eq!(row(0), ("json-2", Some(Method::Sft), Some(9), 16, true));
        assert_eq!(row(1), ("add", None, Some(3), 2, false));
        let recipe = stream.tasks[1].recipe(4, 33);
        assert_eq!((recipe.seed, recipe.test_items, recipe.budget), (4, 33, Some(Budget::Steps(3))));
    }

    #[test]
    fn samples_and_orders_are_drawn_the_same_way_every_time_and_never_twice() {
        let envs = ["reverse", "json", "add", "compare", "acronym"];
        let stream = Stream::parse(&tasks("sample = 3\norders = 6", &envs)).unwrap();
        assert_eq!(stream, Stream::parse(&tasks("sample = 3\norders = 6", &envs)).unwrap());
        assert_ne!(stream, Stream::parse(&tasks("sample = 3\norders = 6\ndraw_seed = 1", &envs)).unwrap());
        assert_eq!(stream.orders.iter().collect::<BTreeSet<_>>().len(), 6);
        let listed = "orders = [[\"json\", \"reverse\"], [\"reverse\", \"json\"]]";
        assert_eq!(Stream::parse(&tasks(listed, &envs[..2])).unwrap().orders, [[1, 0], [0, 1]]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_what_would_be_right() {
        let two = ["reverse", "json"];
        let rows = [
            ("[[task]]\nenv = \"reverse\"".to_owned(), "line 1", "missing field `name`"),
            (format!("{HEAD}color = 1\n[[task]]\nenv = \"json\""), "line 2", "unknown field `color`"),
            (HEAD.to_owned(), "line 1", "missing field `task`"),
            (format!("{HEAD}task = []"), "the number of tasks", "0 is not in 1 to 1000"),
            (tasks("", &["revers"]), "task revers", "did you mean \"reverse\""),
            (format!("{}level = 9", tasks("", &["json"])), "task json", "levels 1 to 3"),
            (tasks("", &["json", "json"]), "task names", "json stands there twice"),
            (tasks("seeds = [1, 2, 1]", &two), "seeds", "1 stands there twice"),
            (tasks("seeds = []", &two), "the number of seeds", "0 is not"),
            (tasks("orders = 3", &two), "orders", "3 is not in 1 to 2"),
            (tasks("orders = \"x\"", &two), "line 2", "expected a number of orders"),
            (tasks("orders = [[\"json\"]]", &two), "orders", "each of the 2 tasks once"),
            (tasks("orders = [[\"json\", \"jsn\"]]", &two), "orders", "\"jsn\" is no task"),
            (tasks("sample = 3", &two), "sample", "3 is not in 1 to 2"),
            (tasks("items = 0", &two), "items", "0 is not in 1 to 10000"),
            (tasks("steps = 0", &two), "task reverse: steps", "0 is not in"),
            (tasks("rank = 300", &two), "task reverse: rank", "300 is not in 1 to 256"),
            (tasks("lr = -1.0", &two), "task reverse: lr", "-1 is not above 0"),
            (tasks("lr = nan", &two), "task reverse: lr", "NaN is not above 0"),
            (tasks("baselines = [\"fusion\"]", &two), "line 2", "unknown variant `fusion`"),
            (tasks("baselines = [\"ties\", \"ties\"]", &two), "baselines", "ties stands there twice"),
            (tasks("baselines = [\"replay\"]", &two), "task reverse", "needs learner = \"sft\""),
            (tasks("baselines = [\"joint\"]\nlearner = \"rloo\"", &two), "task reverse", "joint imitates"),
            (tasks("", &["../x"]), "task ../x", "no environment"),
        ];
        for (text, place, what) in rows {
            let error = Stream::parse(&text).expect_err(&text);
            assert!(error.place == place && error.what.contains(what), "{text}\n{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_stream_or_an_error_and_never_a_panic(text in "(name|task|env|orders|seeds|[\\[\\]=\"\n, a-z0-9.-]){0,60}") {
            let _ = Stream::parse(&text);
        }

        #[test]
        fn every_order_is_a_permutation(tasks in 1usize..8, count in 1usize..6, seed: u64) {
            let possible: usize = (1..=tasks).product();
            let orders = shuffles(tasks, count.min(possible), Seed::new(seed));
            prop_assert_eq!(orders.len(), count.min(possible));
            for order in orders {
                prop_assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), (0..tasks).collect::<BTreeSet<_>>());
            }
        }
    }
}
