//! JSON lines that `teach` learns from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius::{
    common::Seed,
    envs::{Environment, Examples, Query, Split, items},
};

fuzz_target!(|text: &str| {
    let Ok(env) = Examples::parse("fuzz", text) else { return };
    let Ok(items) = items(&env, &Query::new(Split::Train, 1), Seed::new(1), 2) else { return };
    for item in items {
        let mut session = env.start(&item).expect("an example of its own");
        let right = session.teacher().expect("examples are revealed");
        session.act(&right).expect("one reply");
    }
});
