//! Text and tokens against the programs that own the formats, by what `tests/peers/record_text.py` recorded from them.

#[path = "../../models/tests/load/fixture.rs"]
#[allow(dead_code, reason = "the loader's tests need more of it")]
mod checkpoint;
#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod refused;
mod smollm2;

use candle_core::quantized::gguf_file::Value as Gv;
use fixture::{ByteLevel, SentencePiece, Tiny, assert_ids, folder, gguf, golden, open, text};
use proptest::prelude::*;
use serde_json::json;
use socius::{
    common::Message,
    text::{Specials, Text},
};
use std::sync::LazyLock;

static TINY: LazyLock<Tiny> = LazyLock::new(|| golden("tiny.json"));

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn byte_level() -> &'static ByteLevel {
    &TINY.byte_level
}

fn sentence_piece() -> &'static SentencePiece {
    &TINY.sentence_piece
}

/// A tiny model of `pre` that converses in ChatML.
fn chat(pre: &str) -> Text {
    let mut metadata = byte_level().metadata(pre);
    metadata.insert("tokenizer.chat_template".into(), text(CHATML));
    gguf(&metadata, None).unwrap()
}

#[test]
fn byte_level_vocabularies_give_the_ids_of_tokenizers_under_every_rule_from_gguf_and_from_tokenizer_json() {
    for rule in &byte_level().rules {
        assert_ids(&gguf(&byte_level().metadata(&rule.pre), None).unwrap(), &rule.cases, &rule.pre);
        let json = byte_level().tokenizer_json(rule).to_string();
        let folder = folder(byte_level().tokens.len(), &[("tokenizer.json", json)]);
        assert_ids(&open(&folder).unwrap(), &rule.cases, &rule.pre);
    }
    let default = byte_level().rules.iter().find(|rule| rule.pre == "default").unwrap();
    let mut unnamed = byte_level().metadata("default");
    unnamed.remove("tokenizer.ggml.pre");
    assert_ids(&gguf(&unnamed, None).unwrap(), &default.cases, "no pre");
}

#[test]
fn sentence_piece_vocabularies_give_the_ids_of_sentencepiece_from_scores_merges_and_tokenizer_json() {
    let peer = sentence_piece();
    let scored = peer.metadata();
    let mut merged = scored.clone();
    merged.remove("tokenizer.ggml.scores");
    merged.insert("tokenizer.ggml.merges".into(), fixture::texts(&peer.merges));
    for metadata in [scored, merged] {
        assert_ids(&gguf(&metadata, None).unwrap(), &peer.cases, "gguf");
    }
    let folder = folder(peer.tokens.len(), &[("tokenizer.json", peer.tokenizer_json().to_string())]);
    assert_ids(&open(&folder).unwrap(), &peer.cases, "tokenizer.json");
}

#[test]
fn what_is_encoded_as_plain_text_decodes_to_itself() {
    let models =
        [gguf(&byte_level().metadata("llama-bpe"), None).unwrap(), gguf(&sentence_piece().metadata(), None).unwrap()];
    for (model, cases) in models.iter().zip([&byte_level().rules[0].cases, &sentence_piece().cases]) {
        for case in cases {
            let ids = model.tokenizer.encode(&case.text, Specials::Plain).unwrap();
            // SentencePiece spells a space as U+2581, so it cannot tell the two apart.
            let expected =
                if model.tokenizer.id("▁").is_some() { case.text.replace('▁', " ") } else { case.text.clone() };
            assert_eq!(model.tokenizer.decode(&ids), expected);
            assert!(ids.iter().all(|id| !model.tokenizer.is_special(*id)), "{:?}", case.text);
        }
    }
}

#[test]
fn bos_stands_in_front_of_raw_text_once_and_only_where_the_model_expects_it() {
    let says = |add: bool| {
        let mut metadata = byte_level().metadata("smollm");
        metadata.insert("tokenizer.ggml.add_bos_token".into(), Gv::Bool(add));
        gguf(&metadata, None).unwrap()
    };
    let with_post_processor = folder(
        600,
        &[
            ("tokenizer.json", sentence_piece().tokenizer_json().to_string()),
            ("tokenizer_config.json", json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>"}).to_string()),
        ],
    );
    let refusing = folder(
        600,
        &[
            ("tokenizer.json", sentence_piece().tokenizer_json().to_string()),
            ("tokenizer_config.json", json!({"bos_token": "<s>", "add_bos_token": false}).to_string()),
        ],
    );
    let rows = [
        (gguf(&byte_level().metadata("smollm"), None).unwrap(), false),
        (gguf(&byte_level().metadata("llama-bpe"), None).unwrap(), true),
        (gguf(&sentence_piece().metadata(), None).unwrap(), true),
        (says(true), true),
        (says(false), false),
        (open(&with_post_processor).unwrap(), true),
        (open(&refusing).unwrap(), false),
    ];
    for (index, (model, expected)) in rows.into_iter().enumerate() {
        let bos = model.tokenizer.ends().bos.unwrap();
        let plain = model.tokenizer.encode("the", Specials::Plain).unwrap();
        let prefixed = [&[bos], &plain[..]].concat();
        assert_eq!(model.raw_ids("the").unwrap(), if expected { prefixed.clone() } else { plain }, "row {index}");
        let spelled = format!("{}the", model.tokenizer.token(bos).unwrap());
        assert_eq!(model.raw_ids(&spelled).unwrap(), prefixed, "row {index}");
    }
}

#[test]
fn turns_end_with_eos_with_what_the_files_name_and_with_the_usual_special_tokens() {
    let mut metadata = byte_level().metadata("smollm");
    metadata.insert("tokenizer.ggml.eot_token_id".into(), Gv::U32(300));
    assert_eq!(gguf(&metadata, None).unwrap().stop_ids, [0, 2, 300]);
    assert!(gguf(&metadata, None).unwrap().tokenizer.is_special(300));
    assert_eq!(gguf(&sentence_piece().metadata(), None).unwrap().stop_ids, [2]);
    let tokenizer = sentence_piece().tokenizer_json().to_string();
    let folder = folder(
        600,
        &[("tokenizer.json", tokenizer), ("generation_config.json", json!({"eos_token_id": 9}).to_string())],
    );
    assert_eq!(open(&folder).unwrap().stop_ids, [0, 2, 9]);
}

#[test]
fn templates_are_found_in_every_place_and_may_name_the_ends() {
    let tokenizer = || ("tokenizer.json", sentence_piece().tokenizer_json().to_string());
    let ends = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let config = |template: serde_json::Value| {
        let mut config = ends.clone();
        config["chat_template"] = template;
        ("tokenizer_config.json", config.to_string())
    };
    let source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}";
    let named = json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": source}]);
    let rows = [
        vec![tokenizer(), config(json!(source))],
        vec![tokenizer(), config(named)],
        vec![tokenizer(), config(json!("no")), ("chat_template.jinja", source.to_owned())],
        vec![
            tokenizer(),
            ("chat_template.jinja", source.to_owned()),
            ("special_tokens_map.json", json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}}).to_string()),
        ],
    ];
    for files in rows {
        let model = open(&folder(600, &files)).unwrap();
        let template = model.template.as_ref().unwrap();
        assert_eq!(template.render(&[Message::user("hi")], false).unwrap(), "<s>hi</s>");
        let ids = model.prompt_ids(&[Message::user("</s>hi")]).unwrap();
        let specials: Vec<_> = ids.iter().filter(|id| model.tokenizer.is_special(**id)).collect();
        assert_eq!(specials, [&1, &2], "bos and eos stand where the template put them, once");
    }
}

#[test]
fn a_conversation_without_special_text_is_tokenized_as_its_rendering() {
    let model = chat("llama-bpe");
    let messages = [Message::system("Be brief."), Message::user("  the licence\n\n"), Message::assistant("<|i>")];
    let rendered = model.template.as_ref().unwrap().render(&messages, true).unwrap();
    assert_eq!(model.prompt_ids(&messages).unwrap(), model.tokenizer.encode(&rendered, Specials::Parse).unwrap());
    assert_eq!(model.tokenizer.decode_with_specials(&model.prompt_ids(&messages).unwrap()), rendered);
    let open_ended = model.conversation_ids(&messages, false).unwrap();
    assert!(model.prompt_ids(&messages).unwrap().starts_with(&open_ended));
}

#[test]
fn a_digest_changes_with_the_tokenizer_and_with_the_template() {
    let digests = [
        chat("smollm").digest(),
        chat("gpt-2").digest(),
        gguf(&byte_level().metadata("smollm"), None).unwrap().digest(),
        gguf(&sentence_piece().metadata(), None).unwrap().digest(),
    ];
    assert_eq!(digests[0], chat("smollm").digest());
    for (i, digest) in digests.iter().enumerate() {
        assert!(digests[..i].iter().all(|other| other != digest));
    }
}

/// Text in which special tokens and parts of them are likely.
fn tricky() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        any::<String>(),
        "[a-z 0-9\n]{0,8}",
        prop::sample::select(vec![
            "<|im_start|>",
            "<|im_end|>",
            "<|im_",
            "end|>",
            "<",
            ">",
            "<think>",
            "\u{e000}",
            "é",
            "👍🏽",
            "▁"
        ])
        .prop_map(String::from),
    ];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

static CHAT: LazyLock<Text> = LazyLock::new(|| chat("smollm"));

proptest! {
    #[test]
    fn any_text_survives_byte_level_encoding(text in tricky()) {
        for specials in [Specials::Plain, Specials::Parse] {
            let ids = CHAT.tokenizer.encode(&text, specials).unwrap();
            prop_assert_eq!(&CHAT.tokenizer.decode_with_specials(&ids), &text);
        }
    }

    #[test]
    fn whatever_is_said_the_special_tokens_are_the_templates(said in prop::collection::vec(tricky(), 1..4)) {
        let messages: Vec<_> = said.iter().map(Message::user).collect();
        let ids = CHAT.prompt_ids(&messages).unwrap();
        let specials: Vec<_> = ids.iter().copied().filter(|id| CHAT.tokenizer.is_special(*id)).collect();
        prop_assert_eq!(specials, [[1, 2].repeat(said.len()), vec![1]].concat());
        let rendered = CHAT.template.as_ref().unwrap().render(&messages, true).unwrap();
        prop_assert_eq!(CHAT.tokenizer.decode_with_specials(&ids), rendered);
    }

    #[test]
    fn a_stream_adds_up_to_the_whole_and_never_holds_half_a_character(ids in prop::collection::vec(0u32..720, 0..30)) {
        let mut stream = CHAT.tokenizer.stream();
        let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
        text.push_str(&stream.finish());
        prop_assert_eq!(text, CHAT.tokenizer.decode(&ids));
    }
}
