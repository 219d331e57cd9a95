//! What people see: results on stdout, progress and notes on stderr. Knows phases and counts, never what they mean.

use super::{interrupt, text};
use crate::common::{Phase, Progress, Report, Unit};
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// Without a terminal, work is silent for so long, and then says where it is as often.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Stdout and stderr of one command.
pub(super) struct Terminal {
    json: bool,
    /// Whether stderr is looked at by somebody.
    live: bool,
    work: Option<Work>,
}

/// The work that is going on.
struct Work {
    phase: Phase,
    label: String,
    bar: ProgressBar,
    started: Instant,
    /// How much was done when it started, as a resumed download has.
    offset: u64,
    told: Instant,
}

impl Terminal {
    pub(super) fn new(json: bool) -> Self {
        Self { json, live: io::stderr().is_terminal(), work: None }
    }

    /// A line of the result, for people; nothing with `--json`.
    pub(super) fn line(&mut self, line: impl AsRef<str>) -> io::Result<()> {
        self.clear();
        if self.json { Ok(()) } else { writeln!(anstream::stdout(), "{}", line.as_ref()) }
    }

    /// A piece of a line, shown at once.
    pub(super) fn piece(&mut self, piece: &str) -> io::Result<()> {
        self.clear();
        if self.json {
            return Ok(());
        }
        // What a model writes may hold control sequences: they are not the terminal's business.
        let shown: String = piece.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        write!(io::stdout(), "{shown}")?;
        io::stdout().flush()
    }

    /// Lines of the result.
    pub(super) fn lines(&mut self, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
        lines.into_iter().try_for_each(|line| self.line(line))
    }

    /// A title of the result.
    pub(super) fn title(&mut self, title: &str) -> io::Result<()> {
        let style = Style::new().bold();
        self.line(format!("{style}{title}{style:#}"))
    }

    /// Ends the command: with `--json`, the last line of stdout.
    pub(super) fn finish(&mut self, value: &Value) -> io::Result<()> {
        self.clear();
        if self.json { writeln!(io::stdout(), "{value}") } else { Ok(()) }
    }

    /// Why the command failed.
    pub(super) fn error(&mut self, message: &str) {
        self.clear();
        let style = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        anstream::eprintln!("{style}error{style:#}: {message}");
    }

    /// Takes the bar off the screen.
    fn clear(&mut self) {
        if let Some(work) = self.work.take() {
            work.bar.finish_and_clear();
        }
    }

    fn start(&mut self, progress: &Progress<'_>) {
        self.clear();
        let target = if self.live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(progress.total, target).with_style(style(progress));
        bar.set_prefix(format!("{} {}", verb(progress.phase), progress.label));
        // What an earlier run did says nothing about this one's rate.
        bar.set_position(progress.done);
        bar.reset_eta();
        self.work = Some(Work {
            phase: progress.phase,
            label: progress.label.to_owned(),
            bar,
            started: Instant::now(),
            offset: progress.done,
            told: Instant::now(),
        });
    }
}

impl Report for Terminal {
    fn progress(&mut self, progress: Progress<'_>) {
        if !self.work.as_ref().is_some_and(|work| work.phase == progress.phase && work.label == progress.label) {
            self.start(&progress);
        }
        let work = self.work.as_mut().expect("it was just started");
        work.bar.set_position(progress.done);
        if !progress.detail.is_empty() {
            work.bar.set_message(progress.detail.to_owned());
        }
        if !self.live && work.told.elapsed() >= PLAIN_EVERY {
            work.told = Instant::now();
            eprintln!("{}", plain(&progress, work.started.elapsed(), work.offset));
        }
        if progress.total == Some(progress.done) {
            self.clear();
        }
    }

    fn note(&mut self, line: &str) {
        let bar = self.work.as_ref().map(|work| work.bar.clone());
        let print = || anstream::eprintln!("{line}");
        bar.map_or_else(print, |bar| bar.suspend(print));
    }

    fn cancelled(&self) -> bool {
        interrupt::asked()
    }
}

fn verb(phase: Phase) -> &'static str {
    match phase {
        Phase::Download => "fetching",
        Phase::Upload => "sending",
        Phase::Verification => "verifying",
        Phase::Loading => "loading",
        Phase::Rollouts => "acting",
        Phase::Training => "training",
        Phase::Evaluation => "testing",
        Phase::Measurement => "measuring",
    }
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => "bytes",
        Unit::Items => "items",
        Unit::Steps => "steps",
        Unit::Tokens => "tokens",
    }
}

fn style(progress: &Progress<'_>) -> ProgressStyle {
    let (count, rate) = match progress.unit {
        Unit::Bytes => ("{decimal_bytes} of {decimal_total_bytes}", "{decimal_bytes_per_sec}".to_owned()),
        other => ("{human_pos} of {human_len}", format!("{{per_sec:.1}} {}", unit(other))),
    };
    let template = match progress.total {
        Some(_) => format!("{{prefix}} {{wide_bar}} {count}, {rate}, {{eta}} left  {{msg}}"),
        None => format!("{{prefix}} {{spinner}} {}, {rate}  {{msg}}", count.split(' ').next().expect("a count")),
    };
    ProgressStyle::with_template(&template).expect("the template is fixed").progress_chars("━╸ ")
}

/// `training reverse: 12 of 40 steps, 0.8 steps/s, 35 s left; loss 0.41`
fn plain(progress: &Progress<'_>, elapsed: Duration, offset: u64) -> String {
    let amount = |n: u64| if progress.unit == Unit::Bytes { text::bytes(n) } else { n.to_string() };
    let counted = if progress.unit == Unit::Bytes { String::new() } else { format!(" {}", unit(progress.unit)) };
    let rate = progress.done.saturating_sub(offset) as f64 / elapsed.as_secs_f64().max(1e-9);
    let speed = match progress.unit {
        Unit::Bytes => format!("{}/s", text::bytes(rate as u64)),
        other => format!("{rate:.1} {}/s", unit(other)),
    };
    let (of, left) = match progress.total {
        Some(total) => {
            let seconds = total.saturating_sub(progress.done) as f64 / rate.max(1e-9);
            let left = Duration::try_from_secs_f64(seconds.min(1e9)).unwrap_or_default();
            let left = if rate > 0.0 { format!(", {} left", text::duration(left)) } else { String::new() };
            (format!(" of {}", amount(total)), left)
        }
        None => Default::default(),
    };
    let detail = if progress.detail.is_empty() { String::new() } else { format!("; {}", progress.detail) };
    let (verb, label, done) = (verb(progress.phase), progress.label, amount(progress.done));
    format!("{verb} {label}: {done}{of}{counted}, {speed}{left}{detail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_has_count_rate_and_time_left_whatever_is_known() {
        let steps = Progress {
            phase: Phase::Training,
            label: "reverse",
            done: 12,
            total: Some(40),
            unit: Unit::Steps,
            detail: "loss 0.41",
        };
        let line = |progress: &Progress<'_>, offset| plain(progress, Duration::from_secs(10), offset);
        assert_eq!(line(&steps, 2), "training reverse: 12 of 40 steps, 1.0 steps/s, 28 s left; loss 0.41");
        let bytes = Progress { unit: Unit::Bytes, phase: Phase::Download, detail: "", ..steps };
        assert_eq!(
            line(&Progress { done: 5_000_000, total: Some(15_000_000), ..bytes }, 0),
            "fetching reverse: 5.0 MB of 15.0 MB, 500.0 kB/s, 20 s left"
        );
        assert_eq!(line(&Progress { total: None, ..bytes }, 12), "fetching reverse: 12 B, 0 B/s");
        assert_eq!(line(&Progress { done: 0, ..steps }, 0), "training reverse: 0 of 40 steps, 0.0 steps/s; loss 0.41");
    }

    #[test]
    fn every_kind_of_work_has_a_bar() {
        let mut terminal = Terminal::new(true);
        for unit in [Unit::Bytes, Unit::Items, Unit::Steps, Unit::Tokens] {
            for total in [None, Some(2)] {
                for done in 0..=2 {
                    let phase = Phase::Rollouts;
                    terminal.progress(Progress { phase, label: "x", done, total, unit, detail: "reward 0.5" });
                }
                assert_eq!(terminal.work.is_some(), total.is_none(), "a finished bar is taken away");
            }
        }
    }
}
