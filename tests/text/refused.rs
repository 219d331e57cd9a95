//! What is wrong with a tokenizer or a template is said by name. One row an error.

use crate::{
    byte_level, chat,
    fixture::{Metadata, folder, gguf, open, text, texts},
    sentence_piece,
};
use candle_core::quantized::gguf_file::Value as Gv;
use serde_json::json;
use socius::{
    common::Message,
    text::{Text, TextError},
};

fn assert_names(result: Result<Text, TextError>, parts: &[&str]) {
    let message = result.map(drop).expect_err(&format!("{parts:?} was accepted")).to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn wrong_metadata_name_their_key() {
    let change = |mut metadata: Metadata, key: &str, value: Option<Gv>| {
        let key = format!("tokenizer.{key}");
        match value {
            Some(value) => metadata.insert(key, value),
            None => metadata.remove(&key),
        };
        metadata
    };
    let bpe = |key: &str, value| change(byte_level().metadata("smollm"), key, value);
    let spm = |key: &str, value| change(sentence_piece().metadata(), key, value);
    let list = |items: &[&str]| Some(texts(&items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>()));
    let rows: Vec<(Metadata, &[&str])> = vec![
        (bpe("ggml.model", None), &["tokenizer.ggml.model", "is missing"]),
        (bpe("ggml.model", Some(text("bert"))), &["tokenizer.ggml.model", "bert", "gpt2", "llama"]),
        (bpe("ggml.model", Some(Gv::U32(1))), &["tokenizer.ggml.model", "a string"]),
        (bpe("ggml.pre", Some(text("tekken"))), &["tokenizer.ggml.pre", "tekken", "smollm", "llama-bpe"]),
        (bpe("ggml.tokens", None), &["tokenizer.ggml.tokens", "is missing"]),
        (bpe("ggml.tokens", Some(Gv::Array(vec![Gv::U32(1)]))), &["tokenizer.ggml.tokens", "strings"]),
        (bpe("ggml.token_type", Some(Gv::Array(vec![Gv::I32(1)]))), &["tokenizer.ggml.token_type", "1 types"]),
        (bpe("ggml.merges", None), &["tokenizer.ggml.merges", "is missing"]),
        (bpe("ggml.merges", list(&["ab"])), &["tokenizer.ggml.merges", "\"ab\"", "two tokens"]),
        (bpe("ggml.merges", list(&["a nosuchtoken"])), &["tokenizer.ggml.merges", "nosuchtoken"]),
        (bpe("ggml.eos_token_id", Some(Gv::U32(100_000))), &["tokenizer.ggml.eos_token_id", "100000"]),
        (bpe("ggml.add_bos_token", Some(text("yes"))), &["tokenizer.ggml.add_bos_token", "a boolean"]),
        (bpe("chat_template", Some(text("{% if %}"))), &["chat template", "malformed"]),
        (spm("ggml.scores", None), &["tokenizer.ggml.scores", "is missing"]),
        (spm("ggml.scores", Some(Gv::Array(vec![Gv::F32(0.0)]))), &["tokenizer.ggml.scores", "1 scores", "600"]),
    ];
    for (metadata, parts) in rows {
        assert_names(gguf(&metadata, None), parts);
    }
    assert_names(gguf(&byte_level().metadata("smollm"), Some(100)), &["100 rows", "another model"]);
}

#[test]
fn wrong_files_are_named() {
    let good = sentence_piece().tokenizer_json();
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut tokenizer = good.clone();
        change(&mut tokenizer);
        ("tokenizer.json", tokenizer.to_string())
    };
    let good = || ("tokenizer.json", good.to_string());
    let rows: Vec<(Vec<(&str, String)>, &[&str])> = vec![
        (vec![], &["cannot read", "tokenizer.json"]),
        (vec![("tokenizer.json", "{".into())], &["tokenizer.json", "tokenizers library"]),
        (
            vec![changed(&|t| t["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true}))],
            &["WordPiece", "ByteLevel"],
        ),
        (vec![changed(&|t| t["model"]["vocab"]["x y"] = json!(4_000_000_000u32))], &["x y", "4000000000"]),
        (vec![good(), ("tokenizer_config.json", "[".into())], &["tokenizer_config.json", "is not JSON"]),
        (
            vec![
                good(),
                ("tokenizer_config.json", json!({"chat_template": [{"name": "rag", "template": ""}]}).to_string()),
            ],
            &["tokenizer_config.json", "default"],
        ),
        (vec![good(), ("chat_template.jinja", "{% for %}".into())], &["chat template", "malformed"]),
    ];
    for (files, parts) in rows {
        assert_names(open(&folder(600, &files)), parts);
    }
}

#[test]
fn a_model_without_a_template_says_what_to_do_and_a_template_says_what_it_refuses() {
    let model = gguf(&byte_level().metadata("smollm"), None).unwrap();
    let message = model.prompt_ids(&[Message::user("hi")]).unwrap_err().to_string();
    assert!(message.contains("--raw"), "{message}");
    let mut metadata = byte_level().metadata("smollm");
    let source = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}";
    metadata.insert("tokenizer.chat_template".into(), text(source));
    let message = gguf(&metadata, None).unwrap().prompt_ids(&[Message::system("x")]).unwrap_err().to_string();
    assert!(message.contains("user first"), "{message}");
    assert!(chat("smollm").prompt_ids(&[]).is_ok());
}
