//! A matrix as coloured squares with their values.

use super::{
    page::Drawing,
    svg::{Anchor, Canvas, width_of},
};

const CELL: (f64, f64) = (52.0, 30.0);

/// A matrix of shares.
pub struct Heat<'a> {
    /// What the rows are, from the top.
    pub rows: Vec<&'a str>,
    /// What the columns are.
    pub columns: Vec<&'a str>,
    /// `[row][column]`, each in 0 … 1; none stays empty.
    pub values: &'a [Vec<Option<f64>>],
    /// What rows and columns mean.
    pub axes: (&'a str, &'a str),
}

impl Drawing for Heat<'_> {
    fn svg(&self) -> String {
        let widest = |names: &[&str]| names.iter().map(|name| width_of(name)).fold(0.0, f64::max);
        let (left, top) = (widest(&self.rows).max(width_of(self.axes.0)) + 12.0, widest(&self.columns) * 0.75 + 34.0);
        let (right, bottom) = (left + CELL.0 * self.columns.len() as f64, top + CELL.1 * self.rows.len() as f64);
        let mut canvas = Canvas::new(right + widest(&self.columns) * 0.75, bottom + 4.0);
        canvas.styled((left + 2.0, 12.0), Anchor::Start, self.axes.1, "class=\"soft\"");
        canvas.styled((left - 8.0, top - 6.0), Anchor::End, self.axes.0, "class=\"soft\"");
        for (j, name) in self.columns.iter().enumerate() {
            let (x, y) = (left + CELL.0 * (j as f64 + 0.5), top - 6.0);
            canvas.styled((x, y), Anchor::Start, name, &format!("transform=\"rotate(-45 {x:.1} {y:.1})\""));
        }
        for (i, name) in self.rows.iter().enumerate() {
            let y = top + CELL.1 * i as f64;
            canvas.text((left - 8.0, y + 20.0), Anchor::End, name);
            for (j, value) in self.values[i].iter().enumerate() {
                let x = left + CELL.0 * j as f64;
                let Some(value) = value else { continue };
                let (width, height) = (CELL.0 - 2.0, CELL.1 - 2.0);
                let fill = shade(*value);
                canvas.put(format_args!(
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width}\" height=\"{height}\" rx=\"3\" fill=\"{fill}\"/>"
                ));
                let ink = if *value > 0.45 { "style=\"fill:#fff\"" } else { "style=\"fill:#1b1f24\"" };
                canvas.styled((x + CELL.0 / 2.0, y + 19.0), Anchor::Middle, &format!("{:.1}", 100.0 * value), ink);
            }
        }
        canvas.finish()
    }
}

/// From nearly white at 0 to deep blue at 1.
fn shade(value: f64) -> String {
    let value = value.clamp(0.0, 1.0);
    let mix = |from: f64, to: f64| (from + (to - from) * value).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(238.0, 8.0), mix(243.0, 69.0), mix(248.0, 138.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_square_for_every_value_and_none_for_what_was_not_measured() {
        let values = [vec![Some(1.0), None], vec![Some(0.25), Some(0.0)]];
        let names = vec!["a<b", "c"];
        let svg = Heat { rows: names.clone(), columns: names, values: &values, axes: ("after", "on") }.svg();
        assert_eq!(svg.matches("<rect").count(), 3);
        assert!(svg.contains(">100.0<") && svg.contains(">25.0<") && svg.contains("a&lt;b") && !svg.contains("a<b"));
        assert_eq!((shade(0.0), shade(1.0), shade(9.0)), ("#eef3f8".into(), "#08458a".into(), "#08458a".into()));
    }
}
