//! How long a run will still take: what stages of each kind took in this sitting, and how many are left. Never sees what they do.

use std::{collections::BTreeMap, time::Instant};

#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    left: usize,
    timed: usize,
    seconds: f64,
}

/// Stages by kind.
#[derive(Debug, Default)]
pub(super) struct Outlook(BTreeMap<String, Kind>);

impl Outlook {
    /// There will be so many stages of this kind whose outcome is not known.
    pub(super) fn expect(&mut self, kind: &str, stages: usize) {
        self.0.entry(kind.to_owned()).or_default().left += stages;
    }

    /// Does one of them.
    pub(super) fn time<T>(&mut self, kind: &str, work: impl FnOnce() -> T) -> T {
        self.time_all(kind, 1, work)
    }

    /// Does several at once.
    pub(super) fn time_all<T>(&mut self, kind: &str, stages: usize, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        let each = begun.elapsed().as_secs_f64() / stages as f64;
        (0..stages).for_each(|_| self.took(kind, each));
        done
    }

    fn took(&mut self, kind: &str, seconds: f64) {
        let kind = self.0.entry(kind.to_owned()).or_default();
        (kind.left, kind.timed, kind.seconds) = (kind.left.saturating_sub(1), kind.timed + 1, kind.seconds + seconds);
    }

    /// In words, if anything has been timed. A kind of which nothing has been takes what the others do on average.
    pub(super) fn left(&self) -> Option<String> {
        let (timed, seconds) = self.0.values().fold((0, 0.0), |(n, s), kind| (n + kind.timed, s + kind.seconds));
        let mean = (timed > 0).then(|| seconds / timed as f64)?;
        let each = |kind: &Kind| if kind.timed > 0 { kind.seconds / kind.timed as f64 } else { mean };
        let left: f64 = self.0.values().map(|kind| kind.left as f64 * each(kind)).sum();
        let minutes = (left / 60.0).ceil() as u64;
        Some(if minutes >= 90 { format!("about {:.1} hours", left / 3600.0) } else { format!("about {minutes} min") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_what_stages_of_its_kind_took() {
        let mut outlook = Outlook::default();
        outlook.expect("life", 3);
        outlook.expect("cell", 2);
        assert_eq!(outlook.left(), None);
        outlook.took("life", 120.0);
        // Two lives of two minutes, and two cells that are thought to take as much.
        assert_eq!(outlook.left().unwrap(), "about 8 min");
        outlook.took("cell", 60.0);
        assert_eq!(outlook.left().unwrap(), "about 5 min");
        outlook.expect("life", 60);
        assert_eq!(outlook.left().unwrap(), "about 2.1 hours");
    }
}
