//! Names of skills, and how a command names one generation of a skill. Knows no storage.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

const LENGTH_MAX: usize = 64;
/// Words that mean something else wherever a skill is named.
const RESERVED: [&str; 3] = ["auto", "base", "none"];
/// Longest number that `NAME@NUMBER` takes; anything longer is a digest's prefix.
const NUMBER_DIGITS_MAX: usize = 5;
const PREFIX_MIN: usize = 6;

/// A skill's name: 1 to 64 of `a-z A-Z 0-9 . _ -`, starting with a letter or digit, and none of `auto`, `base`, `none`. It can
/// stand in a file name, in a URL and after the colon of `base:skill`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SkillName(String);

/// A text that cannot name a skill or a generation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a skill's name: {what}")]
pub struct NameError {
    found: String,
    what: &'static str,
}

impl SkillName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SkillName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = |what| NameError { found: text.chars().take(2 * LENGTH_MAX).collect(), what };
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=LENGTH_MAX).contains(&text.len()) {
            return Err(error("1 to 64 characters are expected"));
        }
        if !text.bytes().all(allowed) || !text.as_bytes()[0].is_ascii_alphanumeric() {
            return Err(error("letters, digits, '.', '_' and '-' are allowed, and a letter or digit comes first"));
        }
        if RESERVED.iter().any(|word| text.eq_ignore_ascii_case(word)) {
            return Err(error("auto, base and none are reserved"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for SkillName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<SkillName> for String {
    fn from(name: SkillName) -> Self {
        name.0
    }
}

impl fmt::Display for SkillName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which generation of a skill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that the name stands for now.
    Current,
    /// By its number in the name's history, from 1.
    Number(u32),
    /// By the first hex digits of its digest.
    Prefix(String),
}

/// `NAME`, `NAME@NUMBER` or `NAME@DIGEST`, where at least six digits of the digest are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkillRef {
    /// The skill.
    pub name: SkillName,
    /// Its generation.
    pub which: Which,
}

impl FromStr for SkillRef {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = |what| NameError { found: text.chars().take(2 * LENGTH_MAX).collect(), what };
        let Some((name, generation)) = text.split_once('@') else {
            return Ok(Self { name: text.parse()?, which: Which::Current });
        };
        let digits = generation.bytes().all(|b| b.is_ascii_digit());
        let which = if digits && (1..=NUMBER_DIGITS_MAX).contains(&generation.len()) {
            Which::Number(generation.parse().map_err(|_| error("the number after '@' is out of range"))?)
        } else if (PREFIX_MIN..=64).contains(&generation.len()) && generation.bytes().all(|b| b.is_ascii_hexdigit()) {
            Which::Prefix(generation.to_ascii_lowercase())
        } else {
            return Err(error("after '@' the generation's number or at least 6 hex digits of its digest are expected"));
        };
        Ok(Self { name: name.parse()?, which })
    }
}

impl From<SkillName> for SkillRef {
    fn from(name: SkillName) -> Self {
        Self { name, which: Which::Current }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_mistaken_or_escape_a_folder_are_refused() {
        for good in ["reverse", "Reverse-2", "a.b_c", "7", &"x".repeat(64)] {
            assert_eq!(good.parse::<SkillName>().unwrap().as_str(), good);
        }
        let long = "x".repeat(65);
        for bad in ["", "..", ".a", "-a", "a/b", "a b", "a:b", "a@b", "é", "auto", "None", "BASE", "a\n", &long] {
            assert!(bad.parse::<SkillName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_generation_is_named_by_number_or_prefix() {
        let which = |text: &str| text.parse::<SkillRef>().map(|found| found.which);
        assert_eq!(which("a"), Ok(Which::Current));
        assert_eq!(which("a@12"), Ok(Which::Number(12)));
        assert_eq!(which("a@12AB56"), Ok(Which::Prefix("12ab56".into())));
        assert_eq!(which("a@123456"), Ok(Which::Prefix("123456".into())));
        for bad in ["a@", "a@abc", "@12", "a@b@c", "a@12g456", "a@-1", "auto@1"] {
            assert!(which(bad).is_err(), "{bad:?}");
        }
    }
}
