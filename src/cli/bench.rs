//! `socius bench`: how fast this machine trains and decodes. Never measures anything itself.

use super::{
    Terminal, bench_route,
    flags::{BaseFlags, MemoryFlag},
    roofline, text,
};
use crate::{
    agent::{RouteBench, Session},
    bench::{Clock, Decode, Prefill, Shelf, Train, Training, ops::Shapes},
    common::peak_bytes,
};
use clap::Subcommand;
use serde_json::{Value, json};
use socius_kernels::linear::WeightType;
use socius_models::Dtype;
use std::num::NonZeroUsize;

/// Measure how fast this machine trains and decodes
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius bench train
  socius bench decode --batch 1 --tokens 128 --threads 2

Tokens are random, and what runs is what learning and answering run. benches/compare measures other programs
beside it; docs/performance.md has the ratios.")]
pub(super) struct Args {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Time a training step: forward, backward and AdamW, every position trained, LoRA on every linear
    #[command(after_help = "\
Examples:
  socius bench train --batch 4 --length 512 --rank 16
  socius bench train --learners 8 --batch 1 --length 256
  socius bench train --memory 512M
  socius bench train --json | tail -n 1 | jq '.tokens_per_s, .peak_mb'")]
    Train {
        /// Rows of each learner
        #[arg(long, default_value = "4")]
        batch: NonZeroUsize,
        /// Tokens of a row
        #[arg(long, default_value = "512")]
        length: NonZeroUsize,
        /// Rank of the adapters
        #[arg(long, default_value = "16")]
        rank: NonZeroUsize,
        /// Learners that train in one joint pass, each with its own adapter and optimiser
        #[arg(long, default_value = "1")]
        learners: NonZeroUsize,
        #[command(flatten)]
        memory: MemoryFlag,
        #[command(flatten)]
        common: Common,
    },
    /// Time the reading of one prompt
    #[command(after_help = "\
Examples:
  socius bench prefill --length 512")]
    Prefill {
        /// Tokens of the prompt
        #[arg(long, default_value = "512")]
        length: NonZeroUsize,
        #[command(flatten)]
        common: Common,
    },
    /// Time the decoding of a batch under the base, its prompts already read
    #[command(after_help = "\
Examples:
  socius bench decode --batch 32 --prompt 128 --tokens 64
  socius bench decode --batch 1 --prompt 1 --tokens 128")]
    Decode {
        #[command(flatten)]
        rows: Rows,
        #[command(flatten)]
        common: Common,
    },
    /// Time the decoding of a batch whose rows run under different adapters
    #[command(after_help = "\
Examples:
  socius bench mixed --batch 32 --adapters 32
  socius bench mixed --batch 32 --adapters 4 --rank 8")]
    Mixed {
        #[command(flatten)]
        rows: Rows,
        /// Adapters, which the rows take in turn
        #[arg(long, default_value = "32")]
        adapters: NonZeroUsize,
        /// Their rank; they are on every linear
        #[arg(long, default_value = "16")]
        rank: NonZeroUsize,
        #[command(flatten)]
        common: Common,
    },
    /// Time the router among made-up skills: opening its index, a route, and what a change of the library takes
    #[command(after_help = "\
Examples:
  socius bench route --skills 10000
  socius bench route --skills 1000 --json | tail -n 1 | jq '.open_ms, .route_ms_p99'

A route is timed from a prompt's features and words to a choice; the features cost the prompt's own prefill.")]
    Route {
        /// Skills
        #[arg(long, default_value = "10000")]
        skills: NonZeroUsize,
        /// Prompts that each is known by
        #[arg(long, default_value = "8")]
        prompts: NonZeroUsize,
        /// Width of the features
        #[arg(long, default_value = "576")]
        hidden: NonZeroUsize,
        /// Prompts that are routed
        #[arg(long, default_value = "2000")]
        routes: NonZeroUsize,
    },
    /// Time a library of many small skills: opening, listing, searching
    #[command(after_help = "\
Examples:
  socius bench library
  socius bench library --skills 1000 --json | tail -n 1 | jq '.open_ms, .list_ms'

The skills are made up, of rank 1 over the default base's shape, and published one by one into a temporary folder.")]
    Library {
        /// Skills
        #[arg(long, default_value = "10000")]
        skills: NonZeroUsize,
        /// Measured runs, of which the median counts
        #[arg(long, default_value = "5")]
        runs: NonZeroUsize,
    },
    /// Measure the machine's peaks, and the fraction of them that each operation of a step reaches
    #[command(after_help = "\
Examples:
  socius bench roofline
  socius bench roofline --dtype f32 --threads 1
  SOCIUS_SIMD=avx2 socius bench roofline --json | tail -n 1 | jq '.peaks'

An operation's bound is whichever takes longer at the machine's peak, its products or its bytes; its fraction is what
the bound asks for as a share of what the operation took. Data is in memory before each call, and in no cache.")]
    Roofline {
        /// Rows of the training step
        #[arg(long, default_value = "4")]
        batch: NonZeroUsize,
        /// Tokens of a row
        #[arg(long, default_value = "512")]
        length: NonZeroUsize,
        /// Rank of the adapters
        #[arg(long, default_value = "16")]
        rank: NonZeroUsize,
        /// Tokens that a decoding row has read
        #[arg(long, default_value = "128")]
        prompt: NonZeroUsize,
        #[command(flatten)]
        base: BaseFlags,
    },
}

#[derive(clap::Args)]
struct Rows {
    /// Rows that decode together
    #[arg(long, default_value = "32")]
    batch: NonZeroUsize,
    /// Tokens of each row's prompt
    #[arg(long, default_value = "128")]
    prompt: NonZeroUsize,
    /// Tokens that each row draws
    #[arg(long, default_value = "64")]
    tokens: NonZeroUsize,
}

#[derive(clap::Args)]
struct Common {
    /// Runs that are measured, after one that warms up; their median counts
    #[arg(long, default_value = "5")]
    runs: NonZeroUsize,
    #[command(flatten)]
    base: BaseFlags,
}

/// What every kind of work reports.
struct Found {
    work: &'static str,
    batch: usize,
    length: usize,
    rank: usize,
    adapters: usize,
    /// Parameters of all of them.
    parameters: usize,
    tokens_per_step: usize,
    /// Median seconds of a step.
    seconds: f64,
    /// Of a step of the last run.
    page_faults: Option<f64>,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    match args.work {
        Work::Train { batch, length, rank, learners, memory, common } => {
            let [batch, length, rank, learners] = [batch, length, rank, learners].map(NonZeroUsize::get);
            train(Train { learners, batch, length, rank, limits: memory.limits() }, &common, terminal)
        }
        Work::Prefill { length, common } => prefill(Prefill { length: length.get() }, &common, terminal),
        Work::Decode { rows, common } => decode("decode", &rows.work(0, 1), &common, terminal),
        Work::Mixed { rows, adapters, rank, common } => {
            decode("mixed", &rows.work(adapters.get(), rank.get()), &common, terminal)
        }
        Work::Route { skills, prompts, hidden, routes } => {
            let [skills, prompts, hidden, routes] = [skills, prompts, hidden, routes].map(NonZeroUsize::get);
            bench_route::run(RouteBench { skills, prompts, hidden, routes }, terminal)
        }
        Work::Library { skills, runs } => library(skills.get(), runs.get(), terminal),
        Work::Roofline { batch, length, rank, prompt, base } => {
            let session = base.open(terminal)?;
            let kept = if session.base.dtype == Dtype::Bf16 { WeightType::Bf16 } else { WeightType::F32 };
            let (batch, length, rank) = (batch.get(), length.get(), rank.get());
            let shapes = Shapes { spec: session.base.spec(), kept, batch, length, rank };
            roofline::run(shapes, prompt.get(), terminal)
        }
    }
}

fn library(skills: usize, runs: usize, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let folder = tempfile::tempdir()?;
    let found = Shelf::fill(&folder.path().join("library"), skills, terminal)?.measure(runs, terminal)?;
    let milliseconds = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    let rows = [
        ("skills", skills.to_string()),
        ("publish one", milliseconds(found.publish)),
        ("open", milliseconds(found.open)),
        ("list", milliseconds(found.list)),
        ("search words", milliseconds(found.search)),
        ("search like", milliseconds(found.like)),
        ("show one", milliseconds(found.show)),
    ];
    terminal.lines(text::table(&rows.map(|(what, value)| [what.to_owned(), value])))?;
    Ok(json!({
        "work": "library",
        "skills": skills,
        "publish_ms": found.publish * 1e3,
        "open_ms": found.open * 1e3,
        "list_ms": found.list * 1e3,
        "search_ms": found.search * 1e3,
        "like_ms": found.like * 1e3,
        "show_ms": found.show * 1e3,
        "peak_mb": peak_mb(),
    }))
}

impl Rows {
    fn work(&self, adapters: usize, rank: usize) -> Decode {
        Decode { batch: self.batch.get(), prompt: self.prompt.get(), tokens: self.tokens.get(), adapters, rank }
    }
}

fn train(work: Train, common: &Common, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let session = common.base.open(terminal)?;
    let mut training = Training::new(&session.base.model, work)?;
    let seconds = common.clock(terminal).time(|| training.step())?;
    let found = Found {
        work: "train",
        batch: work.batch,
        length: work.length,
        rank: work.rank,
        adapters: work.learners,
        parameters: training.parameters(),
        tokens_per_step: work.learners * work.batch * work.length,
        seconds,
        page_faults: None,
    };
    found.tell(&session, terminal)
}

fn prefill(work: Prefill, common: &Common, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let session = common.base.open(terminal)?;
    let seconds = common.clock(terminal).median(|| work.run(&session.base.model))?;
    let found = Found {
        work: "prefill",
        batch: 1,
        length: work.length,
        rank: 0,
        adapters: 0,
        parameters: 0,
        tokens_per_step: work.length,
        seconds,
        page_faults: None,
    };
    found.tell(&session, terminal)
}

fn decode(name: &'static str, work: &Decode, common: &Common, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let session = common.base.open(terminal)?;
    let adapters = work.adapters(session.base.spec())?;
    let mut page_faults = None;
    let seconds = common.clock(terminal).median(|| {
        let decoded = work.run(&session.base.model, &adapters)?;
        page_faults = decoded.page_faults.map(|faults| faults as f64 / work.tokens as f64);
        Ok(decoded.seconds)
    })?;
    let found = Found {
        work: name,
        batch: work.batch,
        length: work.prompt + work.tokens,
        rank: if work.adapters == 0 { 0 } else { work.rank },
        adapters: work.adapters,
        parameters: adapters.iter().map(|adapter| adapter.theta.len()).sum(),
        tokens_per_step: work.batch,
        seconds: seconds / work.tokens as f64,
        page_faults,
    };
    found.tell(&session, terminal)
}

impl Common {
    fn clock<'a>(&self, terminal: &'a mut Terminal) -> Clock<'a> {
        Clock { runs: self.runs.get(), report: terminal }
    }
}

impl Found {
    fn tell(&self, session: &Session, terminal: &mut Terminal) -> anyhow::Result<Value> {
        let Self { work, batch, length, rank, adapters, .. } = *self;
        // As a pass reads them.
        let adapter_bytes = self.parameters * if session.base.dtype == Dtype::Bf16 { 2 } else { 4 };
        let tokens_per_s = self.tokens_per_step as f64 / self.seconds;
        let peak_mb = peak_mb();
        let known = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
        let mut rows = vec![
            ("tokens/s", format!("{tokens_per_s:.1}")),
            ("ms a step", format!("{:.2}", self.seconds * 1e3)),
            ("peak memory", known(peak_mb.map(|mb| format!("{mb} MiB")))),
            ("adapters", format!("{adapters}, {}", text::bytes(adapter_bytes as u64))),
            ("threads", rayon::current_num_threads().to_string()),
        ];
        if let Some(faults) = self.page_faults {
            rows.push(("page faults a step", format!("{faults:.2}")));
        }
        let rows: Vec<_> = rows.into_iter().map(|(what, value)| [what.to_owned(), value]).collect();
        terminal.lines(text::table(&rows))?;
        Ok(json!({
            "work": work,
            "tokens_per_s": tokens_per_s,
            "ms_per_step": self.seconds * 1e3,
            "peak_mb": peak_mb,
            "page_faults_per_step": self.page_faults,
            "threads": rayon::current_num_threads(),
            "dtype": dtype(session.base.dtype),
            "batch": batch,
            "length": length,
            "rank": rank,
            "adapters": adapters,
            "adapter_bytes": adapter_bytes,
        }))
    }
}

fn dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bf16",
        Dtype::Quantised => "quantised",
        Dtype::F32 => "f32",
        Dtype::F64 => "f64",
    }
}

/// The most memory that this process has held, in MiB, where the system says it.
pub(super) fn peak_mb() -> Option<u64> {
    peak_bytes().map(|bytes| bytes >> 20)
}
