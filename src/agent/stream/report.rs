//! A stream's outcome as a page that is read without the code. Knows figures and names, and computes none anew.

use super::{
    arms::{ArmRun, ROUTED},
    metrics::{Spread, mean, over_seeds},
    outcome::{Outcome, Summary},
};
use crate::report::{Bars, Flow, Heat, Line, Lines, Page, Stream as Ribbon, Table};
use std::collections::BTreeSet;

/// Losses are averaged over so many steps around each.
const SMOOTHED: usize = 4;

impl Outcome {
    /// The page. `command` is what makes it again.
    pub fn html(&self, command: &str) -> String {
        let mut page = Page::new(&format!("Stream {}: {} tasks, one after another", self.stream.name, self.base.len()));
        self.explain(&mut page);
        self.summary(&mut page);
        self.matrices(&mut page);
        self.curves(&mut page);
        self.routes(&mut page);
        self.cost(&mut page);
        self.repetitions(&mut page);
        page.section("Again");
        page.text(
            "What was learned and measured lies in the run's folder, so the same command continues an interrupted run and makes this \
             page again. Everything but the seconds is the same to the byte on one machine.",
        );
        page.lines(command);
        page.finish()
    }

    fn explain(&self, page: &mut Page) {
        let (orders, seeds) = (self.stream.orders.len(), self.stream.seeds.len());
        page.text(&format!(
            "Tasks come one after another. Each births a subagent that learns it in a small adapter over one frozen model, is judged on \
             fresh items, and becomes a skill in a library if it proves itself. After every task, the tasks so far and the next one are \
             tested on {} items each that no learning saw. The router sees a prompt and nothing else: nobody tells it which task \
             the prompt belongs to. A reply counts if the whole of it is right.",
            self.stream.items,
        ));
        page.text(&format!(
            "The routed library was run in {orders} order{} with {seeds} seed{}; everything beside it in the first order with the same seeds.",
            plural(orders),
            plural(seeds),
        ));
        let rows = self.stream.orders[0].iter().map(|&task| {
            let (task, base) = (&self.stream.tasks[task], &self.base[task]);
            vec![task.name.to_string(), format!("{}, level {}", task.env, task.level), percent(base.strict)]
        });
        page.table(&Table { head: vec!["task", "environment", "the base alone, %"], rows: rows.collect() });
    }

    fn summary(&self, page: &mut Page) {
        page.section("What is left at the end");
        page.text(
            "ACC: mean accuracy on all tasks at the end. BWT: how much accuracy on a task changed since it was learned. FWT: how much \
             better than the base a task goes just before it is learned. Forgetting: the best accuracy that a task ever had, less that at \
             the end. Kept: accuracy at the end as a share of what it was just after learning. Points of 100, with 95 % intervals over \
             seeds (Student's t); a seed's figure is the mean of its orders, which share what they learn.",
        );
        let row = |summary: &Summary| {
            let Summary { arm, acc, bwt, fwt, forgetting, kept, .. } = summary;
            let figures = [acc, bwt, fwt, forgetting, kept].map(|figure| figure.as_ref().map_or_else(dash, interval));
            let seeds = self.of(arm).map(|run| run.seed).collect::<BTreeSet<_>>().len();
            let n = format!("{} × {seeds}", self.of(arm).count() / seeds.max(1));
            [vec![describe(arm).to_owned()], figures.to_vec(), vec![n]].concat()
        };
        let head = vec!["arm", "ACC", "BWT", "FWT", "forgetting", "kept, %", "orders × seeds"];
        page.table(&Table { head, rows: self.summaries().iter().map(row).collect() });
        let lines: Vec<Line<'_>> = self.arms().into_iter().map(|arm| self.along(arm)).collect();
        page.figure(
            &Lines { lines, axes: ("tasks met", "accuracy on the tasks met so far"), range: Some((0.0, 1.0)) },
            "Mean accuracy on the tasks met so far, after each; bands are 95 % intervals over seeds.",
        );
    }

    /// An arm's mean accuracy on the tasks met so far.
    fn along<'o>(&'o self, arm: &'o str) -> Line<'o> {
        let (mut points, mut band) = (Vec::new(), Vec::new());
        for after in 0..self.base.len() {
            let so_far = |run: &ArmRun| Some((run.seed, mean(run.matrix()[after][..=after].iter().copied())?));
            let Some(found) = over_seeds(self.of(arm).filter_map(so_far)) else { continue };
            points.push(((after + 1) as f64, found.mean));
            band.extend(found.ci95.map(|[low, high]| ((after + 1) as f64, low, high)));
        }
        Line { name: arm, points, band }
    }

    fn matrices(&self, page: &mut Page) {
        page.section("Every task after every task");
        page.text(
            "Row: what had been learned last. Column: what was asked. Per cent right, as means over seeds in the first order; the darker, \
             the better. A column that stays dark downwards is a task that is not forgotten. The squares right of the diagonal are \
             tasks that are yet to come.",
        );
        let names = self.first_order();
        for arm in self.arms() {
            let values = self.mean_matrix(arm);
            let heat = Heat { rows: names.clone(), columns: names.clone(), values: &values, axes: ("after", "asked") };
            page.figure(&heat, describe(arm));
        }
    }

    fn curves(&self, page: &mut Page) {
        page.section("Learning");
        let mut page_of = |arm: &str, caption: &str| {
            let Some(run) = self.of(arm).next() else { return };
            let line = |(life, &task): (&super::desk::Life, &usize)| {
                let losses: Vec<f64> = life.curve.iter().map(|point| point.loss).collect();
                let around = |i: usize| {
                    let window = &losses[i.saturating_sub(SMOOTHED)..(i + SMOOTHED + 1).min(losses.len())];
                    window.iter().sum::<f64>() / window.len() as f64
                };
                let points = life.curve.iter().enumerate().map(|(i, point)| (point.step as f64, around(i)));
                Line { name: self.stream.tasks[task].name.as_str(), points: points.collect(), band: Vec::new() }
            };
            let lines = run.lives.iter().zip(&run.tasks).map(line).collect();
            page.figure(&Lines { lines, axes: ("step", "loss, nats a token"), range: None }, caption);
        };
        page_of(ROUTED, "Training loss of each subagent, first order and seed, smoothed over nine steps.");
        page_of("sequential", "The same of one adapter that is trained on each task in turn.");
        let rows = self.of(ROUTED).flat_map(|run| run.lives.iter().map(move |life| (run, life)));
        let rows = rows.map(|(run, life)| {
            let parent = life.parent.as_ref().map_or_else(|| "the base".to_owned(), ToString::to_string);
            let admitted = if life.generation.is_some() { "yes" } else { "no" };
            let seconds = format!("{:.0}", life.spent.seconds);
            let [order, seed, steps] = [(run.order + 1).to_string(), life.seed.to_string(), life.steps.to_string()];
            vec![
                life.task.to_string(),
                order,
                seed,
                parent,
                life.learner.clone(),
                steps,
                seconds,
                admitted.into(),
                life.gate.clone(),
            ]
        });
        let head = vec!["task", "order", "seed", "born from", "learner", "steps", "seconds", "admitted", "the gate"];
        page.table(&Table { head, rows: rows.collect() });
    }

    fn routes(&self, page: &mut Page) {
        let Some(run) = self.of(ROUTED).next() else { return };
        page.section("Who answered");
        page.text(
            "After the last task of the first order and seed: where the router sent the test prompts of each task (left), to that task's \
             skill, another's, or the untouched base (right).",
        );
        let names: Vec<&str> = run.tasks.iter().map(|&task| self.stream.tasks[task].name.as_str()).collect();
        let right: Vec<&str> = names.iter().copied().chain(["base"]).collect();
        let last = run.cells.last().into_iter().flatten().flatten();
        let streams = last.enumerate().flat_map(|(from, cell)| {
            let to = |who: &String| right.iter().position(|name| name == who);
            let ribbon = move |to| move |amount: usize| Ribbon { from, to, amount: amount as f64 };
            cell.answered_by.iter().filter_map(|(who, &n)| to(who).map(|to| ribbon(to)(n))).collect::<Vec<_>>()
        });
        let streams = streams.collect();
        page.figure(&Flow { left: names, right, streams }, "Test prompts by task, and who answered them.");
    }

    fn cost(&self, page: &mut Page) {
        page.section("What it took");
        page.text(
            "An order and seed of each arm on average: learning (with being judged before and after), the router's reading of every \
             prompt, and answering all tests, each as if nothing were known. Arms share what they have in common, such as skills \
             and answers, so that they took less together than the sum. Operations are counted: 2 a weight and token read, 4 a frozen \
             weight and token trained, 6 an adapter's, the output head where tokens are predicted, and attention where tests are answered.",
        );
        let summaries = self.summaries();
        let row = |Summary { arm, spent, .. }: &Summary| {
            let thousands = |tokens: u64| format!("{:.1}", tokens as f64 / 1e3);
            vec![
                arm.clone(),
                thousands(spent.read_tokens),
                thousands(spent.sampled_tokens),
                thousands(spent.trained_tokens),
                format!("{:.1}", spent.flops / 1e12),
                format!("{:.0}", spent.seconds),
            ]
        };
        let head = vec!["arm", "read, k tokens", "sampled, k tokens", "trained, k tokens", "TFLOP", "seconds"];
        page.table(&Table { head, rows: summaries.iter().map(row).collect() });
        let bars = summaries.iter().map(|summary| (summary.arm.as_str(), summary.spent.flops / 1e12)).collect();
        page.figure(&Bars { bars, unit: "TFLOP" }, "Operations by arm.");
    }

    fn repetitions(&self, page: &mut Page) {
        page.section("Every repetition");
        let row = |run: &ArmRun| {
            let found = self.metrics(run);
            let figure = |value: Option<f64>| value.map_or_else(dash, percent);
            let names = run.tasks.iter().map(|&task| self.stream.tasks[task].name.as_str());
            let figures = [found.acc, found.bwt, found.fwt, found.kept].map(figure).to_vec();
            let order = names.collect::<Vec<_>>().join(" → ");
            [vec![run.arm.clone(), run.seed.to_string()], figures, vec![order]].concat()
        };
        let head = vec!["arm", "seed", "ACC", "BWT", "FWT", "kept, %", "order"];
        page.table(&Table { head, rows: self.runs.iter().map(row).collect() });
    }
}

fn describe(arm: &str) -> &str {
    match arm {
        ROUTED => "routed: the library, through the router",
        "sequential" => "sequential: one adapter, task after task",
        "replay" => "replay: the same, two of every eight items from earlier tasks",
        "joint" => "joint: one adapter, all tasks at once",
        "average" => "average: all skills' adapters averaged into one",
        "ties" => "ties: all skills' adapters merged by TIES",
        "arrow" => "arrow: the library, routed by the adapters' weights",
        "oracle" => "oracle: the library, told which task it is",
        other => other,
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

fn dash() -> String {
    "–".to_owned()
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// `93.1 (90.0 … 96.2)`.
fn interval(spread: &Spread) -> String {
    match spread.ci95 {
        Some([low, high]) => format!("{} ({} … {})", percent(spread.mean), percent(low), percent(high)),
        None => percent(spread.mean),
    }
}
