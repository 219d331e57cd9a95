//! Which files of a listing make a checkpoint. Sees names only.

use std::collections::BTreeSet;

/// Small files that describe a safetensors checkpoint; those that exist are taken.
const DESCRIPTIONS: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// What to take from a listing.
#[derive(Debug, PartialEq)]
pub(super) enum Selection {
    /// One GGUF file, which has everything.
    Gguf(String),
    /// A folder of weights and descriptions.
    Folder(Vec<String>),
}

/// Chooses from `names` (paths relative to the listing's root); `Err` says what is missing.
pub(super) fn select(names: &[String]) -> Result<Selection, String> {
    let present: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let ggufs: Vec<&str> = present.iter().copied().filter(|name| name.ends_with(".gguf")).collect();
    let weights: Vec<&str> = present.iter().copied().filter(|name| is_weights(name)).collect();
    if present.contains("config.json") && !weights.is_empty() {
        if !present.contains("tokenizer.json") {
            return Err("tokenizer.json is missing".to_owned());
        }
        let descriptions = DESCRIPTIONS.iter().copied().filter(|name| present.contains(name));
        return Ok(Selection::Folder(descriptions.chain(weights).map(str::to_owned).collect()));
    }
    match ggufs[..] {
        [only] => Ok(Selection::Gguf(only.to_owned())),
        [] if weights.is_empty() => Err("neither *.safetensors nor *.gguf is there (pickles are not read)".to_owned()),
        [] => Err("config.json is missing beside the safetensors".to_owned()),
        _ => Err(format!("several GGUF files are there; name one of them after a colon: {}", ggufs.join(", "))),
    }
}

/// The weights themselves: `model.safetensors`, or the shards `model-00001-of-00002.safetensors`.
fn is_weights(name: &str) -> bool {
    name.strip_prefix("model").and_then(|rest| rest.strip_suffix(".safetensors")).is_some_and(|middle| {
        middle.is_empty() || middle.starts_with('-') && middle.chars().all(|c| c.is_ascii_digit() || "-of".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_listing_gives_one_gguf_or_a_folder_or_says_what_is_missing() {
        let folder = |list| Ok(Selection::Folder(names(list)));
        let rows = [
            (
                names(&["README.md", "model.safetensors", "config.json", "tokenizer.json", "onnx/model.onnx"]),
                folder(&["config.json", "tokenizer.json", "model.safetensors"]),
            ),
            (
                names(
                    &["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "config.json"]
                        .iter()
                        .chain(&["tokenizer.json", "model.safetensors.index.json", "adapter_model.safetensors"])
                        .copied()
                        .collect::<Vec<_>>(),
                ),
                folder(&[
                    "config.json",
                    "tokenizer.json",
                    "model.safetensors.index.json",
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                ]),
            ),
            (names(&["a.gguf", "README.md"]), Ok(Selection::Gguf("a.gguf".to_owned()))),
        ];
        for (listing, wanted) in rows {
            assert_eq!(select(&listing), wanted, "{listing:?}");
        }
        for (listing, hint) in [
            (&["pytorch_model.bin", "config.json"][..], "pickles"),
            (&["model.safetensors"][..], "config.json"),
            (&["model.safetensors", "config.json"][..], "tokenizer.json"),
            (&["a.gguf", "b.gguf"][..], "a.gguf, b.gguf"),
            (&[][..], "neither"),
        ] {
            assert!(select(&names(listing)).unwrap_err().contains(hint), "{listing:?}");
        }
    }
}
