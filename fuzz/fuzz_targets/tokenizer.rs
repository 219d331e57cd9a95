//! The tokenizer that a GGUF file describes, and texts through it.
#![no_main]

use arbitrary::Arbitrary;
use candle_core::{
    DType, Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use libfuzzer_sys::fuzz_target;
use socius::{
    common::Message,
    text::{Specials, Text},
};
use socius_fuzz::file;
use socius_models::{Checkpoint, Spec};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    sentence_piece: bool,
    pre: Option<&'a str>,
    tokens: Vec<&'a str>,
    types: Option<Vec<i8>>,
    scores: Option<Vec<f32>>,
    merges: Option<Vec<&'a str>>,
    ids: [Option<u8>; 4],
    flags: [Option<bool>; 2],
    template: Option<&'a str>,
    text: &'a str,
}

impl Input<'_> {
    fn metadata(&self) -> Vec<(String, Value)> {
        let text = |text: &str| Value::String(text.to_owned());
        let texts = |list: &[&str]| Value::Array(list.iter().map(|item| text(item)).collect());
        let mut list = vec![
            ("ggml.model", text(if self.sentence_piece { "llama" } else { "gpt2" })),
            ("ggml.tokens", texts(&self.tokens)),
            ("ggml.pre", text(self.pre.unwrap_or("default"))),
        ];
        let numbers = |list: &Vec<i8>| Value::Array(list.iter().map(|&kind| Value::I32(kind.into())).collect());
        list.extend(self.types.as_ref().map(|types| ("ggml.token_type", numbers(types))));
        let floats = |list: &Vec<f32>| Value::Array(list.iter().copied().map(Value::F32).collect());
        list.extend(self.scores.as_ref().map(|scores| ("ggml.scores", floats(scores))));
        list.extend(self.merges.as_ref().map(|merges| ("ggml.merges", texts(merges))));
        list.extend(self.template.map(|template| ("chat_template", text(template))));
        let names = ["ggml.bos_token_id", "ggml.eos_token_id", "ggml.eot_token_id", "ggml.unknown_token_id"];
        let ids = names.into_iter().zip(self.ids);
        list.extend(ids.filter_map(|(name, id)| Some((name, Value::U32(id?.into())))));
        let flags = ["ggml.add_bos_token", "ggml.add_space_prefix"].into_iter().zip(self.flags);
        list.extend(flags.filter_map(|(name, flag)| Some((name, Value::Bool(flag?)))));
        list.into_iter().map(|(key, value)| (format!("tokenizer.{key}"), value)).collect()
    }
}

const NORMS: [&str; 3] = ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"];
const LINEARS: [&str; 7] = [
    "blk.0.attn_q.weight",
    "blk.0.attn_k.weight",
    "blk.0.attn_v.weight",
    "blk.0.attn_output.weight",
    "blk.0.ffn_gate.weight",
    "blk.0.ffn_up.weight",
    "blk.0.ffn_down.weight",
];

/// The smallest Llama with a row for each token.
fn model(tokens: usize) -> (Vec<(String, Value)>, Vec<(&'static str, QTensor)>) {
    let spec = Spec {
        vocab: tokens,
        hidden: 4,
        intermediate: 4,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        ..Spec::tiny()
    };
    let sizes = [
        ("vocab_size", tokens),
        ("embedding_length", spec.hidden),
        ("feed_forward_length", spec.intermediate),
        ("block_count", spec.layers),
        ("attention.head_count", spec.heads),
    ];
    let size = |(key, n): (&str, usize)| (format!("llama.{key}"), Value::U32(n as u32));
    let architecture = ("general.architecture".to_owned(), Value::String("llama".into()));
    let zeros = |shape: &[usize]| {
        let zeros = Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros");
        QTensor::quantize(&zeros, GgmlDType::F32).expect("f32 is as it is")
    };
    let linears = LINEARS.map(|name| (name, zeros(&[4, 4])));
    let norms = NORMS.map(|name| (name, zeros(&[4])));
    let embedding = ("token_embd.weight", zeros(&[tokens, 4]));
    let metadata = sizes.map(size).into_iter().chain([architecture]);
    (metadata.collect(), linears.into_iter().chain(norms).chain([embedding]).collect())
}

fuzz_target!(|input: Input| {
    let (mut metadata, tensors) = model(input.tokens.len().max(1));
    metadata.extend(input.metadata());
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let mut bytes = std::io::Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors).expect("memory takes it");
    let checkpoint = Checkpoint::open(file("model.gguf", bytes.get_ref())).expect("the model is whole");
    let Ok(text) = Text::open(&checkpoint) else { return };
    for specials in [Specials::Parse, Specials::Plain] {
        if let Ok(ids) = text.tokenizer.encode(input.text, specials) {
            let _ = (text.tokenizer.decode(&ids), text.tokenizer.decode_with_specials(&ids));
        }
    }
    let _ = (text.raw_ids(input.text), text.prompt_ids(&[Message::user(input.text)]), text.end_of_turn());
});
