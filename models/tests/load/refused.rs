//! What is wrong with a checkpoint is said by name. One row an error.

use crate::fixture::{Gguf, config, folder, source, spec, write_bytes, write_json, write_safetensors};
use candle_core::{
    DType,
    quantized::{GgmlDType, gguf_file::Value as Gv},
};
use serde_json::{Value, json};
use socius_models::{Checkpoint, TensorSource};
use std::path::Path;

fn refusal(path: &Path) -> String {
    match Checkpoint::open(path) {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(error) => error.to_string(),
    }
}

fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn a_wrong_configuration_names_its_key_and_what_is_supported() {
    let rope = |parameters: Value| json!({ "rope_scaling": parameters });
    let rows: &[(Value, &[&str])] = &[
        (json!({"model_type": null}), &["model_type", "is missing", "llama"]),
        (json!({"model_type": "mamba"}), &["model_type", "mamba", "llama"]),
        (json!({"model_type": 3}), &["model_type", "3", "a string"]),
        (json!({"hidden_size": null}), &["hidden_size", "is missing"]),
        (json!({"hidden_size": "big"}), &["hidden_size", "big", "an integer"]),
        (json!({"hidden_size": 1u64 << 60}), &["hidden_size", "2097152"]),
        (json!({"num_hidden_layers": 0}), &["num_hidden_layers", "0"]),
        (json!({"num_hidden_layers": 2.5}), &["num_hidden_layers", "2.5"]),
        (json!({"num_key_value_heads": 3}), &["num_key_value_heads", "3", "4 heads"]),
        (json!({"head_dim": 63}), &["head_dim", "63", "even"]),
        (json!({"rms_norm_eps": -1.0}), &["rms_norm_eps", "positive"]),
        (json!({"rope_theta": 0}), &["rope_theta", "positive"]),
        (json!({"hidden_act": "gelu"}), &["hidden_act", "gelu", "silu"]),
        (json!({"attention_bias": true}), &["attention_bias", "not supported"]),
        (json!({"mlp_bias": true}), &["mlp_bias", "not supported"]),
        (json!({"quantization_config": {"bits": 4}}), &["quantization_config", "not supported"]),
        (json!({"tie_word_embeddings": "no"}), &["tie_word_embeddings", "true or false"]),
        (rope(json!("llama3")), &["rope_scaling", "an object"]),
        (rope(json!({"type": "yarn", "factor": 2})), &["rope_scaling.type", "yarn", "linear"]),
        (rope(json!({"rope_type": "linear"})), &["rope_scaling.factor", "is missing"]),
        (rope(json!({"rope_type": "llama3", "factor": 8})), &["rope_scaling.low_freq_factor", "is missing"]),
        (
            rope(json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4})),
            &["rope_scaling.high_freq_factor", "more than"],
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
            &["rope_parameters.partial_rotary_factor", "0.5"],
        ),
        (json!({"vocab_size": 33}), &["model.embed_tokens.weight", "[32, 256]", "[33, 256]"]),
        (json!({"num_hidden_layers": 3}), &["model.layers.2.input_layernorm.weight", "missing", "[256]"]),
        (json!({"num_hidden_layers": 1}), &["model.layers.1.", "not part of a llama model"]),
        (json!({"tie_word_embeddings": false}), &["lm_head.weight", "missing", "[32, 256]"]),
    ];
    let folder = folder(&spec(), DType::F32, 1);
    for (change, parts) in rows {
        let mut config = config(&spec());
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        write_json(&folder.path().join("config.json"), &config);
        assert_names(&refusal(folder.path()), parts);
    }
}

#[test]
fn a_damaged_folder_names_the_file_and_the_tensor() {
    let damage = |shards, damage: &dyn Fn(&Path), parts: &[&str]| {
        let folder = folder(&spec(), DType::F32, shards);
        damage(folder.path());
        assert_names(&refusal(folder.path()), parts);
    };
    let cut = |name: &str, keep: usize| {
        let name = name.to_owned();
        move |folder: &Path| {
            let bytes = std::fs::read(folder.join(&name)).unwrap();
            std::fs::write(folder.join(&name), &bytes[..keep.min(bytes.len() - 1)]).unwrap();
        }
    };
    let remove = |name: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(name)).unwrap();
    let index = |weight_map: Value| {
        move |folder: &Path| {
            write_json(&folder.join("model.safetensors.index.json"), &json!({"weight_map": weight_map.clone()}));
        }
    };
    let single = "model.safetensors";
    damage(1, &remove("config.json"), &["cannot read", "config.json"]);
    damage(1, &cut("config.json", 20), &["config.json", "is not JSON"]);
    damage(1, &remove(single), &["holds neither model.safetensors nor model.safetensors.index.json"]);
    damage(1, &cut(single, usize::MAX), &[single, "whole safetensors file"]);
    damage(1, &cut(single, 100), &[single, "whole safetensors file", "100 bytes"]);
    damage(1, &cut(single, 0), &[single, "0 bytes"]);
    damage(3, &cut("model-00002-of-00003.safetensors", 4000), &["model-00002-of-00003.safetensors"]);
    damage(3, &remove("model-00003-of-00003.safetensors"), &["cannot read", "model-00003-of-00003.safetensors"]);
    damage(
        3,
        &|folder: &Path| std::fs::write(folder.join("model.safetensors.index.json"), "{").unwrap(),
        &["index.json", "is not JSON"],
    );
    damage(3, &index(json!([1])), &["index.json", "weight_map", "an object"]);
    damage(3, &index(json!({"model.norm.weight": "../model.safetensors"})), &["model.norm.weight", "same folder"]);
    damage(3, &index(json!({"model.norm.weight": "/etc/passwd"})), &["model.norm.weight", "same folder"]);
    damage(3, &index(json!({"model.norm.weight": 3})), &["model.norm.weight", "a file name"]);
    damage(3, &index(json!({"x": "model-00001-of-00003.safetensors"})), &["tensor x is not in model-00001-of-00003"]);
    damage(
        3,
        &index(json!({"model.embed_tokens.weight": "model-00001-of-00003.safetensors"})),
        &["is missing", "shape"],
    );
}

#[test]
fn a_folder_with_a_tensor_too_few_too_many_or_of_another_type_names_it() {
    let rewrite = |change: &dyn Fn(&mut Vec<(String, candle_core::Tensor)>), parts: &[&str]| {
        let folder = folder(&spec(), DType::F32, 1);
        let source = source(&spec());
        let mut tensors: Vec<_> =
            spec().slots().map(|slot| (slot.hugging_face_name(), source.read(slot).unwrap())).collect();
        change(&mut tensors);
        write_safetensors(&folder.path().join("model.safetensors"), &tensors, DType::F32);
        assert_names(&refusal(folder.path()), parts);
    };
    rewrite(
        &|tensors| tensors.retain(|(name, _)| name != "model.norm.weight"),
        &["model.norm.weight", "missing", "[256]"],
    );
    rewrite(
        &|tensors| tensors[2].1 = tensors[2].1.narrow(0, 0, 64).unwrap(),
        &["model.layers.0.self_attn.q_proj.weight", "[64, 256]", "[256, 256]"],
    );
    rewrite(
        &|tensors| tensors.push(("model.layers.0.self_attn.q_proj.bias".into(), tensors[1].1.clone())),
        &["q_proj.bias", "not part of a llama model"],
    );
    let folder = folder(&spec(), DType::F32, 1);
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(5).position(|w| w == b"\"F32\"").unwrap();
    let mut bytes = bytes;
    bytes[at..at + 5].copy_from_slice(b"\"I32\"");
    std::fs::write(&path, &bytes).unwrap();
    assert_names(&refusal(folder.path()), &["tensor model.", "I32", "F32, F16, BF16"]);
}

#[test]
fn a_wrong_gguf_names_the_key_or_the_tensor() {
    let text = |text: &str| Gv::String(text.into());
    let gguf = || Gguf::llama(&spec(), GgmlDType::F32);
    let rows: Vec<(Gguf, &[&str])> = vec![
        (gguf().without("general.architecture"), &["general.architecture", "is missing", "llama"]),
        (gguf().set("general.architecture", text("mamba")), &["general.architecture", "mamba", "llama"]),
        (gguf().set("general.architecture", Gv::U32(1)), &["general.architecture", "a string"]),
        (gguf().without("llama.block_count"), &["llama.block_count", "is missing"]),
        (gguf().set("llama.block_count", text("two")), &["llama.block_count", "two", "an integer"]),
        (gguf().set("llama.block_count", Gv::I32(-2)), &["llama.block_count", "-2"]),
        (gguf().set("llama.block_count", Gv::U32(3)), &["blk.2.attn_norm.weight", "missing", "[256]"]),
        (gguf().without("llama.vocab_size"), &["llama.vocab_size", "is missing"]),
        (gguf().set("llama.rope.dimension_count", Gv::U32(32)), &["llama.rope.dimension_count", "32", "64"]),
        (gguf().set("llama.rope.scaling.type", text("yarn")), &["llama.rope.scaling.type", "yarn", "linear"]),
        (gguf().set("llama.rope.scaling.type", text("linear")), &["llama.rope.scaling.factor", "is missing"]),
        (gguf().set("general.alignment", Gv::U32(0)), &["general.alignment", "multiple of 8"]),
        (gguf().set("split.count", Gv::U16(2)), &["split.count", "2 parts", "--merge"]),
        (gguf().without("blk.1.ffn_up.weight"), &["blk.1.ffn_up.weight", "missing", "[512, 256]"]),
        (gguf().with("blk.0.attn_q.bias", &[0.0; 256]), &["blk.0.attn_q.bias", "not part of a llama model"]),
        (gguf().with("rope_freqs.weight", &[1.0; 31]), &["rope_freqs.weight", "[31]", "[32]"]),
        (gguf().with("rope_freqs.weight", &[0.0; 32]), &["rope_freqs.weight", "positive"]),
        (
            gguf().without("output_norm.weight").with("output_norm.weight", &[1.0; 8]),
            &["output_norm.weight", "[8]", "[256]"],
        ),
        (gguf().with("x", &[1.0]).with("x", &[1.0]), &["tensor x stands twice"]),
    ];
    for (gguf, parts) in rows {
        let (_folder, path) = gguf.write();
        assert_names(&refusal(&path), parts);
    }
}

#[test]
fn a_gguf_with_damaged_bytes_says_where() {
    let good = Gguf::llama(&spec(), GgmlDType::Q4_0).bytes();
    let find = |name: &str| good.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() + name.len();
    // After a matrix's name: number of dimensions (4 bytes), two dimensions (16), type (4), offset (8).
    let tensor = find("blk.1.attn_v.weight");
    let key = find("llama.block_count");
    let rows: &[(usize, &[u8], &[&str])] = &[
        (0, b"GGML", &["starts with", "GGUF file"]),
        (4, &[1, 0, 0, 0], &["version 1", "2 or 3"]),
        (4, &[0, 0, 0, 3], &["big-endian"]),
        (8, &[0xff; 8], &["number of tensors", "bytes follow"]),
        (16, &[0xff; 8], &["number of metadata keys", "bytes follow"]),
        (24, &[0xff; 8], &["metadata key 0", "string length"]),
        (32, &[0xff], &["metadata key 0", "not UTF-8"]),
        (key, &[99], &["llama.block_count", "type 99", "0 to 12"]),
        (key, &[9, 0, 0, 0, 9, 0, 0, 0], &["llama.block_count", "array of arrays"]),
        (key, &[9, 0, 0, 0, 4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff], &["llama.block_count", "array length"]),
        (tensor, &[0], &["blk.1.attn_v.weight", "0 dimensions"]),
        (tensor, &[9], &["blk.1.attn_v.weight", "9 dimensions"]),
        (tensor + 4, &[0xff; 16], &["blk.1.attn_v.weight", "shape"]),
        (tensor + 4, &[31, 0], &["blk.1.attn_v.weight", "whole blocks of 32"]),
        (tensor + 20, &[16], &["blk.1.attn_v.weight", "type 16", "Q4_K"]),
        (tensor + 24, &[1], &["blk.1.attn_v.weight", "offset", "multiple of 32"]),
        (tensor + 24, &[0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &["blk.1.attn_v.weight", "truncated"]),
    ];
    for (at, patch, parts) in rows {
        let mut bytes = good.clone();
        bytes[*at..*at + patch.len()].copy_from_slice(patch);
        let (_folder, path) = write_bytes(&bytes);
        assert_names(&refusal(&path), parts);
    }
    for (keep, part) in
        [(0, "truncated"), (10, "truncated"), (60, "general.architecture"), (good.len() - 33, "truncated")]
    {
        let (_folder, path) = write_bytes(&good[..keep]);
        assert_names(&refusal(&path), &["model.gguf", part]);
    }
    let missing = refusal(Path::new("no/such/file.gguf"));
    assert_names(&missing, &["cannot read no/such/file.gguf"]);
}
