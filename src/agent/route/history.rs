//! What the router decided and what became of it, in the home: a table of outcomes that any number of processes may add to, and a
//! log of decisions of bounded size. Never keeps what a prompt said.

use crate::{
    agent::AgentError,
    common::{Digest, Home},
    router::{Outcomes, Record, Route, RouteBy},
};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// A log this long becomes the old log, and the old one goes.
const LOG_BYTES_MAX: u64 = 4 << 20;
/// Scores of a decision that are logged.
const LOGGED_SCORES: usize = 3;
const BUSY: Duration = Duration::from_secs(10);
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS outcomes (
        generation TEXT PRIMARY KEY,
        good REAL NOT NULL,
        bad REAL NOT NULL
    ) STRICT;
";

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// When.
    pub time: jiff::Timestamp,
    /// Digest of the prompt's tokens.
    pub prompt: Digest,
    /// What scores went by.
    pub by: RouteBy,
    /// The skill; none for the base.
    pub choice: Option<String>,
    /// Its generation.
    pub generation: Option<Digest>,
    /// What had to be reached.
    pub threshold: f64,
    /// How far the best lay above the next best or the threshold.
    pub lead: Option<f64>,
    /// Whether words chose another than the best score.
    pub contested: bool,
    /// The best few skills: name, score, how well the prompt fitted, usefulness.
    pub scores: Vec<(String, f64, f64, f64)>,
}

impl Decision {
    fn new(prompt: &[u32], route: &Route) -> Self {
        let ids: Vec<u8> = prompt.iter().flat_map(|id| id.to_le_bytes()).collect();
        let scored = |s: &crate::router::Scored| (s.skill.to_string(), s.score, s.prompt, s.usefulness);
        Self {
            time: jiff::Timestamp::now(),
            prompt: Digest::of(ids),
            by: route.by,
            choice: route.choice.as_ref().map(ToString::to_string),
            generation: route.generation,
            threshold: route.threshold,
            lead: route.lead,
            contested: route.contested,
            scores: route.scores.iter().take(LOGGED_SCORES).map(scored).collect(),
        }
    }
}

/// The folder, open.
pub(super) struct History {
    folder: PathBuf,
    outcomes: Mutex<Table>,
}

struct Table {
    connection: Connection,
    /// The counter by which SQLite says that another connection wrote, and what was read then.
    read: Option<(i64, Arc<Outcomes>)>,
}

impl History {
    pub(super) fn open(home: &Home) -> Result<Self, AgentError> {
        let folder = home.root().join("routing");
        fs::create_dir_all(&folder).map_err(|error| fault(&folder, &error))?;
        let path = folder.join("outcomes.sqlite");
        let open = || {
            let connection = Connection::open(&path)?;
            connection.busy_timeout(BUSY)?;
            connection.execute_batch(SCHEMA)?;
            Ok::<_, rusqlite::Error>(connection)
        };
        let connection = open().map_err(|error| fault(&path, &error))?;
        Ok(Self { folder, outcomes: Mutex::new(Table { connection, read: None }) })
    }

    /// Adds an outcome, in one statement, so that none is lost between processes.
    pub(super) fn reward(&self, generation: Digest, reward: f64) -> Result<(), AgentError> {
        if !(0.0..=1.0).contains(&reward) {
            return Err(AgentError::Reward { found: reward });
        }
        let mut table = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let sql = "INSERT INTO outcomes (generation, good, bad) VALUES (?1, ?2, ?3)
            ON CONFLICT (generation) DO UPDATE SET good = good + ?2, bad = bad + ?3";
        let added = table.connection.execute(sql, params![generation.to_string(), reward, 1.0 - reward]);
        table.read = None;
        added.map(drop).map_err(|error| fault(&self.folder.join("outcomes.sqlite"), &error))
    }

    /// Everything so far. What cannot be read counts as nothing: a router without a memory still routes.
    pub(super) fn outcomes(&self) -> Arc<Outcomes> {
        let mut table = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let version = table.connection.query_row("PRAGMA data_version", [], |row| row.get(0)).unwrap_or_default();
        match &table.read {
            Some((read, outcomes)) if *read == version => outcomes.clone(),
            _ => {
                let outcomes = Arc::new(read(&table.connection).unwrap_or_default());
                table.read = Some((version, outcomes.clone()));
                outcomes
            }
        }
    }

    /// Adds decisions to the log, if it can be written to.
    pub(super) fn log(&self, decisions: &[(&[u32], &Route)]) {
        let mut lines = Vec::new();
        for (prompt, route) in decisions {
            serde_json::to_writer(&mut lines, &Decision::new(prompt, route)).expect("a decision is JSON");
            lines.push(b'\n');
        }
        let _ = self.append(&lines);
    }

    fn append(&self, lines: &[u8]) -> std::io::Result<()> {
        let [log, old, lock] =
            ["decisions.jsonl", "decisions.old.jsonl", "log.lock"].map(|name| self.folder.join(name));
        // Held until the file is closed, so that no other process writes to a log that is being set aside.
        let held = File::options().create(true).truncate(false).write(true).open(lock)?;
        held.lock()?;
        if fs::metadata(&log).is_ok_and(|meta| meta.len() + lines.len() as u64 > LOG_BYTES_MAX) {
            fs::rename(&log, old)?;
        }
        File::options().create(true).append(true).open(log)?.write_all(lines)
    }
}

fn read(connection: &Connection) -> rusqlite::Result<Outcomes> {
    let mut statement = connection.prepare("SELECT generation, good, bad FROM outcomes")?;
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, Record { good: row.get(1)?, bad: row.get(2)? })))?;
    let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(rows.into_iter().filter_map(|(generation, record)| Some((generation.parse().ok()?, record))).collect())
}

fn fault(path: &Path, error: &dyn std::fmt::Display) -> AgentError {
    AgentError::Run { path: path.to_owned(), what: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route() -> Route {
        Route {
            choice: Some("a".parse().unwrap()),
            generation: Some(Digest::of("a")),
            scores: vec![],
            skills: 1,
            by: RouteBy::Ridge,
            threshold: 0.38,
            margin: 0.05,
            lead: Some(0.5),
            contested: false,
        }
    }

    #[test]
    fn outcomes_of_several_writers_add_up_and_are_seen_by_each() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let reader = History::open(&home).unwrap();
        assert!(reader.outcomes().is_empty());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let own = History::open(&home).unwrap();
                    (0..25).for_each(|i| own.reward(Digest::of("a"), f64::from(i % 2)).unwrap());
                });
            }
        });
        assert_eq!(reader.outcomes()[&Digest::of("a")], Record { good: 48.0, bad: 52.0 });
        reader.reward(Digest::of("b"), 0.25).unwrap();
        assert_eq!(reader.outcomes()[&Digest::of("b")], Record { good: 0.25, bad: 0.75 });
        for bad in [-0.1, 1.5, f64::NAN] {
            assert!(matches!(reader.reward(Digest::of("a"), bad), Err(AgentError::Reward { .. })));
        }
    }

    #[test]
    fn the_log_says_what_was_decided_and_stays_within_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(&Home::at(folder.path())).unwrap();
        let logged = || fs::read_to_string(folder.path().join("routing/decisions.jsonl")).unwrap();
        history.log(&[(&[1, 2], &route()), (&[3], &route())]);
        let lines: Vec<Decision> = logged().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), lines[0].choice.as_deref(), lines[1].lead), (2, Some("a"), Some(0.5)));
        assert!(!logged().contains("words"));
        let route = route();
        let batch: Vec<(&[u32], &Route)> = vec![(&[9], &route); 4000];
        (0..8).for_each(|_| history.log(&batch));
        let sizes = ["decisions.jsonl", "decisions.old.jsonl"]
            .map(|name| fs::metadata(folder.path().join("routing").join(name)).unwrap().len());
        assert!(sizes.iter().all(|&size| size > 0 && size <= LOG_BYTES_MAX), "{sizes:?}");
    }
}
