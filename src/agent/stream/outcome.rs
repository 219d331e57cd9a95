//! What a stream came to: each run's figures, and each arm's over its repetitions. Pure; computes nothing anew.

use super::{
    arms::ArmRun,
    cost::Spent,
    desk::Cell,
    metrics::{Metrics, Spread, mean, metrics, over_seeds},
    spec::Stream,
};
use serde::Serialize;
use serde_json::{Value, json};

/// A finished stream.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was asked for.
    pub stream: Stream,
    /// The untouched base on each task, in the file's order.
    pub base: Vec<Cell>,
    /// Every arm under every order and seed that it was run with.
    pub runs: Vec<ArmRun>,
}

/// An arm over its seeds, each the mean of its orders.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// `routed` or a baseline.
    pub arm: String,
    /// Mean accuracy at the end.
    pub acc: Option<Spread>,
    /// Backward transfer.
    pub bwt: Option<Spread>,
    /// Forward transfer.
    pub fwt: Option<Spread>,
    /// Mean forgetting over tasks.
    pub forgetting: Option<Spread>,
    /// Share of just-learned accuracy that is left at the end.
    pub kept: Option<Spread>,
    /// What an order under a seed takes on average, learning, routing and answering.
    pub spent: Spent,
}

impl ArmRun {
    /// `R[i][j]`, strict.
    pub fn matrix(&self) -> Vec<Vec<Option<f64>>> {
        let row = |row: &Vec<Option<Cell>>| row.iter().map(|cell| cell.as_ref().map(|cell| cell.strict)).collect();
        self.cells.iter().map(row).collect()
    }

    /// Everything that it took.
    pub fn spent(&self) -> Spent {
        let mut all = Spent::default();
        self.lives.iter().for_each(|life| all += life.spent);
        self.cells.iter().flatten().flatten().for_each(|cell| all += cell.spent);
        all
    }
}

impl Outcome {
    /// The figures of a run.
    pub fn metrics(&self, run: &ArmRun) -> Metrics {
        let base: Vec<f64> = run.tasks.iter().map(|&task| self.base[task].strict).collect();
        metrics(&run.matrix(), &base)
    }

    /// Names of arms, in the order in which they were run.
    pub fn arms(&self) -> Vec<&str> {
        let mut arms: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !arms.contains(&run.arm.as_str()) {
                arms.push(&run.arm);
            }
        }
        arms
    }

    /// The runs of an arm.
    pub fn of<'o>(&'o self, arm: &'o str) -> impl Iterator<Item = &'o ArmRun> {
        self.runs.iter().filter(move |run| run.arm == arm)
    }

    /// Each arm over its seeds.
    pub fn summaries(&self) -> Vec<Summary> {
        let summary = |arm: &str| {
            let found: Vec<(u64, Metrics)> = self.of(arm).map(|run| (run.seed, self.metrics(run))).collect();
            let over = |get: &dyn Fn(&Metrics) -> Option<f64>| {
                over_seeds(found.iter().filter_map(|(seed, metrics)| Some((*seed, get(metrics)?))))
            };
            let forgotten = |m: &Metrics| {
                let known: Vec<f64> = m.forgetting.iter().copied().flatten().collect();
                mean(known.into_iter().map(Some))
            };
            Summary {
                arm: arm.to_owned(),
                acc: over(&|m| m.acc),
                bwt: over(&|m| m.bwt),
                fwt: over(&|m| m.fwt),
                forgetting: over(&forgotten),
                kept: over(&|m| m.kept),
                spent: self.mean_spent(arm),
            }
        };
        self.arms().into_iter().map(summary).collect()
    }

    fn mean_spent(&self, arm: &str) -> Spent {
        let mut all = Spent::default();
        self.of(arm).for_each(|run| all += run.spent());
        let n = self.of(arm).count().max(1) as u64;
        Spent {
            read_tokens: all.read_tokens / n,
            sampled_tokens: all.sampled_tokens / n,
            trained_tokens: all.trained_tokens / n,
            flops: all.flops / n as f64,
            seconds: all.seconds / n as f64,
        }
    }

    /// The mean over seeds of an arm's `R` in the stream's first order; a cell that one of them lacks is none.
    pub fn mean_matrix(&self, arm: &str) -> Vec<Vec<Option<f64>>> {
        let matrices: Vec<_> = self.of(arm).filter(|run| run.order == 0).map(ArmRun::matrix).collect();
        let tasks = self.base.len();
        let cell = |i: usize, j: usize| mean(matrices.iter().map(|matrix| matrix[i][j]));
        (0..tasks).map(|i| (0..tasks).map(|j| cell(i, j)).collect()).collect()
    }

    /// Tasks in the stream's first order.
    pub fn first_order(&self) -> Vec<&str> {
        self.stream.orders[0].iter().map(|&task| self.stream.tasks[task].name.as_str()).collect()
    }

    /// As scripts read it. `tasks`, `baseline`, `R` and `forgetting` are in the first order, `R` and `forgetting` of the routed library as
    /// means over seeds; `acc`, `bwt` and `fwt` are its means over all orders and seeds.
    pub fn to_json(&self) -> Value {
        let summaries = self.summaries();
        let routed = summaries.first();
        let of_routed = |get: &dyn Fn(&Summary) -> Option<Spread>| routed.and_then(get).map(|spread| spread.mean);
        let base: Vec<f64> = self.stream.orders[0].iter().map(|&task| self.base[task].strict).collect();
        let r = routed.map(|routed| self.mean_matrix(&routed.arm)).unwrap_or_default();
        let run = |run: &ArmRun| {
            let names: Vec<&str> = run.tasks.iter().map(|&task| self.stream.tasks[task].name.as_str()).collect();
            json!({
                "arm": run.arm,
                "order": run.order,
                "seed": run.seed,
                "tasks": names,
                "R": run.matrix(),
                "metrics": self.metrics(run),
                "spent": run.spent(),
            })
        };
        json!({
            "stream": self.stream.name,
            "tasks": self.first_order(),
            "baseline": base,
            "R": r,
            "acc": of_routed(&|s| s.acc),
            "bwt": of_routed(&|s| s.bwt),
            "fwt": of_routed(&|s| s.fwt),
            "forgetting": metrics(&r, &base).forgetting,
            "kept": of_routed(&|s| s.kept),
            "arms": summaries,
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
        })
    }
}
