//! Results kept by the digest of what they are results of, a JSON line each. Never knows what they mean.

use super::Digest;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A map from keys to values, of which every insertion is in the file before it returns. Keys are never given other values.
pub struct Journal<T> {
    entries: HashMap<Digest, T>,
    path: PathBuf,
    file: File,
}

/// A journal's file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}")]
pub struct JournalError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
}

#[derive(Serialize, Deserialize)]
struct Line<T> {
    key: Digest,
    #[serde(flatten)]
    value: T,
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// Opens the journal at `path`, made if there is none. A last line that a kill left half-written is dropped.
    ///
    /// # Errors
    /// If the file cannot be read or written, or another line is not whole.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let fault = |what: String| JournalError { path: path.to_owned(), what };
        let io = |error: io::Error| fault(error.to_string());
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        let bytes = fs::read(path).map_err(io)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(io)?;
        }
        let mut entries = HashMap::new();
        for (number, line) in bytes[..whole].split(|&byte| byte == b'\n').enumerate().filter(|(_, l)| !l.is_empty()) {
            let Line { key, value } = serde_json::from_slice(line).map_err(|error| {
                fault(format!("line {} is damaged ({error}): take it out, and it is measured again", number + 1))
            })?;
            entries.insert(key, value);
        }
        Ok(Self { entries, path: path.to_owned(), file })
    }

    /// What is known under `key`.
    pub fn get(&self, key: &Digest) -> Option<&T> {
        self.entries.get(key)
    }

    /// Keeps `value` under `key`, unless something is kept there already.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn insert(&mut self, key: Digest, value: T) -> Result<(), JournalError> {
        if self.entries.contains_key(&key) {
            return Ok(());
        }
        let line = Line { key, value };
        let mut bytes = serde_json::to_vec(&line).expect("what is kept is plain data");
        bytes.push(b'\n');
        let fault = |error: io::Error| JournalError { path: self.path.clone(), what: error.to_string() };
        self.file.write_all(&bytes).map_err(fault)?;
        self.entries.insert(key, line.value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Value {
        share: f64,
        who: Option<String>,
    }

    #[test]
    fn what_was_kept_is_read_back_and_a_half_written_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let value = |i: u32| Value { share: f64::from(i) / 3.0, who: i.is_multiple_of(2).then(|| "a\nb".to_owned()) };
        let key = |i: u32| Digest::of(i.to_le_bytes());
        let mut journal = Journal::open(&path).unwrap();
        (0..4).for_each(|i| journal.insert(key(i), value(i)).unwrap());
        journal.insert(key(0), value(9)).unwrap();
        let whole = fs::read(&path).unwrap();
        for end in 0..=whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let lines = whole[..end].iter().filter(|&&byte| byte == b'\n').count() as u32;
            let mut journal = Journal::open(&path).unwrap();
            (0..4).for_each(|i| assert_eq!(journal.get(&key(i)), (i < lines).then(|| value(i)).as_ref()));
            (0..4).for_each(|i| journal.insert(key(i), value(i)).unwrap());
            assert_eq!(fs::read(&path).unwrap(), whole, "cut at {end}");
        }
    }

    proptest::proptest! {
        /// Who goes on now sees what who comes later sees, to a float's last bit.
        #[test]
        fn a_float_is_read_back_as_it_was(share in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL | proptest::num::f64::ZERO) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.jsonl");
            let kept = Value { share, who: None };
            Journal::open(&path).unwrap().insert(Digest::of("a"), kept.clone()).unwrap();
            let journal = Journal::<Value>::open(&path).unwrap();
            proptest::prop_assert_eq!(journal.get(&Digest::of("a")), Some(&kept));
        }
    }

    #[test]
    fn damage_inside_is_named_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        Journal::open(&path).unwrap().insert(Digest::of("a"), Value { share: 1.0, who: None }).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{good}{{\"key\": 3}}\n{good}")).unwrap();
        let error = Journal::<Value>::open(&path).err().unwrap().to_string();
        assert!(error.contains("a.jsonl: line 2"), "{error}");
    }
}
