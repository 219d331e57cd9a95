//! Text on its way out, of which the end is held back while it may be the beginning of a stop string. Knows no tokens.

/// See above.
#[derive(Clone, Debug)]
pub struct Held {
    stop: Vec<String>,
    text: String,
    sent: usize,
    stopped: bool,
}

impl Held {
    /// Nothing yet; the text will end before the first of the strings `stop`.
    pub fn new(mut stop: Vec<String>) -> Self {
        stop.retain(|stop| !stop.is_empty());
        Self { stop, text: String::new(), sent: 0, stopped: false }
    }

    /// Adds `piece` and gives what may be shown by now. After a stop string nothing more is taken.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.text.push_str(piece);
        // What was released is part of no stop string.
        let unsent = &self.text[self.sent..];
        if let Some(end) = self.stop.iter().filter_map(|stop| unsent.find(stop)).min() {
            self.text.truncate(self.sent + end);
            self.stopped = true;
        }
        self.release(if self.stopped { self.text.len() } else { self.text.len() - self.pending() })
    }

    /// Whether a stop string has come.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// What was held back: nothing follows that would make it a stop string.
    pub fn finish(&mut self) -> String {
        self.release(self.text.len())
    }

    /// Everything up to the stop string.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Bytes at the end that may begin a stop string.
    fn pending(&self) -> usize {
        let begins = |stop: &String| {
            let longest = stop.len().saturating_sub(1).min(self.text.len() - self.sent);
            (1..=longest).rev().find(|&n| stop.is_char_boundary(n) && self.text.ends_with(&stop[..n]))
        };
        self.stop.iter().filter_map(begins).max().unwrap_or(0)
    }

    fn release(&mut self, end: usize) -> String {
        let end = end.max(self.sent);
        let from = std::mem::replace(&mut self.sent, end);
        self.text[from..end].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_string_is_cut_off_and_no_part_of_it_is_released() {
        let rows: &[(&[&str], &[&str], &str)] = &[
            (&["ab", "c\n", "\nd"], &["\n\n"], "abc"),
            (&["ab", "c\n", "d"], &["\n\n"], "abc\nd"),
            (&["Ende", "ENDx"], &["END"], "Ende"),
            (&["aé", "éb"], &["éé"], "a"),
            (&["abc"], &["", "bc", "b"], "a"),
            (&["abc"], &[], "abc"),
            (&["aaa", "b"], &["aab"], "a"),
        ];
        for (pieces, stop, expected) in rows {
            let mut held = Held::new(stop.iter().map(|s| (*s).to_owned()).collect());
            let mut released: String = pieces.iter().map(|piece| held.push(piece)).collect();
            released += &held.finish();
            assert_eq!((held.into_text().as_str(), released.as_str()), (*expected, *expected), "{pieces:?} {stop:?}");
        }
    }
}
