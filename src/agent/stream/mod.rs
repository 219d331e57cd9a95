//! A stream of tasks, each of which births a subagent: what the library keeps of them, measured after every task through the router
//! and without task ids, beside what one adapter keeps. Never sees flags or terminals.
//!
//! Everything here is a pure function of the file, the base and the code, so results are kept by what they depend on: a run that is
//! begun again, with more seeds or another order, computes what is not known yet and nothing else.

mod metrics;
mod spec;

pub use metrics::{Metrics, Spread, metrics, spread};
pub use spec::{Baseline, Stream, StreamError, Task};
