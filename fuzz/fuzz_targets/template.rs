//! A chat template, and what is said in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius::{
    common::{Message, Role},
    text::{ChatTemplate, TokenNames},
};

fuzz_target!(|input: (&str, &str, bool)| {
    let (source, said, generation) = input;
    let names = TokenNames { bos: Some("<s>".into()), eos: None };
    let Ok(template) = ChatTemplate::new(source, names) else { return };
    let system = Message { role: Role::System, content: said.to_owned() };
    let _ = template.render(&[system, Message::user(said), Message::assistant(said)], generation);
});
