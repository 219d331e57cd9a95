//! Style that a machine can check: each file says what it is, none grows into a drawer, nothing is left unfinished.

use std::{fs, path::Path, process::Command};

const LINES_MAX: usize = 600;

fn tracked(pattern: &str) -> Vec<String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Command::new("git")
        .args(["-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern])
        .output()
        .expect("git lists the files");
    let names = String::from_utf8(output.stdout).unwrap();
    names.split('\0').filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

fn offences(pattern: &str, check: impl Fn(&str, &str) -> Option<String>) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    tracked(pattern)
        .iter()
        .filter_map(|name| {
            let text = fs::read_to_string(root.join(name)).ok()?;
            check(name, &text).map(|what| format!("{name}: {what}"))
        })
        .collect()
}

#[test]
fn every_source_file_opens_with_what_it_is() {
    let wrong = offences("*.rs", |_, text| (!text.starts_with("//! ")).then(|| "no //! line at the top".into()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_source_file_is_a_drawer() {
    let wrong = offences("*.rs", |_, text| {
        let lines = text.lines().count();
        (lines > LINES_MAX).then(|| format!("{lines} lines, at most {LINES_MAX}"))
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_unfinished() {
    // Split so that this file does not find itself.
    let words =
        [["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["unimplemented", "!("], ["#[ig", "nore"]].map(|w| w.concat());
    let wrong = offences("*.rs", |_, text| words.iter().find(|w| text.contains(w.as_str())).cloned());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_document_link_to_a_file_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let wrong = offences("*.md", |name, text| {
        let folder = root.join(name).parent().unwrap().to_owned();
        text.split("](").skip(1).find_map(|rest| {
            let target = rest.split([')', '#']).next().unwrap_or("");
            let local = !target.is_empty() && !target.contains("://");
            (local && !folder.join(target).exists()).then(|| format!("link to {target}, which does not exist"))
        })
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
