//! A checkpoint of random weights small enough for every command to run on in a second: bytes as tokens, ChatML as template.

use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use socius::lora::{Base, LoraConfig, LoraWeights, PeftFiles};
use socius_models::{Projection, RandomSource, Spec};
use std::{collections::HashMap, fs, path::Path};

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Writes it into `folder`, as `save_pretrained` would.
pub(crate) fn write(folder: &Path) {
    let spec = spec();
    fs::create_dir_all(folder).unwrap();
    let save = |name: &str, value: serde_json::Value| fs::write(folder.join(name), value.to_string()).unwrap();
    save("config.json", config(&spec));
    save("tokenizer.json", tokenizer());
    save("tokenizer_config.json", json!({ "eos_token": "<|im_end|>", "chat_template": TEMPLATE }));
    fs::write(folder.join("model.safetensors"), weights(&RandomSource { spec, seed: 7 })).unwrap();
}

fn config(spec: &Spec) -> serde_json::Value {
    json!({
        "model_type": spec.family,
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "max_position_embeddings": spec.context_max,
        "tie_word_embeddings": spec.tied_head,
    })
}

/// Byte-level BPE without a merge: every byte is a token, under the printable stand-ins that GPT-2 gave them.
fn tokenizer() -> serde_json::Value {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let mut stand_in = |byte: u32| {
        let code = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        char::from_u32(code).unwrap().to_string()
    };
    let vocabulary: serde_json::Map<_, _> = (0..256).map(|byte| (stand_in(byte), json!(byte))).collect();
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false,
        })
    };
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0",
        "added_tokens": [special(256, "<|im_start|>"), special(257, "<|im_end|>")],
        "pre_tokenizer": bytes,
        "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] },
    })
}

fn weights(source: &RandomSource) -> Vec<u8> {
    let spec = &source.spec;
    let bytes: HashMap<String, (Vec<usize>, Vec<u8>)> = spec
        .slots()
        .map(|slot| {
            let values = source.values(slot).into_iter().flat_map(f32::to_le_bytes).collect();
            (slot.hugging_face_name(), (spec.shape(slot), values))
        })
        .collect();
    let views =
        bytes.iter().map(|(name, (shape, values))| (name, TensorView::new(Dtype::F32, shape.clone(), values).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// Writes a PEFT adapter for the checkpoint, whose name is its path; another `turn` gives another one.
pub(crate) fn write_adapter(folder: &Path, base: &str, turn: u64) {
    let spec = spec();
    let config = LoraConfig::uniform(2, 4.0, &[Projection::Q, Projection::Down]);
    let count = config.layout(&spec).unwrap().len();
    let theta = (0..count).map(|i| (i as f32 + turn as f32).sin()).collect();
    let lora = LoraWeights::new(config, &spec, theta).unwrap();
    PeftFiles::new(&lora, Base { spec: &spec, name: base, aliases: &[] }).write(folder).unwrap();
}

fn spec() -> Spec {
    Spec { vocab: 258, context_max: 1024, ..Spec::tiny() }
}
