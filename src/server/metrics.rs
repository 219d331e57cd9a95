//! Counters and gauges in Prometheus' text format. Knows no request's content.

use crate::engine::Engine;
use std::{
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Upper bounds of the histogram of times to the first token, in seconds.
const BOUNDS: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// What the server has done and holds.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// By class of status: 2xx, 4xx, 5xx.
    responses: [AtomicU64; 3],
    pub(super) prompt_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    steps: AtomicU64,
    rows: AtomicU64,
    reserved_tokens: AtomicU64,
    reused_tokens: AtomicU64,
    first_token: Mutex<Histogram>,
}

#[derive(Debug, Default)]
struct Histogram {
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Metrics {
    pub(super) fn responded(&self, status: u16) {
        let class = match status {
            0..400 => 0,
            400..500 => 1,
            _ => 2,
        };
        self.responses[class].fetch_add(1, Relaxed);
    }

    /// After a step.
    pub(super) fn engine(&self, engine: &Engine) {
        self.steps.fetch_add(1, Relaxed);
        self.rows.store(engine.rows() as u64, Relaxed);
        self.reserved_tokens.store(engine.reserved_tokens() as u64, Relaxed);
        self.reused_tokens.store(engine.reused_tokens(), Relaxed);
    }

    pub(super) fn first_token(&self, after: Duration) {
        let mut histogram = self.first_token.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = after.as_secs_f64();
        histogram.count += 1;
        histogram.sum += seconds;
        BOUNDS.iter().zip(&mut histogram.counts).filter(|(bound, _)| seconds <= **bound).for_each(|(_, n)| *n += 1);
    }

    /// In Prometheus' format, with gauges `(name, help, value)` that others keep.
    pub(super) fn render(&self, gauges: &[(&str, &str, u64)]) -> String {
        let mut text = String::new();
        let name = "socius_responses_total";
        let _ = writeln!(text, "# HELP {name} Responses by class of status.\n# TYPE {name} counter");
        for (class, count) in ["2xx", "4xx", "5xx"].iter().zip(&self.responses) {
            let _ = writeln!(text, "{name}{{class=\"{class}\"}} {}", count.load(Relaxed));
        }
        let counters = [
            ("socius_prompt_tokens_total", "Tokens of prompts.", &self.prompt_tokens),
            ("socius_generated_tokens_total", "Tokens drawn.", &self.generated_tokens),
            ("socius_reused_tokens_total", "Tokens of prompts that did not have to be read.", &self.reused_tokens),
            ("socius_steps_total", "Forward passes of the engine.", &self.steps),
        ];
        for (name, help, value) in counters {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {}", value.load(Relaxed));
        }
        let own = [
            ("socius_rows", "Samples in the last step.", self.rows.load(Relaxed)),
            ("socius_reserved_tokens", "Tokens that running requests may cache.", self.reserved_tokens.load(Relaxed)),
        ];
        for (name, help, value) in own.iter().chain(gauges) {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        let histogram = self.first_token.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "socius_first_token_seconds";
        let _ = writeln!(text, "# HELP {name} Time to the first token.\n# TYPE {name} histogram");
        for (bound, count) in BOUNDS.iter().zip(histogram.counts) {
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let Histogram { count, sum, .. } = &*histogram;
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let metrics = Metrics::default();
        [200, 404, 429, 500].iter().for_each(|status| metrics.responded(*status));
        [0.04, 0.3, 99.0].iter().for_each(|seconds| metrics.first_token(Duration::from_secs_f64(*seconds)));
        let text = metrics.render(&[("socius_requests", "In flight.", 7)]);
        for line in [
            "socius_responses_total{class=\"4xx\"} 2",
            "socius_requests 7",
            "socius_first_token_seconds_bucket{le=\"0.05\"} 1",
            "socius_first_token_seconds_bucket{le=\"0.5\"} 2",
            "socius_first_token_seconds_bucket{le=\"+Inf\"} 3",
            "socius_first_token_seconds_count 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
