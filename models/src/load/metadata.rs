//! The key-value part of a GGUF file: checked once when it is opened, decoded when it is asked for; never knows what a key means.

use super::{cursor::Cursor, map::Mapped};
use crate::ModelError;
use std::{collections::BTreeMap, sync::Arc};

/// GGUF's value types, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unsigned(usize),
    Signed(usize),
    Float(usize),
    Bool,
    Text,
    Array,
}

impl Kind {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::Float(4),
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::Float(8),
            _ => return None,
        })
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::Float(_) => "a float",
            Self::Bool => "a boolean",
            Self::Text => "a string",
            Self::Array => "an array",
        }
    }

    /// Bytes of one value, if all values have as many.
    fn width(self) -> Option<usize> {
        match self {
            Self::Unsigned(bytes) | Self::Signed(bytes) | Self::Float(bytes) => Some(bytes),
            Self::Bool => Some(1),
            Self::Text | Self::Array => None,
        }
    }
}

/// Where a value stands in the file. An array of `count` values of `kind`, or one.
#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: Kind,
    array: Option<usize>,
    at: usize,
}

/// A GGUF file's metadata. Arrays stay in the mapped file until they are asked for.
#[derive(Clone, Debug)]
pub struct Metadata {
    file: Arc<Mapped>,
    entries: BTreeMap<String, Entry>,
}

impl Metadata {
    /// Walks over `count` pairs, checking every length against the file.
    pub(super) fn read(file: &Arc<Mapped>, cursor: &mut Cursor<'_>, count: usize) -> Result<Self, String> {
        let mut entries = BTreeMap::new();
        for index in 0..count {
            let key = cursor.text().map_err(|e| format!("metadata key {index} of {count}: {e}"))?.to_owned();
            let entry = read_entry(cursor).map_err(|e| format!("metadata key {key}: {e}"))?;
            if entries.insert(key.clone(), entry).is_some() {
                return Err(format!("metadata key {key} stands twice"));
            }
        }
        Ok(Self { file: file.clone(), entries })
    }

    /// All keys, in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.scalar(key, "a string", |kind, cursor| match kind {
            Kind::Text => cursor.text().ok(),
            _ => None,
        })
    }

    /// An integer that is not negative.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.scalar(key, "an integer ≥ 0", |kind, cursor| u64::try_from(integer(kind, cursor)?).ok())
    }

    /// A number, of whatever type.
    pub fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.scalar(key, "a number", number)
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.scalar(key, "a boolean", |kind, cursor| match kind {
            Kind::Bool => Some(cursor.bytes(1).ok()?[0] != 0),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, ModelError> {
        self.array(key, "an array of strings", |kind, cursor| match kind {
            Kind::Text => cursor.text().ok(),
            _ => None,
        })
    }

    /// An array of integers.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, ModelError> {
        self.array(key, "an array of integers", |kind, cursor| i64::try_from(integer(kind, cursor)?).ok())
    }

    /// An array of numbers.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>, ModelError> {
        self.array(key, "an array of numbers", number)
    }

    /// Length of an array, without decoding it.
    pub fn array_len(&self, key: &str) -> Option<usize> {
        self.entries.get(key)?.array
    }

    /// The value as JSON, for readers that do not care where hyper-parameters come from; arrays are not given.
    pub(crate) fn json(&self, key: &str) -> Option<serde_json::Value> {
        let entry = self.entries.get(key).filter(|entry| entry.array.is_none())?;
        let mut cursor = self.cursor(entry);
        match entry.kind {
            Kind::Text => cursor.text().ok().map(Into::into),
            Kind::Bool => cursor.bytes(1).ok().map(|b| (b[0] != 0).into()),
            Kind::Float(_) => number(entry.kind, &mut cursor).map(Into::into),
            kind => {
                let value = integer(kind, &mut cursor)?;
                u64::try_from(value).map(Into::into).or_else(|_| i64::try_from(value).map(Into::into)).ok()
            }
        }
    }

    fn cursor(&self, entry: &Entry) -> Cursor<'_> {
        Cursor::new(self.file.bytes(), entry.at)
    }

    fn scalar<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(Kind, &mut Cursor<'a>) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        match entry.array {
            None => read(entry.kind, &mut self.cursor(entry)).map(Some),
            Some(_) => None,
        }
        .ok_or_else(|| wrong_type(key, entry, expected))
    }

    fn array<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(Kind, &mut Cursor<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ModelError> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        let error = || wrong_type(key, entry, expected);
        let count = entry.array.ok_or_else(error)?;
        let mut cursor = self.cursor(entry);
        (0..count).map(|_| read(entry.kind, &mut cursor)).collect::<Option<_>>().ok_or_else(error).map(Some)
    }
}

fn wrong_type(key: &str, entry: &Entry, expected: &str) -> ModelError {
    let array = if entry.array.is_some() { "an array of which each is " } else { "" };
    let what = format!("is {array}{} (or a value out of range); {expected} is expected", entry.kind.describe());
    ModelError::Config { key: key.to_owned(), what }
}

fn read_kind(cursor: &mut Cursor<'_>) -> Result<Kind, String> {
    let number = cursor.u32()?;
    Kind::from_number(number).ok_or_else(|| format!("value type {number} is unknown; 0 to 12 are expected"))
}

fn read_entry(cursor: &mut Cursor<'_>) -> Result<Entry, String> {
    let kind = read_kind(cursor)?;
    if kind != Kind::Array {
        let at = cursor.at();
        skip(cursor, kind, 1)?;
        return Ok(Entry { kind, array: None, at });
    }
    let kind = read_kind(cursor)?;
    if kind == Kind::Array {
        return Err("is an array of arrays, which is not supported".into());
    }
    let count = cursor.length("array length")?;
    let at = cursor.at();
    skip(cursor, kind, count)?;
    Ok(Entry { kind, array: Some(count), at })
}

fn skip(cursor: &mut Cursor<'_>, kind: Kind, count: usize) -> Result<(), String> {
    match kind.width() {
        Some(width) => {
            let bytes = count.checked_mul(width).ok_or_else(|| format!("{count} values do not fit in the file"))?;
            cursor.bytes(bytes).map(drop)
        }
        None => (0..count).try_for_each(|_| cursor.text().map(drop)),
    }
}

fn integer(kind: Kind, cursor: &mut Cursor<'_>) -> Option<i128> {
    let (Kind::Unsigned(width) | Kind::Signed(width)) = kind else { return None };
    let mut bytes = [0; 16];
    bytes[..width].copy_from_slice(cursor.bytes(width).ok()?);
    let value = i128::from_le_bytes(bytes);
    let unused = 128 - 8 * width as u32;
    Some(if matches!(kind, Kind::Signed(_)) { value << unused >> unused } else { value })
}

fn number(kind: Kind, cursor: &mut Cursor<'_>) -> Option<f64> {
    match kind {
        Kind::Float(4) => Some(f64::from(f32::from_le_bytes(cursor.bytes(4).ok()?.try_into().ok()?))),
        Kind::Float(_) => Some(f64::from_le_bytes(cursor.bytes(8).ok()?.try_into().ok()?)),
        _ => integer(kind, cursor).map(|value| value as f64),
    }
}
