//! Tiny checkpoints in temporary folders, in every format. Knows nothing of what a test proves.

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use socius_models::{LayerSlot, RandomSource, Slot, Spec, TensorSource};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Every width is a multiple of 256, the longest quantisation block.
pub(crate) fn spec() -> Spec {
    Spec {
        vocab: 32,
        hidden: 256,
        intermediate: 512,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        norm_eps: 1e-5,
        ..Spec::tiny()
    }
}

pub(crate) fn source(spec: &Spec) -> RandomSource {
    RandomSource { spec: spec.clone(), seed: 5 }
}

/// The `config.json` of `spec`.
pub(crate) fn config(spec: &Spec) -> Value {
    json!({
        "model_type": spec.family,
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tied_head,
        "max_position_embeddings": spec.context_max,
        "hidden_act": "silu",
    })
}

/// A Hugging Face folder, with as many shards as `shards` (1: no index).
pub(crate) fn folder(spec: &Spec, dtype: DType, shards: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_json(&folder.path().join("config.json"), &config(spec));
    let all: Vec<_> = spec.slots().map(|slot| (slot.hugging_face_name(), source(spec).read(slot).unwrap())).collect();
    let mut index = serde_json::Map::new();
    for (shard, tensors) in all.chunks(all.len().div_ceil(shards)).enumerate() {
        let name = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
        };
        index.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
        write_safetensors(&folder.path().join(name), tensors, dtype);
    }
    if shards > 1 {
        write_json(&folder.path().join("model.safetensors.index.json"), &json!({"metadata": {}, "weight_map": index}));
    }
    folder
}

pub(crate) fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

pub(crate) fn write_safetensors(path: &Path, tensors: &[(String, Tensor)], dtype: DType) {
    let (kind, encode): (_, fn(f32) -> Vec<u8>) = match dtype {
        DType::F16 => (Dtype::F16, |v| half::f16::from_f32(v).to_le_bytes().to_vec()),
        DType::BF16 => (Dtype::BF16, |v| half::bf16::from_f32(v).to_le_bytes().to_vec()),
        _ => (Dtype::F32, |v| v.to_le_bytes().to_vec()),
    };
    let bytes: BTreeMap<_, Vec<u8>> = tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), values(tensor).into_iter().flat_map(encode).collect()))
        .collect();
    let view = |(name, tensor): &(String, Tensor)| {
        (name.clone(), TensorView::new(kind, tensor.dims().to_vec(), &bytes[name]).unwrap())
    };
    safetensors::serialize_to_file(tensors.iter().map(view), None, path).unwrap();
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// What a GGUF file is made of, to be changed before it is written.
pub(crate) struct Gguf {
    pub(crate) metadata: Vec<(String, gguf_file::Value)>,
    pub(crate) tensors: Vec<(String, QTensor)>,
}

impl Gguf {
    /// A Llama whose linears are stored as `dtype`, Q and K permuted as llama.cpp's converter does.
    pub(crate) fn llama(spec: &Spec, dtype: GgmlDType) -> Self {
        use gguf_file::Value::{F32, String, U32};
        let number = |n: usize| U32(n as u32);
        let metadata = [
            ("general.architecture", String(spec.family.clone())),
            ("llama.vocab_size", number(spec.vocab)),
            ("llama.embedding_length", number(spec.hidden)),
            ("llama.feed_forward_length", number(spec.intermediate)),
            ("llama.block_count", number(spec.layers)),
            ("llama.attention.head_count", number(spec.heads)),
            ("llama.attention.head_count_kv", number(spec.kv_heads)),
            ("llama.rope.dimension_count", number(spec.head_dim)),
            ("llama.attention.layer_norm_rms_epsilon", F32(spec.norm_eps as f32)),
            ("llama.rope.freq_base", F32(spec.rope_theta as f32)),
            ("llama.context_length", number(spec.context_max)),
        ];
        let tensors = spec.slots().map(|slot| (gguf_name(slot), quantised(spec, slot, dtype))).collect();
        Self { metadata: metadata.map(|(key, value)| (key.to_owned(), value)).to_vec(), tensors }
    }

    pub(crate) fn set(mut self, key: &str, value: gguf_file::Value) -> Self {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.metadata.retain(|(key, _)| key != name);
        self.tensors.retain(|(tensor, _)| tensor != name);
        self
    }

    pub(crate) fn with(mut self, name: &str, values: &[f32]) -> Self {
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        self.tensors.push((name.to_owned(), QTensor::quantize(&tensor, GgmlDType::F32).unwrap()));
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let metadata: Vec<_> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut file = std::io::Cursor::new(Vec::new());
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
        file.into_inner()
    }

    pub(crate) fn write(&self) -> (TempDir, PathBuf) {
        write_bytes(&self.bytes())
    }
}

pub(crate) fn write_bytes(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// The tensor of the seed, permuted and quantised.
fn quantised(spec: &Spec, slot: Slot, dtype: GgmlDType) -> QTensor {
    let tensor = source(spec).read(slot).unwrap();
    let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
    QTensor::quantize(&permuted(spec, slot, &tensor), dtype).unwrap()
}

/// llama.cpp's converter: `w.reshape(heads, 2, head_dim / 2, width).swapaxes(1, 2).reshape(w.shape)`.
fn permuted(spec: &Spec, slot: Slot, tensor: &Tensor) -> Tensor {
    let Slot::Layer(_, LayerSlot::Q | LayerSlot::K) = slot else { return tensor.clone() };
    let (rows, width) = tensor.dims2().unwrap();
    let pairs = tensor.reshape((rows / spec.head_dim, 2, spec.head_dim / 2, width)).unwrap();
    pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, width)).unwrap()
}

/// What reading `slot` of [`Gguf::llama`] must give: rows are quantised one by one, so the order of rows does not matter.
pub(crate) fn dequantised(spec: &Spec, slot: Slot, dtype: GgmlDType) -> Vec<f32> {
    let tensor = source(spec).read(slot).unwrap();
    let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
    values(&QTensor::quantize(&tensor, dtype).unwrap().dequantize(&Device::Cpu).unwrap())
}

fn gguf_name(slot: Slot) -> String {
    let module = match slot {
        Slot::Embedding => return "token_embd.weight".into(),
        Slot::FinalNorm => return "output_norm.weight".into(),
        Slot::Head => return "output.weight".into(),
        Slot::Layer(_, LayerSlot::AttentionNorm) => "attn_norm",
        Slot::Layer(_, LayerSlot::Q) => "attn_q",
        Slot::Layer(_, LayerSlot::K) => "attn_k",
        Slot::Layer(_, LayerSlot::V) => "attn_v",
        Slot::Layer(_, LayerSlot::O) => "attn_output",
        Slot::Layer(_, LayerSlot::MlpNorm) => "ffn_norm",
        Slot::Layer(_, LayerSlot::Gate) => "ffn_gate",
        Slot::Layer(_, LayerSlot::Up) => "ffn_up",
        Slot::Layer(_, LayerSlot::Down) => "ffn_down",
    };
    let Slot::Layer(layer, _) = slot else { unreachable!() };
    format!("blk.{layer}.{module}.weight")
}
