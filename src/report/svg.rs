//! The parts that drawings are made of.

use super::escape;
use std::fmt::Write;

/// Distinct on white and on black, and told apart by most who do not see colours as others do (Okabe & Ito 2008, without black).
const COLOURS: [&str; 7] = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#a89b00"];

/// The colour of the `i`-th of several things.
pub(super) fn colour(i: usize) -> &'static str {
    COLOURS[i % COLOURS.len()]
}

/// Where a text stands from its point.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// An SVG element as it grows.
pub(super) struct Canvas {
    size: (f64, f64),
    body: String,
}

impl Canvas {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { size: (width, height), body: String::new() }
    }

    /// An element of markup that is ours: numbers and names of colours.
    pub(super) fn put(&mut self, element: std::fmt::Arguments<'_>) {
        self.body.write_fmt(element).expect("memory does not fail");
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        self.styled((x, y), anchor, text, "");
    }

    pub(super) fn styled(&mut self, (x, y): (f64, f64), anchor: Anchor, text: &str, attributes: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        self.put(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {attributes}>{text}</text>"));
    }

    pub(super) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.put(format_args!("<line class=\"axis\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"));
    }

    pub(super) fn finish(self) -> String {
        let Self { size: (width, height), body } = self;
        format!(
            "<svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\">{body}</svg>"
        )
    }
}

/// Points of a path, the pen down from the first on.
pub(super) fn path(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    points.into_iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

/// Pixels that a text takes at most, for leaving room.
pub(super) fn width_of(text: &str) -> f64 {
    7.0 * text.chars().count() as f64
}

/// Round values from about `low` to about `high`.
pub(super) fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = (high - low).max(1e-12);
    let raw = 10f64.powf((span / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * raw).into_iter().find(|step| span / step <= 5.0).unwrap_or(span);
    let first = (low / step).ceil() as i64;
    (0..12).map(|i| (first + i) as f64 * step).take_while(|tick| *tick <= high + 1e-9 * span).collect()
}

/// A number without digits that say nothing.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_few_round_and_inside() {
        for (low, high, expected) in [
            (0.0, 1.0, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (0.0, 64.0, vec![0.0, 20.0, 40.0, 60.0]),
            (-0.1, 0.3, vec![-0.1, 0.0, 0.1, 0.2, 0.3]),
        ] {
            let found = ticks(low, high);
            assert!(
                found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9),
                "{found:?}"
            );
        }
        assert_eq!([0.5, 2.0, -0.0001, 1234.5678].map(number), ["0.5", "2", "0", "1234.568"]);
    }
}
