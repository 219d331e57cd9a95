//! A stream of tasks, each of which births a subagent: what the library keeps of them, measured after every task through the router
//! and without task ids, beside what one adapter keeps. Never sees flags or terminals.
//!
//! Everything here is a pure function of the file, the base and the code, so results are kept by what they depend on, in the run's
//! folder: a run that is begun again, with more seeds or another order, computes what is not known yet and nothing else.
//!
//! ```text
//! FOLDER/
//!   lives.jsonl        what each subagent, and each training of a baseline, came to
//!   cells.jsonl        what each arm was worth on each task at each stage
//!   finished.jsonl     arms from their beginning to their end; what was learned for them need not be there any more
//!   answers.jsonl      how single questions were answered, by adapter and question
//!   library/, runs/    the skills of all seeds and orders, and what is being learned
//!   trained/           the baselines' adapters, as PEFT directories
//!   derived/           features of prompts
//! ```

mod arms;
mod cost;
mod desk;
mod directory;
mod lives;
mod metrics;
mod outcome;
mod outlook;
mod panel;
mod publish;
mod rehearse;
mod report;
mod spec;

pub use arms::ArmRun;
pub use cost::Spent;
pub(super) use cost::forward;
pub use cost::{forward_rows, training};
pub use desk::{Cell, Life};
pub use metrics::{Metrics, Spread, metrics, spread};
pub use outcome::{Outcome, Summary};
pub use spec::{Baseline, Stream, StreamError, Task};

use super::{AgentError, Session};
use crate::common::Report;
use arms::expected;
use desk::Desk;
use std::path::Path;

/// Runs `stream` in `folder`: what is known there is not computed again.
///
/// # Errors
/// The first that occurs; what was learned and measured until then is kept.
pub fn run_stream(
    session: &Session,
    stream: &Stream,
    folder: &Path,
    report: &mut dyn Report,
) -> Result<Outcome, AgentError> {
    let desk = Desk::open(session, stream, folder)?;
    let mut outlook = expected(&desk);
    let base = desk.base_cells(report)?;
    desk.live_ahead(&mut outlook, report)?;
    // Seed by seed, so that what a sitting leaves is whole.
    let mut runs = Vec::new();
    for &seed in &stream.seeds {
        let first = runs.len();
        for order in 0..stream.orders.len() {
            runs.push(desk.routed(order, seed, &mut outlook, report)?);
        }
        for &baseline in &stream.baselines {
            let run = desk.baseline(baseline, &runs[first], &mut outlook, report)?;
            runs.push(run);
        }
    }
    Ok(Outcome { stream: stream.clone(), base, runs })
}
