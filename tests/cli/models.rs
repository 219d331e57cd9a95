//! The commands that run a model, on random weights: what they promise holds whatever the model says.

use crate::{checkpoint, empty, json, socius, text};
use serde_json::Value;
use std::{path::Path, process::Output};

/// A home, and beside it a model.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let home = empty();
        checkpoint::write(&home.path().join("tiny"));
        Self(home)
    }

    fn run(&self, args: &[&str]) -> Output {
        let model = self.0.path().join("tiny");
        socius(self.0.path(), &[args, &["--model", model.to_str().unwrap()]].concat())
    }

    /// Through a shell, which writes the process's id where it is asked to.
    #[cfg(unix)]
    fn run_as(&self, script: &str, args: &[&str]) -> Output {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_socius")]).args(args);
        command.args(["--model", &self.path("tiny")]).env("PID_FILE", self.path("pid"));
        crate::surroundings(&mut command, self.0.path()).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        json(&output)
    }

    fn path(&self, name: &str) -> String {
        Path::join(self.0.path(), name).to_str().unwrap().to_owned()
    }
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn generate_gives_text_tokens_and_logprobs_and_the_same_for_the_same_seed() {
    let place = Place::new();
    let args = ["generate", "Hello", "--max-tokens", "12", "--temperature", "1", "--seed", "3"];
    let answer = place.json(&args);
    let tokens = answer["tokens"].as_array().unwrap();
    assert!(!tokens.is_empty() && tokens.len() <= 12);
    assert!(
        floats(&answer["logprobs"]).iter().all(|p| *p <= 0.0)
            && answer["logprobs"].as_array().unwrap().len() == tokens.len()
    );
    assert!(matches!(answer["finish_reason"].as_str(), Some("length" | "stop")));
    assert_eq!((&answer["skill"], &answer["generation"]), (&Value::Null, &Value::Null));
    // <|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n
    assert_eq!(answer["prompt_tokens"], 1 + 5 + 5 + 1 + 1 + 1 + 10);
    assert_eq!(place.json(&args), answer);
    assert_eq!(place.json(&[&args[..], &["--threads", "1"]].concat()), answer, "whatever the number of threads");
    let raw = place.json(&["generate", "--raw", "Hello", "--max-tokens", "1"]);
    assert_eq!(raw["prompt_tokens"], 5);
    let people = place.run(&args);
    let printable = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
    assert_eq!(printable(text(&people.stdout)), printable(answer["text"].as_str().unwrap()));
    assert!(text(&people.stderr).contains("the base"), "it says who answered: {}", text(&people.stderr));
}

#[test]
fn score_agrees_with_what_generate_drew() {
    let place = Place::new();
    let drawn = place.json(&["generate", "--raw", "abc", "--max-tokens", "1", "--dtype", "f32", "--skill", "none"]);
    let letter = drawn["text"].as_str().unwrap();
    if let Some(byte) = drawn["tokens"][0].as_u64().filter(|token| *token < 128) {
        assert_eq!(letter.as_bytes(), [u8::try_from(byte).unwrap()]);
        let scored = place.json(&["score", "--raw", "--prompt", "abc", "--completion", letter, "--dtype", "f32"]);
        assert_eq!(scored["tokens"], drawn["tokens"]);
        assert!((floats(&scored["logprobs"])[0] - floats(&drawn["logprobs"])[0]).abs() < 1e-4);
    }
    let scored = place.json(&["score", "--prompt", "abc", "--completion", "de f"]);
    assert_eq!(scored["tokens"].as_array().unwrap().len(), 4);
    assert!((scored["sum"].as_f64().unwrap() - floats(&scored["logprobs"]).iter().sum::<f64>()).abs() < 1e-6);
}

#[test]
fn a_refused_candidate_is_a_finished_run_with_a_reason() {
    let place = Place::new();
    let args = ["learn", "reverse", "--learner", "sft", "--steps", "2", "--test-items", "8", "--seed", "1"];
    let learned = place.json(&args);
    assert_eq!(
        (&learned["skill"], &learned["env"], &learned["learner"]),
        (&"reverse".into(), &"reverse".into(), &"sft".into())
    );
    assert_eq!((&learned["steps"], &learned["seed"], &learned["admitted"]), (&2.into(), &1.into(), &false.into()));
    assert_eq!((&learned["generation"], &learned["after"]["items"]), (&Value::Null, &8.into()));
    assert!(learned["reason"].as_str().unwrap().contains("validation items"));
    for key in ["strict", "lenient", "items", "ci95"] {
        assert!(!learned["before"][key].is_null() && !learned["after"][key].is_null(), "{key}");
    }
    assert!(place.json(&["eval", "reverse", "--items", "4"])["answered_by"]["base"] == 4);
    let listed = json(&socius(place.0.path(), &["skills", "list", "--json"]));
    assert!(listed["skills"].as_array().unwrap().is_empty());
}

#[test]
fn a_file_of_examples_is_taught_or_its_bad_line_is_named() {
    let place = Place::new();
    let write = |text: &str| std::fs::write(place.path("a.jsonl"), text).unwrap();
    let file = place.path("a.jsonl");
    write(
        "{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"messages\":[{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}\n",
    );
    let taught = place.json(&["teach", &file, "--name", "mine", "--steps", "1"]);
    assert_eq!(
        (&taught["skill"], &taught["learner"], &taught["after"]["items"]),
        (&"mine".into(), &"sft".into(), &2.into())
    );
    write("{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"a\"}\n");
    let output = place.run(&["teach", &file, "--name", "mine"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("line 2"), "{}", text(&output.stderr));
    assert_eq!(place.run(&["teach", &file]).status.code(), Some(2), "a name is asked for");
    assert!(text(&place.run(&["teach", "no-such-file", "--name", "x"]).stderr).contains("no-such-file"));
}

#[test]
fn bad_requests_to_a_model_fail_in_one_line_that_says_what_would_be_right() {
    let place = Place::new();
    let rows: &[(&[&str], &str)] = &[
        (&["generate", "x", "--skill", "nobody"], "nobody"),
        (&["learn", "no-such-env"], "reverse"),
        (&["learn", "reverse", "--level", "99"], "level"),
        (&["eval", "no-such-env"], "reverse"),
        (&["learn", "reverse", "--parent", "nobody"], "nobody"),
        (&["generate", "x", "--device", "cuda:7"], "--device cpu"),
    ];
    for (args, hint) in rows {
        let output = place.run(args);
        let last = text(&output.stderr).lines().last().unwrap().to_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {last}");
        assert!(last.starts_with("error: ") && last.contains(hint), "{args:?}: {last}");
    }
    let usage: &[&[&str]] = &[
        &["generate", "x", "--temperature=-1"],
        &["generate", "x", "--skill", "a/b"],
        &["generate", "x", "--dtype", "f8"],
        &["generate", "x", "--threads", "0"],
        &["generate", "x", "--device", "tpu"],
        &["learn", "--budget", "5 minutes"],
        &["learn", "--budget", "5m", "--steps", "3"],
        &["learn", "--learner", "magic"],
    ];
    for args in usage {
        assert_eq!(place.run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn an_adapter_imports_under_a_name_and_exports_for_others() {
    let place = Place::new();
    let adapter = place.path("adapter");
    checkpoint::write_adapter(Path::new(&adapter), &place.path("tiny"), 0);
    let imported = place.json(&["skills", "import", &adapter, "--name", "mine"]);
    assert_eq!(imported["name"], "mine");
    let answer = place.json(&["generate", "Hello", "--max-tokens", "3", "--skill", "mine"]);
    assert_eq!((&answer["skill"], &answer["generation"]), (&"mine".into(), &imported["generation"]));
    let files = place.json(&["skills", "export", "mine", &place.path("out"), "--format", "gguf"]);
    assert!(files["files"][0].as_str().unwrap().ends_with("mine.gguf"));
    let back = place.json(&["skills", "import", files["files"][0].as_str().unwrap(), "--name", "back"]);
    assert_eq!(back["bytes"], imported["bytes"], "the same adapter");
    let candidates = |place: &Place| place.json(&["route", "Sum up: a b c"])["scores"].to_string();
    assert!(!candidates(&place).contains("mine"), "without prompts the router does not know it");
    let prompts = place.path("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"Sum up: a b\"}\n{\"prompt\": \"Sum up: c d\"}\n").unwrap();
    place.json(&["skills", "import", &adapter, "--name", "mine", "--prompts", &prompts]);
    assert!(candidates(&place).contains("mine") && !candidates(&place).contains("back"));
}

#[test]
fn the_router_follows_the_library_by_every_means_and_remembers_what_its_choices_earned() {
    let place = Place::new();
    let adapter = place.path("adapter");
    checkpoint::write_adapter(Path::new(&adapter), &place.path("tiny"), 0);
    let prompts = place.path("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"Sum up: a b\"}\n{\"prompt\": \"Sum up: c d\"}\n").unwrap();
    let route = |more: &[&str]| place.json(&[&["route", "Sum up: x y"], more].concat());
    let import = |name: &str| place.json(&["skills", "import", &adapter, "--name", name, "--prompts", &prompts]);
    let remove = |name: &str| assert!(socius(place.0.path(), &["skills", "remove", name]).status.success());
    import("mine");
    let first = route(&[]);
    assert_eq!((&first["scores"][0]["skill"], &first["by"]), (&"mine".into(), &"ridge".into()));
    assert_eq!(route(&[]), first, "the kept index answers as the solved one");
    assert_eq!(route(&["--by", "bm25"])["choice"], "mine");
    let by_weights = route(&["--by", "arrow", "--reward", "0"]);
    assert_eq!((&by_weights["choice"], &by_weights["scores"][0]["usefulness"]), (&"mine".into(), &1.0.into()));
    let after = route(&["--by", "arrow"]);
    assert!(after["scores"][0]["usefulness"].as_f64().unwrap() < 1.0, "{after}");
    import("other");
    assert_eq!(route(&[])["skills"], 2);
    remove("other");
    let scores = |route: &Value| (route["scores"][0]["skill"].clone(), route["scores"][0]["prompt"].clone());
    assert_eq!(scores(&route(&[])), scores(&first), "as if it had never come");
    let log = std::fs::read_to_string(place.0.path().join("socius/routing/decisions.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 7);
    assert!(log.lines().all(|line| !line.contains("Sum up") && serde_json::from_str::<Value>(line).is_ok()));
    remove("mine");
    assert!(route(&[])["choice"].is_null());
    assert_eq!(place.run(&["route", "x", "--by", "magic"]).status.code(), Some(2));
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_learning_cleanly_and_the_same_command_goes_on() {
    use std::{process::Command, time::Duration};
    let place = Place::new();
    let args = ["learn", "reverse", "--learner", "sft", "--test-items", "4", "--steps", "100000"];
    let progress = place.0.path().join("socius/runs/reverse/progress.json");
    let interrupted = |place: &Place| {
        std::thread::scope(|scope| {
            let run = scope.spawn(|| place.run_as("exec \"$0\" \"$@\" & echo $! > \"$PID_FILE\"; wait $!", &args));
            let pid = place.path("pid");
            let ready = || progress.exists() && std::fs::read_to_string(&pid).is_ok_and(|pid| !pid.is_empty());
            while !ready() && !run.is_finished() {
                std::thread::sleep(Duration::from_millis(20));
            }
            std::thread::sleep(Duration::from_millis(300));
            let pid = std::fs::read_to_string(&pid).unwrap();
            assert!(Command::new("kill").args(["-INT", pid.trim()]).status().unwrap().success());
            run.join().unwrap()
        })
    };
    let steps = || {
        let text = std::fs::read_to_string(&progress).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["step"].as_u64().unwrap()
    };
    let first = interrupted(&place);
    assert_eq!(first.status.code(), Some(1), "{}", text(&first.stderr));
    assert!(text(&first.stderr).contains("the same command goes on"), "{}", text(&first.stderr));
    let done = steps();
    std::fs::remove_file(place.path("pid")).unwrap();
    let second = interrupted(&place);
    assert!(text(&second.stderr).contains("resuming reverse after step"), "{}", text(&second.stderr));
    assert!(steps() > done, "it went on from step {done}");
}

#[test]
fn every_kind_of_work_is_timed_and_says_what_was_timed() {
    let place = Place::new();
    let rows: &[(&[&str], [u64; 4])] = &[
        (&["train", "--batch", "2", "--length", "9", "--rank", "4"], [2, 9, 4, 1]),
        (&["train", "--batch", "1", "--length", "5", "--rank", "2", "--learners", "3"], [1, 5, 2, 3]),
        (&["prefill", "--length", "17"], [1, 17, 0, 0]),
        (&["decode", "--batch", "3", "--prompt", "5", "--tokens", "4"], [3, 9, 0, 0]),
        (&["mixed", "--batch", "3", "--adapters", "2", "--prompt", "5", "--tokens", "4", "--rank", "2"], [3, 9, 2, 2]),
    ];
    for (args, [batch, length, rank, adapters]) in rows {
        for dtype in ["bf16", "f32"] {
            let common = ["--runs", "2", "--threads", "2", "--dtype", dtype];
            let found = place.json(&[&["bench"], *args, &common].concat());
            let speed = found["tokens_per_s"].as_f64().unwrap();
            let step = found["ms_per_step"].as_f64().unwrap();
            assert_eq!(
                (&found["work"], &found["dtype"], &found["threads"]),
                (&args[0].into(), &dtype.into(), &2.into())
            );
            assert_eq!((&found["batch"], &found["length"]), (&(*batch).into(), &(*length).into()), "{args:?}");
            assert_eq!((&found["rank"], &found["adapters"]), (&(*rank).into(), &(*adapters).into()), "{args:?}");
            assert_eq!(found["adapter_bytes"].as_u64().unwrap() > 0, *adapters > 0, "{args:?}");
            let tokens = match args[0] {
                "train" => batch * length * adapters,
                "prefill" => *length,
                _ => *batch,
            };
            assert!((speed * step / 1e3 / tokens as f64 - 1.0).abs() < 1e-9, "{args:?}: {found}");
            assert_eq!(found["peak_mb"].as_u64().is_some_and(|mb| mb > 0), cfg!(target_os = "linux"), "{found}");
        }
    }
    let people = place.run(&["bench", "prefill", "--length", "3", "--runs", "1"]);
    assert!(text(&people.stdout).starts_with("tokens/s"), "{}", text(&people.stdout));
}

#[test]
fn the_roofline_has_the_machines_peaks_and_every_operations_share_of_them() {
    let place = Place::new();
    let args = ["bench", "roofline", "--batch", "1", "--length", "8", "--rank", "2", "--prompt", "3", "--threads", "2"];
    let found = place.json(&args);
    let positive = |value: &Value| value.as_f64().is_some_and(|value| value > 0.0);
    for peak in ["f32_gflops", "read_gb_per_s"] {
        assert!(positive(&found["peaks"][peak]), "{peak}: {found}");
    }
    for peak in ["bf16_gflops", "int8_gops"] {
        assert!(found["peaks"][peak].is_null() || positive(&found["peaks"][peak]), "{peak}: {found}");
    }
    let ops = found["ops"].as_array().unwrap();
    for op in ops {
        assert!(positive(&op["ms"]) && positive(&op["calls"]) && positive(&op["fraction"]), "{op}");
        assert!(op["bound"] == "memory" || op["bound"] == "compute" && positive(&op["gflops"]), "{op}");
    }
    for (step, name) in [
        ("train 1 × 8", "linear gate up, backward"),
        ("train 1 × 8", "adamw"),
        ("decode 1 after 3, adapters 0", "attention"),
        ("decode 32 after 3, adapters 32", "linear down"),
    ] {
        assert!(ops.iter().any(|op| op["step"] == step && op["op"] == name), "{step}: {name}");
    }
}

#[test]
fn work_that_does_not_fit_the_base_is_refused_before_it_is_timed() {
    let place = Place::new();
    let rows: &[(&[&str], &str)] = &[
        (&["prefill", "--length", "1024"], "1024"),
        (&["train", "--batch", "1", "--length", "1024"], "shorten"),
        (&["decode", "--prompt", "900", "--tokens", "200"], "the context holds 1024"),
        (&["mixed", "--rank", "9999"], "rank 9999"),
    ];
    for (args, hint) in rows {
        let output = place.run(&[&["bench"], *args].concat());
        let last = text(&output.stderr).lines().last().unwrap_or_default().to_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {last}");
        assert!(last.starts_with("error: ") && last.contains(hint), "{args:?}: {last}");
    }
    for args in [&["bench"][..], &["bench", "train", "--batch", "0"], &["bench", "prefill", "--runs", "0"]] {
        assert_eq!(place.run(args).status.code(), Some(2), "{args:?}");
    }
}
