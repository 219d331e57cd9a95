//! An archive of skills, whole or changed: importing it ends in skills that verify, or in an error that leaves nothing to be seen.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius::library::Library;
use socius_fuzz::file;

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = Library::open(&folder.path().join("library")).expect("an empty library opens");
    let imported = library.import_archive(&file("a.socius", data));
    let skills = library.list().expect("it lists").skills;
    assert_eq!(imported.map_or(0, |done| done.imported.len()), skills.len());
    assert!(library.verify().expect("it is read").is_sound());
});
