//! The library as a whole: processes that are killed, disks that are full or read-only, and everything by the command line.

mod crash;
mod damage;

use socius::library::Library;
use socius_models::Spec;
use std::{fs, path::PathBuf, process::Command};

/// Where a writer finds the library, when this program was started as one.
const ROOT: &str = "SOCIUS_CRASH_ROOT";
const SEED: &str = "SOCIUS_CRASH_SEED";

/// This program once more, as one of its own tests.
fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command
}

/// A writer, where this program was started as one; nothing otherwise.
#[test]
fn a_writer_works_until_it_is_killed() {
    if let (Some(root), Ok(seed)) = (std::env::var_os(ROOT), std::env::var(SEED)) {
        crash::work(&PathBuf::from(root), seed.parse().unwrap());
    }
    assert!(std::env::var_os(SEED).is_none(), "a writer has both");
}

#[test]
fn kills_at_random_instants_lose_nothing_and_leave_nothing_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("library");
    let writer = |seed: u64| {
        let mut command = again("a_writer_works_until_it_is_killed");
        command.env(ROOT, &root).env(SEED, seed.to_string());
        command
    };
    let tally = crash::run(&root, 21, 1, &writer);
    assert!(tally.kills >= 21 && tally.done >= tally.kills, "{tally:?}");
    assert_eq!((tally.lost, tally.half_visible, tally.disagreements), (0, 0, 0), "{tally:?}");
}

#[test]
fn damage_to_any_kind_of_object_is_found_named_put_aside_and_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let tally = damage::run(&folder.path().join("library"), 24, 1);
    assert_eq!(tally.keys().copied().collect::<Vec<_>>(), damage::KINDS, "{tally:?}");
    assert!(tally.values().all(|[hits, misses]| *hits > 0 && *misses == 0), "{tally:?}");
}

#[test]
fn a_full_disk_is_an_error_and_what_was_published_stays_whole() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("library");
    let before = Library::open(&root).unwrap();
    // For a child no file may grow beyond 64 or 128 kB (the unit is the shell's): the index's log meets that after some deeds, as all files
    // do on a full disk. Without the trap the signal would end the child before it sees an error.
    let test = "a_writer_works_until_it_is_killed";
    let exe = std::env::current_exe().unwrap();
    let script = format!("trap '' XFSZ; ulimit -f 128; exec '{}' --exact {test} --nocapture", exe.display());
    let output = Command::new("sh").args(["-c", &script]).env(ROOT, &root).env(SEED, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let why = said.lines().find_map(|line| line.strip_prefix("failed ")).unwrap_or_else(|| panic!("{said}"));
    assert!(why.contains(folder.path().to_str().unwrap()), "the error names the file: {why}");
    assert!(!output.status.success());
    drop(before);
    let deeds: Vec<String> = said.lines().filter(|line| !line.starts_with("failed ")).map(str::to_owned).collect();
    let mut tally = crash::Tally::default();
    crash::check(&root, &deeds, &Default::default(), &mut tally);
    assert!(tally.done > 0, "{said}");
    assert_eq!((tally.lost, tally.half_visible, tally.disagreements), (0, 0, 0), "{tally:?}");
    let spec = Spec::tiny();
    let lora = crash::adapter(2, &spec);
    let library = Library::open(&root).unwrap();
    assert!(library.publish(&crash::candidate("after", 2, &lora, &spec)).is_ok(), "and there is room again");
}

#[test]
fn a_folder_that_cannot_be_written_is_named_and_what_was_published_stays_readable() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("library");
    let library = Library::open(&root).unwrap();
    let spec = Spec::tiny();
    let lora = crash::adapter(1, &spec);
    let first = library.publish(&crash::candidate("a", 1, &lora, &spec)).unwrap();
    // A file where a folder belongs stops whoever writes, whatever their rights.
    fs::remove_dir_all(root.join("tmp")).unwrap();
    fs::write(root.join("tmp"), "").unwrap();
    let lora = crash::adapter(2, &spec);
    let error = library.publish(&crash::candidate("a", 2, &lora, &spec)).unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("objects"), "{error}");
    assert!(library.load_adapter(&first, &crash::base(), &spec).is_ok());
    assert_eq!(library.heads().unwrap().len(), 1);
    fs::remove_file(root.join("tmp")).unwrap();
    assert_eq!(
        Library::open(&root).unwrap().publish(&crash::candidate("a", 2, &lora, &spec)).unwrap().manifest.number,
        2
    );
}
