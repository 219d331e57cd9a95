//! Damage to every kind of file is found and named; an index is made again to what it was.

use super::super::testing::Fixture;
use super::*;
use crate::library::Finding;
use std::io::{Read, Seek, SeekFrom, Write};

fn note(id: Digest) -> Evidence {
    Evidence::new(id, Finding::Note { text: "n".into() }, "2025-01-02T03:04:05Z".parse().unwrap())
}

/// Two generations of `a`, one of `b` that was born from the first, and a note.
fn library() -> (Fixture, [Digest; 3]) {
    let fixture = Fixture::new();
    let (first, second) = (fixture.publish("a", 1), fixture.publish("a", 2));
    let lora = fixture.lora(3);
    let mut candidate = fixture.candidate("b", 3, &lora);
    candidate.provenance.parents = vec![first.id];
    let child = fixture.library.publish(&candidate).unwrap();
    fixture.library.attach(note(second.id)).unwrap();
    (fixture, [first.id, second.id, child.id])
}

fn damage(path: &Path, how: fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    how(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

const FLIP: fn(&mut Vec<u8>) = |bytes| {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
};

#[test]
fn a_flipped_or_missing_byte_or_file_is_found_named_and_put_aside() {
    let (fixture, [first, ..]) = library();
    let root = fixture.library.root();
    let blobs = fixture.library.generation(first).unwrap().manifest.blobs;
    let rows: Vec<(&str, Digest)> =
        std::iter::once(("manifest", first)).chain(blobs.all().map(|(what, blob)| (what, blob.digest))).collect();
    let ways: [fn(&mut Vec<u8>); 3] = [FLIP, |bytes| bytes.truncate(bytes.len() - 1), Vec::clear];
    for (what, object) in rows {
        let path = fixture.library.objects.path(object);
        let whole = fs::read(&path).unwrap();
        let remove = |path: &Path| fs::remove_file(path).unwrap();
        for way in ways.iter().map(Some).chain([None]) {
            match way {
                Some(way) => damage(&path, *way),
                None => remove(&path),
            }
            let library = Library::open(root).unwrap();
            let found = library.verify().unwrap();
            let [one] = &found.damaged[..] else { panic!("{what}: {found:?}") };
            assert_eq!((one.object, one.what.as_str(), one.path.clone()), (object, what, path.clone()));
            assert!(one.generations.contains(&"a@1".to_owned()) && one.born_from_them.contains(&"b@1".to_owned()));
            assert_eq!(one.quarantined.is_some(), way.is_some(), "what is there is put aside");
            assert!(found.index.is_empty() && !path.exists());
            // It is remembered, and found again by whoever looks next.
            assert_eq!(Library::open(root).unwrap().verify().unwrap().damaged.len(), 1);
            // What it was brings it back.
            fs::write(&path, &whole).unwrap();
            assert!(library.verify().unwrap().is_sound() && library.heads().unwrap().len() == 2, "{what}");
        }
    }
}

#[test]
fn what_only_history_needs_is_not_routed_around_and_what_nobody_needs_is_said() {
    let (fixture, [first, second, _]) = library();
    let library = &fixture.library;
    damage(&library.objects.path(first), FLIP);
    library.verify().unwrap();
    assert_eq!(library.heads().unwrap().len(), 2, "a@2 and b@1 are whole");
    assert_eq!(library.history(&"a".parse().unwrap()).unwrap().generations.len(), 2, "it was read before");
    let again = Library::open(library.root()).unwrap();
    assert_eq!(again.history(&"a".parse().unwrap()).unwrap().damaged.len(), 1);
    let weights = library.generation(second).unwrap().manifest.blobs.adapter_weights.digest;
    damage(&library.objects.path(weights), FLIP);
    again.verify().unwrap();
    assert_eq!(again.heads().unwrap().len(), 1, "a@2 is not");
    // Publishing the same again mends it.
    fixture.publish("a", 2);
    assert_eq!(library.heads().unwrap().len(), 2);
    let orphan = library.objects.put(b"of a dead writer").unwrap().digest;
    damage(&library.objects.path(orphan), FLIP);
    assert!(library.verify().unwrap().damaged.iter().any(|damage| damage.what == "nothing needs it"));
}

#[test]
fn damaged_moves_and_evidence_are_written_again_from_the_index() {
    let (fixture, [_, second, _]) = library();
    let library = &fixture.library;
    let mut records: Vec<Digest> =
        library.index.evidence(second).unwrap().into_iter().map(|(digest, _)| digest).collect();
    records.extend(library.index.moves(&"a".parse().unwrap()).unwrap().into_iter().map(|(digest, _)| digest));
    for record in records {
        let path = library.objects.path(record);
        let whole = fs::read(&path).unwrap();
        damage(&path, FLIP);
        let found = library.verify().unwrap();
        assert!(found.is_sound() && found.mended == [record], "{found:?}");
        assert_eq!(fs::read(&path).unwrap(), whole);
        fs::remove_file(&path).unwrap();
        assert_eq!(library.verify().unwrap().mended, [record]);
    }
}

/// All that the index says.
fn said(library: &Library) -> String {
    let names = library.index.names().unwrap();
    let of_name = |name: &SkillName| {
        let (moves, rows) = (library.index.moves(name).unwrap(), library.index.history(name).unwrap());
        let evidence: Vec<_> = rows.iter().map(|row| library.index.evidence(row.id).unwrap()).collect();
        format!("{name} {moves:?} {rows:?} {evidence:?} {:?}\n", library.index.current(name).unwrap())
    };
    let names: String = names.iter().map(of_name).collect();
    let mut centroids = library.index.centroids().unwrap();
    centroids.sort_by_key(|(id, ..)| *id);
    format!("{names}{:?}{centroids:?}", library.list().unwrap().skills)
}

#[test]
fn an_index_that_is_lost_damaged_or_wrong_is_made_again_to_what_it_was() {
    let (fixture, [_, second, _]) = library();
    let library = &fixture.library;
    fixture.publish("gone", 7);
    library.remove(&"gone".parse().unwrap()).unwrap();
    library.rollback(&"a".parse().unwrap(), None).unwrap();
    library.attach(note(second)).unwrap();
    let before = said(library);
    let root = library.root().to_owned();
    let path = root.join("index.sqlite");
    assert_eq!(said(&Library::rebuild(&root).unwrap()), before, "of a sound one");

    let sql = rusqlite::Connection::open(&path).unwrap();
    sql.execute_batch(
        "UPDATE skills SET current = (SELECT id FROM generations WHERE name = 'a' AND number = 2)
        WHERE name = 'a'; DELETE FROM moves WHERE name = 'b'; DELETE FROM evidence;",
    )
    .unwrap();
    drop(sql);
    let found = Library::open(&root).unwrap().verify().unwrap();
    assert_eq!(found.index.len(), 3, "{found:?}");
    assert_eq!(said(&Library::rebuild(&root).unwrap()), before);

    let (spec, base, folder) = (fixture.spec.clone(), fixture.base.clone(), fixture.folder);
    drop(fixture.library); // Its connection would write back what it holds.
    let ways: [fn(&Path); 3] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, b"this is no index, and it is longer than a header").unwrap(),
        |path| {
            let mut file = fs::File::options().read(true).write(true).open(path).unwrap();
            let mut page = [0; 64];
            file.seek(SeekFrom::Start(4096)).unwrap();
            file.read_exact(&mut page).unwrap();
            file.seek(SeekFrom::Start(4096)).unwrap();
            file.write_all(&page.map(|byte| !byte)).unwrap();
        },
    ];
    for way in ways {
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(root.join(format!("index.sqlite{suffix}")));
        }
        way(&path);
        let rebuilt = Library::rebuild(&root).unwrap();
        assert_eq!(said(&rebuilt), before);
        assert!(rebuilt.verify().unwrap().is_sound());
        let skill = rebuilt.show(&"a".parse().unwrap()).unwrap();
        assert!(rebuilt.load_adapter(&skill, &base, &spec).is_ok());
    }
    drop(folder);
}

#[test]
fn a_damaged_index_says_how_it_is_mended() {
    let fixture = Fixture::new();
    let root = fixture.library.root().to_owned();
    let _folder = fixture.folder;
    drop(fixture.library);
    fs::write(root.join("index.sqlite"), b"this is no index, and it is longer than a header").unwrap();
    let error = Library::open(&root).err().expect("it is no index").to_string();
    assert!(error.contains("verify --rebuild"), "{error}");
}
