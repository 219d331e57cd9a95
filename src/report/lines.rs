//! Lines with bands of uncertainty over common axes, and bars.

use super::{
    page::Drawing,
    svg::{Anchor, Canvas, colour, number, path, ticks, width_of},
};

const SIZE: (f64, f64) = (480.0, 260.0);
const LEFT: f64 = 48.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
const BAR: f64 = 22.0;

/// One line.
pub struct Line<'a> {
    /// What it is.
    pub name: &'a str,
    /// (x, y), x ascending.
    pub points: Vec<(f64, f64)>,
    /// (x, low, high), x ascending; may be empty.
    pub band: Vec<(f64, f64, f64)>,
}

/// Lines over common axes.
pub struct Lines<'a> {
    /// In the order of their colours.
    pub lines: Vec<Line<'a>>,
    /// What x and y are.
    pub axes: (&'a str, &'a str),
    /// Lowest and highest y; none takes what the lines have.
    pub range: Option<(f64, f64)>,
}

impl Lines<'_> {
    fn bounds(&self) -> [(f64, f64); 2] {
        let xs = self.lines.iter().flat_map(|line| line.points.iter().map(|point| point.0));
        let points = self.lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
        let bands = self.lines.iter().flat_map(|line| line.band.iter().flat_map(|band| [band.1, band.2]));
        let bounds = |values: &mut dyn Iterator<Item = f64>| {
            let finite = values.filter(|value| value.is_finite());
            let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
            if low < high {
                (low, high)
            } else if low.is_finite() {
                (low - 0.5, low + 0.5)
            } else {
                (0.0, 1.0)
            }
        };
        [bounds(&mut xs.into_iter()), self.range.unwrap_or_else(|| bounds(&mut points.chain(bands)))]
    }
}

impl Drawing for Lines<'_> {
    fn svg(&self) -> String {
        let [x_range, y_range] = self.bounds();
        let legend = self.lines.iter().map(|line| width_of(line.name)).fold(0.0, f64::max) + 30.0;
        let mut canvas = Canvas::new(LEFT + SIZE.0 + legend, TOP + SIZE.1 + BOTTOM);
        let x = |value: f64| LEFT + SIZE.0 * (value - x_range.0) / (x_range.1 - x_range.0);
        let y = |value: f64| TOP + SIZE.1 * (1.0 - (value - y_range.0) / (y_range.1 - y_range.0)).clamp(0.0, 1.0);
        for tick in ticks(y_range.0, y_range.1) {
            canvas.line((LEFT, y(tick)), (LEFT + SIZE.0, y(tick)));
            canvas.text((LEFT - 6.0, y(tick) + 4.0), Anchor::End, &number(tick));
        }
        for tick in ticks(x_range.0, x_range.1) {
            canvas.text((x(tick), TOP + SIZE.1 + 16.0), Anchor::Middle, &number(tick));
        }
        canvas.styled((LEFT + SIZE.0 / 2.0, TOP + SIZE.1 + 34.0), Anchor::Middle, self.axes.0, "class=\"soft\"");
        canvas.styled((LEFT + 4.0, TOP + 10.0), Anchor::Start, self.axes.1, "class=\"soft\"");
        for (i, Line { name, points, band }) in self.lines.iter().enumerate() {
            let colour = colour(i);
            if !band.is_empty() {
                let there = band.iter().map(|&(at, low, _)| (x(at), y(low)));
                let back = band.iter().rev().map(|&(at, _, high)| (x(at), y(high)));
                let outline = path(there.chain(back));
                canvas.put(format_args!("<polygon points=\"{outline}\" fill=\"{colour}\" fill-opacity=\"0.15\"/>"));
            }
            let points = path(points.iter().map(|&(at, value)| (x(at), y(value))));
            canvas.put(format_args!(
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
            ));
            let (left, top) = (LEFT + SIZE.0 + 10.0, TOP + 6.0 + 17.0 * i as f64);
            canvas.put(format_args!("<rect x=\"{left}\" y=\"{top}\" width=\"12\" height=\"4\" fill=\"{colour}\"/>"));
            canvas.text((left + 17.0, top + 6.0), Anchor::Start, name);
        }
        canvas.finish()
    }
}

/// Horizontal bars from 0.
pub struct Bars<'a> {
    /// What each is, and how much.
    pub bars: Vec<(&'a str, f64)>,
    /// What they count.
    pub unit: &'a str,
}

impl Drawing for Bars<'_> {
    fn svg(&self) -> String {
        let left = self.bars.iter().map(|(name, _)| width_of(name)).fold(0.0, f64::max) + 8.0;
        let longest = self.bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
        let mut canvas = Canvas::new(left + 400.0, BAR * self.bars.len() as f64 + 20.0);
        for (i, (name, value)) in self.bars.iter().enumerate() {
            let (y, width) = (BAR * i as f64, 260.0 * (value / longest).clamp(0.0, 1.0));
            let height = BAR - 5.0;
            let colour = colour(i);
            canvas.text((left - 6.0, y + 13.0), Anchor::End, name);
            canvas.put(format_args!(
                "<rect x=\"{left}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"/>"
            ));
            canvas.text((left + width + 6.0, y + 13.0), Anchor::Start, &number(*value));
        }
        canvas.styled((left, BAR * self.bars.len() as f64 + 13.0), Anchor::Start, self.unit, "class=\"soft\"");
        canvas.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_inside_the_axes_whatever_its_values() {
        for values in [vec![], vec![0.5], vec![0.0, 1.0, 0.5], vec![f64::NAN, 2.0], vec![3.0; 4]] {
            let points: Vec<(f64, f64)> = (0..).map(f64::from).zip(values.iter().copied()).collect();
            let band = points.iter().map(|&(x, y)| (x, y - 0.1, y + 0.1)).collect();
            let lines = vec![Line { name: "a&b", points, band }];
            let svg = Lines { lines, axes: ("step", "loss"), range: None }.svg();
            assert!(svg.contains("<polyline") && svg.contains("a&amp;b") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn bars_are_in_proportion_to_the_longest() {
        let svg = Bars { bars: vec![("a", 1.0), ("b", 4.0), ("c", 0.0)], unit: "minutes" }.svg();
        for width in ["width=\"65.0\"", "width=\"260.0\"", "width=\"0.0\""] {
            assert!(svg.contains(width), "{svg}");
        }
    }
}
