//! The ranks of `src/lib.rs`, enforced: a module imports only modules of strictly lower rank.

use std::{
    fs,
    path::{Path, PathBuf},
};

const RANKS: &[(&str, u32)] = &[
    ("common", 2),
    ("episode", 2),
    ("report", 2),
    ("text", 3),
    ("envs", 3),
    ("lora", 3),
    ("fetch", 3),
    ("engine", 4),
    ("train", 4),
    ("library", 4),
    ("router", 5),
    ("bench", 5),
    ("agent", 6),
    ("lab", 7),
    ("server", 7),
    ("cli", 8),
];

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

fn rank(module: &str) -> Option<u32> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

/// Modules that a source text names behind `crate::`, whether alone or in braces.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let code: String = text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(top_level_names(group)),
            None => found.push(leading_name(rest)),
        }
    }
    found
}

fn leading_name(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn top_level_names(group: &str) -> Vec<String> {
    let (mut depth, mut names, mut start) = (0, Vec::new(), true);
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && depth == 0 && !c.is_whitespace() => {
                names.push(leading_name(&group[i..]));
                start = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn imports_are_found_in_every_form() {
    let text =
        "use crate::common::Seed;\nuse crate::{engine::{Engine, Request}, text::Text};\nlet x = crate::lora::init();";
    assert_eq!(imports(text), ["common", "engine", "text", "lora"]);
}

#[test]
fn every_module_has_a_rank_and_imports_only_lower_ones() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let Some(own) = rank(module) else {
            wrong.push(format!("{}: module {module} has no rank", relative.display()));
            continue;
        };
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            if import != module && rank(&import).is_some_and(|other| other >= own) {
                wrong.push(format!("{}: {module} (rank {own}) imports {import}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
