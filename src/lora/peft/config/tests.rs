//! The configuration file against what peft does with it. Never sees tensors.

use super::super::super::testing::{base, mixed};
use super::*;
use proptest::prelude::*;
use socius_models::Spec;

fn parse(config: &Value) -> Result<LoraConfig, LoraError> {
    read(&serde_json::to_vec(config).unwrap(), base(&Spec::tiny()))
}

fn plain() -> Value {
    json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]})
}

fn with(key: &str, value: Value) -> Value {
    let mut config = plain();
    config[key] = value;
    config
}

#[test]
fn the_written_keys_are_exactly_those_that_clients_rely_on() {
    let spec = Spec::tiny();
    let config = LoraConfig::uniform(4, 8.0, &[Projection::Down, Projection::Q]);
    let written: Value = serde_json::from_slice(&write(&config, base(&spec))).unwrap();
    assert_eq!(
        written,
        json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
            "target_modules": ["q_proj", "down_proj"], "rank_pattern": {}, "alpha_pattern": {}, "bias": "none",
            "lora_dropout": 0.0, "fan_in_fan_out": false, "use_rslora": false, "use_dora": false,
            "modules_to_save": null, "inference_mode": true, "init_lora_weights": true,
            "base_model_name_or_path": "org/Tiny", "revision": null,
        })
    );
}

#[test]
fn a_prefix_is_written_as_peft_writes_one_and_what_does_not_fit_is_named() {
    let spec = Spec::tiny();
    let written: Value = serde_json::from_slice(&write(&LoraConfig::prefix(7), base(&spec))).unwrap();
    assert_eq!(
        written,
        json!({
            "peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 7, "token_dim": spec.kv_dim(),
            "num_layers": spec.layers, "num_attention_heads": spec.kv_heads, "num_transformer_submodules": 1,
            "prefix_projection": false, "encoder_hidden_size": null, "inference_mode": true,
            "base_model_name_or_path": "org/Tiny", "revision": null,
        })
    );
    assert_eq!(parse(&written).unwrap(), LoraConfig::prefix(7));
    for (key, value, expected) in [
        ("num_virtual_tokens", json!(0), "positive"),
        ("num_virtual_tokens", Value::Null, "positive"),
        ("prefix_projection", json!(true), "only false"),
        ("token_dim", json!(576), "this base needs 12"),
        ("num_layers", json!(30), "this base needs 3"),
        ("base_model_name_or_path", json!("org/Other"), "trained on"),
        ("something_new", json!(1), "not supported"),
    ] {
        let mut config = written.clone();
        config[key] = value;
        let error = parse(&config).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(expected), "{key}: {error}");
    }
}

#[test]
fn a_configuration_reads_back_as_it_was_written() {
    let spec = Spec::tiny();
    let mut uniform = LoraConfig::uniform(3, 0.5, &[Projection::K, Projection::Up]);
    uniform.dropout = 0.05;
    for config in [uniform, mixed(&spec).config] {
        assert_eq!(read(&write(&config, base(&spec)), base(&spec)).unwrap(), config);
    }
}

#[test]
fn targets_are_selected_as_peft_selects_them() {
    let names = |config: Value| -> Vec<String> {
        let config = parse(&config).unwrap();
        sites(&Spec::tiny()).filter(|&site| config.at(site).is_some()).map(module_path).collect()
    };
    let q1 = "model.layers.1.self_attn.q_proj";
    assert_eq!(names(with("target_modules", json!("all-linear"))).len(), 21);
    assert_eq!(names(with("target_modules", json!([q1]))), [q1]);
    assert_eq!(names(with("target_modules", json!(r".*\.1\.self_attn\.q_proj"))), [q1]);
    assert_eq!(names(with("target_modules", json!(r".*(?<!layers\.[02])\.self_attn\.q_proj"))), [q1]);
    assert_eq!(names(with("exclude_modules", json!(r".*\.[02]\..*|.*mlp.*"))), [q1]);
    assert_eq!(names(with("exclude_modules", json!(["mlp.down_proj"]))).len(), 3);
    assert_eq!(names(with("layers_to_transform", json!(1))).len(), 2);
    assert_eq!(names(with("layers_to_transform", json!([0, 2]))).len(), 4);
}

#[test]
fn rank_and_alpha_patterns_hold_where_they_match_first() {
    let mut config = with("rank_pattern", json!({"layers.0.self_attn.q_proj": 2, "q_proj": 6}));
    config["alpha_pattern"] = json!({r"layers\.[01]\..*": 1.5});
    let config = parse(&config).unwrap();
    let at = |layer, projection| config.at(Site { layer, projection }).map(|own| (own.rank, own.alpha));
    assert_eq!(at(0, Projection::Q), Some((2, 1.5)));
    assert_eq!(at(1, Projection::Q), Some((6, 1.5)));
    assert_eq!(at(2, Projection::Q), Some((6, 8.0)));
    assert_eq!(at(1, Projection::Down), Some((4, 1.5)));
    assert_eq!(at(2, Projection::Down), Some((4, 8.0)));
    assert_eq!(at(2, Projection::K), None);
}

#[test]
fn what_cannot_be_honoured_is_refused_by_its_key() {
    let rows = [
        ("peft_type", json!("LOHA")),
        ("peft_type", Value::Null),
        ("use_dora", json!(true)),
        ("use_dora", json!("yes")),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("lora_bias", json!(true)),
        ("use_qalora", json!(true)),
        ("layer_replication", json!([[0, 2]])),
        ("trainable_token_indices", json!([1])),
        ("alora_invocation_tokens", json!([1])),
        ("something_new", json!(0.5)),
        ("r", json!(0)),
        ("r", json!(2.5)),
        ("lora_alpha", json!("16")),
        ("use_rslora", json!(1)),
        ("rank_pattern", json!({"q_proj": -1})),
        ("rank_pattern", json!(["q_proj"])),
        ("rank_pattern", json!({"(": 1})),
        ("alpha_pattern", json!({"q_proj": null, "down_proj": "x"})),
        ("target_modules", Value::Null),
        ("target_modules", json!(["q_proj", "lm_head"])),
        ("target_modules", json!(["c_attn"])),
        ("target_modules", json!("nothing")),
        ("target_modules", json!("(")),
        ("target_modules", json!([])),
        ("target_modules", json!([1])),
        ("layers_to_transform", json!("all")),
    ];
    for (key, value) in rows {
        let error = parse(&with(key, value.clone())).unwrap_err();
        assert!(matches!(&error, LoraError::Config { key: found, .. } if found == key), "{key}: {value}: {error}");
    }
    for ignored in ["use_dora", "lora_bias", "layer_replication", "revision", "modules_to_save", "something_new"] {
        assert!(parse(&with(ignored, Value::Null)).is_ok(), "{ignored}");
    }
}

#[test]
fn another_base_is_refused_with_both_names_and_mirrors_are_not() {
    for same in ["org/Tiny", "mirror/tiny", "/models/tiny/", "other-name", ""] {
        assert!(parse(&with("base_model_name_or_path", json!(same))).is_ok(), "{same}");
    }
    let error = parse(&with("base_model_name_or_path", json!("org/Tiny-Instruct"))).unwrap_err();
    assert!(matches!(error, LoraError::ForeignBase { .. }));
    assert!(error.to_string().contains("org/Tiny-Instruct") && error.to_string().contains("\"org/Tiny\""), "{error}");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        r"[a-z_.*()\[\]|+?0-9]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z_.*(]{0,8}", inner), 0..4)
                .prop_map(|rows| Value::Object(rows.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes, base(&Spec::tiny()));
    }

    #[test]
    fn no_value_of_a_known_key_makes_the_parser_panic(key in prop::sample::select(READ.to_vec()), value in any_json()) {
        if let Ok(config) = parse(&with(key, value)) {
            let _ = config.layout(&Spec::tiny());
        }
    }
}
