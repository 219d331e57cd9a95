//! A model's card.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius::fetch::Card;

fuzz_target!(|text: &str| {
    if let Ok(card) = Card::parse(text) {
        let _ = (card.bytes(), card.sources.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
});
