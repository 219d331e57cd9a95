//! A stream's file, as anybody may write it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use socius::agent::Stream;

fuzz_target!(|text: &str| {
    if let Ok(stream) = Stream::parse(text) {
        assert!(!stream.tasks.is_empty() && stream.orders.iter().all(|order| order.len() == stream.tasks.len()));
    }
});
