//! Whatever bytes a file holds, opening and reading it ends in a value or an error.

use crate::fixture::{Gguf, folder, spec, write_bytes};
use candle_core::{DType, quantized::GgmlDType};
use proptest::prelude::*;
use socius_models::{Checkpoint, Spec, TensorSource};
use std::{path::Path, sync::LazyLock};

/// Opens and, where that succeeds, reads everything that can be asked for.
fn exercise(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    for slot in checkpoint.spec.slots() {
        assert_eq!(checkpoint.read(slot).unwrap().dims(), checkpoint.spec.shape(slot));
    }
    let Some(metadata) = checkpoint.metadata() else { return };
    for key in metadata.keys() {
        let _ = (metadata.text(key), metadata.unsigned(key), metadata.float(key), metadata.bool(key));
        let _ = (metadata.texts(key), metadata.integers(key), metadata.floats(key), metadata.array_len(key));
    }
}

static GGUF: LazyLock<Vec<u8>> = LazyLock::new(|| {
    use candle_core::quantized::gguf_file::Value::{Array, String};
    let tokens = Array(vec![String("a".into()); 32]);
    let spec = Spec { layers: 1, ..spec() };
    Gguf::llama(&spec, GgmlDType::Q4_0).set("tokenizer.ggml.tokens", tokens).bytes()
});

static SAFETENSORS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = folder(&Spec { layers: 1, ..spec() }, DType::F16, 1);
    std::fs::read(folder.path().join("model.safetensors")).unwrap()
});

/// The header of [`GGUF`] ends before here.
const GGUF_HEADER: usize = 2_000;
const SAFETENSORS_HEADER: usize = 1_100;

/// Small edits inside the first `end` bytes, and a cut.
fn edits(end: usize) -> impl Strategy<Value = (Vec<(usize, Vec<u8>)>, Option<usize>)> {
    let edit = (0..end, prop_oneof![prop::collection::vec(any::<u8>(), 1..9), Just(vec![0xff; 8]), Just(vec![0; 8])]);
    (prop::collection::vec(edit, 1..4), prop::option::weighted(0.2, 0..end * 2))
}

fn edited(bytes: &[u8], (edits, cut): &(Vec<(usize, Vec<u8>)>, Option<usize>)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, patch) in edits {
        bytes[*at..*at + patch.len()].copy_from_slice(patch);
    }
    bytes.truncate(cut.unwrap_or(usize::MAX));
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_after_the_magic_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300), version in 2u8..4) {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend([version, 0, 0, 0]);
        bytes.extend(tail);
        let (_folder, path) = write_bytes(&bytes);
        exercise(&path);
    }

    #[test]
    fn an_edited_gguf_never_panics(edits in edits(GGUF_HEADER)) {
        let (_folder, path) = write_bytes(&edited(&GGUF, &edits));
        exercise(&path);
    }

    #[test]
    fn an_edited_safetensors_never_panics(edits in edits(SAFETENSORS_HEADER)) {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::fixture::config(&Spec { layers: 1, ..spec() });
        crate::fixture::write_json(&folder.path().join("config.json"), &config);
        std::fs::write(folder.path().join("model.safetensors"), edited(&SAFETENSORS, &edits)).unwrap();
        exercise(folder.path());
    }

    #[test]
    fn a_random_configuration_never_panics(key in 0usize..12, value in prop_oneof![
        any::<f64>().prop_map(|v| serde_json::json!(v)),
        any::<i64>().prop_map(|v| serde_json::json!(v)),
        (0u64..4096).prop_map(|v| serde_json::json!(v)),
        ".{0,8}".prop_map(|v| serde_json::json!(v)),
        Just(serde_json::json!([1, {}])),
    ]) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.safetensors"), &*SAFETENSORS).unwrap();
        let mut config = crate::fixture::config(&Spec { layers: 1, ..spec() });
        let (_, slot) = config.as_object_mut().unwrap().iter_mut().nth(key).unwrap();
        *slot = value;
        crate::fixture::write_json(&folder.path().join("config.json"), &config);
        exercise(folder.path());
    }
}
