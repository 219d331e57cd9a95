//! Documents become a skill on the real model: an interrupted run ends as one that is not, its bytes come again from the same documents, and
//! what it reports adds up. The model comes through `fetch`, once, into `$SOCIUS_TEST_HOME`.

#[path = "common/mod.rs"]
mod common;

use socius::{
    agent::{
        AgentError, Arm, BaseChoice, Budget, Compressed, Compression, Gate, Method, Recipe, Session, compress, replay,
        restudy,
    },
    common::{Home, Phase, Progress, Report, Silent},
    envs::Document,
};
use socius_models::{DeviceChoice, Dtype};
use std::{fs, path::Path};

/// A home of its own that has the model of all tests.
fn session(folder: &Path) -> Session {
    let model = common::default_model().name;
    let models = common::home().models();
    #[cfg(unix)]
    std::os::unix::fs::symlink(models, folder.join("models")).unwrap();
    let choice = BaseChoice { model, device: DeviceChoice::Cpu, dtype: Dtype::Bf16 };
    Session::open(&choice, Home::at(folder), &mut Silent).expect("the default model can be loaded")
}

fn document() -> Document {
    let text = "The ferry to Ansel leaves pier nine at quarter past seven. Its captain, Mirela Voss, has sailed it since the old \
                bridge fell. Tickets cost eleven crowns and are sold only by the harbour office, never on board. Bicycles travel \
                free on Tuesdays. Dogs must wear a red ribbon. In storms the ferry waits behind the lighthouse until the keeper \
                raises a yellow lantern, and passengers are given pepper soup while they wait for calmer water.";
    Document { title: "the ferry notice".into(), text: text.into() }
}

/// Breaks off after so many training steps.
struct Impatient {
    steps: u64,
    seen: u64,
}

impl Report for Impatient {
    fn progress(&mut self, progress: Progress<'_>) {
        if progress.phase == Phase::Training {
            self.seen = progress.done;
        }
    }

    fn note(&mut self, _: &str) {}

    fn cancelled(&self) -> bool {
        self.seen >= self.steps
    }
}

fn run(session: &Session, arm: Arm, report: &mut dyn Report) -> Result<Compressed, AgentError> {
    let recipe = Recipe {
        method: Some(Method::Sft),
        budget: Some(Budget::Steps(3)),
        validation_items: 4,
        test_items: 4,
        // Below any improvement: all are admitted.
        gate: Gate { improvement_min: -2.0 },
        ..Recipe::default()
    };
    let documents = [document()];
    let name = "ferry".parse().unwrap();
    compress(&Compression { session, documents: &documents, name, recipe, rank_given: false, arm }, report)
}

#[test]
fn a_document_becomes_a_skill_whose_bytes_come_again() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [whole, broken] = [0, 1].map(|i| session(folders[i].path()));
    let unbroken = run(&whole, Arm::Adapter, &mut Silent).unwrap();
    // What was written and answered before training depends on the document alone: the other run finds it done.
    let [from, kept] = [0, 1].map(|i| folders[i].path().join("derived/compress"));
    fs::create_dir_all(&kept).unwrap();
    for name in ["notes.jsonl", "readings.jsonl"] {
        fs::copy(from.join(name), kept.join(name)).unwrap();
    }
    let size = |name: &str| fs::metadata(kept.join(name)).unwrap().len();
    let before = [size("notes.jsonl"), size("readings.jsonl")];
    assert!(matches!(run(&broken, Arm::Adapter, &mut Impatient { steps: 2, seen: 0 }), Err(AgentError::Cancelled)));
    let resumed = run(&broken, Arm::Adapter, &mut Silent).unwrap();
    assert_eq!(before, [size("notes.jsonl"), size("readings.jsonl")], "what was written or answered is not again");
    assert_eq!(unbroken.learned.adapter.theta, resumed.learned.adapter.theta);

    let both = run(&broken, Arm::Best, &mut Silent).unwrap();
    let other = both.passed_over.expect("of two, one is taken");
    assert!(other.arm != both.arm && other.reason.contains("4 validation items"), "{other:?}");

    let Compressed { learned, quality, price, arm, size, passed_over, .. } = &unbroken;
    assert!(passed_over.is_none());
    assert_eq!((*arm, *size), (Arm::Adapter, 1), "a short document has room for the smallest adapter only");
    assert_eq!((quality.questions, quality.skill.items), (4, 4));
    assert!(quality.nats.in_context > quality.nats.neither, "what is in context helps: {:?}", quality.nats);
    assert_eq!(quality.neither.strict, learned.test.before.strict);
    assert_eq!(quality.skill.strict, learned.test.after.strict);
    assert_eq!(price.in_context.bytes, price.document_tokens as u64 * 23_040, "30 layers × 2 × 192 × 2 bytes");
    assert!(price.in_context.flops > price.skill.flops && price.pays_after_flops.is_some());

    let generation = learned.generation.as_ref().expect("it was admitted");
    let (env, course) = restudy(&whole, &[document()], 0, &mut Silent).unwrap();
    let again = replay(&whole, generation, Some(&env), Some(&course), &mut Silent).unwrap();
    assert_eq!((again.adapter, again.episodes), again.recorded);
    let without = replay(&whole, generation, Some(&env), None, &mut Silent).unwrap_err().to_string();
    assert!(without.contains("--document"), "{without}");
}
