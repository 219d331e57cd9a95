//! What a run of `bandwidth` found, in words, tables and figures. Never measures.

use super::{Found, Point};
use crate::{
    agent::wilson,
    lab::{Run, stats::median, synthetic::Workload},
    report::{Curve, Line, Lines, LogLog, Page, Table},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// By way, then budget: right, asked, and the operations of N questions by seed.
type Ways = BTreeMap<String, BTreeMap<usize, (usize, usize, Vec<f64>)>>;

/// Writes what `runs` found.
pub(super) fn write(runs: &[Run], page: &mut Page) {
    page.text(
        "A society's agents read 16 items each (or what the configuration says) and tell the one that answers at most β tokens. Notes are \
         written by a reader that sees one part after another and does not know what will be asked; beside them stand as many tokens \
         of the context's end.",
    );
    for run in runs {
        for workload in Workload::ALL {
            let sizes = sizes(run, workload);
            let Some(&largest) = sizes.last() else { continue };
            page.section(&format!("{}: {}", workload.name(), workload.density()));
            let ways = gather(run, workload, largest);
            page.text(&sentence(workload, largest, &ways));
            figures(page, largest, &ways);
            table(page, &sizes, run, workload);
        }
    }
}

fn sizes(run: &Run, workload: Workload) -> Vec<usize> {
    let points = run.measurements().filter_map(|measurement| measurement.cell.read::<Point>().ok());
    let mut sizes: Vec<usize> = points.filter(|point| point.workload == workload).map(|point| point.n).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn gather(run: &Run, workload: Workload, n: usize) -> Ways {
    let mut ways = Ways::new();
    for measurement in run.measurements() {
        let Ok(point) = measurement.cell.read::<Point>() else { continue };
        let Ok(found) = serde_json::from_value::<Found>(Value::Object(measurement.values.clone())) else { continue };
        if point.workload == workload && point.n == n {
            let tally = ways.entry(found.way).or_default().entry(found.budget).or_default();
            tally.0 += found.correct;
            tally.1 += found.questions;
            tally.2.push(found.fixed + n as f64 * found.each);
        }
    }
    ways
}

/// The least budget with which each way answers.
fn sentence(workload: Workload, n: usize, ways: &Ways) -> String {
    let least = ways.iter().map(|(way, budgets)| {
        let enough = budgets.iter().find(|(_, (right, asked, _))| wilson(*right, *asked)[0] >= 0.95);
        match enough {
            Some((budget, _)) => format!("{way} answers from {budget} tokens on"),
            None => format!("{way} with none of these budgets"),
        }
    });
    format!(
        "{} of {n} items, recall of 0.95 at the lower 95 % bound: {}.",
        workload.name(),
        least.collect::<Vec<_>>().join("; ")
    )
}

fn figures(page: &mut Page, n: usize, ways: &Ways) {
    let line = |(way, budgets): (&'_ String, &BTreeMap<usize, (usize, usize, Vec<f64>)>)| {
        let recall = |(budget, (right, asked, _)): (&usize, &(usize, usize, Vec<f64>))| {
            let [low, high] = wilson(*right, *asked);
            ((*budget as f64).log2(), *right as f64 / *asked as f64, low, high)
        };
        let points: Vec<_> = budgets.iter().map(recall).collect();
        let band = points.iter().map(|&(x, _, low, high)| (x, low, high)).collect();
        (way.clone(), points.iter().map(|&(x, y, ..)| (x, y)).collect::<Vec<_>>(), band)
    };
    let drawn: Vec<(String, Vec<(f64, f64)>, Vec<(f64, f64, f64)>)> = ways.iter().map(line).collect();
    let lines = drawn.iter().map(|(way, points, band)| Line { name: way, points: points.clone(), band: band.clone() });
    let drawing =
        Lines { lines: lines.collect(), axes: ("log₂ of the budget in tokens", "recall"), range: Some((0.0, 1.0)) };
    page.figure(&drawing, &format!("Recall over N = {n} items, with 95 % intervals."));
    let curves = ways.iter().enumerate().map(|(i, (way, budgets))| {
        let cost = |(budget, (_, _, costs)): (&usize, &(usize, usize, Vec<f64>))| {
            Some((*budget as f64, median(costs.iter().copied())?))
        };
        Curve { name: way, points: budgets.iter().filter_map(cost).collect(), dashed: false, colour: i }
    });
    let drawing = LogLog { curves: curves.collect(), axes: ("budget in tokens", "operations") };
    page.figure(&drawing, &format!("Operations of N questions over N = {n} items, whatever the recall."));
}

fn table(page: &mut Page, sizes: &[usize], run: &Run, workload: Workload) {
    let mut rows = Vec::new();
    for &n in sizes {
        for (way, budgets) in gather(run, workload, n) {
            for (budget, (right, asked, costs)) in budgets {
                let [low, high] = wilson(right, asked);
                rows.push(vec![
                    way.clone(),
                    n.to_string(),
                    budget.to_string(),
                    format!("{:.1}", 100.0 * right as f64 / asked as f64),
                    format!("[{:.1}, {:.1}]", 100.0 * low, 100.0 * high),
                    format!("{:.2e}", median(costs).unwrap_or(0.0)),
                ]);
            }
        }
    }
    page.table(&Table { head: vec!["way", "N", "budget", "recall in %", "95 %", "operations of N questions"], rows });
}
