//! Whole lives on the real model: a run that is interrupted ends as one that is not, what proves itself is published and routed to, and
//! what does not is refused. The model comes through `fetch`, once, into `$SOCIUS_TEST_HOME`.

#[path = "common/mod.rs"]
mod common;

use socius::{
    agent::{BaseChoice, Budget, Gate, Learned, Lesson, Method, Recipe, Session, SkillChoice, evaluate, learn},
    common::{Home, Progress, Report, Silent},
    envs::{self, Query, Split},
    library::Library,
};
use socius_models::{DeviceChoice, Dtype};
use std::sync::OnceLock;

fn choice(model: String) -> BaseChoice {
    BaseChoice { model, device: DeviceChoice::Cpu, dtype: Dtype::Bf16 }
}

/// One session for all tests; skills go into libraries of their own.
fn session() -> &'static Session {
    static SESSION: OnceLock<Session> = OnceLock::new();
    SESSION.get_or_init(|| {
        let model = common::default_model().name;
        Session::open(&choice(model), common::home(), &mut Silent).expect("the default model can be loaded")
    })
}

/// Breaks off after so many training steps.
struct Impatient {
    steps: u64,
    seen: u64,
}

impl Report for Impatient {
    fn progress(&mut self, progress: Progress<'_>) {
        if progress.phase == socius::common::Phase::Training {
            self.seen = progress.done;
        }
    }

    fn note(&mut self, _: &str) {}

    fn cancelled(&self) -> bool {
        self.seen >= self.steps
    }
}

fn recipe(method: Method, steps: usize, improvement_min: f64) -> Recipe {
    Recipe {
        method: Some(method),
        budget: Some(Budget::Steps(steps)),
        rank: 4,
        alpha: 8.0,
        validation_items: 6,
        test_items: 6,
        gate: Gate { improvement_min },
        ..Recipe::default()
    }
}

fn live(env: &str, recipe: Recipe, home: &Home, report: &mut dyn Report) -> Result<Learned, socius::agent::AgentError> {
    let library = Library::open(&home.library()).unwrap();
    let env = envs::find(env).unwrap();
    let lesson = Lesson {
        base: &session().base,
        env: &*env,
        recipe,
        name: "pupil".parse().unwrap(),
        parent: None,
        course: None,
    };
    learn(&lesson, &library, home, report)
}

/// The bytes of θ that a life published.
fn theta(learned: &Learned, home: &Home) -> Vec<u32> {
    let library = Library::open(&home.library()).unwrap();
    let base = &session().base;
    let generation = learned.generation.as_ref().expect("it was admitted");
    let (adapter, _) = library.load_adapter(generation, &base.id, base.spec()).unwrap();
    adapter.theta.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_run_that_is_interrupted_ends_at_the_same_bytes_as_one_that_is_not() {
    // Both kinds of learning: supervised, and from samples of its own after three steps that warm the format up. A gate below any
    // improvement admits all.
    for (env, method, steps) in [("reverse", Method::Sft, 3), ("compare", Method::Grpo, 6)] {
        let recipe = recipe(method, steps, -2.0);
        let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [whole, broken] = [0, 1].map(|i| Home::at(homes[i].path()));
        let unbroken = live(env, recipe.clone(), &whole, &mut Silent).unwrap();
        let stopped = live(env, recipe.clone(), &broken, &mut Impatient { steps: steps as u64 - 1, seen: 0 });
        assert!(matches!(stopped, Err(socius::agent::AgentError::Cancelled)), "{env}: it was asked to stop");
        let mut other = recipe.clone();
        other.seed = 9;
        let refused = live(env, other, &broken, &mut Silent).unwrap_err().to_string();
        assert!(refused.contains("seed"), "another seed under the same name is refused: {refused}");
        let resumed = live(env, recipe, &broken, &mut Silent).unwrap();
        assert_eq!(unbroken.logprob_gap.is_some(), method.samples(), "{env}: what was sampled was learned from");
        assert_eq!(theta(&unbroken, &whole), theta(&resumed, &broken), "{env}");
        assert_eq!((unbroken.test, unbroken.sampled_tokens), (resumed.test, resumed.sampled_tokens), "{env}");
        assert!(!broken.runs().join("pupil").exists(), "a finished run leaves nothing to resume");
    }
}

#[test]
fn a_candidate_that_proves_nothing_is_refused_and_leaves_no_skill() {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::at(folder.path());
    let learned = live("reverse", recipe(Method::Sft, 1, 0.05), &home, &mut Silent).unwrap();
    assert!(!learned.decision.admitted && learned.generation.is_none(), "{}", learned.decision.reason);
    assert!(Library::open(&home.library()).unwrap().list().unwrap().skills.is_empty());
}

#[test]
fn a_fact_that_the_base_cannot_know_is_learned_published_and_routed_to() {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::at(folder.path());
    let recipe = Recipe { rank: 16, alpha: 32.0, validation_items: 32, ..recipe(Method::Sft, 20, 0.05) };
    let learned = live("secret-rule", recipe, &home, &mut Silent).unwrap();
    assert!(learned.decision.admitted, "{}", learned.decision.reason);

    let choice = choice(common::default_model().name);
    std::fs::create_dir_all(home.root()).unwrap();
    let known = session().home.models();
    std::os::unix::fs::symlink(known, home.models()).unwrap();
    let reader = Session::open(&choice, home, &mut Silent).unwrap();
    let ask = |env: &str| {
        let env = envs::find(env).unwrap();
        evaluate(&reader, &*env, &Query::new(Split::Validation, 1), 24, &SkillChoice::Auto, &mut Silent).unwrap()
    };
    let own = ask("secret-rule");
    assert!(own.answered_by.get("pupil").is_some_and(|&n| n >= 20), "its own prompts go to it: {:?}", own.answered_by);
    assert!(own.grades.score().strict > 0.5, "and are answered: {:?}", own.grades.score());
}
