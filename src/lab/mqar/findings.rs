//! What a run of `mqar` found, in words, tables and figures. Never measures.

use super::{
    Found,
    config::{Config, Point},
};
use crate::{
    agent::wilson,
    lab::{Run, parse_config},
    report::{Line, Lines, Page, Table},
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// From this accuracy on the task counts as solved.
const SOLVED: f64 = 0.99;

/// Length and pairs.
type Task = (usize, usize);

/// Test queries right and asked at the rate that was best on validation, and that rate.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Best {
    correct: usize,
    queries: usize,
    rate: f64,
}

/// Writes what `runs` found.
pub(super) fn write(runs: &[Run], page: &mut Page) {
    page.text(
        "Pairs of a key and a value, then every key once more: what stood after it? For each width and length the rate counts that did best on \
         validation sequences; accuracy is that of the most probable token over test queries, all seeds together.",
    );
    page.text(
        "Zoology (Arora et al. 2023, arXiv 2312.04927, figure 2) publishes that attention solves every one of these lengths at every width from 64 on; \
         the line at 1 is that, not a measurement of ours.",
    );
    for run in runs {
        if runs.len() > 1 {
            page.section(&run.folder.file_name().unwrap_or_default().to_string_lossy());
        }
        one(run, page);
    }
}

fn one(run: &Run, page: &mut Page) {
    let measured: Vec<(Point, Found)> = run
        .measurements()
        .filter_map(|measurement| {
            let found = serde_json::from_value(Value::Object(measurement.values.clone())).ok()?;
            Some((measurement.cell.read().ok()?, found))
        })
        .collect();
    let best = choose(&measured);
    if best.is_empty() {
        page.text("Nothing is measured yet.");
        return;
    }
    page.text(&sentence(&best));
    figure(&best, run, page);
    accuracies(&best, page);
    models(&measured, page);
}

/// The best rate of each task and width by validation, over all seeds that have been measured.
fn choose(measured: &[(Point, Found)]) -> BTreeMap<Task, BTreeMap<usize, Best>> {
    let mut rates: BTreeMap<(Task, usize), Vec<(f64, Vec<&Found>)>> = BTreeMap::new();
    for (point, found) in measured {
        let own = rates.entry(((point.length, point.pairs), point.width)).or_default();
        match own.iter_mut().find(|(rate, _)| *rate == point.rate) {
            Some((_, all)) => all.push(found),
            None => own.push((point.rate, vec![found])),
        }
    }
    let mut best: BTreeMap<Task, BTreeMap<usize, Best>> = BTreeMap::new();
    let mean = |all: &[&Found]| all.iter().map(|found| found.validation).sum::<f64>() / all.len() as f64;
    for ((task, width), mut rates) in rates {
        rates.sort_by(|a, b| mean(&b.1).total_cmp(&mean(&a.1)));
        let (rate, all) = &rates[0];
        let sum = |of: fn(&Found) -> usize| all.iter().map(|found| of(found)).sum();
        let chosen = Best { correct: sum(|f| f.correct), queries: sum(|f| f.queries), rate: *rate };
        best.entry(task).or_default().insert(width, chosen);
    }
    best
}

impl Best {
    fn accuracy(&self) -> f64 {
        self.correct as f64 / self.queries as f64
    }

    fn interval(&self) -> [f64; 2] {
        wilson(self.correct, self.queries)
    }
}

/// The least width with which each length is solved.
fn sentence(best: &BTreeMap<Task, BTreeMap<usize, Best>>) -> String {
    let of = |((length, pairs), widths): (&Task, &BTreeMap<usize, Best>)| {
        let task = format!("{length} tokens with {pairs} pairs");
        match widths.iter().find(|(_, best)| best.accuracy() >= SOLVED) {
            Some((width, best)) => format!("{task} from width {width} on ({:.1} %)", 100.0 * best.accuracy()),
            None => format!("{task} at none of these widths"),
        }
    };
    format!("Solved, at {:.0} % and more: {}.", 100.0 * SOLVED, best.iter().map(of).collect::<Vec<_>>().join("; "))
}

fn figure(best: &BTreeMap<Task, BTreeMap<usize, Best>>, run: &Run, page: &mut Page) {
    let x = |width: usize| (width as f64).log2();
    let named: Vec<(String, &BTreeMap<usize, Best>)> =
        best.iter().map(|((length, pairs), widths)| (format!("{length} tokens, {pairs} pairs"), widths)).collect();
    let line = |(name, widths): &'_ (String, &BTreeMap<usize, Best>)| {
        let points = widths.iter().map(|(&width, best)| (x(width), best.accuracy())).collect();
        let interval = |(&width, best): (&usize, &Best)| {
            let [low, high] = best.interval();
            (x(width), low, high)
        };
        (name.clone(), points, widths.iter().map(interval).collect())
    };
    let drawn: Vec<(String, Vec<(f64, f64)>, Vec<(f64, f64, f64)>)> = named.iter().map(line).collect();
    let widths = parse_config::<Config>(&run.manifest.config).map(|config| config.widths).unwrap_or_default();
    let published = Line {
        name: "Zoology's attention, all lengths",
        points: widths.iter().filter(|&&width| width >= 64).map(|&width| (x(width), 1.0)).collect(),
        band: Vec::new(),
    };
    let own = drawn.iter().map(|(name, points, band)| Line { name, points: points.clone(), band: band.clone() });
    let lines = own.chain([published]).collect();
    let drawing = Lines { lines, axes: ("log₂ of the width", "accuracy"), range: Some((0.0, 1.0)) };
    page.figure(&drawing, "Accuracy on test queries at the best rate, with 95 % intervals.");
}

fn accuracies(best: &BTreeMap<Task, BTreeMap<usize, Best>>, page: &mut Page) {
    let widths: BTreeSet<usize> = best.values().flat_map(|widths| widths.keys().copied()).collect();
    let heads: Vec<String> = widths.iter().map(|width| format!("width {width}")).collect();
    let mut head = vec!["accuracy in % [95 %]", "pairs"];
    head.extend(heads.iter().map(String::as_str));
    let row = |((length, pairs), own): (&Task, &BTreeMap<usize, Best>)| {
        let cell = |width: &usize| {
            own.get(width).map_or("–".to_owned(), |best| {
                let [low, high] = best.interval();
                format!("{:.1} [{:.1}, {:.1}]", 100.0 * best.accuracy(), 100.0 * low, 100.0 * high)
            })
        };
        [vec![format!("length {length}"), pairs.to_string()], widths.iter().map(cell).collect()].concat()
    };
    page.table(&Table { head, rows: best.iter().map(row).collect() });
}

fn models(measured: &[(Point, Found)], page: &mut Page) {
    let row = |(point, found): &(Point, Found)| {
        vec![
            point.length.to_string(),
            point.pairs.to_string(),
            point.width.to_string(),
            format!("{:.2e}", point.rate),
            point.seed.to_string(),
            found.parameters.to_string(),
            found.steps.to_string(),
            found.sequences.to_string(),
            format!("{:.1}", 100.0 * found.validation),
            format!("{:.1}", 100.0 * found.correct as f64 / found.queries as f64),
            found.losses.last().map_or("–".to_owned(), |loss| format!("{loss:.3}")),
        ]
    };
    page.table(&Table {
        head: vec![
            "length",
            "pairs",
            "width",
            "rate",
            "seed",
            "weights",
            "steps",
            "sequences",
            "validation in %",
            "test in %",
            "last loss",
        ],
        rows: measured.iter().map(row).collect(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(width: usize, rate: f64, seed: u64, (validation, correct): (f64, usize)) -> (Point, Found) {
        let found = Found {
            correct,
            queries: 100,
            accuracy95: wilson(correct, 100),
            validation,
            steps: 1,
            sequences: 1,
            parameters: 1,
            losses: Vec::new(),
        };
        (Point { length: 64, pairs: 4, width, rate, seed }, found)
    }

    #[test]
    fn the_rate_is_chosen_by_validation_and_its_test_queries_of_all_seeds_count() {
        let all = [
            measured(64, 1e-3, 0, (0.9, 10)),
            measured(64, 1e-3, 1, (0.7, 20)),
            // Better on the test queries, which do not choose.
            measured(64, 1e-2, 0, (0.5, 100)),
            measured(64, 1e-2, 1, (0.9, 100)),
            measured(128, 1e-2, 0, (1.0, 99)),
        ];
        let best = choose(&all);
        assert_eq!(best[&(64, 4)][&64], Best { correct: 30, queries: 200, rate: 1e-3 });
        assert_eq!(best[&(64, 4)][&128].rate, 1e-2);
        let text = sentence(&best);
        assert!(text.contains("64 tokens with 4 pairs from width 128 on (99.0 %)"), "{text}");
        assert!(sentence(&choose(&all[..4])).contains("at none of these widths"));
    }
}
