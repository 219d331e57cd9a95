//! Checkpoints written to temporary folders and opened again: what loads is what was written, and what is wrong is named.

mod blocks;
mod fixture;
mod hostile;
mod refused;

use candle_core::{
    DType, Device,
    quantized::{GgmlDType, gguf_file},
};
use fixture::{Gguf, config, dequantised, folder, source, spec, values, write_json};
use serde_json::json;
use socius_models::{Batch, Checkpoint, Dtype, Model, RopeScaling, Row, Slot, Spec, TensorSource};

fn untied() -> Spec {
    Spec { tied_head: false, ..spec() }
}

#[test]
fn a_folder_gives_back_every_tensor_in_every_type_single_or_sharded() {
    for spec in [spec(), untied()] {
        for (dtype, shards) in [(DType::F32, 1), (DType::F16, 1), (DType::BF16, 1), (DType::F32, 3), (DType::BF16, 4)] {
            let folder = folder(&spec, dtype, shards);
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(checkpoint.spec, spec);
            assert_eq!(checkpoint.weight_files().len(), shards);
            assert!(checkpoint.metadata().is_none());
            for slot in spec.slots() {
                let expected = source(&spec).read(slot).unwrap().to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
                let found = checkpoint.read(slot).unwrap();
                assert_eq!(found.dims(), expected.dims());
                assert_eq!(values(&found), values(&expected), "{slot:?} {dtype:?}");
            }
        }
    }
}

#[test]
fn a_gguf_gives_back_every_tensor_in_every_type_with_q_and_k_in_hugging_face_order() {
    use GgmlDType::*;
    for dtype in [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2K, Q3K, Q4K, Q5K, Q6K] {
        for spec in [spec(), untied()] {
            let (_folder, path) = Gguf::llama(&spec, dtype).write();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let norm_eps = f64::from(spec.norm_eps as f32);
            assert_eq!(checkpoint.spec, Spec { norm_eps, ..spec.clone() });
            assert_eq!(checkpoint.weight_files(), [path.as_path()]);
            for slot in spec.slots() {
                let found = checkpoint.read(slot).unwrap();
                assert_eq!(found.dims(), spec.shape(slot));
                assert_eq!(values(&found), dequantised(&spec, slot, dtype), "{slot:?} {dtype:?}");
            }
        }
    }
}

#[test]
fn what_stays_quantised_has_the_values_that_are_read_in_f32() {
    use GgmlDType::*;
    let spec = untied();
    for (dtype, kept) in
        [(Q8_0, true), (Q4_0, true), (Q4_1, true), (Q4K, true), (Q6K, true), (Q5_0, false), (BF16, false)]
    {
        let (_folder, path) = Gguf::llama(&spec, dtype).write();
        let checkpoint = Checkpoint::open(&path).unwrap();
        for slot in spec.slots().filter(|&slot| spec.shape(slot).len() == 2) {
            let found = checkpoint.read_quantised(slot).unwrap().map(|weight| weight.values());
            assert_eq!(found.is_some(), kept, "{slot:?} {dtype:?}");
            assert!(found.is_none_or(|found| found == dequantised(&spec, slot, dtype)), "{slot:?} {dtype:?}");
        }
        assert!(checkpoint.read_quantised(Slot::FinalNorm).unwrap().is_none());
    }
}

#[test]
fn a_quantised_model_stays_near_its_f32_form_and_gives_a_row_the_same_logits_in_any_company() {
    let spec = untied();
    let (_folder, path) = Gguf::llama(&spec, GgmlDType::Q4_1).write();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let load = |dtype| Model::load(spec.clone(), &checkpoint, &Device::Cpu, dtype).unwrap();
    let (exact, quantised) = (load(Dtype::F32), load(Dtype::Quantised));
    let texts: Vec<Vec<u32>> =
        (1..20).map(|len| (0..len).map(|i| (i * 7 + len) % spec.vocab as u32).collect()).collect();
    let last = |model: &Model, texts: &[Vec<u32>]| {
        let batch = Batch::new(texts.iter().map(|text| Row::new(text)));
        let wanted: Vec<usize> = batch.spans().iter().map(|span| span.tokens.end - 1).collect();
        let mut sequences: Vec<_> = texts.iter().map(|_| model.sequence()).collect();
        model.forward(&batch, &[], &mut sequences.iter_mut().collect::<Vec<_>>(), &wanted).unwrap()
    };
    let (near, together) = (last(&exact, &texts), last(&quantised, &texts));
    let difference: f32 = near.iter().zip(&together).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f32 = near.iter().map(|a| a * a).sum();
    // Thirty roundings of 1/254 of a block's largest value, each some third of it on average.
    assert!(difference > 0.0 && difference < 4e-4 * size, "{difference} of {size}");
    for (text, logits) in texts.iter().zip(together.chunks(spec.vocab)) {
        assert_eq!(last(&quantised, std::slice::from_ref(text)), logits);
    }
}

#[test]
fn a_tied_folder_may_also_hold_the_head_and_old_rotary_tables() {
    let spec = spec();
    let folder = folder(&spec, DType::F32, 1);
    let mut tensors: Vec<_> =
        untied().slots().map(|slot| (slot.hugging_face_name(), source(&spec).read(slot).unwrap())).collect();
    let table = tensors.last().unwrap().1.clone();
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), table));
    fixture::write_safetensors(&folder.path().join("model.safetensors"), &tensors, DType::F32);
    assert_eq!(Checkpoint::open(folder.path()).unwrap().spec, spec);
}

#[test]
fn rope_parameters_are_read_in_every_spelling() {
    let llama3 =
        || RopeScaling::Llama3 { factor: 8.0, low_frequency: 1.0, high_frequency: 4.0, original_context: 64.0 };
    let parameters = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let with = |key: &str, kind: &str| {
        let mut parameters = parameters.clone();
        parameters[key] = kind.into();
        parameters
    };
    let mut v5 = with("rope_type", "llama3");
    v5["rope_theta"] = 5e5.into();
    let rows = [
        (json!({"rope_scaling": null}), 1e4, RopeScaling::None),
        (json!({"rope_theta": null}), 1e4, RopeScaling::None),
        (json!({"rope_scaling": with("rope_type", "default")}), 1e4, RopeScaling::None),
        (json!({"rope_scaling": with("type", "linear"), "rope_theta": 7e3}), 7e3, RopeScaling::Linear { factor: 8.0 }),
        (json!({"rope_scaling": with("rope_type", "linear")}), 1e4, RopeScaling::Linear { factor: 8.0 }),
        (json!({"rope_scaling": with("rope_type", "llama3")}), 1e4, llama3()),
        (json!({"rope_scaling": with("type", "llama3")}), 1e4, llama3()),
        (json!({"rope_parameters": v5, "rope_theta": null}), 5e5, llama3()),
        (json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}), 1e5, RopeScaling::None),
    ];
    let folder = folder(&spec(), DType::F32, 1);
    for (change, rope_theta, rope_scaling) in rows {
        let mut config = config(&spec());
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        write_json(&folder.path().join("config.json"), &config);
        let found = Checkpoint::open(folder.path()).unwrap().spec;
        assert_eq!(found, Spec { rope_theta, rope_scaling, ..spec() }, "{change}");
    }
}

#[test]
fn ggufs_rope_factors_are_the_llama_3_scaling_that_they_were_computed_from() {
    let rope_scaling =
        RopeScaling::Llama3 { factor: 8.0, low_frequency: 1.0, high_frequency: 4.0, original_context: 64.0 };
    let scaled = Spec { rope_scaling, ..spec() };
    let plain = spec().rope_frequencies();
    let factors: Vec<_> = plain.iter().zip(scaled.rope_frequencies()).map(|(p, s)| (p / s) as f32).collect();
    let (_folder, path) = Gguf::llama(&spec(), GgmlDType::F32).with("rope_freqs.weight", &factors).write();
    let found = Checkpoint::open(&path).unwrap().spec.rope_frequencies();
    for (found, expected) in found.iter().zip(scaled.rope_frequencies()) {
        assert!((found / expected - 1.0).abs() < 1e-7, "{found} {expected}");
    }
    assert!(factors.contains(&1.0) && factors.contains(&8.0), "{factors:?}");
}

#[test]
fn ggufs_linear_scaling_is_read_in_both_spellings_and_missing_sizes_are_derived() {
    use gguf_file::Value::{Array, F32, String};
    let gguf = || Gguf::llama(&spec(), GgmlDType::F32);
    let linear = RopeScaling::Linear { factor: 4.0 };
    let tokens = Array(vec![String("a".into()); spec().vocab]);
    let rows = [
        (
            gguf().set("llama.rope.scaling.type", String("linear".into())).set("llama.rope.scaling.factor", F32(4.0)),
            linear.clone(),
        ),
        (gguf().set("llama.rope.scale_linear", F32(4.0)), linear),
        (gguf().set("llama.rope.scaling.type", String("none".into())), RopeScaling::None),
        (gguf().without("llama.vocab_size").set("tokenizer.ggml.tokens", tokens), RopeScaling::None),
        (gguf().without("llama.rope.dimension_count").without("llama.rope.freq_base"), RopeScaling::None),
    ];
    for (gguf, rope_scaling) in rows {
        let (_folder, path) = gguf.write();
        let norm_eps = f64::from(1e-5f32);
        assert_eq!(Checkpoint::open(&path).unwrap().spec, Spec { rope_scaling, norm_eps, ..spec() });
    }
}

#[test]
fn metadata_getters_give_values_by_type_and_name_a_key_of_another_type() {
    use gguf_file::Value::*;
    let (_folder, path) = Gguf::llama(&spec(), GgmlDType::F32)
        .set("a.text", String("héllo".into()))
        .set("a.i8", I8(-3))
        .set("a.u64", U64(u64::MAX))
        .set("a.bool", Bool(true))
        .set("a.f64", F64(0.25))
        .set("a.texts", Array(vec![String("x".into()), String("".into())]))
        .set("a.i32s", Array(vec![I32(-1), I32(7)]))
        .set("a.f32s", Array(vec![F32(-0.5), F32(2.0)]))
        .set("a.empty", Array(vec![]))
        .write();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let metadata = checkpoint.metadata().unwrap();
    assert_eq!(metadata.text("a.text").unwrap(), Some("héllo"));
    assert_eq!(metadata.float("a.i8").unwrap(), Some(-3.0));
    assert_eq!(metadata.unsigned("a.u64").unwrap(), Some(u64::MAX));
    assert_eq!(metadata.bool("a.bool").unwrap(), Some(true));
    assert_eq!(metadata.float("a.f64").unwrap(), Some(0.25));
    assert_eq!(metadata.texts("a.texts").unwrap(), Some(vec!["x", ""]));
    assert_eq!(metadata.integers("a.i32s").unwrap(), Some(vec![-1, 7]));
    assert_eq!(metadata.floats("a.f32s").unwrap(), Some(vec![-0.5, 2.0]));
    assert_eq!(metadata.array_len("a.empty"), Some(0));
    assert_eq!(metadata.text("a.none").unwrap(), None);
    assert!(metadata.keys().any(|key| key == "a.bool"));
    let errors = [
        metadata.text("a.bool").map(drop),
        metadata.unsigned("a.i8").map(drop),
        metadata.bool("a.text").map(drop),
        metadata.texts("a.i32s").map(drop),
        metadata.integers("a.f32s").map(drop),
        metadata.text("a.texts").map(drop),
        metadata.texts("a.text").map(drop),
    ];
    for error in errors {
        let message = error.unwrap_err().to_string();
        assert!(message.contains("key a.") && message.contains("is expected"), "{message}");
    }
}
