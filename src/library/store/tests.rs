//! Reading from the library, sound and damaged. Never sees a model.

use super::super::testing::{Fixture, manifest};
use super::*;
use proptest::prelude::*;

#[test]
fn a_manifest_reads_back_as_it_was_written() {
    let manifest = manifest("reverse");
    let bytes = serde_json::to_vec_pretty(&manifest).unwrap();
    assert_eq!(journal::parse::<Manifest>(&bytes).unwrap(), manifest);
}

#[test]
fn a_newer_format_is_told_from_damage_and_unknown_fields_are_passed_over() {
    let mut value = serde_json::to_value(manifest("reverse")).unwrap();
    value["later_field"] = serde_json::json!([1, 2]);
    assert!(journal::parse::<Manifest>(&serde_json::to_vec(&value).unwrap()).is_ok());
    value["name"] = "../x".into();
    assert!(matches!(journal::parse::<Manifest>(&serde_json::to_vec(&value).unwrap()), Err(RecordError::Malformed(_))));
    value["socius_generation"] = 99.into();
    assert!(matches!(journal::parse::<Manifest>(&serde_json::to_vec(&value).unwrap()), Err(RecordError::Newer(99))));
    assert!(matches!(journal::parse::<Manifest>(b"{}"), Err(RecordError::Malformed(_))));
}

proptest! {
    #[test]
    fn no_cut_or_changed_manifest_makes_the_parser_panic(cut in 0usize..4000, at in 0usize..4000, byte in any::<u8>()) {
        let mut bytes = serde_json::to_vec(&manifest("reverse")).unwrap();
        let length = bytes.len();
        bytes[at % length] = byte;
        let _ = journal::parse::<Manifest>(&bytes);
        prop_assert!(journal::parse::<Manifest>(&bytes[..cut % length]).is_err());
    }
}

#[test]
fn a_generation_is_found_by_name_number_and_prefix() {
    let fixture = Fixture::new();
    let (first, second) = (fixture.publish("a", 1), fixture.publish("a", 2));
    fixture.publish("b", 3);
    let show = |text: &str| fixture.library.show(&text.parse().unwrap()).map(|generation| generation.id);
    assert_eq!(show("a").unwrap(), second.id);
    assert_eq!(show("a@1").unwrap(), first.id);
    assert_eq!(show(&format!("a@{}", first.id.short())).unwrap(), first.id);
    for missing in ["c", "a@3", "a@00000000000000000000000000000000"] {
        assert!(matches!(show(missing), Err(LibraryError::NotFound { .. })), "{missing}");
    }
    let history = fixture.library.history(&"a".parse().unwrap()).unwrap();
    assert_eq!(history.generations.iter().map(|g| g.id).collect::<Vec<_>>(), [first.id, second.id]);
    assert_eq!(second.manifest.previous, Some(first.id));
}

#[test]
fn an_adapter_comes_back_as_it_was_published() {
    let fixture = Fixture::new();
    let generation = fixture.publish("a", 1);
    let (adapter, config) = fixture.library.load_adapter(&generation, &fixture.base, &fixture.spec).unwrap();
    let lora = fixture.lora(1);
    assert_eq!((adapter.theta, adapter.layout, config), (lora.theta, lora.layout, lora.config));
    assert_eq!(adapter.generation, generation.id.to_string());
    assert_eq!(fixture.library.episodes(&generation).unwrap(), fixture.episodes());
}

#[test]
fn a_base_of_another_digest_is_refused_with_both_names_and_a_renamed_one_is_not() {
    let fixture = Fixture::new();
    let generation = fixture.publish("a", 1);
    let renamed = BaseId { name: "my-copy".into(), ..fixture.base.clone() };
    assert!(fixture.library.load_adapter(&generation, &renamed, &fixture.spec).is_ok());
    let other = BaseId { name: "org/Other".into(), digest: Digest::of("other"), ..fixture.base.clone() };
    let retokenized = BaseId { tokenizer: Digest::of("other"), ..fixture.base.clone() };
    for base in [other, retokenized] {
        let error = fixture.library.load_adapter(&generation, &base, &fixture.spec).unwrap_err();
        assert!(matches!(error, LibraryError::ForeignBase { .. }));
        let text = error.to_string();
        assert!(text.contains(&base.name) && text.contains(&fixture.base.name) && text.contains("skill a"), "{text}");
    }
}

#[test]
fn every_flipped_byte_is_an_error_that_names_object_and_generation() {
    let fixture = Fixture::new();
    let generation = fixture.publish("a", 1);
    let sound = fixture.publish("b", 2);
    let blobs = generation.manifest.blobs;
    let objects = blobs.all().map(|(_, blob)| blob.digest).chain([generation.id]);
    for digest in objects {
        let path = fixture.library.objects.path(digest);
        let whole = fs::read(&path).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let _ = fs::remove_file(&path);
            fs::write(&path, &bytes).unwrap();
            // Another process has nothing in memory yet.
            let library = Library::open(fixture.library.root()).unwrap();
            let error = library
                .generation(generation.id)
                .and_then(|g| library.load_adapter(&g, &fixture.base, &fixture.spec).map(|_| g))
                .and_then(|g| library.episodes(&g).map(|_| g))
                .and_then(|g| library.routing_features(&g))
                .expect_err("damage is seen");
            assert!(matches!(error, LibraryError::Damaged { .. }), "{error}");
            let heads: Vec<Digest> = library.heads().unwrap().into_iter().map(|(_, id)| id).collect();
            assert_eq!(heads, [sound.id], "it is routed around, and the others are still there");
            assert_eq!(library.list().unwrap().damaged.len(), 1);
            let text = error.to_string();
            assert!(text.contains(&generation.id.to_string()) && text.contains(path.to_str().unwrap()), "{text}");
            assert!(text.contains("route to another"), "{text}");
        }
        let _ = fs::remove_file(&path);
        fs::write(&path, &whole).unwrap();
        assert!(Library::open(fixture.library.root()).unwrap().verify().unwrap().is_sound(), "it is whole again");
    }
}

#[test]
fn a_folder_that_cannot_be_made_or_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for root in [file.join("library"), file.clone()] {
        let error = Library::open(&root).err().expect("a file is no folder").to_string();
        assert!(error.contains("file") && error.contains("create the folder"), "{error}");
    }
    let library = folder.path().join("library");
    fs::create_dir_all(library.join("index.sqlite")).unwrap();
    let error = Library::open(&library).err().expect("a folder is no index").to_string();
    assert!(error.contains("index.sqlite"), "{error}");
}

#[test]
fn an_index_of_a_newer_program_is_refused() {
    let fixture = Fixture::new();
    let path = fixture.library.root().join("index.sqlite");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let error = Library::open(fixture.library.root()).err().expect("too new");
    assert!(matches!(error, LibraryError::Newer { found: 7, .. }), "{error}");
}
