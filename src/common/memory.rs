//! How much memory this process has held. Where the system does not say, nobody guesses.

use std::fs;

/// The most resident memory that this process has held so far, in bytes, where the system says it (`VmHWM`).
pub fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
