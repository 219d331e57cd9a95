//! The SQLite index: which generations a name has had and which one it stands for. Everything else is in the objects.

use super::{LibraryError, SkillName};
use crate::common::Digest;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

const BUSY: Duration = Duration::from_secs(30);
const VERSION: u32 = 1;
const SCHEMA: &str = "
    CREATE TABLE generations (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        number INTEGER NOT NULL,
        removed INTEGER NOT NULL DEFAULT 0,
        UNIQUE (name, number)
    ) STRICT;
    CREATE TABLE skills (
        name TEXT PRIMARY KEY,
        current TEXT NOT NULL REFERENCES generations (id)
    ) STRICT;
    PRAGMA user_version = 1;
";

/// One connection to the index, shared by the process's threads. Other processes have their own.
pub(super) struct Index {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// One row of a name's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: Digest,
    pub(super) number: u32,
}

impl Index {
    pub(super) fn open(path: &Path) -> Result<Self, LibraryError> {
        let connection = retry_busy(|| connect(path)).map_err(|source| failure(path, source))?;
        let version: u32 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(|source| failure(path, source))?;
        if version > VERSION {
            let what = format!("the library's index {}", path.display());
            return Err(LibraryError::Newer { what, found: version, supported: VERSION });
        }
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    /// Runs `work` as one transaction that holds the write lock from its start, so that what it reads is what it builds on.
    /// Nothing of it stays unless it succeeds.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&Change<'_>) -> Result<T, LibraryError>,
    ) -> Result<T, LibraryError> {
        let mut connection = self.lock();
        let fail = |source| failure(&self.path, source);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        let value = work(&Change { transaction: &transaction, path: &self.path })?;
        transaction.commit().map_err(fail)?;
        Ok(value)
    }

    /// Every name with its current generation, by name.
    pub(super) fn skills(&self) -> Result<Vec<(SkillName, Digest)>, LibraryError> {
        let connection = self.lock();
        let read = || {
            let mut statement = connection.prepare("SELECT name, current FROM skills ORDER BY name")?;
            let rows = statement.query_map([], |row| Ok((parsed(row, 0)?, parsed(row, 1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|source| failure(&self.path, source))
    }

    /// The generation that `name` stands for.
    pub(super) fn current(&self, name: &SkillName) -> Result<Option<Digest>, LibraryError> {
        current(&self.lock(), name).map_err(|source| failure(&self.path, source))
    }

    /// The generations of `name`, oldest first; empty if there is no such skill.
    pub(super) fn history(&self, name: &SkillName) -> Result<Vec<Row>, LibraryError> {
        let connection = self.lock();
        let read = || {
            let sql = "SELECT id, number FROM generations WHERE name = ?1 AND NOT removed ORDER BY number";
            let mut statement = connection.prepare(sql)?;
            let rows =
                statement.query_map([name.as_str()], |row| Ok(Row { id: parsed(row, 0)?, number: row.get(1)? }))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|source| failure(&self.path, source))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere rolled its transaction back; the connection is as good as before.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open write transaction.
pub(super) struct Change<'t> {
    transaction: &'t Transaction<'t>,
    path: &'t Path,
}

impl Change<'_> {
    /// The last generation that `name` ever had, removed ones included.
    pub(super) fn last(&self, name: &SkillName) -> Result<Option<Row>, LibraryError> {
        let sql = "SELECT id, number FROM generations WHERE name = ?1 ORDER BY number DESC LIMIT 1";
        self.transaction
            .query_row(sql, [name.as_str()], |row| Ok(Row { id: parsed(row, 0)?, number: row.get(1)? }))
            .optional()
            .map_err(|source| failure(self.path, source))
    }

    /// The generation that `name` stands for.
    pub(super) fn current(&self, name: &SkillName) -> Result<Option<Digest>, LibraryError> {
        current(self.transaction, name).map_err(|source| failure(self.path, source))
    }

    /// Adds a generation and makes `name` stand for it.
    pub(super) fn publish(&self, name: &SkillName, row: Row) -> Result<(), LibraryError> {
        let work = || {
            let id = row.id.to_string();
            self.transaction.execute(
                "INSERT INTO generations (id, name, number) VALUES (?1, ?2, ?3)",
                params![id, name.as_str(), row.number],
            )?;
            let sql =
                "INSERT INTO skills (name, current) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET current = ?2";
            self.transaction.execute(sql, params![name.as_str(), id])
        };
        work().map(drop).map_err(|source| failure(self.path, source))
    }

    /// Takes the name away; its rows stay, so that numbers are not given twice.
    pub(super) fn remove(&self, name: &SkillName) -> Result<(), LibraryError> {
        let work = || {
            self.transaction.execute("DELETE FROM skills WHERE name = ?1", [name.as_str()])?;
            self.transaction.execute("UPDATE generations SET removed = 1 WHERE name = ?1", [name.as_str()])
        };
        work().map(drop).map_err(|source| failure(self.path, source))
    }
}

fn current(connection: &Connection, name: &SkillName) -> rusqlite::Result<Option<Digest>> {
    connection.query_row("SELECT current FROM skills WHERE name = ?1", [name.as_str()], |row| parsed(row, 0)).optional()
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    // WAL: readers never wait. FULL: a commit that was reported survives a loss of power.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version == 0 {
        transaction.execute_batch(SCHEMA)?;
    }
    transaction.commit()?;
    Ok(connection)
}

/// The switch to WAL does not wait for its lock as statements do, so a crowd that opens a new library at once tries again.
fn retry_busy<T>(mut work: impl FnMut() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    for _ in 0..100 {
        match work() {
            Err(error) if is_busy(&error) => std::thread::sleep(Duration::from_millis(20)),
            done => return done,
        }
    }
    work()
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn failure(path: &Path, source: rusqlite::Error) -> LibraryError {
    let path = path.to_owned();
    if is_busy(&source) { LibraryError::Busy { path } } else { LibraryError::Index { path, source } }
}

/// A text column as a checked type.
fn parsed<T>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}
