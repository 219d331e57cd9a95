//! JSON schemas, regular expressions and grammars, each followed for some tokens: what a mask allows is accepted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius::text::{Grammar, Grammars};
use socius_fuzz::tiny;
use std::sync::LazyLock;

static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| {
    let text = tiny();
    Grammars::new(&text.tokenizer, text.end_of_turn().expect("its turns end")).expect("bytes take any grammar")
});

fuzz_target!(|input: (u8, &[u8], &str)| {
    let (kind, walk, source) = input;
    let grammar = match kind % 4 {
        0 => Grammar::Regex(source.to_owned()),
        1 => Grammar::Lark(source.to_owned()),
        _ => match serde_json::from_str(source) {
            Ok(schema) => Grammar::Schema(schema),
            Err(_) => return,
        },
    };
    let Ok(mut state) = GRAMMARS.compile(&grammar) else { return };
    let vocabulary = tiny().tokenizer.len();
    for step in walk.iter().take(64) {
        let mut allowed = vec![true; vocabulary];
        if !state.rule_out(vocabulary, |id| allowed[id] = false) {
            return;
        }
        let ids: Vec<usize> = (0..vocabulary).filter(|id| allowed[*id]).collect();
        let Some(id) = ids.get(usize::from(*step) % ids.len().max(1)) else { return };
        assert!(state.accept(*id as u32), "{grammar:?} allowed {id} and refused it");
    }
});
