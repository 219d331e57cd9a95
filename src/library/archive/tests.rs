//! Archives into empty, older, newer and other libraries; archives that are cut, changed or made up.

use super::super::testing::Fixture;
use super::*;
use crate::library::Provenance;

fn note(id: Digest) -> Evidence {
    Evidence::new(id, Finding::Note { text: "worth keeping".into() }, "2025-01-02T03:04:05Z".parse().unwrap())
}

/// A library with a history, a child of another skill, and evidence; and an archive of it.
fn exported() -> (Fixture, std::path::PathBuf) {
    let fixture = Fixture::new();
    let first = fixture.publish("a", 1);
    fixture.publish("a", 2);
    let lora = fixture.lora(3);
    let mut candidate = fixture.candidate("child", 3, &lora);
    candidate.provenance = Provenance { parents: vec![first.id], ..candidate.provenance };
    let child = fixture.library.publish(&candidate).unwrap();
    fixture.library.attach(note(child.id)).unwrap();
    fixture.library.rollback(&"a".parse().unwrap(), None).unwrap();
    let path = fixture.folder.path().join("all.socius");
    fixture.library.export_archive(&[], &path).unwrap();
    (fixture, path)
}

fn names(names: &[SkillName]) -> Vec<&str> {
    names.iter().map(SkillName::as_str).collect()
}

#[test]
fn an_archive_brings_everything_into_an_empty_library_under_the_same_digests() {
    let (from, path) = exported();
    let to = Fixture::new();
    let done = to.library.import_archive(&path).unwrap();
    assert_eq!((names(&done.imported), names(&done.unchanged)), (vec!["a", "child"], vec![]));
    assert_eq!(to.library.list().unwrap().skills, from.library.list().unwrap().skills);
    for name in ["a", "child"] {
        let name: SkillName = name.parse().unwrap();
        let [here, there] = [&to.library, &from.library].map(|library| library.history(&name).unwrap());
        assert_eq!((here.generations, here.moves), (there.generations, there.moves));
    }
    let child = to.library.show(&"child".parse().unwrap()).unwrap();
    assert_eq!(to.library.evidence(child.id).unwrap(), [note(child.id)]);
    assert_eq!(to.library.episodes(&child).unwrap(), from.episodes());
    assert_eq!(to.library.routing_features(&child).unwrap(), Some(to.features(3)));
    assert!(to.library.load_adapter(&child, &to.base, &to.spec).is_ok());
    assert!(to.library.verify().unwrap().is_sound());
    // The same skills give the same bytes, and bringing them twice changes nothing.
    let again = to.folder.path().join("again.socius");
    to.library.export_archive(&[], &again).unwrap();
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&path).unwrap());
    assert!(to.library.import_archive(&path).unwrap().imported.is_empty());
}

#[test]
fn an_archive_of_one_skill_has_its_ancestors_but_not_their_names() {
    let (from, _) = exported();
    let path = from.folder.path().join("child.socius");
    from.library.export_archive(&["child".parse().unwrap()], &path).unwrap();
    let to = Fixture::new();
    to.library.import_archive(&path).unwrap();
    assert_eq!(to.library.list().unwrap().skills.len(), 1);
    let child = to.library.show(&"child".parse().unwrap()).unwrap();
    let parent = to.library.generation(child.manifest.provenance.parents[0]).unwrap();
    assert!(to.library.load_adapter(&parent, &to.base, &to.spec).is_ok());
    assert_eq!(to.library.collect(false).unwrap().objects, 0, "all of it is needed");
}

#[test]
fn a_name_goes_on_where_it_was_and_another_history_is_refused() {
    let (from, path) = exported();
    let to = Fixture::new();
    to.library.import_archive(&path).unwrap();
    from.publish("a", 4);
    from.library.export_archive(&[], &path).unwrap();
    let done = to.library.import_archive(&path).unwrap();
    assert_eq!((names(&done.imported), names(&done.unchanged)), (vec!["a"], vec!["child"]));
    assert_eq!(to.library.show(&"a".parse().unwrap()).unwrap().manifest.number, 3);
    // Here it has gone on itself: the archive has nothing new.
    to.publish("child", 9);
    assert!(to.library.import_archive(&path).unwrap().imported.is_empty());
    // There too, another way: neither is the beginning of the other.
    from.publish("child", 8);
    from.library.export_archive(&[], &path).unwrap();
    let error = to.library.import_archive(&path).unwrap_err();
    assert!(matches!(&error, LibraryError::Diverged { name, common: 1 } if name == "child"), "{error}");
    assert_eq!(to.library.show(&"a".parse().unwrap()).unwrap().manifest.number, 3);
}

#[test]
fn a_skill_that_was_removed_here_comes_back_from_its_archive() {
    let (from, path) = exported();
    for name in ["a", "child"] {
        from.library.remove(&name.parse().unwrap()).unwrap();
    }
    from.library.collect(false).unwrap();
    let done = from.library.import_archive(&path).unwrap();
    assert_eq!(names(&done.imported), ["a", "child"]);
    let history = from.library.history(&"a".parse().unwrap()).unwrap();
    assert_eq!((history.generations.len(), history.damaged.len()), (2, 0));
    assert_eq!(from.library.show(&"a".parse().unwrap()).unwrap().manifest.number, 1, "as the archive left it");
    assert!(from.library.verify().unwrap().is_sound());
}

#[test]
fn under_another_name_the_current_generation_becomes_a_new_one_with_its_evidence() {
    let (from, all) = exported();
    let path = from.folder.path().join("child.socius");
    from.library.export_archive(&["child".parse().unwrap()], &path).unwrap();
    let name: SkillName = "renamed".parse().unwrap();
    let to = Fixture::new();
    to.publish("child", 7);
    let generation = to.library.import_archive_as(&path, &name).unwrap();
    assert_eq!((generation.manifest.number, generation.manifest.name.clone()), (1, name.clone()));
    let original = from.library.show(&"child".parse().unwrap()).unwrap();
    assert_eq!(generation.manifest.blobs, original.manifest.blobs);
    assert!(generation.manifest.provenance.parents.contains(&original.id));
    assert_eq!(to.library.evidence(generation.id).unwrap(), [note(generation.id)]);
    assert!(to.library.verify().unwrap().is_sound());
    let error = to.library.import_archive_as(&all, &name).unwrap_err().to_string();
    assert!(error.contains("several skills"), "{error}");
}

/// The archive's entries, by name.
fn entries(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut zip = ZipArchive::new(File::open(path).unwrap()).unwrap();
    let count = zip.len();
    let read = |at| {
        let mut entry = zip.by_index(at).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.name().unwrap().into_owned(), bytes)
    };
    (0..count).map(read).collect()
}

fn write(path: &Path, entries: &BTreeMap<String, Vec<u8>>, compression: CompressionMethod) {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    for (name, bytes) in entries {
        zip.start_file(name.as_str(), SimpleFileOptions::default().compression_method(compression)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn an_archive_that_is_not_whole_is_refused_and_nothing_of_it_can_be_seen() {
    let (from, path) = exported();
    let whole = entries(&path);
    let weights = from.library.show(&"a".parse().unwrap()).unwrap().manifest.blobs.adapter_weights.digest;
    let object = format!("{OBJECTS}{weights}");
    let edit = |what: &dyn Fn(&mut BTreeMap<String, Vec<u8>>)| {
        let mut entries = whole.clone();
        what(&mut entries);
        entries
    };
    let contents = |from: &'static str, to: &'static str| {
        edit(&move |entries| {
            let text = String::from_utf8(entries[CONTENTS].clone()).unwrap();
            assert!(text.contains(from), "{text}");
            entries.insert(CONTENTS.into(), text.replacen(from, to, 1).into_bytes());
        })
    };
    let deep = format!(r#"{{"socius_archive": 1, "skills": {}"#, "[".repeat(100_000));
    let rows: Vec<(BTreeMap<String, Vec<u8>>, &str)> = vec![
        (edit(&|entries| drop(entries.remove(&object))), "adapter weights"),
        (edit(&|entries| entries.get_mut(&object).unwrap()[9] ^= 1), "is damaged"),
        (edit(&|entries| drop(entries.remove(CONTENTS))), CONTENTS),
        (contents("\"name\": \"a\"", "\"name\": \"b\""), "does not follow"),
        (contents("\"name\": \"a\"", "\"name\": \"../a\""), "not a skill's name"),
        (contents("\"socius_archive\": 1", "\"socius_archive\": 7"), "newer"),
        (contents("\"skills\"", "\"skulls\""), "skills"),
        (edit(&|entries| drop(entries.insert(CONTENTS.into(), deep.clone().into_bytes()))), "EOF"),
    ];
    let to = Fixture::new();
    let refused = |path: &Path, expected: &str| {
        let error = to.library.import_archive(path).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(to.library.list().unwrap().skills.is_empty() && to.library.verify().unwrap().is_sound(), "{expected}");
    };
    let bad = to.folder.path().join("bad.socius");
    for (entries, expected) in rows {
        write(&bad, &entries, CompressionMethod::Stored);
        refused(&bad, expected);
    }
    write(&bad, &whole, CompressionMethod::Deflated);
    refused(&bad, "compressed");
    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 4, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&bad, &bytes[..cut]).unwrap();
        refused(&bad, "no archive of skills");
    }
    refused(&to.folder.path().join("missing"), "missing");
    assert!(to.library.collect(false).unwrap().objects > 0, "what was stored before the refusal is collected");
    assert!(to.library.objects.all().unwrap().is_empty());
}
