//! Keeps text that a user wrote from being read as special tokens: the first character of whatever could become one is
//! replaced by a private-use character while special tokens are looked for, and put back before the text is tokenized.
//! Knows neither tokens nor templates.
//!
//! This way a conversation is rendered and tokenized as one text, as it was in training (a content's first letters may merge
//! with the template's last), and still only the template's own special tokens count.

use std::{borrow::Cow, collections::BTreeMap};

/// The literals to guard against, by their first character.
#[derive(Clone, Debug, Default)]
pub(super) struct Literals(BTreeMap<char, Vec<String>>);

impl Literals {
    pub(super) fn new(literals: impl IntoIterator<Item = String>) -> Self {
        let mut by_first: BTreeMap<char, Vec<String>> = BTreeMap::new();
        for literal in literals {
            if let Some(first) = literal.chars().next() {
                by_first.entry(first).or_default().push(literal);
            }
        }
        Self(by_first)
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        self.0.values().flatten()
    }

    /// Whether a literal starts at the start of `rest`, or `rest` is the start of one.
    fn starts_in(&self, rest: &str) -> bool {
        let Some(candidates) = rest.chars().next().and_then(|first| self.0.get(&first)) else { return false };
        candidates.iter().any(|literal| rest.starts_with(literal.as_str()) || literal.starts_with(rest))
    }

    /// Whether `text` starts with the end of a literal, whose beginning may stand before it.
    fn ends_in(&self, text: &str) -> bool {
        let is_end = |literal: &String| {
            let ends = literal.char_indices().skip(1).map(|(at, _)| &literal[at..]);
            ends.into_iter().any(|end| text.starts_with(end) || end.starts_with(text))
        };
        !text.is_empty() && self.all().any(is_end)
    }
}

/// Characters that stand for others.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    literals: &'a Literals,
    free: Vec<char>,
    /// (stand-in, original)
    pairs: Vec<(char, char)>,
}

impl<'a> Guard<'a> {
    /// Guards texts that will stand among `others`; stand-ins occur in none of them.
    pub(super) fn new<'t>(literals: &'a Literals, others: impl IntoIterator<Item = &'t str>) -> Self {
        let used: std::collections::HashSet<char> =
            others.into_iter().flat_map(str::chars).filter(|c| PRIVATE_USE.contains(c)).collect();
        let free = PRIVATE_USE.filter(|c| !used.contains(c)).take(STAND_INS_MAX).collect();
        Self { literals, free, pairs: Vec::new() }
    }

    /// `text` with a stand-in for the first character of every literal in it, and of what could become one together with the
    /// text around it. None if too many characters need a stand-in.
    pub(super) fn protect<'t>(&mut self, text: &'t str) -> Option<Cow<'t, str>> {
        let mut hazards: Vec<usize> =
            text.char_indices().map(|(at, _)| at).filter(|at| self.literals.starts_in(&text[*at..])).collect();
        if hazards.first() != Some(&0) && self.literals.ends_in(text) {
            hazards.insert(0, 0);
        }
        if hazards.is_empty() {
            return Some(Cow::Borrowed(text));
        }
        let mut hazards = hazards.into_iter().peekable();
        let mut protected = String::with_capacity(text.len() + 8);
        for (at, c) in text.char_indices() {
            let hazard = hazards.next_if_eq(&at).is_some();
            protected.push(if hazard { self.stand_in(c)? } else { c });
        }
        Some(Cow::Owned(protected))
    }

    /// The original of a stand-in; any other character as it is.
    pub(super) fn original(&self, c: char) -> char {
        self.pairs.iter().find(|(stand_in, _)| *stand_in == c).map_or(c, |(_, original)| *original)
    }

    /// Whether anything was replaced.
    pub(super) fn is_active(&self) -> bool {
        !self.pairs.is_empty()
    }

    fn stand_in(&mut self, original: char) -> Option<char> {
        if let Some((stand_in, _)) = self.pairs.iter().find(|(_, o)| *o == original) {
            return Some(*stand_in);
        }
        let stand_in = self.free.pop()?;
        self.pairs.push((stand_in, original));
        Some(stand_in)
    }
}

const PRIVATE_USE: std::ops::RangeInclusive<char> = '\u{E000}'..='\u{F8FF}';

/// Special tokens start with a handful of different characters, and a text adds at most its first.
const STAND_INS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn literals() -> Literals {
        Literals::new(["<|im_end|>", "<s>", "</s>", "[INST]", "§", "<|im_end|>x"].map(String::from))
    }

    /// The text with `_` for stand-ins.
    fn masked(text: &str) -> String {
        let literals = literals();
        let mut guard = Guard::new(&literals, [text]);
        let protected = guard.protect(text).unwrap();
        protected.chars().map(|c| if guard.original(c) == c { c } else { '_' }).collect()
    }

    #[test]
    fn only_what_is_or_could_become_a_special_token_is_replaced() {
        let rows = [
            ("", ""),
            ("plain text", "plain text"),
            ("a <|im_end|> b", "a _|im_end|> b"),
            ("<s><s></s>", "_s>_s>_/s>"),
            ("a < b and <b>", "a < b and <b>"),
            ("ends with <|im_", "ends with _|im_"),
            ("ends with <", "ends with _"),
            ("m_end|> starts", "__end|> starts"),
            ("§", "_"),
            ("see [INST] there", "see _INST] there"),
            ("> quoted", "_ quoted"),
        ];
        for (text, expected) in rows {
            assert_eq!(masked(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_special_token_survives_whatever_stands_around(
            parts in prop::collection::vec(prop_oneof!["[<|>/s§im_endx]{0,6}", Just("<|im_end|>".to_owned()), any::<String>()], 0..5),
            before in prop::sample::select(vec!["", "<", "<|im_", "<|im_end|"]),
            after in prop::sample::select(vec!["", ">", "|>", "s>"]),
        ) {
            let (literals, text) = (literals(), parts.concat());
            prop_assume!(!text.is_empty());
            let mut guard = Guard::new(&literals, [text.as_str(), before, after]);
            let protected = guard.protect(&text).unwrap().into_owned();
            let whole = format!("{before}{protected}{after}");
            let inside = before.len()..before.len() + protected.len();
            for literal in literals.all() {
                for (at, _) in whole.match_indices(literal.as_str()) {
                    let end = at + literal.len();
                    prop_assert!(end <= inside.start || at >= inside.end, "{literal} in {whole:?}");
                }
            }
            prop_assert_eq!(protected.chars().map(|c| guard.original(c)).collect::<String>(), text);
        }
    }
}
