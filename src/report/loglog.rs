//! Lines over two logarithmic axes: how something grows over decades.

use super::{
    page::Drawing,
    svg::{Anchor, Canvas, colour, path, width_of},
};

const SIZE: (f64, f64) = (440.0, 280.0);
const LEFT: f64 = 56.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 40.0;

/// One curve.
pub struct Curve<'a> {
    /// What it is.
    pub name: &'a str,
    /// (x, y), x ascending; what is not above 0 is left out.
    pub points: Vec<(f64, f64)>,
    /// Whether it is drawn with gaps, as something that holds under reserve.
    pub dashed: bool,
    /// Place of its colour, so that the same thing has the same colour in every drawing.
    pub colour: usize,
}

/// Curves over common logarithmic axes.
pub struct LogLog<'a> {
    /// In the order of the legend.
    pub curves: Vec<Curve<'a>>,
    /// What x and y are.
    pub axes: (&'a str, &'a str),
}

/// Exponents of two of the lowest and highest x, and of ten of y.
struct Bounds {
    x: (f64, f64),
    y: (f64, f64),
}

impl LogLog<'_> {
    fn bounds(&self) -> Bounds {
        let drawn = || self.curves.iter().flat_map(|curve| &curve.points).filter(|point| is_drawn(point));
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
        };
        let (mut x, y) =
            (range(&mut drawn().map(|point| point.0.log2())), range(&mut drawn().map(|point| point.1.log10())));
        if x.0 > x.1 {
            return Bounds { x: (0.0, 1.0), y: (0.0, 1.0) };
        }
        if x.1 - x.0 < 1e-9 {
            x = (x.0 - 1.0, x.1 + 1.0);
        }
        let mut y = (y.0.floor(), y.1.ceil());
        if y.1 - y.0 < 0.5 {
            y.1 += 1.0;
        }
        Bounds { x, y }
    }
}

fn is_drawn(point: &(f64, f64)) -> bool {
    point.0 > 0.0 && point.1 > 0.0 && point.0.is_finite() && point.1.is_finite()
}

impl Drawing for LogLog<'_> {
    fn svg(&self) -> String {
        let bounds = self.bounds();
        let legend = self.curves.iter().map(|curve| width_of(curve.name)).fold(0.0, f64::max) + 40.0;
        let height = SIZE.1.max(17.0 * self.curves.len() as f64);
        let mut canvas = Canvas::new(LEFT + SIZE.0 + legend, TOP + height + BOTTOM);
        let x = |value: f64| LEFT + SIZE.0 * (value.log2() - bounds.x.0) / (bounds.x.1 - bounds.x.0);
        let y = |value: f64| TOP + SIZE.1 * (1.0 - (value.log10() - bounds.y.0) / (bounds.y.1 - bounds.y.0));
        let decades = (bounds.y.1 - bounds.y.0) as i32;
        for decade in (0..=decades).filter(|decade| decades <= 8 || decade % 2 == 0) {
            let exponent = bounds.y.0 as i32 + decade;
            let at = y(10f64.powi(exponent));
            canvas.line((LEFT, at), (LEFT + SIZE.0, at));
            canvas.text((LEFT - 6.0, at + 4.0), Anchor::End, &power_of_ten(exponent));
        }
        let (first, last) = (bounds.x.0.ceil() as i32, bounds.x.1.floor() as i32);
        let every = ((last - first) / 8 + 1).max(1);
        for exponent in (first..=last).filter(|exponent| (exponent - first) % every == 0) {
            let value = 2f64.powi(exponent);
            canvas.text((x(value), TOP + SIZE.1 + 16.0), Anchor::Middle, &short(value));
        }
        canvas.styled((LEFT + SIZE.0 / 2.0, TOP + SIZE.1 + 34.0), Anchor::Middle, self.axes.0, "class=\"soft\"");
        canvas.styled((LEFT - 40.0, TOP - 10.0), Anchor::Start, self.axes.1, "class=\"soft\"");
        for (i, curve) in self.curves.iter().enumerate() {
            let colour = colour(curve.colour);
            let dash = if curve.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
            let points: Vec<(f64, f64)> =
                curve.points.iter().filter(|point| is_drawn(point)).map(|&(at, value)| (x(at), y(value))).collect();
            canvas.put(format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
                path(points.iter().copied())
            ));
            for (at, value) in points {
                canvas.put(format_args!("<circle cx=\"{at:.1}\" cy=\"{value:.1}\" r=\"3\" fill=\"{colour}\"/>"));
            }
            let (left, top) = (LEFT + SIZE.0 + 12.0, TOP + 6.0 + 17.0 * i as f64);
            canvas.put(format_args!(
                "<line x1=\"{left}\" y1=\"{top}\" x2=\"{}\" y2=\"{top}\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
                left + 20.0
            ));
            canvas.text((left + 26.0, top + 4.0), Anchor::Start, curve.name);
        }
        canvas.finish()
    }
}

/// `1`, `10`, `1 000`, then `1e6`.
fn power_of_ten(exponent: i32) -> String {
    match exponent {
        0 => "1".into(),
        1 => "10".into(),
        2 => "100".into(),
        _ => format!("1e{exponent}"),
    }
}

/// A power of two in at most four digits.
fn short(value: f64) -> String {
    match value {
        v if v >= 1048576.0 => format!("{}M", v / 1048576.0),
        v if v >= 16384.0 => format!("{}k", v / 1024.0),
        v if v >= 1.0 => format!("{v}"),
        v => format!("1/{}", 1.0 / v),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve<'a>(name: &'a str, points: &[(f64, f64)]) -> Curve<'a> {
        Curve { name, points: points.to_vec(), dashed: false, colour: 0 }
    }

    #[test]
    fn a_power_law_is_a_straight_line_and_what_is_not_above_zero_is_left_out() {
        let squares: Vec<(f64, f64)> = [16.0, 64.0, 256.0].iter().map(|&n| (n, n * n)).collect();
        let svg = LogLog { curves: vec![curve("a<b", &squares)], axes: ("N", "cost") }.svg();
        let points: Vec<Vec<f64>> = svg
            .split("points=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .split(' ')
            .map(|point| point.split(',').map(|value| value.parse().unwrap()).collect())
            .collect();
        let slope = |i: usize| (points[i + 1][1] - points[i][1]) / (points[i + 1][0] - points[i][0]);
        assert!((slope(0) - slope(1)).abs() < 0.01 && slope(0) < 0.0, "{points:?}");
        assert!(svg.contains("a&lt;b") && svg.contains(">1e5<"));
        let svg =
            LogLog { curves: vec![curve("a", &[(0.0, 1.0), (2.0, f64::NAN), (4.0, 3.0)])], axes: ("N", "cost") }.svg();
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(!LogLog { curves: vec![], axes: ("N", "cost") }.svg().contains("NaN"));
    }
}
