//! A whole stream on a tiny random model: what arms measure fits together, a run that is killed ends at the same bytes as one that is
//! not, and nothing is computed twice.

#[path = "cli/checkpoint.rs"]
#[allow(dead_code, reason = "adapters are written for other tests")]
mod checkpoint;

use socius::{
    agent::{AgentError, BaseChoice, Outcome, Session, Stream, run_stream},
    common::{Home, Phase, Progress, Report, Silent},
    library::{Candidate, Provenance, RoutingFeatures},
    lora::{LoraConfig, LoraWeights},
};
use socius_models::{DeviceChoice, Dtype, Projection};
use std::{cell::Cell, collections::BTreeMap, fs, path::Path};

/// Two rules that a constant answer solves half of, which even random weights can be taught; and what they cannot be taught.
const STREAM: &str = r#"
name = "tiny"
orders = 2
seeds = [0, 1]
items = 24
baselines = ["sequential", "replay", "joint", "average", "ties", "arrow", "oracle"]
learner = "sft"
steps = 48
lr = 0.02
at_once = 2

[[task]]
env = "secret-rule@1"
independent = true

[[task]]
env = "secret-rule@2"
independent = true

[[task]]
env = "add"
steps = 2
"#;

fn session(folder: &Path) -> Session {
    let model = folder.join("model");
    checkpoint::write(&model);
    let choice = BaseChoice { model: model.display().to_string(), device: DeviceChoice::Cpu, dtype: Dtype::F32 };
    Session::open(&choice, Home::at(folder.join("home")), &mut Silent).unwrap()
}

/// Breaks off at the `n`-th sign of progress in learning or asking, and counts how many there were.
struct Impatient {
    signs: Cell<usize>,
    patience: usize,
}

impl Report for Impatient {
    fn progress(&mut self, progress: Progress<'_>) {
        if matches!(progress.phase, Phase::Training | Phase::Evaluation) {
            self.signs.set(self.signs.get() + 1);
        }
    }

    fn note(&mut self, _: &str) {}

    fn cancelled(&self) -> bool {
        self.signs.get() >= self.patience
    }
}

fn run(session: &Session, folder: &Path, patience: usize) -> (Result<Outcome, AgentError>, usize) {
    let mut report = Impatient { signs: Cell::new(0), patience };
    let stream = Stream::parse(STREAM).unwrap();
    let outcome = run_stream(session, &stream, folder, &mut report);
    (outcome, report.signs.get())
}

/// Everything that was measured, without the time that it took: cells by key, and adapters by key.
fn measured(folder: &Path) -> BTreeMap<String, serde_json::Value> {
    let mut found = BTreeMap::new();
    for file in ["cells.jsonl", "lives.jsonl"] {
        for line in fs::read_to_string(folder.join(file)).unwrap().lines() {
            let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
            value["spent"]["seconds"] = 0.into();
            // A generation's record says when it was published; what it is, `adapter` says.
            value["generation"] = value["generation"].is_null().into();
            let key = format!("{file} {}", value["key"]);
            assert!(found.insert(key, value).is_none(), "nothing is measured twice");
        }
    }
    found
}

#[test]
fn every_stream_of_this_repository_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["docs/stream/two.toml", "docs/stream/eight.toml", "curriculum/starter.toml"] {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let stream = Stream::parse(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(Some(stream.name.as_str()), Path::new(file).file_stem().and_then(|stem| stem.to_str()));
    }
}

#[test]
fn a_skill_whose_features_are_of_another_layer_is_routed_to_by_the_prompts_that_they_name() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(folder.path());
    let spec = session.base.spec();
    let config = LoraConfig::uniform(2, 4.0, &[Projection::Q]);
    let theta = vec![0.0; config.layout(spec).unwrap().len()];
    let lora = LoraWeights::new(config, spec, theta).unwrap();
    let publish = |name: &str, prompts: Vec<String>| {
        let elsewhere = RoutingFeatures::new(spec.layers + 1, &[vec![1.0; spec.hidden]]).unwrap();
        let candidate = Candidate {
            name: name.parse().unwrap(),
            description: String::new(),
            base: session.base.id.clone(),
            spec,
            lora: &lora,
            episodes: &[],
            routing: Some(elsewhere.of_prompts(prompts)),
            provenance: Provenance::imported("2025-01-02T03:04:05Z".parse().unwrap()),
        };
        session.library.publish(&candidate).unwrap();
    };
    publish("named", ["Sing about a cat.", "Sing about rain."].map(str::to_owned).into());
    publish("nameless", Vec::new());
    let ledger = session.ledger().unwrap();
    assert_eq!(ledger.skills().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["named"]);
    let skipped: Vec<_> = ledger.skipped().map(|(name, skipped)| (name.as_str(), skipped.why.as_str())).collect();
    assert!(matches!(skipped[..], [("nameless", why)] if why.contains("layer")), "{skipped:?}");
}

#[test]
fn subagents_that_learn_in_one_batch_end_at_the_same_bytes_as_alone() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(folder.path());
    let lives = |at_once: usize| {
        let text = format!(
            r#"
            name = "batch"
            items = 8
            learner = "sft"
            steps = 6
            lr = 0.02
            seeds = [0, 1]
            publish = false
            at_once = {at_once}
            [[task]]
            env = "secret-rule@1"
            independent = true
            [[task]]
            env = "reverse"
            independent = true
            "#
        );
        let own = folder.path().join(format!("at-once-{at_once}"));
        run_stream(&session, &Stream::parse(&text).unwrap(), &own, &mut Silent).unwrap();
        measured(&own)
    };
    let alone = lives(1);
    let curves = alone.values().filter(|life| life["curve"].as_array().is_some_and(|curve| curve.len() == 6));
    assert_eq!(curves.count(), 4, "{alone:#?}");
    for at_once in [2, 4] {
        assert_eq!(lives(at_once), alone, "{at_once} at once");
    }
}

#[test]
fn a_stream_that_is_killed_again_and_again_ends_at_the_same_bytes_and_then_computes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(folder.path());
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let (outcome, signs) = run(&session, &whole, usize::MAX);
    let outcome = outcome.unwrap();

    let kills = 7;
    let mut left = 0;
    for _ in 0..kills {
        let (ended, _) = run(&session, &broken, signs / (kills + 2));
        assert!(matches!(ended, Err(AgentError::Cancelled)), "it was asked to stop");
        // As a kill in the middle of a line leaves it.
        let cells = broken.join("cells.jsonl");
        let text = fs::read_to_string(&cells).unwrap();
        fs::write(&cells, format!("{text}{{\"key\":\"0f")).unwrap();
        left = text.lines().count();
    }
    assert!(left > 0, "some of it was done by then");
    run(&session, &broken, usize::MAX).0.unwrap();
    assert_eq!(measured(&whole), measured(&broken));

    let (again, signs) = run(&session, &whole, usize::MAX);
    assert_eq!((again.unwrap().to_json(), signs), (outcome.to_json(), 0), "all is known");
    fits_together(&outcome, &session);

    // What is finished needs neither what was learned nor what was answered: on another machine it is a part of the same report.
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for file in ["finished.jsonl", "cells.jsonl"] {
        fs::copy(whole.join(file), elsewhere.join(file)).unwrap();
    }
    let (there, signs) = run(&session, &elsewhere, usize::MAX);
    assert_eq!((there.unwrap().to_json(), signs), (outcome.to_json(), 0));

    // What was finished before anyone wanted it published is published then.
    let later = self::session(&folder.path().join("later"));
    fs::remove_file(whole.join("published.jsonl")).unwrap();
    let (published, signs) = run(&later, &whole, usize::MAX);
    assert_eq!((published.unwrap().to_json(), signs), (outcome.to_json(), 0));
    let names = |session: &Session| {
        session.library.list().unwrap().skills.into_iter().map(|skill| skill.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&later), names(&session));
}

fn fits_together(outcome: &Outcome, session: &Session) {
    let json = outcome.to_json();
    for key in ["tasks", "baseline", "R", "acc", "bwt", "fwt", "forgetting"] {
        assert!(!json[key].is_null(), "{key}: {json}");
    }
    assert_eq!(outcome.runs.len(), 2 * 2 + 7 * 2);
    let lives: Vec<_> = outcome.of("routed").flat_map(|run| &run.lives).collect();
    let admitted = lives.iter().filter(|life| life.generation.is_some()).count();
    assert!(admitted > 0 && admitted < lives.len(), "some proves itself and some does not: {lives:#?}");
    // Told which task it is, the library keeps everything.
    for run in outcome.of("oracle") {
        let metrics = outcome.metrics(run);
        assert_eq!((metrics.bwt, metrics.forgetting), (Some(0.0), vec![Some(0.0), Some(0.0), None]));
    }
    // The first task's sequential training begins as that of any subagent: the same items, the same initialisation.
    for run in outcome.of("sequential") {
        let own = lives.iter().find(|life| life.task == run.lives[0].task && life.seed == run.seed).unwrap();
        assert_eq!((own.curve[0], own.steps), (run.lives[0].curve[0], run.lives[0].steps));
    }
    let published = session.library.list().unwrap().skills;
    let names: Vec<&str> = published.iter().map(|skill| skill.name.as_str()).collect();
    assert!(!names.is_empty() && names.iter().all(|name| name.starts_with("secret-rule-")), "{names:?}");
    let html = outcome.html("socius run <tiny>.toml");
    for said in ["secret-rule-1", "sequential", "socius run &lt;tiny&gt;.toml", "<svg", "Forgetting"] {
        assert!(html.contains(said), "{said}");
    }
}
