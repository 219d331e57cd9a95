//! Every deed killed at every point where it leaves something behind, and what comes next.

use super::super::{
    Evidence, Finding, Library, LibraryError, SkillName,
    testing::{Fixture, copy_folder, provenance},
};
use crate::common::Digest;
use std::{cell::Cell, io};

thread_local! {
    /// Points that this thread will still pass; none where no kill is meant.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// An error where the kill strikes, and at every point after that: the dead do nothing.
pub(in crate::library) fn point() -> io::Result<()> {
    match LEFT.get() {
        Some(0) => Err(io::Error::other("killed")),
        left => {
            LEFT.set(left.map(|left| left - 1));
            Ok(())
        }
    }
}

/// Whether `deed` was killed after `points`.
fn killed(points: usize, deed: impl FnOnce()) -> bool {
    LEFT.set(Some(points));
    deed();
    LEFT.replace(None) == Some(0)
}

/// What a library may be asked to do; what it refuses is left.
type Deed = fn(&Scene) -> Result<(), LibraryError>;

/// A library of one name, `a`, and an archive of it as it was before its note.
struct Scene {
    fixture: Fixture,
    archive: std::path::PathBuf,
    name: SkillName,
}

const DEEDS: [(&str, Deed); 6] = [
    ("publish", |scene| {
        let lora = scene.fixture.lora(3);
        scene.fixture.library.publish(&scene.fixture.candidate("a", 3, &lora)).map(drop)
    }),
    ("note", |scene| note(&scene.fixture.library, &scene.name, "another")),
    ("rollback", |scene| scene.fixture.library.rollback(&scene.name, None).map(drop)),
    ("remove", |scene| scene.fixture.library.remove(&scene.name)),
    ("collect", |scene| scene.fixture.library.collect(false).map(drop)),
    ("import", |scene| scene.fixture.library.import_archive(&scene.archive).map(drop)),
];

/// Those that build on what a kill left: all that give numbers, take away or bring back.
const NEXT: [&str; 3] = ["publish", "collect", "import"];

fn note(library: &Library, name: &SkillName, text: &str) -> Result<(), LibraryError> {
    let id = library.show(&name.clone().into())?.id;
    let finding = Finding::Note { text: text.into() };
    library.attach(Evidence::new(id, finding, provenance().created))
}

/// Two generations, a note on the second that the archive lacks; the name is taken away or not.
fn scene(removed: bool) -> Scene {
    let fixture = Fixture::new();
    fixture.publish("a", 1);
    fixture.publish("a", 2);
    let name: SkillName = "a".parse().unwrap();
    let archive = fixture.folder.path().join("a.socius");
    fixture.library.export_archive(std::slice::from_ref(&name), &archive).unwrap();
    note(&fixture.library, &name, "later").unwrap();
    if removed {
        fixture.library.remove(&name).unwrap();
    }
    Scene { fixture, archive, name }
}

/// The same scene once more, in a folder of its own.
fn copy(scene: &Scene) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("library");
    copy_folder(scene.fixture.library.root(), &root);
    let (base, spec) = (scene.fixture.base.clone(), scene.fixture.spec.clone());
    let fixture = Fixture { library: Library::open(&root).unwrap(), base, spec, folder };
    Scene { fixture, archive: scene.archive.clone(), name: scene.name.clone() }
}

/// What `library` says of the name, to compare.
fn said(library: &Library, name: &SkillName) -> (Vec<Digest>, String) {
    let heads = library.heads().unwrap().into_iter().map(|(_, id)| id).collect();
    let generations = library.history(name).map(|history| history.generations).unwrap_or_default();
    let evidence: Vec<_> = generations.iter().map(|own| library.evidence(own.id).unwrap()).collect();
    (heads, format!("{:?} {evidence:?}", library.journal(name).unwrap()))
}

fn holds(library: &Library, name: &SkillName, what: &str) {
    let found = library.verify().unwrap();
    assert!(found.is_sound() && found.mended.is_empty(), "{what}: {found:?}");
    let before = said(library, name);
    let rebuilt = Library::rebuild(library.root()).unwrap();
    assert_eq!(said(&rebuilt, name), before, "{what}: the index made again");
}

#[test]
fn a_kill_at_any_point_leaves_index_and_objects_agreeing_now_and_after_whatever_comes_next() {
    for removed in [false, true] {
        let whole = scene(removed);
        for (deed, act) in DEEDS {
            for points in 0.. {
                let struck = copy(&whole);
                if !killed(points, || drop(act(&struck))) {
                    assert!(points > 0 || (removed && ["note", "rollback", "remove"].contains(&deed)), "{deed}");
                    break;
                }
                for (next, then) in DEEDS.into_iter().filter(|(next, _)| NEXT.contains(next)) {
                    let mut scene = copy(&struck);
                    let what = format!("removed {removed}, {deed} killed at {points}, then {next}");
                    match then(&scene) {
                        Ok(()) | Err(LibraryError::NotFound { .. } | LibraryError::Unmovable { .. }) => {}
                        Err(error @ LibraryError::Diverged { .. }) => assert_eq!(next, "import", "{what}: {error}"),
                        Err(error) => panic!("{what}: {error}"),
                    }
                    scene.fixture.library = Library::open(scene.fixture.library.root()).unwrap();
                    holds(&scene.fixture.library, &scene.name, &what);
                }
            }
        }
    }
}
