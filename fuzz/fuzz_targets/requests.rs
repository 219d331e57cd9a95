//! Bodies of requests to every endpoint, and answers that may hold calls of tools.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius::server::fuzz;

fuzz_target!(|input: (u8, &str, &[u8])| {
    let (endpoint, answer, body) = input;
    fuzz::read(endpoint, body, answer);
});
