//! Tiny checkpoints that carry a tokenizer, and the recorded cases. Knows nothing of what a test proves.

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file, gguf_file::Value as Gv},
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
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let spec = spec(rows.unwrap_or(tokens));
    let tensors = gguf_tensors(&spec);
    let sizes = gguf_sizes(&spec);
    let all = sizes.iter().map(|(key, value)| (*key, value)).chain(metadata.iter().map(|(k, v)| (k.as_str(), v)));
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let mut file = std::fs::File::create(&path).unwrap();
    gguf_file::write(&mut file, &all.collect::<Vec<_>>(), &tensors).unwrap();
    drop(file);
    Text::open(&Checkpoint::open(&path).unwrap())
}

fn gguf_sizes(spec: &Spec) -> [(&'static str, Gv); 8] {
    let number = |n: usize| Gv::U32(n as u32);
    [
        ("general.architecture", text("llama")),
        ("llama.vocab_size", number(spec.vocab)),
        ("llama.embedding_length", number(spec.hidden)),
        ("llama.feed_forward_length", number(spec.intermediate)),
        ("llama.block_count", number(spec.layers)),
        ("llama.attention.head_count", number(spec.heads)),
        ("llama.attention.head_count_kv", number(spec.kv_heads)),
        ("llama.attention.key_length", number(spec.head_dim)),
    ]
}

fn gguf_tensors(spec: &Spec) -> Vec<(&'static str, QTensor)> {
    let zeros = |shape: &[usize]| {
        QTensor::quantize(&Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap(), GgmlDType::F32).unwrap()
    };
    let (hidden, q, kv, mlp) = (spec.hidden, spec.q_dim(), spec.kv_dim(), spec.intermediate);
    vec![
        ("token_embd.weight", zeros(&[spec.vocab, hidden])),
        ("output_norm.weight", zeros(&[hidden])),
        ("blk.0.attn_norm.weight", zeros(&[hidden])),
        ("blk.0.attn_q.weight", zeros(&[q, hidden])),
        ("blk.0.attn_k.weight", zeros(&[kv, hidden])),
        ("blk.0.attn_v.weight", zeros(&[kv, hidden])),
        ("blk.0.attn_output.weight", zeros(&[hidden, q])),
        ("blk.0.ffn_norm.weight", zeros(&[hidden])),
        ("blk.0.ffn_gate.weight", zeros(&[mlp, hidden])),
        ("blk.0.ffn_up.weight", zeros(&[mlp, hidden])),
        ("blk.0.ffn_down.weight", zeros(&[hidden, mlp])),
    ]
}

/// A Hugging Face folder with these files beside a model of `rows` rows.
pub(crate) fn folder(rows: usize, files: &[(&str, String)]) -> TempDir {
    let spec = spec(rows);
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": rows, "hidden_size": spec.hidden, "intermediate_size": spec.intermediate,
        "num_hidden_layers": 1, "num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads,
        "tie_word_embeddings": true, "eos_token_id": [2, 0],
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let zeros = |slot| (slot, Tensor::zeros(spec.shape(slot), DType::F32, &Device::Cpu).unwrap());
    let tensors = spec.slots().map(zeros).map(|(slot, tensor)| (slot.hugging_face_name(), tensor)).collect();
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
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
