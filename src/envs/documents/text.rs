//! Texts cut into passages of whole words, at the ends of sentences where that goes. Never makes questions.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Words longer than this are cut: what has no white space would be one word else.
const WORD_BYTES_MAX: usize = 48;

/// A text, and what it is called in questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its name.
    pub title: String,
    /// Its words.
    pub text: String,
}

/// A part of a document that fits into any context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// What its document is called.
    pub title: String,
    /// Its words, a space apart.
    pub text: String,
}

impl Passage {
    /// The number of its words.
    pub fn words(&self) -> usize {
        self.text.split(' ').count()
    }
}

/// What keeps files from being documents.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else than text.
    #[error("{path} is not UTF-8 text (byte {at} does not fit): convert it to plain text first")]
    NotText {
        /// Which.
        path: PathBuf,
        /// The first byte that does not fit.
        at: usize,
    },
    /// A file without a word.
    #[error("{path} has no words in it")]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// A folder without a file that could be read.
    #[error("{path} holds no file that is text: give files, or a folder of plain-text files")]
    NoFiles {
        /// Which.
        path: PathBuf,
    },
    /// Too few questions to learn by some and judge by others.
    #[error(
        "{words} words give {questions} questions, too few to train, validate and test: some sixty words are needed"
    )]
    TooShort {
        /// Words found.
        words: usize,
        /// Questions that they give.
        questions: usize,
    },
}

/// Reads `paths`: files as they are named, and of a folder all files in it (not in folders inside it) that are text and not hidden, by name.
/// A document is called by its file's name without its ending.
///
/// # Errors
/// The first file that cannot be read or has no text, or a folder without any.
pub fn documents(paths: &[PathBuf]) -> Result<Vec<Document>, DocumentError> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = found.len();
            let inside = files(path)?.into_iter().map(|file| read(&file));
            // Whatever else lies in a folder was not asked for by name.
            let wanted = |result: &Result<Document, DocumentError>| {
                !matches!(result, Err(DocumentError::NotText { .. } | DocumentError::Empty { .. }))
            };
            for document in inside.filter(wanted) {
                found.push(document?);
            }
            if found.len() == before {
                return Err(DocumentError::NoFiles { path: path.clone() });
            }
        } else {
            found.push(read(path)?);
        }
    }
    Ok(found)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, DocumentError> {
    let fault = |source| DocumentError::Unreadable { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if path.is_file() && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Document, DocumentError> {
    let bytes = fs::read(path).map_err(|source| DocumentError::Unreadable { path: path.to_owned(), source })?;
    let text = String::from_utf8(bytes)
        .map_err(|error| DocumentError::NotText { path: path.to_owned(), at: error.utf8_error().valid_up_to() })?;
    if text.contains('\0') {
        let at = text.find('\0').unwrap_or_default();
        return Err(DocumentError::NotText { path: path.to_owned(), at });
    }
    if text.split_whitespace().next().is_none() {
        return Err(DocumentError::Empty { path: path.to_owned() });
    }
    let title = path.file_stem().map_or_else(|| "the text".to_owned(), |stem| stem.to_string_lossy().into_owned());
    Ok(Document { title, text })
}

/// The passages of a document, each of at most `bytes_max` bytes (at least one word), ended early at the last end of a sentence in its
/// second half.
pub(super) fn cut(document: &Document, bytes_max: usize) -> Vec<Passage> {
    let words: Vec<&str> = document.text.split_whitespace().flat_map(pieces).collect();
    let mut passages = Vec::new();
    let mut rest = &words[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |word: &&&str| {
            bytes += word.len() + 1;
            bytes <= bytes_max + 1
        };
        let fitting = rest.iter().take_while(fits).count().max(1);
        let whole = fitting == rest.len();
        let ends = |word: &&str| word.trim_end_matches(['"', '”', ')']).ends_with(['.', '!', '?', ':', ';']);
        let sentence = rest[..fitting].iter().rposition(ends).map(|last| last + 1);
        let end = if whole { fitting } else { sentence.filter(|&end| end > fitting / 2).unwrap_or(fitting) };
        passages.push(Passage { title: document.title.clone(), text: rest[..end].join(" ") });
        rest = &rest[end..];
    }
    passages
}

/// A word in pieces of at most [`WORD_BYTES_MAX`].
fn pieces(word: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), word);
    while rest.len() > WORD_BYTES_MAX {
        let (head, tail) = rest.split_at(rest.floor_char_boundary(WORD_BYTES_MAX));
        found.push(head);
        rest = tail;
    }
    found.push(rest);
    found
}
