//! Operations counted twice, side by side: from the architecture, and by the kernels as they were called. Never measures.

use super::{Cell, Cost, Measurement, Run};
use crate::report::{Page, Table};
use serde_json::Value;
use std::collections::BTreeMap;

/// Parameters of a cell that only repeat or scale what the others name.
const SCALES: [&str; 2] = ["n", "seed"];

/// A table of both counts by what distinguishes cells beside their size and seed; nothing where no kernel has counted.
pub(super) fn section(runs: &[Run], page: &mut Page) {
    let rows = groups(runs.iter().flat_map(Run::measurements));
    if rows.is_empty() {
        return;
    }
    page.section("Operations, counted twice");
    page.text(
        "From the architecture, as everywhere above; and by the kernels, which add up the products that they are called for: what is computed \
         again counts again, norms, softmax, optimiser and scalar work such as an index's do not. A quotient beside 1 says where the two differ.",
    );
    let row = |(name, Both { analytic, counted, bytes, quotients: [low, high] }): (String, Both)| {
        vec![
            name,
            format!("{analytic:.3e}"),
            format!("{counted:.3e}"),
            format!("{:.3}", counted / analytic),
            format!("{low:.3} … {high:.3}"),
            format!("{bytes:.2e}"),
            format!("{:.1}", counted / bytes),
        ]
    };
    page.table(&Table {
        head: vec![
            "cells",
            "architecture",
            "kernels",
            "quotient",
            "of single measurements",
            "bytes by kernels",
            "operations a byte",
        ],
        rows: rows.into_iter().map(row).collect(),
    });
}

/// Both counts of some measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Both {
    analytic: f64,
    counted: f64,
    bytes: f64,
    /// The smallest and the largest of counted ÷ analytic.
    quotients: [f64; 2],
}

fn groups<'a>(measurements: impl Iterator<Item = &'a Measurement>) -> BTreeMap<String, Both> {
    let mut groups: BTreeMap<String, Both> = BTreeMap::new();
    for Measurement { cell, cost, .. } in measurements {
        let Some(own) = both(cost) else { continue };
        let group = groups.entry(name(cell)).or_insert(Both {
            analytic: 0.0,
            counted: 0.0,
            bytes: 0.0,
            quotients: own.quotients,
        });
        group.analytic += own.analytic;
        group.counted += own.counted;
        group.bytes += own.bytes;
        let [low, high] = &mut group.quotients;
        (*low, *high) = (low.min(own.quotients[0]), high.max(own.quotients[1]));
    }
    groups
}

fn both(cost: &Cost) -> Option<Both> {
    let (analytic, counted, bytes) = (cost.total_flops(), cost.counted_flops, cost.counted_bytes);
    let quotient = counted / analytic;
    (analytic > 0.0 && counted > 0.0).then_some(Both { analytic, counted, bytes, quotients: [quotient; 2] })
}

/// A cell's parameters but its scales.
fn name(cell: &Cell) -> String {
    let kept = cell.parameters().iter().filter(|(name, _)| !SCALES.contains(&name.as_str()));
    let words = kept.map(|(name, value)| match value {
        Value::String(text) => text.clone(),
        other => format!("{name} {other}"),
    });
    let name = words.collect::<Vec<_>>().join(", ");
    if name.is_empty() { "all".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Purpose;
    use serde_json::{Map, json};

    fn measured(n: u32, arm: &str, analytic: f64, counted_flops: f64) -> Measurement {
        let cost = Cost { counted_flops, counted_bytes: 10.0, ..Cost::of(Purpose::Prefill, 1, analytic) };
        Measurement { cell: Cell::of(&json!({"arm": arm, "n": n, "seed": n})), values: Map::new(), cost }
    }

    #[test]
    fn both_counts_add_up_by_what_cells_name_and_what_was_not_counted_is_left_out() {
        let all = [
            measured(1, "a", 100.0, 100.0),
            measured(2, "a", 300.0, 330.0),
            measured(1, "b", 50.0, 25.0),
            measured(1, "c", 50.0, 0.0),
            measured(1, "d", 0.0, 5.0),
        ];
        let groups = groups(all.iter());
        assert_eq!(groups.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(groups["a"], Both { analytic: 400.0, counted: 430.0, bytes: 20.0, quotients: [1.0, 1.1] });
        assert_eq!(groups["b"].quotients, [0.5, 0.5]);
        assert_eq!(name(&Cell::of(&json!({"n": 4, "seed": 1}))), "all");
        assert_eq!(name(&Cell::of(&json!({"width": 64, "length": 128, "seed": 1}))), "width 64, length 128");
    }
}
