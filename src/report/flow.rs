//! What goes from where to where, as ribbons whose heights are amounts.

use super::{
    page::Drawing,
    svg::{Anchor, Canvas, colour, width_of},
};

const HEIGHT: f64 = 24.0;
const GAP: f64 = 6.0;
const SPAN: f64 = 300.0;
const POST: f64 = 8.0;

/// An amount from one thing on the left to one on the right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stream {
    /// Place on the left.
    pub from: usize,
    /// Place on the right.
    pub to: usize,
    /// How much, above 0.
    pub amount: f64,
}

/// Streams between two columns of things.
pub struct Flow<'a> {
    /// From the top.
    pub left: Vec<&'a str>,
    /// From the top.
    pub right: Vec<&'a str>,
    /// In any order.
    pub streams: Vec<Stream>,
}

impl Drawing for Flow<'_> {
    fn svg(&self) -> String {
        let sum = |side: fn(&Stream) -> usize, place: usize| {
            self.streams.iter().filter(|stream| side(stream) == place).map(|stream| stream.amount).sum::<f64>()
        };
        let [from, to]: [fn(&Stream) -> usize; 2] = [|stream| stream.from, |stream| stream.to];
        let largest = (0..self.left.len()).map(|place| sum(from, place)).fold(f64::MIN_POSITIVE, f64::max);
        let scale = HEIGHT / largest;
        // Where each thing's post begins, and how far down the last ends.
        let posts = |count: usize, side| {
            let mut y = 4.0;
            let place = |place| {
                let top = y;
                y += (sum(side, place) * scale).max(10.0) + GAP;
                top
            };
            let tops: Vec<f64> = (0..count).map(place).collect();
            (tops, y)
        };
        let (mut lefts, left_end) = posts(self.left.len(), from);
        let (mut rights, right_end) = posts(self.right.len(), to);
        let widest = |names: &[&str]| names.iter().map(|name| width_of(name)).fold(0.0, f64::max) + 10.0;
        let (x1, margin) = (widest(&self.left), widest(&self.right));
        let x2 = x1 + SPAN;
        let mut canvas = Canvas::new(x2 + POST + margin, left_end.max(right_end));
        for (names, tops, x, side) in [(&self.left, &lefts, x1 - POST, from), (&self.right, &rights, x2, to)] {
            for (place, name) in names.iter().enumerate() {
                let (y, height) = (tops[place], (sum(side, place) * scale).max(1.0));
                let fill = colour(place);
                canvas.put(format_args!(
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{POST}\" height=\"{height:.1}\" fill=\"{fill}\"/>"
                ));
                let (at, anchor) = if x < x2 { (x - 5.0, Anchor::End) } else { (x + POST + 5.0, Anchor::Start) };
                canvas.text((at, y + 10.0), anchor, name);
            }
        }
        let mut streams: Vec<&Stream> = self.streams.iter().filter(|stream| stream.amount > 0.0).collect();
        streams.sort_by_key(|stream| (stream.from, stream.to));
        for stream in streams {
            let height = stream.amount * scale;
            let (y1, y2) = (lefts[stream.from], rights[stream.to]);
            lefts[stream.from] += height;
            rights[stream.to] += height;
            let (middle, fill) = ((x1 + x2) / 2.0, colour(stream.from));
            let (z1, z2) = (y1 + height, y2 + height);
            canvas.put(format_args!(
                "<path d=\"M{x1:.1},{y1:.1}C{middle:.1},{y1:.1} {middle:.1},{y2:.1} {x2:.1},{y2:.1}L{x2:.1},{z2:.1}C{middle:.1},{z2:.1} \
                 {middle:.1},{z1:.1} {x1:.1},{z1:.1}Z\" fill=\"{fill}\" fill-opacity=\"0.45\"/>"
            ));
        }
        canvas.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_above_zero_is_a_ribbon_and_every_thing_a_post() {
        let streams =
            [(0, 0, 10.0), (0, 2, 1.0), (1, 1, 5.0), (1, 0, 0.0)].map(|(from, to, amount)| Stream { from, to, amount });
        let svg = Flow { left: vec!["a", "<b>"], right: vec!["a", "b", "base"], streams: streams.to_vec() }.svg();
        assert_eq!((svg.matches("<path").count(), svg.matches("<rect").count()), (3, 5));
        assert!(svg.contains("&lt;b&gt;") && !svg.contains("NaN"));
        assert!(!Flow { left: vec![], right: vec![], streams: vec![] }.svg().contains("NaN"));
    }
}
