//! What a run found, in words, tables and figures. Never measures.

use super::{
    config::{Arm, Config},
    found::QUALITY,
    gathered::{Growth, Variant, gather, growth},
};
use crate::{
    lab::{
        Run, parse_config,
        stats::{Crossing, Shape, crossing, queries_until},
        synthetic::{Form, Workload},
    },
    report::{Curve, Line, Lines, LogLog, Page, Table},
};
use std::collections::BTreeSet;

const FLOPS: usize = 0;
const SECONDS: usize = 1;

/// Writes what `runs` found.
pub(super) fn write(runs: &[Run], page: &mut Page) {
    page.text(
        "N items are read and questions are asked about them. Cost is counted where the lower 95 % bound of recall is 0.95 or more; what \
         does not reach that has no cost, and stands in the tables of recall. Operations are counted from the architecture; everything \
         that was spent counts: reading, the teacher, training, settings that were tried and not taken, looking whether it is good \
         enough, router and messages. Not counted: the base, whose attention is written down, not trained.",
    );
    for workload in Workload::ALL {
        let gathered: Vec<(String, Vec<Variant>)> = runs
            .iter()
            .map(|run| (label(run, runs), gather(run, workload)))
            .filter(|(_, variants)| !variants.is_empty())
            .collect();
        if !gathered.is_empty() {
            page.section(&format!("{}: {}", workload.name(), workload.density()));
            for (label, variants) in &gathered {
                section(page, label, variants);
            }
        }
    }
    left_out(runs, page);
}

/// What tells a run from the other one beside it.
fn label(run: &Run, runs: &[Run]) -> String {
    if runs.len() < 2 {
        return String::new();
    }
    let folder = run.folder.file_name().unwrap_or_default().to_string_lossy();
    format!("Run {folder}. ")
}

fn section(page: &mut Page, label: &str, variants: &[Variant]) {
    // What learned all questions that a context has would only be asked those again.
    let (many, constant): (Vec<&Variant>, Vec<&Variant>) =
        variants.iter().partition(|variant| !variant.arm.learns_questions() || variant.has_many_questions());
    page.text(&format!("{label}{}", sentence(variants, &many)));
    let all: Vec<&Variant> = variants.iter().collect();
    let n_questions = |n: usize| n as f64;
    costs(page, &all, FLOPS, &|_| 1.0, &format!("{label}Operations to answer one question about N items."));
    costs(page, &many, FLOPS, &n_questions, &format!("{label}Operations to answer N questions about N items."));
    costs(page, &many, SECONDS, &n_questions, &format!("{label}Seconds to answer N questions about N items."));
    if !constant.is_empty() {
        page.text(
            "A context of this workload has fewer than N different questions, and arms that learn from questions were taught all of \
             them: N questions would be the same ones again, so those arms are left out where N questions are asked.",
        );
    }
    recalls(page, label, variants);
    recall_table(page, variants);
    growth_table(page, "operations of one question", &all, &|_| 1.0);
    growth_table(page, "operations of N questions", &many, &n_questions);
    crossings(page, &many);
}

/// The cheapest way at the largest size, and who fails.
fn sentence(variants: &[Variant], many: &[&Variant]) -> String {
    let Some(n) = variants.iter().flat_map(|variant| variant.found.keys().copied()).max() else {
        return "Nothing is measured yet.".to_owned();
    };
    let cheapest = |questions: f64| {
        let asked = |variant: &&Variant| questions == 1.0 || many.iter().any(|other| std::ptr::eq(*other, *variant));
        let costs = variants.iter().filter(asked).filter(|variant| variant.reached(n)).filter_map(|variant| {
            let line = variant.line(n, FLOPS)?;
            Some((variant.title(), line.fixed + questions * line.each))
        });
        costs.min_by(|a, b| a.1.total_cmp(&b.1))
    };
    let mut words = Vec::new();
    for (asked, questions) in [("one question", 1.0), ("N questions", n as f64)] {
        if let Some((title, cost)) = cheapest(questions) {
            words.push(format!(
                "at N = {n} and {asked} what answers with the least work is {title}: {cost:.2e} operations"
            ));
        }
    }
    let failing: Vec<String> = variants
        .iter()
        .filter(|variant| variant.found.contains_key(&n) && !variant.reached(n))
        .map(|variant| format!("{} ({:.1} %)", variant.title(), 100.0 * variant.recall(n).map_or(0.0, |r| r.0)))
        .collect();
    if !failing.is_empty() {
        words.push(format!("below {QUALITY} there: {}", failing.join("; ")));
    }
    let mut text = words.join("; ");
    if let Some(first) = text.get(..1).map(str::to_uppercase) {
        text.replace_range(..1, &first);
    }
    text + "."
}

fn costs(page: &mut Page, variants: &[&Variant], what: usize, queries: &dyn Fn(usize) -> f64, caption: &str) {
    let titles: Vec<String> = variants.iter().map(|variant| variant.title()).collect();
    let curves: Vec<Curve<'_>> = variants
        .iter()
        .zip(&titles)
        .map(|(variant, title)| Curve {
            name: title,
            points: variant.curve(what, queries),
            dashed: is_second(variants, variant),
            colour: variant.arm as usize,
        })
        .filter(|curve| !curve.points.is_empty())
        .collect();
    let unit = if what == FLOPS { "operations" } else { "seconds" };
    page.figure(&LogLog { curves, axes: ("items N", unit) }, caption);
}

/// Whether another variant of the same arm comes before it.
fn is_second(variants: &[&Variant], variant: &Variant) -> bool {
    let first = variants.iter().find(|other| other.arm == variant.arm);
    first.is_some_and(|first| first.name != variant.name)
}

fn recalls(page: &mut Page, label: &str, variants: &[Variant]) {
    let titles: Vec<String> = variants.iter().map(Variant::title).collect();
    let line = |(variant, title): (&Variant, &String)| -> Option<(Vec<(f64, f64)>, Vec<(f64, f64, f64)>, String)> {
        let at = |&n: &usize| variant.recall(n).map(|(recall, [low, high])| ((n as f64).log2(), recall, low, high));
        let points: Vec<_> = variant.found.keys().filter_map(at).collect();
        let fails = points.iter().any(|point| point.1 < QUALITY);
        let band = points.iter().map(|&(x, _, low, high)| (x, low, high)).collect();
        fails.then(|| (points.iter().map(|&(x, recall, ..)| (x, recall)).collect(), band, title.clone()))
    };
    let failing: Vec<_> = variants.iter().zip(&titles).filter_map(line).collect();
    if failing.is_empty() {
        return;
    }
    let lines =
        failing.iter().map(|(points, band, title)| Line { name: title, points: points.clone(), band: band.clone() });
    let drawing = Lines { lines: lines.collect(), axes: ("log₂ N", "recall"), range: Some((0.0, 1.0)) };
    page.figure(&drawing, &format!("{label}Recall of what somewhere falls below {QUALITY}, with 95 % intervals."));
}

fn recall_table(page: &mut Page, variants: &[Variant]) {
    let sizes: BTreeSet<usize> = variants.iter().flat_map(|variant| variant.found.keys().copied()).collect();
    let forms = [Form::Paraphrased, Form::Reversed, Form::TwoHop];
    let heads: Vec<String> = sizes.iter().map(|n| format!("N = {n}")).collect();
    let mut head = vec!["recall in % [95 %]"];
    head.extend(heads.iter().map(String::as_str));
    head.extend(["paraphrased", "reversed", "two hops"]);
    let row = |variant: &Variant| {
        let recall = |&n: &usize| {
            variant.recall(n).map_or("–".to_owned(), |(recall, [low, high])| {
                format!("{:.1} [{:.1}, {:.1}]", 100.0 * recall, 100.0 * low, 100.0 * high)
            })
        };
        let form = |form: &Form| {
            let tallies =
                variant.found.values().flat_map(|seeds| seeds.values()).filter_map(|found| found.forms.get(form));
            let (right, asked) = tallies.fold((0, 0), |(right, asked), tally| (right + tally[0], asked + tally[1]));
            if asked == 0 { "–".to_owned() } else { format!("{:.1}", 100.0 * right as f64 / asked as f64) }
        };
        [vec![variant.title()], sizes.iter().map(recall).collect(), forms.iter().map(form).collect()].concat()
    };
    page.table(&Table { head, rows: variants.iter().map(row).collect() });
}

fn growth_table(page: &mut Page, what: &str, variants: &[&Variant], queries: &dyn Fn(usize) -> f64) {
    let interval = |interval: Option<[f64; 2]>| {
        interval.map_or("one seed".to_owned(), |[low, high]| format!("[{low:.2}, {high:.2}]"))
    };
    let row = |variant: &Variant| {
        let Growth { fitted, exponent95, share, share95, last_slope } = growth(variant, FLOPS, queries)?;
        let best = fitted.best().map_or("too few points", |best| match best.shape {
            Shape::Linear => "c₀ + aN",
            Shape::Quadratic => "c₀ + aN + bN²",
            Shape::Power => "c·N^p",
        });
        let [c, a, b] = fitted.quadratic.coefficients[..] else { return None };
        Some(vec![
            variant.title(),
            best.to_owned(),
            format!("{c:.2e} + {a:.2e}·N + {b:.2e}·N²"),
            format!("{share:.2}"),
            interval(share95),
            format!("{:.2}", fitted.power.coefficients[1]),
            interval(exponent95),
            last_slope.map_or("–".to_owned(), |slope| format!("{slope:.2}")),
        ])
    };
    let rows: Vec<_> = variants.iter().copied().filter_map(row).collect();
    if rows.is_empty() {
        return;
    }
    page.table(&Table {
        head: vec![what, "best by AICc", "fit", "share of N²", "95 %", "exponent", "95 %", "last slope"],
        rows,
    });
}

/// From how many questions on, and from which N on, one way is less work than another.
fn crossings(page: &mut Page, variants: &[&Variant]) {
    let mut rows = Vec::new();
    for (i, first) in variants.iter().enumerate() {
        for second in &variants[i + 1..] {
            let Some(&n) = first.sizes().iter().rev().find(|n| second.sizes().contains(n)) else { continue };
            let (Some(a), Some(b)) = (first.line(n, FLOPS), second.line(n, FLOPS)) else { continue };
            let by_size = crossing(&first.curve(FLOPS, &|n| n as f64), &second.curve(FLOPS, &|n| n as f64));
            rows.push(vec![
                first.title(),
                second.title(),
                n.to_string(),
                words(queries_until(a, b), "questions"),
                by_size.map_or("–".to_owned(), |crossing| words(crossing, "items")),
            ]);
        }
    }
    if !rows.is_empty() {
        page.table(&Table { head: vec!["first", "second", "at N", "Q*: less work", "N questions: less work"], rows });
    }
}

fn words(crossing: Crossing, unit: &str) -> String {
    match crossing {
        Crossing::Equal => "equal".to_owned(),
        Crossing::First => "first, always".to_owned(),
        Crossing::Second => "second, always".to_owned(),
        Crossing::SecondFrom(at) => format!("second from {at:.0} {unit} on"),
        Crossing::FirstFrom(at) => format!("first from {at:.0} {unit} on"),
    }
}

/// The arms that the protocol names and these runs do not have.
fn left_out(runs: &[Run], page: &mut Page) {
    let built = |run: &Run| parse_config::<Config>(&run.manifest.config).map(|config| config.arms).unwrap_or_default();
    let arms: BTreeSet<Arm> = runs.iter().flat_map(built).collect();
    let missing: Vec<&str> = Arm::ALL.into_iter().filter(|arm| !arms.contains(arm)).map(Arm::name).collect();
    if !missing.is_empty() {
        page.section("Left out");
        page.text(&format!("These runs do not have: {}.", missing.join("; ")));
    }
}
