//! Where a checkpoint keeps its tokenizer and template, and which tokens end a turn.

use super::{
    ChatTemplate, Text, TextError, gguf,
    template::TokenNames,
    tokenizer::{Ends, Tokenizer},
};
use serde_json::Value;
use socius_models::Metadata;
use std::{collections::BTreeSet, fs, io::ErrorKind, path::Path};

/// Special tokens that end a turn, or everything, wherever a vocabulary has them.
const TURN_ENDS: [&str; 13] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|END_OF_TURN_TOKEN|>",
    "<|return|>",
    "<|eot|>",
    "<|end_of_role|>",
    "</s>",
];

pub(super) fn from_gguf(metadata: &Metadata) -> Result<Text, TextError> {
    let tokenizer = gguf::tokenizer(metadata)?;
    let mut ends = Vec::new();
    for name in ["eot_token_id", "eom_token_id"] {
        ends.extend(gguf::end_id(metadata, name)?);
    }
    text(tokenizer, metadata.text("tokenizer.chat_template")?, ends)
}

pub(super) fn from_folder(folder: &Path) -> Result<Text, TextError> {
    let path = folder.join("tokenizer.json");
    let bytes = fs::read(&path).map_err(|source| TextError::Io { path: path.clone(), source })?;
    let tokenizer = Tokenizer::from_json(&bytes, &path)?;
    let settings = json(&folder.join("tokenizer_config.json"))?;
    let specials = json(&folder.join("special_tokens_map.json"))?;
    let (config, generation) = (json(&folder.join("config.json"))?, json(&folder.join("generation_config.json"))?);
    let named = |key: &str| token(&settings[key]).or_else(|| token(&specials[key])).and_then(|name| tokenizer.id(name));
    let numbered = |key: &str| ids(&generation[key]).chain(ids(&config[key])).next();
    let bos = named("bos_token").or_else(|| numbered("bos_token_id"));
    let eos = named("eos_token").or_else(|| numbered("eos_token_id"));
    let add_bos = settings["add_bos_token"].as_bool();
    let add_bos = add_bos.unwrap_or_else(|| bos.is_some_and(|bos| tokenizer.begins_with(bos)));
    let more_ends = ids(&generation["eos_token_id"]).chain(ids(&config["eos_token_id"])).collect();
    let template = template(folder, &settings)?;
    text(tokenizer.with_ends(Ends { bos, eos, add_bos }), template.as_deref(), more_ends)
}

fn text(tokenizer: Tokenizer, template: Option<&str>, more_ends: Vec<u32>) -> Result<Text, TextError> {
    let Ends { bos, eos, .. } = tokenizer.ends();
    let spelled = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    let names = TokenNames { bos: spelled(bos), eos: spelled(eos) };
    let known = TURN_ENDS.iter().filter_map(|name| tokenizer.id(name)).filter(|id| tokenizer.is_special(*id));
    let stop_ids: BTreeSet<u32> = eos.into_iter().chain(more_ends).chain(known).collect();
    let template = template.map(|source| ChatTemplate::new(source, names)).transpose()?;
    Ok(Text { template, stop_ids: stop_ids.into_iter().collect(), tokenizer })
}

/// `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`: one, or the one called `default` of several.
fn template(folder: &Path, settings: &Value) -> Result<Option<String>, TextError> {
    if let Some(text) = optional(&folder.join("chat_template.jinja"))? {
        return Ok(Some(text));
    }
    let of_name = |name: &str| {
        let list = settings["chat_template"].as_array()?;
        list.iter().find(|entry| entry["name"] == name)?["template"].as_str()
    };
    let wrong = || {
        let path = folder.join("tokenizer_config.json").display().to_string();
        TextError::tokenizer(path, "chat_template is neither a string nor a list with one called \"default\"")
    };
    match &settings["chat_template"] {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source.clone())),
        _ => of_name("default").map(|source| Some(source.to_owned())).ok_or_else(wrong),
    }
}

/// A token is written as its text, or as an object with it.
fn token(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// One id or a list of them.
fn ids(value: &Value) -> impl Iterator<Item = u32> {
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    list.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok())
}

/// A file that need not be there.
fn optional(path: &Path) -> Result<Option<String>, TextError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Io { path: path.to_owned(), source }),
    }
}

fn json(path: &Path) -> Result<Value, TextError> {
    let Some(text) = optional(path)? else { return Ok(Value::Null) };
    serde_json::from_str(&text)
        .map_err(|error| TextError::tokenizer(path.display().to_string(), format!("is not JSON: {error}")))
}
