//! What was found, arm by arm: success, forgetting, distance to the base, cost, and the differences with their intervals. Pure: records in, a
//! page out.

use super::{Arm, Config, Point, arms::BATCH};
use crate::{
    common::Seed,
    lab::{Measurement, Run, parse_config},
    report::{Line, Lines, Page, Table},
};
use serde_json::Value;

const RESAMPLES: usize = 2_000;
/// Successes this far apart count as matched.
const MATCHED: f64 = 0.02;

/// A finished arm under one seed. The subagents of a seed are one arm: each answers its own environment.
struct Found {
    arm: Arm,
    seed: u64,
    /// Right or wrong on each test item of the environments that were learned, in their order.
    success: Vec<bool>,
    /// The same where it did not learn: bystanders, and for a subagent all other environments too.
    elsewhere: Vec<bool>,
    text_nats: f64,
    kl: f64,
    tflops: f64,
    calls: f64,
    seconds: f64,
    /// (success, nats of text) along the way.
    looks: Vec<(f64, f64)>,
}

pub(super) fn report(runs: &[Run], page: &mut Page) {
    for run in runs {
        let Ok(config) = parse_config::<Config>(&run.manifest.config) else { continue };
        if runs.len() > 1 {
            page.section(&run.folder.file_name().unwrap_or_default().to_string_lossy());
        }
        one(run, &config, page);
    }
}

fn one(run: &Run, config: &Config, page: &mut Page) {
    page.text(&format!(
        "Environments {}; nobody learned in {}. Every adapter has rank {}. A subagent is shown {} right answers, then takes {} steps of {} items × {} \
         samples from its own rewards; it is asked about its own environment alone, as if a router never erred. Each other arm is one adapter for all \
         environments, with the calls and the operations of all subagents together, whichever is spent first. Whoever samples is first shown the same \
         answers, and traces hold them. A supervised step holds {} answers. The traces are the subagents' own, so what sampling them took is part of \
         that; the teachers of distillation are the subagents, and what they took stands in its row beside as much learning of its own.",
        config.environments.join(", "),
        config.bystanders.join(", "),
        config.rank,
        config.revealed_answers,
        config.steps,
        config.items,
        config.samples,
        BATCH,
    ));
    let found = gather(run, config);
    let base = found.iter().find(|found| found.arm == Arm::Base);
    let seeds: Vec<u64> = config.seeds.iter().copied().filter(|&seed| whole(&found, seed)).collect();
    page.text(&format!("Seeds of which all arms are measured: {seeds:?} of {:?}.", config.seeds));
    in_words(&found, &seeds, page);
    levels(&found, base, &seeds, page);
    differences(&found, &seeds, page);
    matched(&found, base, &seeds, page);
    paths(&found, base, &seeds, page);
    by_environment(&found, config, &seeds, page);
}

/// Whether all arms of a seed are there.
fn whole(found: &[Found], seed: u64) -> bool {
    let there = |arm: Arm| found.iter().any(|found| found.arm == arm && found.seed == seed);
    there(Arm::Subagent) && Arm::ONE_FOR_ALL.into_iter().all(there)
}

fn gather(run: &Run, config: &Config) -> Vec<Found> {
    let cells: Vec<(Point, &[Measurement])> = run
        .cells
        .iter()
        .filter(|(_, _, measurements)| !measurements.is_empty())
        .filter_map(|(cell, _, measurements)| Some((cell.read().ok()?, &measurements[..])))
        .collect();
    let mut found: Vec<Found> = cells
        .iter()
        .filter(|(point, _)| point.arm != Arm::Subagent)
        .filter_map(|(p, m)| single(p, m, config))
        .collect();
    for &seed in &config.seeds {
        let of = |env: &String| {
            cells.iter().find(|(p, _)| p.arm == Arm::Subagent && p.seed == seed && p.env.as_ref() == Some(env))
        };
        let own: Option<Vec<Found>> =
            config.environments.iter().map(|env| of(env).and_then(|(point, m)| single(point, m, config))).collect();
        found.extend(own.map(|own| together(own, seed)));
    }
    found
}

fn single(point: &Point, measurements: &[Measurement], config: &Config) -> Option<Found> {
    let last = measurements.iter().find(|m| m.values.contains_key("answers"))?;
    let answers = last.values["answers"].as_object()?;
    let right = |name: &String| -> Vec<bool> {
        answers.get(name).and_then(Value::as_str).unwrap_or_default().chars().map(|c| c == '1').collect()
    };
    let own = |name: &&String| point.env.as_ref().is_none_or(|env| env == *name);
    let others = config.environments.iter().filter(|name| !own(name)).chain(&config.bystanders);
    let kl: Vec<f64> = last.values["kl"].as_object()?.values().filter_map(Value::as_f64).collect();
    let number = |m: &Measurement, key: &str| m.values.get(key).and_then(Value::as_f64);
    let look = |m: &Measurement| Some((number(m, "success")?, number(m, "text_nats")?));
    Some(Found {
        arm: point.arm,
        seed: point.seed,
        success: config.environments.iter().filter(own).flat_map(right).collect(),
        elsewhere: others.flat_map(right).collect(),
        text_nats: number(last, "text_nats")?,
        kl: mean(&kl),
        tflops: last.cost.total_flops() / 1e12,
        calls: number(last, "calls")?,
        seconds: last.cost.seconds,
        looks: measurements.iter().filter_map(look).collect(),
    })
}

/// All subagents of a seed as one arm: costs add up, what is forgotten is their mean.
fn together(own: Vec<Found>, seed: u64) -> Found {
    let over = |of: &dyn Fn(&Found) -> f64| mean(&own.iter().map(of).collect::<Vec<_>>());
    let looks = own.iter().map(|found| found.looks.len()).min().unwrap_or(0);
    let at = |i: usize| {
        let over = |of: fn(&(f64, f64)) -> f64| mean(&own.iter().map(|found| of(&found.looks[i])).collect::<Vec<_>>());
        (over(|look| look.0), over(|look| look.1))
    };
    Found {
        arm: Arm::Subagent,
        seed,
        success: own.iter().flat_map(|found| found.success.clone()).collect(),
        elsewhere: own.iter().flat_map(|found| found.elsewhere.clone()).collect(),
        text_nats: over(&|found| found.text_nats),
        kl: over(&|found| found.kl),
        tflops: own.iter().map(|found| found.tflops).sum(),
        calls: own.iter().map(|found| found.calls).sum(),
        seconds: own.iter().map(|found| found.seconds).sum(),
        looks: (0..looks).map(at).collect(),
    }
}

/// Of nothing it is 0.
fn mean(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |sum, value| sum + value) / values.len().max(1) as f64
}

fn share(right: &[bool]) -> f64 {
    right.iter().filter(|&&right| right).count() as f64 / right.len().max(1) as f64
}

const ARMS: [Arm; 5] = [Arm::Subagent, Arm::Traces, Arm::Successes, Arm::Distillation, Arm::Joint];

fn of<'f>(found: &'f [Found], arm: Arm, seeds: &[u64]) -> Vec<&'f Found> {
    seeds.iter().filter_map(|&seed| found.iter().find(|found| found.arm == arm && found.seed == seed)).collect()
}

fn levels(found: &[Found], base: Option<&Found>, seeds: &[u64], page: &mut Page) {
    page.section("What each reaches");
    let row = |name: &str, own: &[&Found]| {
        let over = |of: &dyn Fn(&Found) -> f64| mean(&own.iter().map(|found| of(found)).collect::<Vec<_>>());
        vec![
            name.to_owned(),
            format!("{:.1} %", 100.0 * over(&|f| share(&f.success))),
            format!("{:.1} %", 100.0 * over(&|f| share(&f.elsewhere))),
            format!("{:.3}", over(&|f| f.text_nats)),
            format!("{:.3}", over(&|f| f.kl)),
            format!("{:.0}", over(&|f| f.calls)),
            format!("{:.1}", over(&|f| f.tflops)),
            format!("{:.0}", over(&|f| f.seconds)),
        ]
    };
    let mut rows: Vec<Vec<String>> = base.iter().map(|base| row("base", &[base])).collect();
    rows.extend(ARMS.map(|arm| row(arm.name(), &of(found, arm, seeds))));
    page.table(&Table {
        head: vec!["arm", "success", "elsewhere", "text, nats", "KL to base", "calls", "TFLOP", "seconds"],
        rows,
    });
    page.text(
        "Success: strict, on test items of the environments that were learned. Elsewhere: strict, in environments that the adapter did not learn (for a \
         subagent these include the other subagents' environments, so its level is not that of the other rows: read its difference to the base). Text: \
         negative log-likelihood of everyday prompts. KL: mean over one's own replies drawn at temperature 1, in nats a token.",
    );
}

/// Success of subagents less that of `arm`, by seed and item.
fn success_gaps(found: &[Found], arm: Arm, seeds: &[u64]) -> Vec<Vec<f64>> {
    let gap = |(&own, &other): (&bool, &bool)| f64::from(u8::from(own)) - f64::from(u8::from(other));
    let gaps = |(own, other): (&Found, &Found)| own.success.iter().zip(&other.success).map(gap).collect();
    of(found, Arm::Subagent, seeds).into_iter().zip(of(found, arm, seeds)).map(gaps).collect()
}

/// The answer to the question, as far as this run gives one.
fn in_words(found: &[Found], seeds: &[u64], page: &mut Page) {
    if seeds.is_empty() {
        return;
    }
    let level = |arm: Arm| 100.0 * mean(&of(found, arm, seeds).iter().map(|f| share(&f.success)).collect::<Vec<_>>());
    let beside = |arm: Arm| {
        let word = match interval(&success_gaps(found, arm, seeds)).1 {
            [low, _] if low > 0.0 => "less",
            [_, high] if high < 0.0 => "more",
            _ => "no certain difference",
        };
        format!("{} {:.1} % ({word})", arm.name(), level(arm))
    };
    let all = Arm::ONE_FOR_ALL.map(beside).join(", ");
    page.text(&format!(
        "In words: the subagents' own adapters answer {:.1} % of what they learned; one adapter for all: {all}.",
        level(Arm::Subagent)
    ));
}

/// Subagents less every other arm, by seed and item.
fn differences(found: &[Found], seeds: &[u64], page: &mut Page) {
    page.section("The subagents against one adapter for all");
    let own = of(found, Arm::Subagent, seeds);
    if own.is_empty() {
        page.text("No seed is complete yet.");
        return;
    }
    let rows = Arm::ONE_FOR_ALL.map(|arm| {
        let other = of(found, arm, seeds);
        let single = |of: &dyn Fn(&Found) -> f64| -> Vec<Vec<f64>> {
            own.iter().zip(&other).map(|(a, b)| vec![of(a) - of(b)]).collect()
        };
        vec![
            arm.name().to_owned(),
            points(&success_gaps(found, arm, seeds)),
            nats(&single(&|f| f.text_nats)),
            nats(&single(&|f| f.kl)),
        ]
    });
    page.table(&Table {
        head: vec!["subagents less …", "success, points", "text, nats", "KL to base, nats"],
        rows: rows.into(),
    });
    page.text(&format!(
        "Means with 95 % intervals from {RESAMPLES} paired bootstrap resamples of seeds, and of the items that they share where there are items. With one seed an interval of \
         the last two columns is no interval."
    ));
}

fn points(pairs: &[Vec<f64>]) -> String {
    let (centre, [low, high]) = interval(pairs);
    format!("{:+.1} [{:+.1}, {:+.1}]", 100.0 * centre, 100.0 * low, 100.0 * high)
}

fn nats(pairs: &[Vec<f64>]) -> String {
    let (centre, [low, high]) = interval(pairs);
    format!("{centre:+.3} [{low:+.3}, {high:+.3}]")
}

/// Mean of all differences, and its 95 % percentile interval over resampled seeds and resampled items, which all seeds share.
fn interval(groups: &[Vec<f64>]) -> (f64, [f64; 2]) {
    let groups: Vec<&Vec<f64>> = groups.iter().filter(|group| !group.is_empty()).collect();
    let centre = mean(&groups.iter().map(|group| mean(group)).collect::<Vec<_>>());
    if groups.is_empty() {
        return (f64::NAN, [f64::NAN; 2]);
    }
    // The items are the same under every seed.
    let count = groups.iter().map(|group| group.len()).min().unwrap_or(0);
    let mut rng = Seed::new(0).purpose("bootstrap").rng();
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let items: Vec<usize> = (0..count).map(|_| rng.below(count)).collect();
            let seeds = (0..groups.len()).map(|_| *rng.pick(&groups));
            mean(&seeds.map(|group| mean(&items.iter().map(|&i| group[i]).collect::<Vec<_>>())).collect::<Vec<_>>())
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |q: f64| means[((RESAMPLES - 1) as f64 * q).round() as usize];
    (centre, [at(0.025), at(0.975)])
}

/// What general text costs where two arms first reach the success that both reach.
fn matched(found: &[Found], base: Option<&Found>, seeds: &[u64], page: &mut Page) {
    page.section("Forgetting at matched success");
    let Some(base) = base else { return };
    let rows = Arm::ONE_FOR_ALL.map(|arm| {
        let mut gaps = Vec::new();
        let mut levels = Vec::new();
        for (own, other) in of(found, Arm::Subagent, seeds).iter().zip(of(found, arm, seeds)) {
            let best = |found: &Found| found.looks.iter().map(|look| look.0).fold(0.0, f64::max);
            let level = best(own).min(best(other));
            let first = |found: &Found| found.looks.iter().find(|look| look.0 >= level - MATCHED).map(|look| look.1);
            if let (true, Some(a), Some(b)) = (level > 0.0, first(own), first(other)) {
                gaps.push(vec![a - b]);
                levels.push(level);
            }
        }
        vec![
            arm.name().to_owned(),
            format!("{:.1} %", 100.0 * mean(&levels)),
            gaps.len().to_string(),
            if gaps.is_empty() { "–".to_owned() } else { nats(&gaps) },
        ]
    });
    page.table(&Table {
        head: vec!["subagents less …", "success of both", "seeds", "text, nats"], rows: rows.into()
    });
    page.text(&format!(
        "Of the looks along the way (validation items), the first of each arm that has the lower of both arms' best success, within {:.0} points. The base has {:.3} \
         nats. A negative difference says that the subagents harm general text less.",
        100.0 * MATCHED,
        base.text_nats
    ));
}

fn paths(found: &[Found], base: Option<&Found>, seeds: &[u64], page: &mut Page) {
    let line = |arm: Arm| {
        let own = of(found, arm, seeds);
        let looks = own.iter().map(|found| found.looks.len()).min().unwrap_or(0);
        let at = |i: usize| {
            let over =
                |of: fn(&(f64, f64)) -> f64| mean(&own.iter().map(|found| of(&found.looks[i])).collect::<Vec<_>>());
            (over(|look| look.0), over(|look| look.1) - base.map_or(0.0, |base| base.text_nats))
        };
        let mut points: Vec<(f64, f64)> = (0..looks).map(at).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line { name: arm.name(), points, band: Vec::new() }
    };
    let lines: Vec<Line<'_>> = ARMS.map(line).into_iter().filter(|line| !line.points.is_empty()).collect();
    if !lines.is_empty() {
        let drawing =
            Lines { lines, axes: ("success on validation items", "nats of general text above the base"), range: None };
        page.figure(&drawing, "What success costs general text, along the way. Means over seeds.");
    }
}

fn by_environment(found: &[Found], config: &Config, seeds: &[u64], page: &mut Page) {
    page.section("By environment");
    let items = config.test_items;
    let row = |(i, name): (usize, &String)| {
        let level = |own: &[&Found]| {
            let own: Vec<f64> = own.iter().filter_map(|f| f.success.chunks(items).nth(i)).map(share).collect();
            if own.is_empty() { "–".to_owned() } else { format!("{:.1} %", 100.0 * mean(&own)) }
        };
        let base: Vec<&Found> = found.iter().filter(|found| found.arm == Arm::Base).collect();
        let mut cells = vec![name.clone(), level(&base)];
        cells.extend(ARMS.map(|arm| level(&of(found, arm, seeds))));
        cells
    };
    let mut head = vec!["environment", "base"];
    head.extend(ARMS.map(Arm::name));
    page.table(&Table { head, rows: config.environments.iter().enumerate().map(row).collect() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_the_mean_and_shrinks_to_a_point_without_spread() {
        let spread: Vec<Vec<f64>> = (0..5).map(|seed| (0..40).map(|i| f64::from((i + seed) % 2)).collect()).collect();
        let (centre, [low, high]) = interval(&spread);
        assert!(centre == 0.5 && low < 0.5 && high > 0.5 && low > 0.3 && high < 0.7, "{low} {high}");
        assert_eq!(interval(&[vec![0.25], vec![0.25]]), (0.25, [0.25, 0.25]));
        assert!(interval(&[]).0.is_nan());
    }
}
