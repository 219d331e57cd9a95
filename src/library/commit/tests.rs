//! Names that move, evidence that is added, and libraries of the first version.

use super::super::testing::{Fixture, copy_folder};
use super::*;
use crate::library::{Finding, index::Index};

fn numbers(library: &Library, name: &str) -> (Vec<(&'static str, Option<u32>)>, u32) {
    let name = name.parse().unwrap();
    let moves = library.history(&name).unwrap().moves;
    let current = library.show(&name.into()).unwrap().manifest.number;
    (moves.iter().map(|entry| (entry.kind.word(), entry.to.map(|to| to.number))).collect(), current)
}

fn note(id: Digest, text: &str) -> Evidence {
    Evidence::new(id, Finding::Note { text: text.into() }, "2025-01-02T03:04:05Z".parse().unwrap())
}

#[test]
fn a_name_moves_and_every_move_is_in_its_journal() {
    let fixture = Fixture::new();
    let name: SkillName = "a".parse().unwrap();
    (1..=3).for_each(|seed| drop(fixture.publish("a", seed)));
    let library = &fixture.library;
    assert_eq!(library.rollback(&name, None).unwrap().to.unwrap().number, 2);
    assert_eq!(library.rollback(&name, None).unwrap().to.unwrap().number, 1);
    let error = library.rollback(&name, None).unwrap_err().to_string();
    assert!(error.contains("nothing comes before"), "{error}");
    library.promote(&name, 3).unwrap();
    assert!(matches!(library.promote(&name, 3), Err(LibraryError::Unmovable { .. })));
    assert!(matches!(library.promote(&name, 9), Err(LibraryError::NotFound { .. })));
    library.rollback(&name, Some(1)).unwrap();
    // A new generation follows the last one, whatever the name stood for.
    assert_eq!(fixture.publish("a", 4).manifest.number, 4);
    let (moves, current) = numbers(library, "a");
    let expected = [("published", 1), ("published", 2), ("published", 3), ("rolled back", 2), ("rolled back", 1)];
    let expected = expected.into_iter().chain([("promoted", 3), ("rolled back", 1), ("published", 4)]);
    assert_eq!((moves, current), (expected.map(|(word, to)| (word, Some(to))).collect(), 4));
    let journal = library.index.moves(&name).unwrap();
    assert!(journal.windows(2).all(|pair| pair[1].1.previous == Some(pair[0].0) && pair[0].1.to == pair[1].1.from));
    assert!(matches!(library.promote(&"b".parse().unwrap(), 1), Err(LibraryError::NotFound { .. })));
    assert!(library.verify().unwrap().is_sound());
}

#[test]
fn evidence_is_added_once_and_in_order_and_only_about_what_there_is() {
    let fixture = Fixture::new();
    let generation = fixture.publish("a", 1);
    for text in ["first", "second", "first"] {
        fixture.library.attach(note(generation.id, text)).unwrap();
    }
    let found = fixture.library.evidence(generation.id).unwrap();
    assert_eq!(found, [note(generation.id, "first"), note(generation.id, "second")]);
    assert!(fixture.library.attach(note(Digest::of("nobody"), "x")).is_err());
    assert!(fixture.library.verify().unwrap().is_sound());
}

#[test]
fn a_record_that_a_dead_writer_left_is_taken_away() {
    let fixture = Fixture::new();
    let generation = fixture.publish("a", 1);
    let dead = journal::to_bytes(&note(generation.id, "never committed"));
    let digest = Digest::of(&dead);
    let moving = fixture.library.moving().unwrap();
    fixture.library.intend(&moving, &[digest, Digest::of("never stored")]).unwrap();
    drop(moving);
    fixture.library.objects.put(&dead).unwrap();
    let library = Library::open(fixture.library.root()).unwrap();
    assert!(library.objects.get(digest).is_err() && library.verify().unwrap().is_sound());
    // Killed while it said what it was about to do: a line that is cut off.
    fs::write(library.root().join("moving"), &digest.to_string()[..40]).unwrap();
    fixture.publish("a", 2);
    assert_eq!(numbers(&Library::open(fixture.library.root()).unwrap(), "a").1, 2);
}

/// A writer that dies inside SQLite's commit: its transaction lies in the write-ahead log, but the log's index, which the other processes
/// look at, does not have it. They find it uncommitted; a recovery of the log would find it committed.
#[test]
fn a_transaction_that_nobody_saw_does_not_come_back_when_its_records_are_gone() {
    let fixture = Fixture::new();
    let generation = fixture.publish("a", 1);
    let survivor = Library::open(fixture.library.root()).unwrap();
    let root = survivor.root();
    let log_index = root.join("index.sqlite-shm");
    let unseen = note(generation.id, "unseen");
    let digest = Digest::of(journal::to_bytes(&unseen));

    let before = fs::read(&log_index).unwrap();
    fixture.library.attach(unseen).unwrap();
    fs::write(root.join("moving"), digest.to_string()).unwrap();
    File::options().write(true).open(&log_index).unwrap().write_all(&before).unwrap();
    survivor.recover().unwrap();
    assert!(survivor.objects.get(digest).is_err() && survivor.evidence(generation.id).unwrap().is_empty());

    // All processes gone: whoever comes next recovers the log.
    let folder = tempfile::tempdir().unwrap();
    copy_folder(root, folder.path());
    fs::remove_file(folder.path().join("index.sqlite-shm")).unwrap();
    let found = Library::open(folder.path()).unwrap().verify().unwrap();
    assert!(found.is_sound() && found.mended.is_empty(), "{found:?}");
}

#[test]
fn a_library_without_journals_gets_them_when_it_is_opened() {
    let fixture = Fixture::new();
    let kept: Vec<_> = (1..=2).map(|seed| fixture.publish("kept", seed).id).collect();
    let gone = fixture.publish("gone", 3);
    let root = fixture.library.root().to_owned();
    for record in fixture.library.objects.all().unwrap() {
        let beginning = String::from_utf8_lossy(&fixture.library.objects.beginning(record.digest)).into_owned();
        if beginning.contains("socius_move") {
            fixture.library.objects.remove(record.digest).unwrap();
        }
    }
    let path = root.join("index.sqlite");
    let rows: String = [(kept[0], "kept", 1, 0), (kept[1], "kept", 2, 0), (gone.id, "gone", 1, 1)]
        .iter()
        .map(|(id, name, number, gone)| format!("INSERT INTO generations VALUES ('{id}', '{name}', {number}, {gone});"))
        .collect();
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(root.join(format!("index.sqlite{suffix}")));
    }
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch(&format!(
            "CREATE TABLE generations (id TEXT PRIMARY KEY, name TEXT NOT NULL, number INTEGER NOT NULL,
                removed INTEGER NOT NULL DEFAULT 0, UNIQUE (name, number)) STRICT;
             CREATE TABLE skills (name TEXT PRIMARY KEY, current TEXT NOT NULL REFERENCES generations (id)) STRICT;
             {rows} INSERT INTO skills VALUES ('kept', '{}'); PRAGMA user_version = 1;",
            kept[1]
        ))
        .unwrap();
    let library = Library::open(&root).unwrap();
    assert_eq!(Index::open(&path).unwrap().version().unwrap(), 2);
    assert_eq!(numbers(&library, "kept"), (vec![("published", Some(1)), ("published", Some(2))], 2));
    assert_eq!(library.list().unwrap().skills.len(), 1);
    assert!(library.show(&"gone".parse().unwrap()).is_err());
    assert!(library.verify().unwrap().is_sound());
    assert_eq!(Library::rebuild(&root).unwrap().list().unwrap().skills, library.list().unwrap().skills);
}
