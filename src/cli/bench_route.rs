//! `socius bench route`: flags to one call, timings to text and JSON.

use super::{Terminal, bench::peak_mb, text};
use crate::agent::{RouteBench, RouteTimings};
use serde_json::{Value, json};

pub(super) fn run(bench: RouteBench, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let found = bench.run(terminal)?;
    let RouteTimings { open_ms, file_bytes, route_ms_p50, route_ms_p99, route_ms_max, .. } = found;
    let rows = [
        ("skills", format!("{} of {} prompts", bench.skills, bench.prompts)),
        ("opening", format!("{open_ms:.1} ms, {}", text::bytes(file_bytes))),
        ("route", format!("{route_ms_p50:.2} ms; 99 % within {route_ms_p99:.2} ms, all within {route_ms_max:.2} ms")),
        ("all prompts summed", format!("{:.2} s, once", found.sum_s)),
        ("a change", format!("{:.3} s, and {:.2} s to solve again", found.change_s, found.solve_s)),
        ("routed right", format!("{:.1} %", 100.0 * found.right)),
        ("threads", rayon::current_num_threads().to_string()),
    ];
    terminal.lines(text::table(&rows.map(|(what, value)| [what.to_owned(), value])))?;
    let mut value = json!(found);
    value["work"] = json!("route");
    value["skills"] = json!(bench.skills);
    value["prompts"] = json!(bench.prompts);
    value["hidden"] = json!(bench.hidden);
    value["threads"] = json!(rayon::current_num_threads());
    value["peak_mb"] = json!(peak_mb());
    Ok(value)
}
