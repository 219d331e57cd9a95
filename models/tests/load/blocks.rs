//! Every tensor type against the values that the `gguf` package reads in the same bytes (recorded by tests/peers/record_blocks.py).

use crate::fixture::{Gguf, spec, values, write_bytes};
use candle_core::quantized::GgmlDType;
use serde::Deserialize;
use socius_models::{Checkpoint, Slot, Spec, TensorSource};

#[derive(Deserialize)]
struct Recorded {
    r#type: String,
    number: u32,
    bytes: String,
    values: Vec<f32>,
}

/// The embedding of a valid file, with its type and its first bytes replaced.
fn embedding_of(recorded: &Recorded) -> Vec<f32> {
    let spec = Spec { vocab: 256, layers: 1, ..spec() };
    let mut bytes = Gguf::llama(&spec, GgmlDType::F32).bytes();
    let name = "token_embd.weight";
    let header = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() + name.len();
    bytes[header + 20..header + 24].copy_from_slice(&recorded.number.to_le_bytes());
    // It is the first tensor written, and the file ends with the others: the data starts where they leave off.
    let others: usize = spec.slots().map(|slot| 4 * spec.shape(slot).iter().product::<usize>()).sum();
    let data = bytes.len() - others;
    for (i, pair) in recorded.bytes.as_bytes().chunks(2).enumerate() {
        bytes[data + i] = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    }
    let (_folder, path) = write_bytes(&bytes);
    let embedding = Checkpoint::open(&path).unwrap().read(Slot::Embedding).unwrap();
    values(&embedding)[..recorded.values.len()].to_vec()
}

#[test]
fn every_tensor_type_reads_as_the_gguf_package_reads_it() {
    let recorded: Vec<Recorded> = serde_json::from_str(include_str!("../../golden/gguf-blocks.json")).unwrap();
    assert_eq!(recorded.len(), 13);
    for recorded in recorded {
        let found = embedding_of(&recorded);
        for (i, (found, expected)) in found.iter().zip(&recorded.values).enumerate() {
            // The two multiply a block's scales in another order: three roundings.
            let bound = 4.0 * f32::EPSILON * expected.abs().max(1.0);
            assert!((found - expected).abs() <= bound, "{} value {i}: {found} {expected}", recorded.r#type);
        }
    }
}
