//! The tokenizer that GGUF metadata describe, built on the `tokenizers` library. Knows llama.cpp's keys, never a template.

use super::{
    TextError,
    pieces::Spelling,
    pre::{self, Pre},
    tokenizer::{Ends, IDS_MAX, Tokenizer},
};
use socius_models::Metadata;
use std::collections::HashMap;
use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    models::bpe::{BPE, Merges},
    normalizers::{NFC, Prepend, Replace, Sequence as Normalizers},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// What GGUF calls the type of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Unknown or control: never content.
    Special,
    /// Matched in text as it is written.
    UserDefined,
    Byte,
}

/// Tokens by id.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<Kind>,
}

/// The tokenizer of a GGUF file.
pub(super) fn tokenizer(metadata: &Metadata) -> Result<Tokenizer, TextError> {
    let vocabulary = Vocabulary::read(metadata)?;
    let (inner, spelling, add_bos) = match metadata.text(MODEL)? {
        Some("gpt2") => byte_level(metadata, &vocabulary)?,
        Some("llama") => sentence_piece(metadata, &vocabulary)?,
        Some(other) => {
            return Err(TextError::tokenizer(
                MODEL,
                format!("is {other:?}; supported are gpt2 (byte-level BPE) and llama (SentencePiece)"),
            ));
        }
        None => return Err(TextError::tokenizer(MODEL, "is missing; gpt2 or llama is expected")),
    };
    let ends = Ends {
        bos: end_id(metadata, "bos_token_id")?,
        eos: end_id(metadata, "eos_token_id")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos),
    };
    Tokenizer::new(inner, spelling, ends).map_err(|what| TextError::tokenizer(TOKENS, what))
}

/// The token under `tokenizer.ggml.NAME`, if the file names one.
pub(super) fn end_id(metadata: &Metadata, name: &str) -> Result<Option<u32>, TextError> {
    let key = format!("tokenizer.ggml.{name}");
    let count = metadata.array_len(TOKENS).unwrap_or(0) as u64;
    match metadata.unsigned(&key)? {
        // llama.cpp writes −1 for a token that there is not.
        None | Some(0xffff_ffff) => Ok(None),
        Some(id) if id < count => Ok(Some(id as u32)),
        Some(id) => Err(TextError::tokenizer(key, format!("is {id}, but there are {count} tokens"))),
    }
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, TextError> {
        let tokens = metadata.texts(TOKENS)?.ok_or_else(|| TextError::tokenizer(TOKENS, "is missing"))?;
        if tokens.len() >= IDS_MAX as usize {
            return Err(TextError::tokenizer(
                TOKENS,
                format!("has {} tokens; fewer than {IDS_MAX} are expected", tokens.len()),
            ));
        }
        let types = metadata.integers(TYPES)?.unwrap_or_else(|| vec![1; tokens.len()]);
        if types.len() != tokens.len() {
            return Err(TextError::tokenizer(TYPES, format!("has {} types for {} tokens", types.len(), tokens.len())));
        }
        let mut kinds: Vec<_> = types.into_iter().map(Kind::from_number).collect();
        for name in ["bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id"] {
            if let Some(id) = end_id(metadata, name)? {
                kinds[id as usize] = Kind::Special;
            }
        }
        Ok(Self { tokens, kinds })
    }

    fn ids(&self) -> impl Iterator<Item = (String, u32)> {
        self.tokens.iter().map(|token| (*token).to_owned()).zip(0..)
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &'a str> {
        self.tokens.iter().zip(&self.kinds).filter(move |(_, k)| **k == kind).map(|(token, _)| *token)
    }

    /// `model` with the tokens that are matched before it sees a text.
    fn tokenizer(&self, model: BPE) -> Result<tokenizers::Tokenizer, TextError> {
        let mut inner = tokenizers::Tokenizer::new(model);
        let added = |special| move |token: &str| AddedToken::from(token, special).normalized(false);
        let named = |kind| self.of(kind).filter(|token| !token.is_empty());
        let add = |result: tokenizers::Result<usize>| result.map_err(|e| TextError::tokenizer(TOKENS, e.to_string()));
        add(inner.add_special_tokens(named(Kind::Special).map(added(true))))?;
        add(inner.add_tokens(named(Kind::UserDefined).map(added(false))))?;
        Ok(inner)
    }
}

impl Kind {
    fn from_number(number: i64) -> Self {
        match number {
            2 | 3 => Self::Special,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

type Built = (tokenizers::Tokenizer, Spelling, bool);

fn byte_level(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Built, TextError> {
    let pre = pre::find(metadata.text(PRE)?).map_err(|what| TextError::tokenizer(PRE, what))?;
    let merges = metadata.texts(MERGES)?.ok_or_else(|| TextError::tokenizer(MERGES, "is missing"))?;
    let merges = merges.into_iter().map(split_merge).collect::<Result<Merges, _>>()?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.ids().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(|error| TextError::tokenizer(MERGES, error.to_string()))?;
    let mut inner = vocabulary.tokenizer(model)?;
    inner.with_pre_tokenizer(Some(pre_tokenizer(pre)?));
    if pre.nfc {
        with_normalizer(&mut inner, NFC.into())?;
    }
    Ok((inner, Spelling::ByteLevel, pre.add_bos))
}

/// `"a b"`; tokens hold no spaces in this spelling, but a merge of spaces themselves may be written by files of other tools.
fn split_merge(merge: &str) -> Result<(String, String), TextError> {
    match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.to_owned(), right.to_owned())),
        _ => Err(TextError::tokenizer(MERGES, format!("{merge:?} is not two tokens with a space between"))),
    }
}

fn pre_tokenizer(pre: &Pre) -> Result<PreTokenizerWrapper, TextError> {
    let split = |pattern: &&str| {
        Split::new(SplitPattern::Regex((*pattern).into()), SplitDelimiterBehavior::Isolated, false)
            .map(PreTokenizerWrapper::from)
            .map_err(|error| TextError::tokenizer(PRE, error.to_string()))
    };
    let mut steps = pre.splits.iter().map(split).collect::<Result<Vec<_>, _>>()?;
    steps.push(ByteLevel::new(false, true, false).into());
    Ok(PreTokenizers::new(steps).into())
}

fn with_normalizer(inner: &mut tokenizers::Tokenizer, normalizer: NormalizerWrapper) -> Result<(), TextError> {
    inner.with_normalizer(Some(normalizer)).map(drop).map_err(|error| TextError::tokenizer(MODEL, error.to_string()))
}

/// SentencePiece's BPE as Hugging Face builds it for Llama: merges in the order of the scores of what they make.
fn sentence_piece(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Built, TextError> {
    let merges = match metadata.texts(MERGES)? {
        Some(merges) => merges.into_iter().map(split_merge).collect::<Result<_, _>>()?,
        None => {
            let scores = metadata.floats(SCORES)?.ok_or_else(|| TextError::tokenizer(SCORES, "is missing"))?;
            if scores.len() != vocabulary.tokens.len() {
                let what = format!("has {} scores for {} tokens", scores.len(), vocabulary.tokens.len());
                return Err(TextError::tokenizer(SCORES, what));
            }
            scored_merges(vocabulary, &scores)
        }
    };
    let mut builder = BPE::builder()
        .vocab_and_merges(vocabulary.ids().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(id) = end_id(metadata, "unknown_token_id")? {
        builder = builder.unk_token(vocabulary.tokens[id as usize].to_owned());
    }
    let model = builder.build().map_err(|error| TextError::tokenizer(TOKENS, error.to_string()))?;
    let mut inner = vocabulary.tokenizer(model)?;
    let prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = Replace::new(" ", "▁").map_err(|error| TextError::tokenizer(MODEL, error.to_string()))?;
    let prepend = prefix.then(|| Prepend::new("▁".into()).into());
    with_normalizer(&mut inner, Normalizers::new(prepend.into_iter().chain([replace.into()]).collect()).into())?;
    Ok((inner, Spelling::SentencePiece { strip: prefix }, true))
}

/// Every way to put a token together from two, best score first; of equal scores the longer left part first, then the longer
/// right part, then the order of ids: what transformers does (`generate_merges`). Only content is made this way: no merge makes
/// a special token or a byte.
fn scored_merges(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Merges {
    struct Merge<'a> {
        parts: (&'a str, &'a str),
        ids: (u32, u32),
        score: f64,
        chars: (usize, usize),
    }
    let ids: HashMap<&str, u32> = vocabulary.tokens.iter().copied().zip(0..).collect();
    let mut merges = Vec::new();
    for ((token, score), kind) in vocabulary.tokens.iter().zip(scores).zip(&vocabulary.kinds) {
        if matches!(kind, Kind::Special | Kind::Byte) {
            continue;
        }
        let total = token.chars().count();
        let split = |(left, (at, _)): (usize, (usize, char))| {
            let parts = token.split_at(at);
            let ids = (*ids.get(parts.0)?, *ids.get(parts.1)?);
            Some(Merge { parts, ids, score: *score, chars: (left, total - left) })
        };
        let mut local: Vec<_> = token.char_indices().enumerate().skip(1).filter_map(split).collect();
        local.sort_by_key(|merge| merge.ids);
        merges.append(&mut local);
    }
    merges.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.chars.cmp(&a.chars)));
    merges.into_iter().map(|merge| (merge.parts.0.to_owned(), merge.parts.1.to_owned())).collect()
}
