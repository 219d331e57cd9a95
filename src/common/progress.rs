//! How long work says how far it is, and learns that nobody waits any more. Never sees a terminal.

/// What kind of work is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Phase {
    Download,
    Upload,
    Verification,
    Loading,
    Rollouts,
    Training,
    Evaluation,
    Measurement,
}

/// What is being counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Unit {
    Bytes,
    Items,
    Steps,
    Tokens,
}

/// A state of long work. The same `phase` and `label` as before mean that the work goes on; `done == total` ends it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress<'a> {
    /// What kind of work.
    pub phase: Phase,
    /// What it works on: a file, a skill, an environment.
    pub label: &'a str,
    /// How much is done.
    pub done: u64,
    /// Of how much, if that is known.
    pub total: Option<u64>,
    /// What both count.
    pub unit: Unit,
    /// What else is worth seeing now, such as `loss 0.41, reward 0.75`; may be empty.
    pub detail: &'a str,
}

/// Whoever waits for long work.
pub trait Report {
    /// The work got this far. May be called often: the receiver decides what to show.
    fn progress(&mut self, progress: Progress<'_>);

    /// One line worth reading whatever the progress, such as why a source was passed over.
    fn note(&mut self, line: &str);

    /// Whether the work should end cleanly at its next step, leaving what is resumable.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Report for Silent {
    fn progress(&mut self, _: Progress<'_>) {}

    fn note(&mut self, _: &str) {}
}
