//! Measurements by workload and variant, ready for curves and fits. Never draws.

use super::{
    config::{Arm, Point},
    found::Found,
};
use crate::{
    common::Seed,
    lab::{
        Run,
        stats::{self, Line, bootstrap, median},
        synthetic::Workload,
    },
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Resamples that make an interval.
const RESAMPLES: usize = 1000;

/// A way of answering, over sizes and seeds.
pub(super) struct Variant {
    /// Its arm.
    pub(super) arm: Arm,
    /// Which variant of the arm.
    pub(super) name: String,
    /// By N, by seed: the last that its cell recorded under this name, in which what was tried before is counted.
    pub(super) found: BTreeMap<usize, BTreeMap<u64, Found>>,
}

/// Of one workload, every variant in the order of arms and names.
pub(super) fn gather(run: &Run, workload: Workload) -> Vec<Variant> {
    let mut variants: BTreeMap<(Arm, String), Variant> = BTreeMap::new();
    for measurement in run.measurements() {
        let Ok(point) = measurement.cell.read::<Point>() else { continue };
        let Ok(found) = serde_json::from_value::<Found>(Value::Object(measurement.values.clone())) else { continue };
        if point.workload != workload {
            continue;
        }
        let (arm, name) = (point.arm, found.variant.clone());
        let variant =
            variants.entry((arm, name.clone())).or_insert_with(|| Variant { arm, name, found: BTreeMap::new() });
        variant.found.entry(point.n).or_default().insert(point.seed, found);
    }
    variants.into_values().collect()
}

impl Variant {
    /// Arm and variant.
    pub(super) fn title(&self) -> String {
        format!("{}, {}", self.arm.name(), self.name)
    }

    /// Whether the quality is reached at `n` over the questions of all seeds together.
    pub(super) fn reached(&self, n: usize) -> bool {
        self.recall(n).is_some_and(|(_, [low, _])| low >= super::found::QUALITY)
    }

    /// Recall at `n` with its 95 % interval, over the questions of all seeds together.
    pub(super) fn recall(&self, n: usize) -> Option<(f64, [f64; 2])> {
        let found = self.found.get(&n)?;
        let (correct, asked) =
            found.values().fold((0, 0), |(correct, asked), found| (correct + found.correct, asked + found.questions));
        Some((correct as f64 / asked as f64, crate::agent::wilson(correct, asked)))
    }

    /// Whether contexts have about as many different questions as items, at every size.
    pub(super) fn has_many_questions(&self) -> bool {
        let many = |(&n, seeds): (&usize, &BTreeMap<u64, Found>)| {
            seeds.values().all(|found| 2 * found.questions >= n * found.contexts)
        };
        self.found.iter().all(many)
    }

    /// The sizes at which the quality is reached, from the smallest.
    pub(super) fn sizes(&self) -> Vec<usize> {
        self.found.keys().copied().filter(|&n| self.reached(n)).collect()
    }

    /// Operations (0) or seconds (1) at `n`: before any question and for each, the median over seeds.
    pub(super) fn line(&self, n: usize, what: usize) -> Option<Line> {
        let found = self.found.get(&n)?;
        let fixed = median(found.values().map(|found| found.fixed[what]))?;
        Some(Line { fixed, each: median(found.values().map(|found| found.each[what]))? })
    }

    /// (N, operations or seconds) of `queries(N)` questions where the quality is reached, the median over seeds.
    pub(super) fn curve(&self, what: usize, queries: &dyn Fn(usize) -> f64) -> Vec<(f64, f64)> {
        let cost = |n: usize| {
            let Line { fixed, each } = self.line(n, what)?;
            Some((n as f64, fixed + queries(n) * each))
        };
        self.sizes().into_iter().filter_map(cost).collect()
    }

    /// By seed the points of [`Variant::curve`], not their medians.
    pub(super) fn by_seed(&self, what: usize, queries: &dyn Fn(usize) -> f64) -> Vec<Vec<(f64, f64)>> {
        let mut seeds: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
        for n in self.sizes() {
            for (&seed, found) in &self.found[&n] {
                let cost = found.fixed[what] + queries(n) * found.each[what];
                seeds.entry(seed).or_default().push((n as f64, cost));
            }
        }
        seeds.into_values().collect()
    }
}

/// How a cost grows, with intervals over seeds.
pub(super) struct Growth {
    /// The fits of all points.
    pub(super) fitted: stats::Fitted,
    /// The power law's exponent.
    pub(super) exponent95: Option<[f64; 2]>,
    /// The share of the term in N² at the largest N.
    pub(super) share: f64,
    /// Its interval.
    pub(super) share95: Option<[f64; 2]>,
    /// Slope between the two largest sizes.
    pub(super) last_slope: Option<f64>,
}

/// The growth of a variant's cost; none with fewer than three sizes at which it reaches the quality.
pub(super) fn growth(variant: &Variant, what: usize, queries: &dyn Fn(usize) -> f64) -> Option<Growth> {
    let seeds = variant.by_seed(what, queries);
    let fitted = stats::compare(&seeds.concat())?;
    let largest = *variant.sizes().last()? as f64;
    let interval = |statistic: &dyn Fn(&stats::Fitted) -> f64| {
        let of = |drawn: &[Vec<(f64, f64)>]| stats::compare(&drawn.concat()).map(|fitted| statistic(&fitted));
        bootstrap(&seeds, RESAMPLES, Seed::new(0), of)
    };
    Some(Growth {
        exponent95: interval(&|fitted| fitted.power.coefficients[1]),
        share: fitted.quadratic.quadratic_share(largest),
        share95: interval(&|fitted| fitted.quadratic.quadratic_share(largest)),
        last_slope: stats::slopes(&variant.curve(what, queries)).last().map(|slope| slope.1),
        fitted,
    })
}
