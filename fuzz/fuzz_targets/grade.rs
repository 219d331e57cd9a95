//! Replies of a model to every built-in environment: the strict and the lenient grade.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius::{
    common::Seed,
    envs::{self, Environment, Item, Outcome, Query, Split},
};
use std::sync::LazyLock;

/// The first training item of each.
static ENVIRONMENTS: LazyLock<Vec<(Box<dyn Environment>, Item)>> = LazyLock::new(|| {
    let first = |env: Box<dyn Environment>| {
        let item = envs::item(&*env, &Query::new(Split::Train, 1), Seed::new(1), 0).expect("a first item");
        (env, item)
    };
    envs::all().into_iter().map(first).collect()
});

fuzz_target!(|reply: &str| {
    for (env, item) in ENVIRONMENTS.iter() {
        let mut session = env.start(item).expect("an item of its own");
        if let Outcome::Done(grade) = session.act(reply).expect("built-in environments take any reply") {
            assert!((0.0..=1.0).contains(&grade.reward) && (grade.lenient || !grade.strict));
        }
    }
});
