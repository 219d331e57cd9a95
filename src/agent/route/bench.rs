//! Timings of the router over made-up skills: opening, routing, and following a change. Never loads a model: what a prompt's features
//! cost is its prefill, which other measurements time.

use crate::{
    agent::AgentError,
    common::{Digest, Phase, Progress, Report, Rng, Seed, Unit},
    library::{BaseId, RoutingFeatures, SkillName},
    router::{Evidence, Index, Ledger, Newcomer, Outcomes, Record, RouteBy, Settings, Terms},
};
use serde::Serialize;
use std::{fs, time::Instant};

/// Prompts that belong to no skill, as many as the router has.
const BACKGROUND: usize = 412;
/// Different words that prompts are made of, and words of a prompt.
const VOCABULARY: usize = 4000;
const WORDS: usize = 10;
/// How far a prompt lies from its skill's mean: close to what unit features of SmolLM2 do.
const SPREAD: f64 = 0.5;

/// What is routed among.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteBench {
    /// Skills.
    pub skills: usize,
    /// Prompts that each is known by.
    pub prompts: usize,
    /// Width of the features.
    pub hidden: usize,
    /// Prompts that are routed and timed.
    pub routes: usize,
}

/// What it took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteTimings {
    /// Milliseconds to read the index's file, check it and ready it: the least of three.
    pub open_ms: f64,
    /// Its bytes.
    pub file_bytes: u64,
    /// Milliseconds of a route, from features and words to a choice: the median.
    pub route_ms_p50: f64,
    /// The 99th percentile.
    pub route_ms_p99: f64,
    /// The longest.
    pub route_ms_max: f64,
    /// Seconds to add up every prompt of every skill, once.
    pub sum_s: f64,
    /// Seconds to solve from the sums, which every change of the library takes.
    pub solve_s: f64,
    /// Seconds to add one skill to the sums and take it away again.
    pub change_s: f64,
    /// Part of prompts that went to their own skill.
    pub right: f64,
}

impl RouteBench {
    /// Runs it.
    ///
    /// # Errors
    /// If no temporary file can be written, or an end is asked for.
    pub fn run(self, report: &mut dyn Report) -> Result<RouteTimings, AgentError> {
        let digest = Digest::of("made up");
        let base = BaseId { name: "made up".into(), digest, tokenizer: digest };
        let background: Vec<Vec<f32>> = (0..BACKGROUND).map(|i| self.prompt(u64::MAX - i as u64, 0).0).collect();
        let mut ledger = Ledger::new(base, whole(&background))?;
        let mut sum_s = 0.0;
        for skill in 0..self.skills {
            let (features, words) = self.skill(skill);
            let start = Instant::now();
            enter(&mut ledger, skill, &features, &words)?;
            sum_s += start.elapsed().as_secs_f64();
            self.tell(skill, report)?;
        }
        let (solve_s, index) = timed(|| ledger.solve(Settings::default()));
        let (features, words) = self.skill(self.skills);
        let change = || {
            enter(&mut ledger, self.skills, &features, &words)?;
            assert!(ledger.remove(&name(self.skills), &features), "it came with these");
            Ok::<_, AgentError>(())
        };
        let (change_s, changed) = timed(change);
        changed?;
        let (open_ms, file_bytes, index) = open(&index)?;
        let (mut times, right) = self.routes(&index)?;
        times.sort_by(f64::total_cmp);
        let at = |part: f64| times[(part * (times.len() - 1) as f64).ceil() as usize];
        let (route_ms_p50, route_ms_p99, route_ms_max) = (at(0.5), at(0.99), at(1.0));
        Ok(RouteTimings {
            open_ms,
            file_bytes,
            route_ms_p50,
            route_ms_p99,
            route_ms_max,
            sum_s,
            solve_s,
            change_s,
            right,
        })
    }

    fn tell(self, done: usize, report: &mut dyn Report) -> Result<(), AgentError> {
        let (phase, label, unit) = (Phase::Measurement, "skills", Unit::Items);
        report.progress(Progress {
            phase,
            label,
            done: done as u64,
            total: Some(self.skills as u64),
            unit,
            detail: "",
        });
        if report.cancelled() { Err(AgentError::Cancelled) } else { Ok(()) }
    }

    /// Milliseconds of each route, and the part that went right.
    fn routes(self, index: &Index) -> Result<(Vec<f64>, f64), AgentError> {
        // Every tenth skill has been used and rated.
        let rated = index.skills().step_by(10).map(|(_, id)| (id, Record { good: 9.0, bad: 1.0 }));
        let outcomes: Outcomes = rated.collect();
        let mut rng = Seed::new(1).purpose("routes").rng();
        let (mut times, mut right) = (Vec::with_capacity(self.routes), 0);
        for _ in 0..self.routes {
            let skill = rng.below(self.skills);
            let (row, words) = self.prompt(skill as u64, 1 + self.prompts as u64);
            let evidence = Evidence { words: Some(&words), outcomes: &outcomes, explore: None };
            let start = Instant::now();
            let route = index.choose(RouteBy::Ridge, &index.by_features(&row)?, &evidence);
            times.push(1e3 * start.elapsed().as_secs_f64());
            right += usize::from(route.choice == Some(name(skill)));
        }
        Ok((times, right as f64 / self.routes as f64))
    }

    fn skill(self, skill: usize) -> (RoutingFeatures, Terms) {
        let prompts: Vec<_> = (0..self.prompts as u64).map(|i| self.prompt(skill as u64, 1 + i)).collect();
        let (rows, words): (Vec<_>, Vec<_>) = prompts.into_iter().unzip();
        (whole(&rows), Terms::of(&words.join(" ")))
    }

    /// The `i`-th prompt of a skill, as features and in words.
    fn prompt(self, skill: u64, i: u64) -> (Vec<f32>, String) {
        let own = Seed::new(0).purpose("skill").index(skill);
        let (mut centre, mut noise) = (own.rng(), own.purpose("prompt").index(i).rng());
        let row = (0..self.hidden).map(|_| (uniform(&mut centre) + SPREAD * uniform(&mut noise)) as f32);
        let row = row.collect();
        let word = |rng: &mut Rng| format!("w{}", rng.below(VOCABULARY));
        let mut wording = own.purpose("words").rng();
        let words: Vec<String> =
            (0..WORDS).map(|place| word(if place % 3 == 0 { &mut noise } else { &mut wording })).collect();
        (row, words.join(" "))
    }
}

fn uniform(rng: &mut Rng) -> f64 {
    2.0 * rng.uniform() - 1.0
}

fn whole(rows: &[Vec<f32>]) -> RoutingFeatures {
    RoutingFeatures::new(0, rows).expect("rows of one width, and finite")
}

fn name(skill: usize) -> SkillName {
    format!("skill-{skill:05}").parse().expect("a name")
}

fn enter(ledger: &mut Ledger, skill: usize, features: &RoutingFeatures, words: &Terms) -> Result<(), AgentError> {
    let generation = Digest::of(skill.to_le_bytes());
    Ok(ledger.add(name(skill), Newcomer { generation, features, words, promise: 0.9 })?)
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let value = work();
    (start.elapsed().as_secs_f64(), value)
}

/// Milliseconds of opening, bytes, and what was opened.
fn open(index: &Index) -> Result<(f64, u64, Index), AgentError> {
    let key = Digest::of("made up");
    let file = tempfile::NamedTempFile::new().map_err(|error| fault(&std::env::temp_dir(), &error))?;
    let bytes = index.to_bytes(key);
    fs::write(file.path(), &bytes).map_err(|error| fault(file.path(), &error))?;
    let read = || fs::read(file.path()).ok().and_then(|bytes| Index::from_bytes(&bytes, key));
    let mut best = f64::INFINITY;
    let mut opened = None;
    for _ in 0..3 {
        let (seconds, index) = timed(read);
        best = best.min(1e3 * seconds);
        opened = index;
    }
    let opened = opened.ok_or_else(|| fault(file.path(), &"it does not read back as it was written"))?;
    Ok((best, bytes.len() as u64, opened))
}

fn fault(path: &std::path::Path, error: &dyn std::fmt::Display) -> AgentError {
    AgentError::Run { path: path.to_owned(), what: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Silent;

    #[test]
    fn made_up_skills_are_routed_among_and_every_time_is_measured() {
        let bench = RouteBench { skills: 40, prompts: 8, hidden: 96, routes: 50 };
        let found = bench.run(&mut Silent).unwrap();
        assert!(found.right > 0.9 && found.file_bytes > 4 * 40 * 96, "{found:?}");
        assert!(found.route_ms_p50 <= found.route_ms_p99 && found.route_ms_p99 <= found.route_ms_max);
        assert!(found.open_ms > 0.0 && found.solve_s > 0.0 && found.sum_s > 0.0 && found.change_s > 0.0);
    }
}
