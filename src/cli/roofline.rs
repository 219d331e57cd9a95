//! What `socius bench roofline` prints: the machine's peaks, and how near each operation comes. Never times anything itself.

use super::{Terminal, bench::peak_mb, text};
use crate::bench::{Bound, Reached, Roofline, ops::Shapes};
use serde_json::{Value, json};
use socius_kernels::linear::WeightType;

/// `(rows, adapters)` of the decode steps: one row that answers, a batch, and a batch whose every row has its own adapter.
const DECODE: [(usize, usize); 3] = [(1, 0), (32, 0), (32, 32)];

/// Measures a training step of `shapes`, and decode steps whose rows have read `prompt` tokens.
pub(super) fn run(shapes: Shapes<'_>, prompt: usize, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let narrow = shapes.kept == WeightType::Bf16;
    let roofline = Roofline::new(narrow);
    let peaks = roofline.peaks;
    let giga = |peak: Option<f64>| peak.map(|peak| peak * 1e-9);
    let peaks = [
        ("bf16_gflops", "bf16 GFLOP/s", giga(peaks.bf16)),
        ("f32_gflops", "f32 GFLOP/s", giga(Some(peaks.f32))),
        ("int8_gops", "int8 GOP/s", giga(peaks.int8)),
        ("read_gb_per_s", "read GB/s", giga(Some(peaks.read))),
    ];
    let row = |&(_, what, peak): &(_, &str, Option<f64>)| {
        [what.to_owned(), peak.map_or_else(|| "no instruction".to_owned(), |peak| format!("{peak:.1}"))]
    };
    terminal.lines(text::table(&peaks.iter().map(row).collect::<Vec<_>>()))?;

    let mut found = Vec::new();
    let mut measure = |step: &str, ops| -> anyhow::Result<()> {
        let reached = roofline.measure(ops, terminal)?;
        terminal.line("")?;
        terminal.title(step)?;
        terminal.lines(text::table(&table(&reached)))?;
        found.extend(reached.iter().map(|reached| value(step, reached)));
        Ok(())
    };
    measure(&format!("train {} × {}", shapes.batch, shapes.length), shapes.train())?;
    for (batch, adapters) in DECODE {
        let shapes = Shapes { batch, length: prompt, ..shapes };
        measure(&format!("decode {batch} after {prompt}, adapters {adapters}"), shapes.decode(adapters))?;
    }
    Ok(json!({
        "work": "roofline",
        "threads": rayon::current_num_threads(),
        "dtype": if narrow { "bf16" } else { "f32" },
        "batch": shapes.batch,
        "length": shapes.length,
        "rank": shapes.rank,
        "peak_mb": peak_mb(),
        "peaks": peaks.iter().map(|&(key, _, peak)| (key.to_owned(), json!(peak))).collect::<serde_json::Map<_, _>>(),
        "ops": found,
    }))
}

fn table(reached: &[Reached]) -> Vec<[String; 6]> {
    let head = ["operation", "ms a step", "GFLOP/s", "GB/s", "bound by", "reaches"].map(str::to_owned);
    let step = |r: &Reached| r.seconds * r.calls as f64 * 1e3;
    let row = |r: &Reached| {
        [
            r.name.clone(),
            format!("{:.2}", step(r)),
            format!("{:.1}", r.operations_per_s * 1e-9),
            format!("{:.1}", r.bytes_per_s * 1e-9),
            bound(r.bound).to_owned(),
            format!("{:.0} %", 100.0 * r.fraction),
        ]
    };
    let all = format!("{:.2}", reached.iter().map(step).sum::<f64>());
    let sum = ["all", &all, "", "", "", ""].map(str::to_owned);
    [head].into_iter().chain(reached.iter().map(row)).chain([sum]).collect()
}

fn value(step: &str, reached: &Reached) -> Value {
    json!({
        "step": step,
        "op": reached.name,
        "calls": reached.calls,
        "ms": reached.seconds * 1e3,
        "gflops": reached.operations_per_s * 1e-9,
        "gb_per_s": reached.bytes_per_s * 1e-9,
        "bound": bound(reached.bound),
        "fraction": reached.fraction,
    })
}

fn bound(bound: Bound) -> &'static str {
    match bound {
        Bound::Compute => "compute",
        Bound::Memory => "memory",
    }
}
