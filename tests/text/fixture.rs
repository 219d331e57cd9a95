//! Tiny checkpoints that carry a tokenizer, and the recorded cases. Knows nothing of what a test proves.

use crate::checkpoint::{self, Gguf, write_json};
use candle_core::{
    DType,
    quantized::{GgmlDType, gguf_file::Value as Gv},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use socius::text::{Specials, Text, TextError};
use socius_models::{Checkpoint, Spec};
use std::{collections::BTreeMap, path::PathBuf};
use tempfile::TempDir;

/// A text and what the program that owns the format makes of it.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) text: String,
    pub(crate) parse: Vec<u32>,
    pub(crate) plain: Vec<u32>,
}

#[derive(Deserialize)]
pub(crate) struct Tiny {
    pub(crate) byte_level: ByteLevel,
    pub(crate) sentence_piece: SentencePiece,
}

#[derive(Deserialize)]
pub(crate) struct ByteLevel {
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) merges: Vec<String>,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Deserialize)]
pub(crate) struct Rule {
    pub(crate) pre: String,
    pub(crate) cases: Vec<Case>,
    pub(crate) tokenizer: Value,
}

#[derive(Deserialize)]
pub(crate) struct SentencePiece {
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) scores: Vec<f32>,
    pub(crate) merges: Vec<String>,
    pub(crate) cases: Vec<Case>,
    pub(crate) tokenizer: Value,
}

/// A file of `tests/golden/text`.
pub(crate) fn golden<T: DeserializeOwned>(name: &str) -> T {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The smallest model with a vocabulary of `tokens`.
fn spec(tokens: usize) -> Spec {
    Spec { vocab: tokens, hidden: 8, intermediate: 8, layers: 1, heads: 2, kv_heads: 1, head_dim: 4, ..Spec::tiny() }
}

pub(crate) type Metadata = BTreeMap<String, Gv>;

pub(crate) fn texts(texts: &[String]) -> Gv {
    Gv::Array(texts.iter().cloned().map(Gv::String).collect())
}

pub(crate) fn text(text: &str) -> Gv {
    Gv::String(text.to_owned())
}

impl ByteLevel {
    pub(crate) fn metadata(&self, pre: &str) -> Metadata {
        let list = [
            ("model", text("gpt2")),
            ("pre", text(pre)),
            ("tokens", texts(&self.tokens)),
            ("token_type", Gv::Array(self.types.iter().copied().map(Gv::I32).collect())),
            ("merges", texts(&self.merges)),
            ("bos_token_id", Gv::U32(1)),
            ("eos_token_id", Gv::U32(2)),
        ];
        list.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
    }

    pub(crate) fn tokenizer_json(&self, rule: &Rule) -> Value {
        with_vocabulary(&rule.tokenizer, &self.tokens, &self.merges)
    }
}

impl SentencePiece {
    pub(crate) fn metadata(&self) -> Metadata {
        let list = [
            ("model", text("llama")),
            ("tokens", texts(&self.tokens)),
            ("token_type", Gv::Array(self.types.iter().copied().map(Gv::I32).collect())),
            ("scores", Gv::Array(self.scores.iter().copied().map(Gv::F32).collect())),
            ("unknown_token_id", Gv::U32(0)),
            ("bos_token_id", Gv::U32(1)),
            ("eos_token_id", Gv::U32(2)),
        ];
        list.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
    }

    pub(crate) fn tokenizer_json(&self) -> Value {
        with_vocabulary(&self.tokenizer, &self.tokens, &self.merges)
    }
}

fn with_vocabulary(tokenizer: &Value, tokens: &[String], merges: &[String]) -> Value {
    let mut tokenizer = tokenizer.clone();
    tokenizer["model"]["vocab"] = tokens.iter().zip(0..).map(|(token, id)| (token.clone(), json!(id))).collect();
    tokenizer["model"]["merges"] = json!(merges);
    tokenizer
}

/// The text of a GGUF file with `metadata` and a model of as many rows as it has tokens, or `rows`.
pub(crate) fn gguf(metadata: &Metadata, rows: Option<usize>) -> Result<Text, TextError> {
    let tokens = match metadata.get("tokenizer.ggml.tokens") {
        Some(Gv::Array(tokens)) => tokens.len(),
        _ => 1,
    };
    let model = Gguf::llama(&spec(rows.unwrap_or(tokens)), GgmlDType::F32);
    let (_folder, path) = metadata.iter().fold(model, |model, (key, value)| model.set(key, value.clone())).write();
    Text::open(&Checkpoint::open(&path).unwrap())
}

/// A Hugging Face folder with these files beside a model of `rows` rows.
pub(crate) fn folder(rows: usize, files: &[(&str, String)]) -> TempDir {
    let spec = spec(rows);
    let folder = checkpoint::folder(&spec, DType::F32, 1);
    let mut config = checkpoint::config(&spec);
    config["eos_token_id"] = json!([2, 0]);
    write_json(&folder.path().join("config.json"), &config);
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

pub(crate) fn open(folder: &TempDir) -> Result<Text, TextError> {
    Text::open(&Checkpoint::open(folder.path()).unwrap())
}

/// Every case encodes as recorded, both ways.
pub(crate) fn assert_ids(text: &Text, cases: &[Case], name: &str) {
    assert!(cases.len() > 50);
    for case in cases {
        assert_eq!(text.tokenizer.encode(&case.text, Specials::Parse).unwrap(), case.parse, "{name} {:?}", case.text);
        assert_eq!(text.tokenizer.encode(&case.text, Specials::Plain).unwrap(), case.plain, "{name} {:?}", case.text);
    }
}
