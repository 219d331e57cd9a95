//! The default model's own tokenizer and template against transformers. Fetches the model on first use.

use crate::{
    common::default_model,
    fixture::{Case, assert_ids, golden},
};
use serde::Deserialize;
use socius::{common::Message, text::Text};
use socius_models::Checkpoint;

#[derive(Deserialize)]
struct Trace {
    cases: Vec<Case>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    rendered: String,
    ids: Vec<u32>,
}

#[test]
fn smollm2_tokenizes_and_converses_as_in_transformers() {
    let model = Text::open(&Checkpoint::open(default_model().path).unwrap()).unwrap();
    let trace: Trace = golden("smollm2.json");
    assert_ids(&model, &trace.cases, "smollm2");
    for chat in &trace.chats {
        let template = model.template.as_ref().unwrap();
        assert_eq!(template.render(&chat.messages, true).unwrap(), chat.rendered);
        assert_eq!(model.prompt_ids(&chat.messages).unwrap(), chat.ids, "{:?}", chat.messages);
    }
    assert_eq!(model.stop_ids, [0, 2]);
    assert!(!model.tokenizer.ends().add_bos);
}
