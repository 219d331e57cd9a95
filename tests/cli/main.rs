//! The binary as a script meets it: exit codes, the JSON line, help, an empty home.

mod checkpoint;
mod models;

use serde_json::Value;
use socius::{
    common::Digest,
    library::{BaseId, Candidate, Comparison, Library, Provenance, Score},
    lora::{LoraConfig, LoraWeights},
};
use socius_models::{Projection, Spec};
use std::{
    path::Path,
    process::{Command, Output},
};

/// `socius ARGS` with a home of its own, no hub and no Python: nothing here may need the network.
fn socius(home: &Path, args: &[&str]) -> Output {
    surroundings(Command::new(env!("CARGO_BIN_EXE_socius")).args(args), home).output().unwrap()
}

fn surroundings<'a>(command: &'a mut Command, home: &Path) -> &'a mut Command {
    command
        .env("SOCIUS_HOME", home.join("socius"))
        .env("HF_HOME", home.join("hub"))
        .env("HOME", home)
        .env("HF_HUB_OFFLINE", "1")
        .env("SOCIUS_PYTHON", "/no/such/python")
        .env_remove("HF_HUB_CACHE")
}

fn empty() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The last line of stdout.
fn json(output: &Output) -> Value {
    serde_json::from_str(text(&output.stdout).lines().last().unwrap_or_default()).unwrap()
}

/// Every subcommand, with its own subcommands, as `help` lists them.
fn commands(home: &Path, path: &[&str]) -> Vec<Vec<String>> {
    let output = socius(home, &[path, &["--help"]].concat());
    let help = text(&output.stdout).to_owned();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A name stands two columns in; what is further in continues a description.
    let names = listed.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    let mut all = vec![path.iter().map(ToString::to_string).collect()];
    for name in names.filter(|name| *name != "help") {
        all.extend(commands(home, &[path, &[name]].concat()));
    }
    all
}

#[test]
fn every_command_explains_itself_with_an_example_and_takes_json() {
    let home = empty();
    let all = commands(home.path(), &[]);
    assert!(all.len() > 3, "{all:?}");
    for path in all {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        let output = socius(home.path(), &args);
        let help = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{path:?}");
        assert!(help.contains("Examples:") && help.contains("--json"), "{path:?}:\n{help}");
        assert!(!help.contains('\u{1b}'), "no colours off a terminal: {path:?}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{path:?}:\n{help}");
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "asking for help leaves nothing");
}

#[test]
fn exit_codes_are_0_for_done_1_for_failed_and_2_for_usage() {
    let rows: &[(&[&str], i32)] = &[
        (&["--version"], 0),
        (&["models"], 0),
        (&["models", "--json"], 0),
        (&["completions", "bash"], 0),
        (&["pull", "no-such-model"], 1),
        (&["pull", "./no/such/path"], 1),
        (&["pull"], 1),
        (&[], 2),
        (&["no-such-command"], 2),
        (&["models", "--no-such-flag"], 2),
        (&["models", "--device", "cpu"], 2),
        (&["completions", "no-such-shell"], 2),
    ];
    let home = empty();
    for (args, code) in rows {
        let output = socius(home.path(), args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {stderr}");
        match code {
            0 => assert_eq!(stderr, "", "{args:?}"),
            1 => {
                let last = stderr.lines().last().unwrap();
                assert!(last.starts_with("error: ") && output.stdout.is_empty(), "{args:?}: {stderr}");
            }
            _ => assert!(stderr.contains("--help"), "{args:?}: {stderr}"),
        }
    }
}

#[test]
fn the_last_line_of_stdout_is_one_json_object_whether_or_not_it_worked() {
    let home = empty();
    let models = json(&socius(home.path(), &["models", "--json"]));
    assert_eq!(models["models"][0]["name"], "smollm2-135m-instruct");
    assert_eq!(models["models"][0]["present"], false);
    let shell = json(&socius(home.path(), &["--json", "completions", "zsh"]));
    assert!(shell["script"].as_str().unwrap().starts_with("#compdef socius"));
    let failed = socius(home.path(), &["pull", "no-such-model", "--json"]);
    assert!(json(&failed)["error"].as_str().unwrap().contains("smollm2-135m-instruct"), "it names what is known");
    assert_eq!(text(&failed.stderr).lines().count(), 1);
}

#[test]
fn an_empty_home_is_enough_and_a_model_of_ones_own_is_registered_in_it() {
    let home = empty();
    let file = home.path().join("mine.gguf");
    std::fs::write(&file, "GGUF").unwrap();
    let pulled = json(&socius(home.path(), &["pull", file.to_str().unwrap(), "--json"]));
    assert_eq!(pulled["bytes"], 4);
    assert_eq!(pulled["digest"], Digest::of("GGUF").to_string());
    let models = json(&socius(home.path(), &["models", "--json"]));
    assert_eq!(models["models"][0]["path"], pulled["path"]);
    assert_eq!(models["models"][0]["present"], true);
    assert!(text(&socius(home.path(), &["models"]).stdout).contains("mine.gguf"));
}

#[test]
fn each_shell_gets_its_completions() {
    let home = empty();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = socius(home.path(), &["completions", shell]);
        assert!(text(&output.stdout).contains("completions"), "{shell}");
    }
}

/// Two generations of a skill, as learning leaves them.
fn publish(home: &Path) -> Library {
    let library = Library::open(&home.join("socius/library")).unwrap();
    let spec = Spec::tiny();
    let config = LoraConfig::uniform(4, 8.0, &[Projection::Q]);
    let layout = config.layout(&spec).unwrap();
    let score = |strict| Score { strict, lenient: strict, items: 256, ci95: [strict - 0.05, strict + 0.05] };
    for generation in 1..=2_u8 {
        let theta = vec![f32::from(generation); layout.len()];
        let lora = LoraWeights { config: config.clone(), layout: layout.clone(), theta };
        let base = BaseId { name: "org/Tiny".into(), digest: Digest::of("w"), tokenizer: Digest::of("t") };
        let provenance = Provenance {
            test: Some(Comparison { before: score(0.0), after: score(0.75) }),
            ..Provenance::imported("2025-01-02T03:04:05Z".parse().unwrap())
        };
        let name = "reverse".parse().unwrap();
        let description = "letters backwards".to_owned();
        let candidate =
            Candidate { name, description, base, spec: &spec, lora: &lora, episodes: &[], routing: None, provenance };
        library.publish(&candidate).unwrap();
    }
    library
}

#[test]
fn skills_are_listed_shown_exported_and_removed() {
    let home = empty();
    publish(home.path());
    let run = |args: &[&str]| json(&socius(home.path(), &[&["skills"], args, &["--json"]].concat()));
    let skills = &run(&["list"])["skills"];
    let skill = &skills[0];
    assert_eq!(skills.as_array().unwrap().len(), 1);
    assert_eq!((&skill["name"], &skill["base"], &skill["rank"]), (&"reverse".into(), &"org/Tiny".into(), &4.into()));
    assert_eq!((&skill["before"], &skill["after"]), (&0.0.into(), &0.75.into()));
    assert!(skill["bytes"].as_u64().unwrap() > 0 && skill["parents"].as_array().unwrap().is_empty());
    let generations = &run(&["history", "reverse"])["generations"];
    assert_eq!(generations[1]["generation"], skill["generation"]);
    assert_eq!(run(&["show", "reverse@1"])["generation"], generations[0]["generation"]);
    assert_eq!(run(&["show", "reverse"])["provenance"]["learner"], "import");
    let folder = home.path().join("out");
    let files = &run(&["export", "reverse", folder.to_str().unwrap()])["files"];
    assert!(files.as_array().unwrap().iter().all(|file| Path::new(file.as_str().unwrap()).is_file()));
    assert!(folder.join("adapter_config.json").is_file());
    let people = socius(home.path(), &["skills", "list"]);
    assert!(text(&people.stdout).starts_with("reverse@2") && text(&people.stdout).contains("0.0 → 75.0 %"));
    let people = socius(home.path(), &["skills", "show", "reverse"]);
    assert!(text(&people.stdout).contains("75.0 % strict [70.0, 80.0] on 256"));
    assert_eq!(run(&["remove", "reverse"])["removed"], "reverse");
    assert!(run(&["list"])["skills"].as_array().unwrap().is_empty());
    assert!(run(&["show", "reverse"])["error"].as_str().unwrap().contains("reverse"));
}

#[test]
fn names_move_evidence_is_kept_and_an_archive_brings_all_of_it_to_another_home() {
    let (home, other) = (empty(), empty());
    let library = publish(home.path());
    let run_in = |home: &Path, args: &[&str]| json(&socius(home, &[&["skills"], args, &["--json"]].concat()));
    let run = |args: &[&str]| run_in(home.path(), args);
    assert_eq!(run(&["rollback", "reverse"])["number"], 1);
    assert!(run(&["rollback", "reverse"])["error"].as_str().unwrap().contains("nothing comes before"));
    assert_eq!(run(&["promote", "reverse", "2"])["number"], 2);
    assert_eq!(run(&["note", "reverse", "also turns cities around"])["finding"]["kind"], "note");
    let moves = run(&["history", "reverse"])["moves"].clone();
    let kinds: Vec<_> = moves.as_array().unwrap().iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["publish", "publish", "rollback", "promote"]);
    assert_eq!(run(&["search", "CITIES"])["skills"][0]["name"], "reverse");
    assert!(run(&["search", "nothing", "like", "it"])["skills"].as_array().unwrap().is_empty());
    assert!(text(&socius(home.path(), &["skills", "show", "reverse"]).stdout).contains("also turns cities around"));

    let folder = home.path().join("out");
    let exported = run(&["export", "reverse", folder.to_str().unwrap(), "--format", "archive"]);
    let file = exported["files"][0].as_str().unwrap();
    assert_eq!(run_in(other.path(), &["import", file])["imported"][0], "reverse");
    assert_eq!(run_in(other.path(), &["show", "reverse"]), run(&["show", "reverse"]));
    assert_eq!(run_in(other.path(), &["history", "reverse"])["moves"], moves);
    assert_eq!(run_in(other.path(), &["import", file])["unchanged"][0], "reverse");
    assert_eq!(run_in(other.path(), &["import", file, "--name", "again"])["imported"][0], "again");
    let bundle = folder.join("all.socius");
    let names = run_in(other.path(), &["bundle", bundle.to_str().unwrap()])["skills"].clone();
    assert_eq!(names.as_array().unwrap().len(), 2);

    assert_eq!(run(&["gc", "--dry-run"])["objects"], 0);
    run(&["remove", "reverse"]);
    let planned = run(&["gc", "--dry-run"])["objects"].clone();
    assert_eq!(run(&["gc"])["objects"], planned);
    assert!(planned.as_u64().unwrap() >= 5, "{planned}");
    assert_eq!(run(&["import", file])["imported"][0], "reverse");
    assert_eq!(run(&["verify"])["sound"], true);
    let digest = library.list().unwrap().skills[0].generation.to_string();
    std::fs::write(library.root().join("objects").join(&digest[..2]).join(&digest[2..]), "tampered").unwrap();
    let output = socius(home.path(), &["skills", "verify", "--json"]);
    let found = json(&output);
    assert_eq!((output.status.code(), &found["damaged"][0]["generations"][0]), (Some(1), &"reverse@2".into()));
    assert!(run(&["list"])["skills"].as_array().unwrap().is_empty());
    assert_eq!(run(&["import", file])["error"], Value::Null);
    assert_eq!(run(&["verify", "--rebuild"])["sound"], true);
    assert_eq!(run(&["list"])["skills"][0]["number"], 2);
}

#[test]
fn the_doctor_names_what_is_wrong_and_nothing_when_all_is_well() {
    let home = empty();
    let doctor = || json(&socius(home.path(), &["doctor", "--json"]));
    let well = doctor();
    assert_eq!(well["problems"], Value::Array(vec![]), "{well}");
    assert!(well["cores"].as_u64().unwrap() > 0 && well["devices"].as_array().unwrap().contains(&"cpu".into()));
    assert!(well["simd"].as_array().unwrap().contains(&"portable".into()) && well["skills"] == 0);
    assert!(!home.path().join("socius").exists(), "looking creates nothing");

    let library = publish(home.path());
    let file = home.path().join("mine.gguf");
    std::fs::write(&file, "GGUF").unwrap();
    socius(home.path(), &["pull", file.to_str().unwrap()]);
    let well = doctor();
    assert_eq!((&well["skills"], well["models"].as_array().unwrap().len()), (&1.into(), 1));
    assert_eq!(well["problems"], Value::Array(vec![]), "{well}");

    std::fs::write(&file, "tampered").unwrap();
    let digest = library.list().unwrap().skills[0].generation.to_string();
    std::fs::write(library.root().join("objects").join(&digest[..2]).join(&digest[2..]), "tampered").unwrap();
    let ill = doctor();
    let problems: Vec<_> =
        ill["problems"].as_array().unwrap().iter().map(|problem| problem.as_str().unwrap()).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("damaged") && problems[1].contains("mine.gguf"), "{problems:?}");
}

#[test]
fn a_home_that_cannot_be_written_is_said_to_be() {
    let home = empty();
    std::fs::write(home.path().join("socius"), "a file").unwrap();
    let doctor = json(&socius(home.path(), &["doctor", "--json"]));
    assert!(doctor["problems"][0].as_str().unwrap().contains("SOCIUS_HOME"), "{doctor}");
    assert_eq!(socius(home.path(), &["skills", "list"]).status.code(), Some(1));
}

#[test]
fn what_is_wrong_with_a_stream_is_said_before_anything_is_fetched() {
    let home = empty();
    let file = home.path().join("s.toml");
    let rows = [
        ("name = \"s\"\n[[task]]\nenv = \"revers\"", "did you mean \"reverse\""),
        ("name = \"s\"\n[[task]]\nenv = \"json\"\nlevel = 9", "levels 1 to 3"),
        ("name = \"s\"\nsteps = \"many\"", "line 2"),
    ];
    for (text, what) in rows {
        std::fs::write(&file, text).unwrap();
        let refused = socius(home.path(), &["run", file.to_str().unwrap(), "--json"]);
        let error = json(&refused)["error"].as_str().unwrap().to_owned();
        assert!(refused.status.code() == Some(1) && error.contains("s.toml") && error.contains(what), "{error}");
    }
    assert!(!home.path().join("socius/models").exists());
}

#[test]
fn every_environment_is_listed_with_an_example_of_each_level() {
    let home = empty();
    let all = json(&socius(home.path(), &["envs", "--json"]));
    let all = all["envs"].as_array().unwrap();
    assert!(all.iter().any(|env| env["name"] == "reverse"));
    for env in all {
        let levels = env["levels"].as_array().unwrap();
        assert!(
            !levels.is_empty() && levels.iter().all(|level| !level["prompt"].as_str().unwrap().is_empty()),
            "{env}"
        );
    }
    let people = socius(home.path(), &["envs", "reverse"]);
    assert!(text(&people.stdout).starts_with("reverse\n") && text(&people.stdout).contains("    > "));
    let unknown = socius(home.path(), &["envs", "revers"]);
    assert!(text(&unknown.stderr).contains("did you mean \"reverse\""), "{}", text(&unknown.stderr));
}
