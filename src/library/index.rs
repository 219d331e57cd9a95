//! The SQLite index: what the journals, manifests and evidence say, arranged for questions. All of it can be made again from the objects.

use super::{BaseId, Blobs, Evidence, Finding, Generation, LibraryError, Move, SkillName, SkillSummary, journal, kill};
use crate::common::Digest;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

const BUSY: Duration = Duration::from_secs(30);
pub(super) const VERSION: u32 = 2;
/// What version 1 had: names and numbers, everything else in the manifests.
const GENERATIONS: &str = "
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
";
const JOURNALS: &str = "
    CREATE TABLE about (id TEXT PRIMARY KEY, summary TEXT NOT NULL, parts TEXT NOT NULL) STRICT;
    CREATE TABLE centroids (id TEXT PRIMARY KEY, layer INTEGER NOT NULL, vector BLOB NOT NULL) STRICT;
    CREATE TABLE moves (
        digest TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        record TEXT NOT NULL,
        UNIQUE (name, sequence)
    ) STRICT;
    CREATE TABLE evidence (digest TEXT PRIMARY KEY, id TEXT NOT NULL, record TEXT NOT NULL, note TEXT) STRICT;
    CREATE INDEX evidence_of ON evidence (id);
    CREATE TABLE quarantine (
        object TEXT NOT NULL,
        id TEXT NOT NULL,
        what TEXT NOT NULL,
        why TEXT NOT NULL,
        PRIMARY KEY (object, id)
    ) STRICT;
    PRAGMA user_version = 2;
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

/// What the index knows of a generation's manifest: enough to list, search, route and collect without opening it.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) summary: SkillSummary,
    pub(super) parts: Parts,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Parts {
    pub(super) base: BaseId,
    pub(super) blobs: Blobs,
}

impl From<&Generation> for About {
    fn from(generation: &Generation) -> Self {
        let parts = Parts { base: generation.manifest.base.clone(), blobs: generation.manifest.blobs };
        Self { summary: SkillSummary::from(generation), parts }
    }
}

/// A generation that needs an object which is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Quarantined {
    pub(super) object: Digest,
    pub(super) id: Digest,
    pub(super) what: String,
    pub(super) why: String,
}

impl Index {
    /// Opens the index at `path`, made if there is none. One of version 1 is left as it is until [`Change::upgrade`].
    pub(super) fn open(path: &Path) -> Result<Self, LibraryError> {
        let connection = match retry_busy(|| connect(path)) {
            Err(error) if is_read_only(&error) && path.exists() => connect_to_read(path).map_err(|_| error),
            other => other,
        };
        let index = Self { path: path.to_owned(), connection: connection.map_err(|s| failure(path, s))?.into() };
        match index.version()? {
            newer if newer > VERSION => {
                let what = format!("the library's index {}", path.display());
                Err(LibraryError::Newer { what, found: newer, supported: VERSION })
            }
            _ => Ok(index),
        }
    }

    pub(super) fn version(&self) -> Result<u32, LibraryError> {
        self.read(|connection| connection.query_row("PRAGMA user_version", [], |row| row.get(0)))
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
        kill::point().map_err(LibraryError::io("write", &self.path))?;
        transaction.commit().map_err(fail)?;
        kill::point().map_err(LibraryError::io("write", &self.path))?;
        Ok(value)
    }

    /// As [`Index::write`], unless this process or another is writing: then nothing is done.
    pub(super) fn try_write(&self, work: impl FnOnce(&Change<'_>) -> Result<(), LibraryError>) {
        let Ok(mut connection) = self.connection.try_lock() else { return };
        let Ok(transaction) = connection.transaction_with_behavior(TransactionBehavior::Immediate) else { return };
        if work(&Change { transaction: &transaction, path: &self.path }).is_ok() {
            let _ = transaction.commit();
        }
    }

    /// Every name with its current generation and what is known of it, by name.
    pub(super) fn skills(&self) -> Result<Vec<(SkillName, Digest, Option<String>)>, LibraryError> {
        let sql = "SELECT name, current, summary FROM skills LEFT JOIN about ON id = current ORDER BY name";
        self.rows(sql, [], |row| Ok((parsed(row, 0)?, parsed(row, 1)?, row.get(2)?)))
    }

    /// What is known of every generation that a name still has.
    pub(super) fn live_about(&self) -> Result<Vec<(Row, SkillName, Option<About>)>, LibraryError> {
        let sql = "SELECT g.id, number, name, summary, parts FROM generations g LEFT JOIN about a ON a.id = g.id
            WHERE NOT removed ORDER BY name, number";
        self.rows(sql, [], |row| {
            Ok((Row { id: parsed(row, 0)?, number: row.get(1)? }, parsed(row, 2)?, about(row, 3)?))
        })
    }

    /// The generation that `name` stands for.
    pub(super) fn current(&self, name: &SkillName) -> Result<Option<Digest>, LibraryError> {
        self.read(|connection| current(connection, name))
    }

    /// The generations of `name`, oldest first; empty if there is no such skill.
    pub(super) fn history(&self, name: &SkillName) -> Result<Vec<Row>, LibraryError> {
        self.read(|connection| history(connection, name))
    }

    /// The journal of `name`, oldest first.
    pub(super) fn moves(&self, name: &SkillName) -> Result<Vec<(Digest, Move)>, LibraryError> {
        self.read(|connection| moves(connection, name))
    }

    /// Every name that ever was.
    pub(super) fn names(&self) -> Result<Vec<SkillName>, LibraryError> {
        self.rows("SELECT DISTINCT name FROM moves ORDER BY name", [], |row| parsed(row, 0))
    }

    /// The bytes of a move or a piece of evidence, as its object has them.
    pub(super) fn record(&self, digest: Digest) -> Result<Option<Vec<u8>>, LibraryError> {
        let sql =
            "SELECT record, 1 FROM moves WHERE digest = ?1 UNION SELECT record, 0 FROM evidence WHERE digest = ?1";
        let bytes = |row: &rusqlite::Row<'_>| match row.get(1)? {
            true => json::<Move>(row, 0).map(|entry| journal::to_bytes(&entry)),
            false => json::<Evidence>(row, 0).map(|found| journal::to_bytes(&found)),
        };
        Ok(self.rows(sql, [digest.to_string()], bytes)?.pop())
    }

    /// What was found out about a generation, oldest first.
    pub(super) fn evidence(&self, id: Digest) -> Result<Vec<(Digest, Evidence)>, LibraryError> {
        let sql = "SELECT digest, record FROM evidence WHERE id = ?1 ORDER BY rowid";
        self.rows(sql, [id.to_string()], |row| Ok((parsed(row, 0)?, json(row, 1)?)))
    }

    /// Every note with the generation that it is about.
    pub(super) fn notes(&self) -> Result<Vec<(Digest, String)>, LibraryError> {
        self.rows("SELECT id, note FROM evidence WHERE note NOT NULL", [], |row| Ok((parsed(row, 0)?, row.get(1)?)))
    }

    /// Mean routing features of the current generations: id, layer and values in little endian.
    pub(super) fn centroids(&self) -> Result<Vec<(Digest, usize, Vec<u8>)>, LibraryError> {
        let sql = "SELECT id, layer, vector FROM skills JOIN centroids ON id = current";
        self.rows(sql, [], |row| Ok((parsed(row, 0)?, row.get::<_, i64>(1)? as usize, row.get(2)?)))
    }

    /// What is known to be damaged.
    pub(super) fn quarantine(&self) -> Result<Vec<Quarantined>, LibraryError> {
        self.rows("SELECT object, id, what, why FROM quarantine", [], |row| {
            Ok(Quarantined { object: parsed(row, 0)?, id: parsed(row, 1)?, what: row.get(2)?, why: row.get(3)? })
        })
    }

    /// What SQLite itself finds wrong with the file.
    pub(super) fn check(&self) -> Result<Vec<String>, LibraryError> {
        let found: Vec<String> = self.rows("PRAGMA integrity_check", [], |row| row.get(0))?;
        Ok(found.into_iter().filter(|line| line != "ok").collect())
    }

    fn rows<T>(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        row: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, LibraryError> {
        self.read(|connection| connection.prepare_cached(sql)?.query_map(values, row)?.collect())
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, LibraryError> {
        work(&self.lock()).map_err(|source| failure(&self.path, source))
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
        self.run(|transaction| {
            let row = |row: &rusqlite::Row<'_>| Ok(Row { id: parsed(row, 0)?, number: row.get(1)? });
            transaction.query_row(sql, [name.as_str()], row).optional()
        })
    }

    /// The generation that `name` stands for.
    pub(super) fn current(&self, name: &SkillName) -> Result<Option<Digest>, LibraryError> {
        self.run(|transaction| current(transaction, name))
    }

    /// Its generations, oldest first.
    pub(super) fn history(&self, name: &SkillName) -> Result<Vec<Row>, LibraryError> {
        self.run(|transaction| history(transaction, name))
    }

    /// Decides for good what this transaction sees. A writer that is killed inside SQLite's commit may leave a transaction whole in the
    /// write-ahead log which nobody sees yet: the next writer's overwrites it, but where none comes, the next recovery of the log makes it
    /// visible after all (sqlite.org/walformat.html, "Recovery"). So whoever acts outside the index on what it lacks writes something first.
    pub(super) fn settle(&self) -> Result<(), LibraryError> {
        self.run(|transaction| transaction.pragma_update(None, "user_version", VERSION))
    }

    /// Forgets everything, as before the first publication.
    pub(super) fn clear(&self) -> Result<(), LibraryError> {
        let tables = ["skills", "generations", "about", "centroids", "moves", "evidence", "quarantine"];
        let sql: String = tables.iter().map(|table| format!("DELETE FROM {table};")).collect();
        self.run(|transaction| transaction.execute_batch(&sql))
    }

    /// Its journal, oldest first.
    pub(super) fn moves(&self, name: &SkillName) -> Result<Vec<(Digest, Move)>, LibraryError> {
        self.run(|transaction| moves(transaction, name))
    }

    /// The last move of its journal.
    pub(super) fn tip(&self, name: &SkillName) -> Result<Option<(Digest, Move)>, LibraryError> {
        let sql = "SELECT digest, record FROM moves WHERE name = ?1 ORDER BY sequence DESC LIMIT 1";
        self.run(|transaction| {
            transaction.query_row(sql, [name.as_str()], |row| Ok((parsed(row, 0)?, json(row, 1)?))).optional()
        })
    }

    /// Whether the index has this move or piece of evidence.
    pub(super) fn has(&self, record: Digest) -> Result<bool, LibraryError> {
        let sql =
            "SELECT EXISTS (SELECT 1 FROM moves WHERE digest = ?1 UNION SELECT 1 FROM evidence WHERE digest = ?1)";
        self.run(|transaction| transaction.query_row(sql, [record.to_string()], |row| row.get(0)))
    }

    /// Puts a move into its journal and does what it says.
    pub(super) fn apply(&self, digest: Digest, entry: &Move) -> Result<(), LibraryError> {
        let name = entry.name.as_str();
        self.run(|transaction| {
            transaction.execute(
                "INSERT INTO moves (digest, name, sequence, record) VALUES (?1, ?2, ?3, ?4)",
                params![digest.to_string(), name, entry.sequence, text(entry)],
            )?;
            let Some(to) = entry.to else {
                transaction.execute("DELETE FROM skills WHERE name = ?1", [name])?;
                return transaction.execute("UPDATE generations SET removed = 1 WHERE name = ?1", [name]);
            };
            let id = to.generation.to_string();
            transaction.execute(
                "INSERT INTO generations (id, name, number) VALUES (?1, ?2, ?3)
                    ON CONFLICT (id) DO UPDATE SET removed = 0",
                params![id, name, to.number],
            )?;
            transaction.execute(
                "INSERT INTO skills (name, current) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET current = ?2",
                params![name, id],
            )
        })
        .map(drop)
    }

    /// What lists and searches are to know of a generation.
    pub(super) fn describe(&self, id: Digest, about: &About) -> Result<(), LibraryError> {
        self.run(|transaction| {
            transaction.execute(
                "INSERT OR REPLACE INTO about (id, summary, parts) VALUES (?1, ?2, ?3)",
                params![id.to_string(), text(&about.summary), text(&about.parts)],
            )
        })
        .map(drop)
    }

    /// The mean of its routing features, in little endian.
    pub(super) fn place(&self, id: Digest, layer: usize, vector: &[u8]) -> Result<(), LibraryError> {
        self.run(|transaction| {
            transaction.execute(
                "INSERT OR REPLACE INTO centroids (id, layer, vector) VALUES (?1, ?2, ?3)",
                params![id.to_string(), layer as i64, vector],
            )
        })
        .map(drop)
    }

    pub(super) fn attach(&self, digest: Digest, evidence: &Evidence) -> Result<(), LibraryError> {
        let note = match &evidence.finding {
            Finding::Note { text } => Some(text.as_str()),
            _ => None,
        };
        self.run(|transaction| {
            transaction.execute(
                "INSERT OR IGNORE INTO evidence (digest, id, record, note) VALUES (?1, ?2, ?3, ?4)",
                params![digest.to_string(), evidence.generation.to_string(), text(evidence), note],
            )
        })
        .map(drop)
    }

    pub(super) fn quarantine(&self, found: &Quarantined) -> Result<(), LibraryError> {
        self.run(|transaction| {
            transaction.execute(
                "INSERT OR REPLACE INTO quarantine (object, id, what, why) VALUES (?1, ?2, ?3, ?4)",
                params![found.object.to_string(), found.id.to_string(), found.what, found.why],
            )
        })
        .map(drop)
    }

    /// Forgets what was wrong with `object`, or, without one, with all of them.
    pub(super) fn release(&self, object: Option<Digest>) -> Result<(), LibraryError> {
        self.run(|transaction| match object {
            Some(object) => transaction.execute("DELETE FROM quarantine WHERE object = ?1", [object.to_string()]),
            None => transaction.execute("DELETE FROM quarantine", []),
        })
        .map(drop)
    }

    /// Forgets what is known of a generation whose objects are collected; its number stays taken.
    pub(super) fn forget(&self, id: Digest) -> Result<(), LibraryError> {
        self.run(|transaction| {
            for table in ["about", "centroids", "evidence", "quarantine"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE id = ?1"), [id.to_string()])?;
            }
            Ok(())
        })
    }

    /// The records of what was found out about a generation.
    pub(super) fn evidence(&self, id: Digest) -> Result<Vec<Digest>, LibraryError> {
        self.run(|transaction| {
            let mut statement = transaction.prepare("SELECT digest FROM evidence WHERE id = ?1")?;
            statement.query_map([id.to_string()], |row| parsed(row, 0))?.collect()
        })
    }

    /// Generations whose names were taken away.
    pub(super) fn removed(&self) -> Result<Vec<Digest>, LibraryError> {
        self.run(|transaction| {
            let mut statement = transaction.prepare("SELECT id FROM generations WHERE removed")?;
            statement.query_map([], |row| parsed(row, 0))?.collect()
        })
    }

    /// The rows of an index of version 1, by name and number, with whether the name was taken away, if it is one; its tables are
    /// then as those of this version, with empty journals and no row.
    pub(super) fn upgrade(&self) -> Result<Option<Vec<(SkillName, Row, bool)>>, LibraryError> {
        self.run(|transaction| {
            let version: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            if version != 1 {
                return Ok(None);
            }
            let mut statement =
                transaction.prepare("SELECT name, id, number, removed FROM generations ORDER BY name, number")?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok((parsed(row, 0)?, Row { id: parsed(row, 1)?, number: row.get(2)? }, row.get(3)?))
            };
            let rows = statement.query_map([], row)?.collect::<rusqlite::Result<_>>()?;
            transaction.execute_batch("DELETE FROM skills; DELETE FROM generations;")?;
            transaction.execute_batch(JOURNALS)?;
            Ok(Some(rows))
        })
    }

    fn run<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, LibraryError> {
        work(self.transaction).map_err(|source| failure(self.path, source))
    }
}

fn current(connection: &Connection, name: &SkillName) -> rusqlite::Result<Option<Digest>> {
    connection.query_row("SELECT current FROM skills WHERE name = ?1", [name.as_str()], |row| parsed(row, 0)).optional()
}

fn history(connection: &Connection, name: &SkillName) -> rusqlite::Result<Vec<Row>> {
    let sql = "SELECT id, number FROM generations WHERE name = ?1 AND NOT removed ORDER BY number";
    let mut statement = connection.prepare(sql)?;
    statement.query_map([name.as_str()], |row| Ok(Row { id: parsed(row, 0)?, number: row.get(1)? }))?.collect()
}

fn moves(connection: &Connection, name: &SkillName) -> rusqlite::Result<Vec<(Digest, Move)>> {
    let mut statement = connection.prepare("SELECT digest, record FROM moves WHERE name = ?1 ORDER BY sequence")?;
    statement.query_map([name.as_str()], |row| Ok((parsed(row, 0)?, json(row, 1)?)))?.collect()
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    // WAL: readers never wait. FULL: a commit that was reported survives a loss of power.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version == 0 {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been faster.
        let version: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version == 0 {
            transaction.execute_batch(GENERATIONS)?;
            transaction.execute_batch(JOURNALS)?;
        }
        transaction.commit()?;
    }
    Ok(connection)
}

/// On a medium that cannot be written: as any reader, or, where not even a reader's lock can be written, as a file that nobody
/// changes.
fn connect_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let spelled: String = path.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let open = |options: &str| {
        let connection = Connection::open_with_flags(format!("file:{spelled}{options}"), flags)?;
        connection.busy_timeout(BUSY)?;
        connection.query_row("SELECT COUNT(*) FROM skills", [], |_| Ok(()))?;
        Ok(connection)
    };
    open("").or_else(|_: rusqlite::Error| open("?immutable=1"))
}

fn is_read_only(error: &rusqlite::Error) -> bool {
    let codes = [ErrorCode::ReadOnly, ErrorCode::CannotOpen, ErrorCode::PermissionDenied];
    error.sqlite_error_code().is_some_and(|code| codes.contains(&code))
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
    match source.sqlite_error_code() {
        _ if is_busy(&source) => LibraryError::Busy { path },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => LibraryError::DamagedIndex { path, source },
        _ => LibraryError::Index { path, source },
    }
}

fn about(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<About>> {
    if row.get_ref(column)? == rusqlite::types::ValueRef::Null {
        return Ok(None);
    }
    Ok(Some(About { summary: json(row, column)?, parts: json(row, column + 1)? }))
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a record is plain data")
}

/// A text column as a record.
fn json<T: serde::de::DeserializeOwned>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| unfit(column, error))
}

/// A text column as a checked type.
fn parsed<T>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| unfit(column, error))
}

fn unfit(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}
