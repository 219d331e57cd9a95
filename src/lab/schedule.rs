//! Cells under way: as many at a time as are asked for, each when those whose work it uses have ended. Never knows what they measure.

use super::{Cell, Finished, LabError, Launch, Limits, Line, Measurement, Planned, Records, Told};
use crate::common::{Phase, Progress, Report, Unit};
use std::{
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, Scope},
    time::{Duration, Instant},
};

/// How often somebody who waits for cells looks whether anybody still waits for him.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is known of the cells of a call.
struct Schedule<'a> {
    waiting: Vec<&'a Planned>,
    /// In the order in which they began.
    running: Vec<Running<'a>>,
    limits: Limits,
    /// Cells of the plan.
    total: usize,
    begun: Instant,
    /// Expected work that is done.
    done: f64,
}

/// A cell whose process is alive.
struct Running<'a> {
    planned: &'a Planned,
    label: String,
    started: Instant,
    measurements: usize,
    peak_bytes: Option<u64>,
    error: Option<String>,
}

/// What the thread that waits for a cell's process says of it.
enum News {
    Told(Told),
    Ended(Result<(), LabError>),
}

/// Measures `waiting`, cells of a plan of `total`; returns when all are through or the time is over.
///
/// # Errors
/// As [`super::run`]. No process is left running.
pub(super) fn measure(
    (folder, launch): (&Path, &dyn Launch),
    (waiting, total): (Vec<&Planned>, usize),
    limits: Limits,
    records: &mut Records,
    report: &mut dyn Report,
) -> Result<(), LabError> {
    let begun = Instant::now();
    let mut schedule = Schedule { waiting, running: Vec::new(), limits, total, begun, done: 0.0 };
    let wanted = AtomicBool::new(true);
    thread::scope(|scope| {
        let (sender, news) = mpsc::channel();
        let begin = |cell: &'_ Planned| follow((folder, launch), &cell.cell, &wanted, sender.clone(), scope);
        let result = schedule.work(&begin, &news, records, report);
        // Whatever still runs is waited for by nobody.
        wanted.store(false, Ordering::Relaxed);
        result
    })
}

/// Starts the process of `cell` on a thread that passes on what it tells.
fn follow<'scope>(
    (folder, launch): (&'scope Path, &'scope dyn Launch),
    cell: &Cell,
    wanted: &'scope AtomicBool,
    sender: Sender<(String, News)>,
    scope: &'scope Scope<'scope, '_>,
) {
    let cell = cell.clone();
    scope.spawn(move || {
        let key = cell.key();
        // A receiver that is gone has seen an error and ends everything by itself.
        let say = |news: News| drop(sender.send((key.clone(), news)));
        let mut tell = |told: Told| {
            say(News::Told(told));
            Ok(())
        };
        let ended = launch.launch(folder, &cell, &mut tell, &|| wanted.load(Ordering::Relaxed));
        say(News::Ended(ended));
    });
}

impl<'a> Schedule<'a> {
    fn work(
        &mut self,
        begin: &dyn Fn(&'a Planned),
        news: &Receiver<(String, News)>,
        records: &mut Records,
        report: &mut dyn Report,
    ) -> Result<(), LabError> {
        loop {
            while let Some(planned) = self.next() {
                report.note(&self.announced(planned));
                records.append(Line::Begun(planned.cell.clone()))?;
                self.running.push(Running::new(planned));
                begin(planned);
            }
            if self.running.is_empty() {
                return Ok(());
            }
            match news.recv_timeout(LOOK_EVERY) {
                Ok((key, news)) => self.hear(&key, news, records, report)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the schedule's own sender is alive"),
            }
            if report.cancelled() {
                return Err(LabError::Cancelled);
            }
        }
    }

    /// Takes the first cell that may begin now.
    fn next(&mut self) -> Option<&'a Planned> {
        let over = self.limits.time.is_some_and(|limit| self.begun.elapsed() >= limit);
        if over || self.running.len() >= self.limits.jobs.get() {
            return None;
        }
        let open = |cell: &Cell| {
            self.waiting.iter().chain(self.running.iter().map(|running| &running.planned)).any(|p| p.cell == *cell)
        };
        let at = self.waiting.iter().position(|planned| !planned.after.iter().any(open))?;
        Some(self.waiting.remove(at))
    }

    /// Which cell begins, and when all will be through if they take what was expected of them.
    fn announced(&self, planned: &Planned) -> String {
        let place = self.total - self.waiting.len();
        let open = self.waiting.iter().chain(self.running.iter().map(|running| &running.planned)).chain([&planned]);
        let left: f64 = open.map(|planned| planned.weight).sum();
        let minutes = self.begun.elapsed().as_secs_f64() / self.done * left / 60.0;
        let left = match minutes {
            _ if self.done == 0.0 => String::new(),
            ..1.0 => "; less than a minute left".to_owned(),
            _ => format!("; about {minutes:.0} min left"),
        };
        format!("cell {place} of {}: {}{left}", self.total, planned.cell)
    }

    fn hear(&mut self, key: &str, news: News, records: &mut Records, report: &mut dyn Report) -> Result<(), LabError> {
        let at = self.running.iter().position(|running| running.planned.cell.key() == key);
        let at = at.expect("only cells that run have anything to tell");
        let running = &mut self.running[at];
        match news {
            News::Told(Told::Measured { values, cost }) => {
                running.measurements += 1;
                records.append(Line::Measured(Measurement { cell: running.planned.cell.clone(), values, cost }))
            }
            News::Told(Told::Progress { done, total, detail }) => {
                // Of several cells, the one that began first.
                if at == 0 {
                    let (phase, unit) = (Phase::Measurement, Unit::Steps);
                    let (label, total, detail) = (&*running.label, Some(total), &*detail);
                    report.progress(Progress { phase, label, done, total, unit, detail });
                }
                Ok(())
            }
            News::Told(Told::Finished { peak_bytes }) => {
                running.peak_bytes = peak_bytes;
                Ok(())
            }
            News::Told(Told::Failed(why)) => {
                running.error = Some(why);
                Ok(())
            }
            News::Ended(result) => {
                let mut ended = self.running.remove(at);
                match result {
                    Ok(()) => {}
                    Err(LabError::Process(why)) => ended.error = Some(why),
                    Err(other) => return Err(other),
                }
                if let Some(why) = &ended.error {
                    report.note(&format!("{}: {why}", ended.label));
                }
                self.done += ended.planned.weight;
                records.append(Line::Finished(ended.finished()))
            }
        }
    }
}

impl<'a> Running<'a> {
    fn new(planned: &'a Planned) -> Self {
        let label = planned.cell.to_string();
        Self { planned, label, started: Instant::now(), measurements: 0, peak_bytes: None, error: None }
    }

    fn finished(self) -> Finished {
        let Self { planned, measurements, error, peak_bytes, .. } = self;
        let seconds = self.started.elapsed().as_secs_f64();
        Finished { cell: planned.cell.clone(), measurements, error, peak_bytes, seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Silent;
    use serde_json::json;
    use std::{num::NonZeroUsize, sync::Mutex};

    /// Cells of which the first two take until `together` have begun, or nobody waits any more.
    struct Recorded {
        together: usize,
        jobs: usize,
        /// Beginnings and ends, by cell.
        seen: Mutex<Vec<(u64, bool)>>,
    }

    impl Recorded {
        /// Cells that have begun, and those of them that have not ended.
        fn count(&self) -> (usize, usize) {
            let seen = self.seen.lock().unwrap();
            let begun = seen.iter().filter(|(_, begins)| *begins).count();
            (begun, 2 * begun - seen.len())
        }
    }

    impl Launch for Recorded {
        fn launch(
            &self,
            _: &Path,
            cell: &Cell,
            tell: &mut dyn FnMut(Told) -> Result<(), LabError>,
            wanted: &dyn Fn() -> bool,
        ) -> Result<(), LabError> {
            let n = cell.parameters()["n"].as_u64().unwrap();
            self.seen.lock().unwrap().push((n, true));
            while n <= 2 && self.count().0 < self.together {
                if !wanted() {
                    return Err(LabError::Cancelled);
                }
                thread::sleep(Duration::from_millis(1));
            }
            assert!(self.count().1 <= self.jobs, "more at a time than were asked for");
            self.seen.lock().unwrap().push((n, false));
            match n {
                3 => tell(Told::Failed("out of luck".into())),
                4 => Err(LabError::Process("killed".into())),
                _ => tell(Told::Finished { peak_bytes: Some(n) }),
            }
        }
    }

    fn cell(n: u64) -> Cell {
        Cell::of(&json!({ "n": n }))
    }

    /// Five cells: the third uses the first and second, the fifth the fourth.
    fn plan() -> Vec<Planned> {
        let after = |n| match n {
            3 => vec![cell(1), cell(2)],
            5 => vec![cell(4)],
            _ => Vec::new(),
        };
        (1..=5).map(|n| Planned { cell: cell(n), weight: 1.0, after: after(n) }).collect()
    }

    fn limits(jobs: usize) -> Limits {
        Limits { time: None, retry: false, jobs: NonZeroUsize::new(jobs).unwrap() }
    }

    #[test]
    fn cells_run_beside_each_other_but_after_those_that_they_use() {
        for jobs in [1, 2, 4] {
            let folder = tempfile::tempdir().unwrap();
            let mut records = Records::open(folder.path()).unwrap();
            let launch = Recorded { together: jobs.min(2), jobs, seen: Mutex::default() };
            let plan = plan();
            let cells = (plan.iter().collect(), 5);
            measure((folder.path(), &launch), cells, limits(jobs), &mut records, &mut Silent).unwrap();
            let seen = launch.seen.into_inner().unwrap();
            let at = |n, begins| seen.iter().position(|&entry| entry == (n, begins)).unwrap();
            assert!(at(3, true) > at(1, false).max(at(2, false)) && at(5, true) > at(4, false), "{jobs}: {seen:?}");
            assert_eq!(at(2, true) < at(1, false), jobs > 1, "{jobs}: {seen:?}");
            for n in 1..=5 {
                let finished = records.finished(&cell(n)).unwrap();
                let error = [None, None, None, Some("out of luck"), Some("killed"), None][n as usize];
                assert_eq!(finished.error.as_deref(), error);
                assert_eq!(finished.peak_bytes, error.is_none().then_some(n));
            }
        }
    }

    /// Nobody waits any more once the first cell has begun.
    struct Leaves(bool);

    impl Report for Leaves {
        fn progress(&mut self, _: Progress<'_>) {}

        fn note(&mut self, _: &str) {
            self.0 = true;
        }

        fn cancelled(&self) -> bool {
            self.0
        }
    }

    #[test]
    fn who_leaves_gets_no_further_cell_and_none_is_through() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::open(folder.path()).unwrap();
        let launch = Recorded { together: 9, jobs: 2, seen: Mutex::default() };
        let plan = plan();
        let cells = (plan.iter().collect(), 5);
        let result = measure((folder.path(), &launch), cells, limits(2), &mut records, &mut Leaves(false));
        assert!(matches!(result, Err(LabError::Cancelled)));
        assert!(plan.iter().all(|planned| records.finished(&planned.cell).is_none()));
    }
}
