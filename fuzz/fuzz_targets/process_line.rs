//! A line that an environment's process writes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| socius::envs::read_line(line));
