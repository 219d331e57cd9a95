//! Text to token ids and back. Knows vocabularies, never conversations.

use super::{
    TextError,
    guard::{Guard, Literals},
    pieces::{Piece, Pieces, Spelling, Stream},
};
use crate::common::Digest;
use serde_json::Value;
use std::path::Path;
use tokenizers::{Model as _, OffsetReferential, OffsetType, PreTokenizer as _};

/// Whether text that spells a special token, such as `<|im_end|>`, is that token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// It is: for text that the program or a template wrote.
    Parse,
    /// It is plain text: for what users, documents and models wrote.
    Plain,
}

/// Token ids with a meaning of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Whether texts are meant to begin with `bos` where no template says otherwise.
    pub add_bos: bool,
}

/// A tokenizer, from `tokenizer.json` or from GGUF metadata.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    literals: Literals,
    ends: Ends,
}

/// No vocabulary is larger; ids are indices of tables.
pub(super) const IDS_MAX: u32 = 1 << 21;

impl Tokenizer {
    /// From the bytes of a `tokenizer.json`; `origin` names them in errors.
    pub fn from_json(bytes: &[u8], origin: &Path) -> Result<Self, TextError> {
        let wrong = |what: String| TextError::tokenizer(origin.display().to_string(), what);
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| wrong(format!("is not a tokenizer of the tokenizers library: {error}")))?;
        let decoder = serde_json::to_value(inner.get_decoder()).unwrap_or(Value::Null);
        let spelling = spelling(&decoder).ok_or_else(|| {
            wrong(format!(
                "its decoder is {}; ByteLevel or one of SentencePiece's spelling is expected",
                decoder["type"]
            ))
        })?;
        Self::new(inner, spelling, Ends::default()).map_err(wrong)
    }

    pub(super) fn new(inner: tokenizers::Tokenizer, spelling: Spelling, ends: Ends) -> Result<Self, String> {
        let vocabulary = inner.get_vocab(true);
        if let Some((token, id)) = vocabulary.iter().find(|(_, id)| **id >= IDS_MAX) {
            return Err(format!("token {token:?} has id {id}; ids below {IDS_MAX} are expected"));
        }
        let added = inner.get_added_tokens_decoder();
        let pieces = vocabulary.iter().map(|(text, id)| {
            let added = added.get(id).filter(|token| token.content == *text);
            Piece { id: *id, text, literal: added.is_some(), special: added.is_some_and(|token| token.special) }
        });
        let pieces = Pieces::new(spelling, pieces);
        let special = added.values().filter(|token| token.special).map(|token| token.content.clone());
        Ok(Self { literals: Literals::new(special), inner, pieces, ends })
    }

    pub(super) fn with_ends(self, ends: Ends) -> Self {
        Self { ends, ..self }
    }

    /// The ids of `text`, without a `bos` that the text does not spell.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, TextError> {
        let mut guard = self.guard([text]);
        match specials {
            Specials::Parse => self.encode_guarded(text, &guard),
            Specials::Plain => {
                let text = guard.protect(text).ok_or_else(too_many_stand_ins)?;
                self.encode_guarded(&text, &guard)
            }
        }
    }

    /// A guard for texts that will be tokenized together with `texts`.
    pub(super) fn guard<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Guard<'_> {
        Guard::new(&self.literals, texts)
    }

    /// The ids of a text of which parts are guarded: the tokenizer's own pipeline, with the guard taken off between the search
    /// for added tokens and the rest.
    pub(super) fn encode_guarded(&self, text: &str, guard: &Guard<'_>) -> Result<Vec<u32>, TextError> {
        let run = || -> tokenizers::Result<Vec<u32>> {
            let inner = &self.inner;
            let mut text = inner.get_added_vocabulary().extract_and_normalize(inner.get_normalizer(), text);
            if guard.is_active() {
                text.normalize(|part| {
                    part.map(|c| guard.original(c));
                    Ok(())
                })?;
            }
            if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut text)?;
            }
            text.tokenize(|part| inner.get_model().tokenize(part.get()))?;
            let splits = text.get_splits(OffsetReferential::Normalized, OffsetType::None);
            Ok(splits.into_iter().flat_map(|(.., tokens)| tokens.iter().flatten().map(|token| token.id)).collect())
        };
        run().map_err(|error| TextError::Encode(error.to_string()))
    }

    /// The text of `ids`, special tokens left out. Bytes that are not UTF-8 become `U+FFFD`.
    pub fn decode(&self, ids: &[u32]) -> String {
        read(self.stream(), ids)
    }

    /// The text of `ids`, special tokens as they are spelled: for people who look at prompts.
    pub fn decode_with_specials(&self, ids: &[u32]) -> String {
        read(Stream::new(&self.pieces, true), ids)
    }

    /// Text of ids as they come; what it yields adds up to [`Tokenizer::decode`].
    pub fn stream(&self) -> Stream<'_> {
        Stream::new(&self.pieces, false)
    }

    /// The id of a token by its exact spelling in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The spelling of a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes that a token stands for: not always whole characters.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.bytes(id)
    }

    /// Whether `id` is a special token: control, never content.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// Ids that begin and end texts.
    pub fn ends(&self) -> Ends {
        self.ends
    }

    /// One more than the largest id.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Of everything that decides ids.
    pub fn digest(&self) -> Digest {
        Digest::of(self.inner.to_string(false).unwrap_or_default())
    }

    /// Whether the tokenizer's own post-processor begins texts with `bos`.
    pub(super) fn begins_with(&self, bos: u32) -> bool {
        self.inner.encode("", true).is_ok_and(|encoding| encoding.get_ids().first() == Some(&bos))
    }
}

pub(super) fn too_many_stand_ins() -> TextError {
    TextError::Encode("the text uses too many private-use characters (U+E000 to U+F8FF)".into())
}

fn read(mut stream: Stream<'_>, ids: &[u32]) -> String {
    let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
    text.push_str(&stream.finish());
    text
}

/// What a decoder of the `tokenizers` library says about the vocabulary's spelling.
fn spelling(decoder: &Value) -> Option<Spelling> {
    let steps = match decoder["type"].as_str()? {
        "Sequence" => decoder["decoders"].as_array()?.as_slice(),
        _ => std::slice::from_ref(decoder),
    };
    let step = |kind: &str| steps.iter().find(|step| step["type"] == kind);
    if step("ByteLevel").is_some() {
        return Some(Spelling::ByteLevel);
    }
    if let Some(metaspace) = step("Metaspace") {
        return Some(Spelling::SentencePiece { strip: metaspace["prepend_scheme"] != "never" });
    }
    let replaces = step("Replace").is_some_and(|step| step["pattern"]["String"] == "▁" && step["content"] == " ");
    let strip = step("Strip").is_some_and(|step| step["content"] == " " && step["start"] == 1);
    replaces.then_some(Spelling::SentencePiece { strip })
}
