//! The lab through the real binary: a tiny run that is killed goes on where it was, and ends with a complete report.

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

const TINY: &str = r#"
seeds = [0]
sizes = [16, 32, 64]
workloads = ["needle", "pairs"]
arms = ["attention", "window", "retrieval", "society", "adapter", "scratch", "prefix"]
questions = 4
intermediate = 16
window = [48]
retrieved = [16]

[society]
chunk = 16
message = 6
topologies = ["flat", "tree"]
fan = 2
routed = 2

[adapter]
ranks = [2]
lr = 5e-3
batch = 8
steps_max = 16
size_max = 16

[prefix]
positions = [4]
lr = 5e-3
batch = 8
steps_max = 16
size_max = 16

[scratch]
widths = [16]
layers = 1
lr = 5e-3
batch = 16
steps_max = 16
size_max = 16
"#;

fn socius(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_socius"));
    command.env("SOCIUS_HOME", home).stdin(Stdio::null());
    command
}

fn lab(home: &Path, folder: &Path, config: &Path) -> Command {
    let mut command = socius(home);
    command.args(["lab", "run", "attention-vs-compression", "--json", "--threads", "1", "--config"]);
    command.arg(config).arg("--folder").arg(folder);
    command
}

fn last_line(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// What was found in every cell that is through, without what depends on the clock.
fn found(folder: &Path) -> Vec<(String, u64, f64)> {
    let text = fs::read_to_string(folder.join("measurements.jsonl")).unwrap();
    let mut found: Vec<(String, u64, f64)> = text
        .lines()
        .filter_map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let measured = line.get("measured")?;
            let values = &measured["values"];
            let name = format!("{} {}", measured["cell"], values["variant"]);
            Some((name, values["correct"].as_u64()?, values["fixed"][0].as_f64()?))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.dedup();
    found
}

#[test]
fn a_run_that_is_killed_goes_on_where_it_was_and_ends_in_a_complete_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("tiny.toml"), TINY).unwrap();
    let lines = |run: &Path| fs::read_to_string(run.join("measurements.jsonl")).unwrap_or_default().lines().count();

    let mut child = lab(folder.path(), &path("killed"), &path("tiny.toml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while lines(&path("killed")) < 6 {
        assert!(begun.elapsed() < Duration::from_secs(300), "nothing is measured");
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let resumed = lab(folder.path(), &path("killed"), &path("tiny.toml")).args(["--jobs", "3"]).output().unwrap();
    let resumed = last_line(&resumed);
    assert_eq!((&resumed["failed"], &resumed["left"]), (&0.into(), &0.into()));
    let whole = last_line(&lab(folder.path(), &path("whole"), &path("tiny.toml")).output().unwrap());
    assert_eq!(whole["measured"], resumed["measured"]);
    assert_eq!(
        found(&path("killed")),
        found(&path("whole")),
        "neither the kill nor other cells beside it changed what was found"
    );

    let before = lines(&path("whole"));
    last_line(&lab(folder.path(), &path("whole"), &path("tiny.toml")).output().unwrap());
    assert_eq!(lines(&path("whole")), before, "what is measured is not measured again");

    let mut other = socius(folder.path());
    other.args(["lab", "run", "attention-vs-compression", "--threads", "2", "--config"]);
    let refused = other.arg(path("tiny.toml")).arg("--folder").arg(path("whole")).output().unwrap();
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("--threads 1"), "seconds of other threads do not mix: {why}");

    let report = path("whole").join("report");
    let page = fs::read_to_string(report.join("index.html")).unwrap();
    for words in [
        "needle",
        "pairs",
        "A attention, cached",
        "C society, flat",
        "D retrieval",
        "B1 LoRA",
        "B2 from scratch",
        "B3 prefix",
        "Operations, counted twice",
    ] {
        assert!(page.contains(words), "{words}");
    }
    for unwanted in [">NaN", "NaN<", "\"NaN", "http:", "src="] {
        assert!(!page.contains(unwanted), "{unwanted}");
    }
    let svg = fs::read_to_string(report.join("figure-01.svg")).unwrap();
    assert!(svg.starts_with("<svg xmlns=") && svg.trim_end().ends_with("</svg>"));
    let png = fs::read(report.join("figure-01.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG") && png.len() > 1000);
    let parquet = fs::read(report.join("measurements.parquet")).unwrap();
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
    let csv = fs::read_to_string(report.join("measurements.csv")).unwrap();
    let columns = csv.lines().next().unwrap().split(',').count();
    assert!(columns > 20 && csv.lines().count() > 20, "a row a measurement");

    let both = socius(folder.path())
        .args(["lab", "report", "--json"])
        .args([path("killed"), path("whole")])
        .arg("--out")
        .arg(path("both"))
        .output()
        .unwrap();
    let page = fs::read_to_string(last_line(&both)["report"].as_str().unwrap()).unwrap();
    assert!(page.contains("Run killed") && page.contains("Run whole"));
}
