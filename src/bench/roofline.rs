//! How near each operation comes to what the machine can do (Williams, Waterman and Patterson 2009). Never sees models.

use super::{BenchError, median, ops::Op};
use crate::common::{Phase, Progress, Report, Unit};
use socius_kernels::peak::{Memory, Peaks};
use std::time::Instant;

/// An operation is called so often, …
const CALLS: usize = 15;
/// … but, once it has been called three times, for no more than so many seconds.
const SECONDS: f64 = 0.5;

/// What keeps an operation from being faster on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Multiplications and additions.
    Compute,
    /// Reads and writes of memory.
    Memory,
}

/// How fast an operation was.
#[derive(Clone, Debug, PartialEq)]
pub struct Reached {
    /// Which operation.
    pub name: String,
    /// How often a step computes it.
    pub calls: usize,
    /// Median seconds of a call.
    pub seconds: f64,
    /// Operations a second.
    pub operations_per_s: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// What bounds it.
    pub bound: Bound,
    /// The seconds that the bound asks for, as a share of those that a call took.
    pub fraction: f64,
}

/// Times operations whose data is in memory and in no cache, as it is in a step that passes over a whole model between two
/// calls.
pub struct Roofline {
    memory: Memory,
    /// The machine's peaks.
    pub peaks: Peaks,
    /// The peak of products that operations are held against.
    compute: f64,
}

impl Roofline {
    /// Measures the peaks. Products are held against the bf16 peak if `narrow` and the running variant has one, else against f32's.
    pub fn new(narrow: bool) -> Self {
        let memory = Memory::new();
        let peaks = Peaks::measure(&memory);
        let compute = peaks.bf16.filter(|_| narrow).unwrap_or(peaks.f32);
        Self { memory, peaks, compute }
    }

    /// Times each of `ops`.
    ///
    /// # Errors
    /// If an end was asked for.
    pub fn measure(&self, ops: Vec<Op>, report: &mut dyn Report) -> Result<Vec<Reached>, BenchError> {
        let total = ops.len() as u64;
        let mut reached = Vec::with_capacity(ops.len());
        for (done, op) in ops.into_iter().enumerate() {
            let (phase, label, unit, done) = (Phase::Measurement, "operations", Unit::Items, done as u64);
            report.progress(Progress { phase, label, done, total: Some(total), unit, detail: &op.name });
            if report.cancelled() {
                return Err(BenchError::Cancelled);
            }
            reached.push(self.reach(op));
        }
        Ok(reached)
    }

    fn reach(&self, mut op: Op) -> Reached {
        op.run();
        let mut times = Vec::new();
        while times.len() < 3 || times.len() < CALLS && times.iter().sum::<f64>() < SECONDS {
            self.memory.evict();
            let start = Instant::now();
            op.run();
            times.push(start.elapsed().as_secs_f64());
        }
        let seconds = median(&mut times);
        let (compute, memory) = (op.operations / self.compute, op.bytes / self.peaks.read);
        Reached {
            calls: op.calls,
            seconds,
            operations_per_s: op.operations / seconds,
            bytes_per_s: op.bytes / seconds,
            bound: if compute > memory { Bound::Compute } else { Bound::Memory },
            fraction: compute.max(memory) / seconds,
            name: op.name,
        }
    }
}
