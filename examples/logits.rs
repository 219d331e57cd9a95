//! Writes the logits after each of some given tokens to a file, for comparison in other programs
//! (`tests/peers/kl_bf16.py`). Knows no other program.
//!
//!     cargo run --example logits -- bf16 tokens.json out.f32
//!
//! `tokens.json` is a list of token ids; `out.f32` gets `[tokens, vocab]` logits, row-major, little-endian f32.

use anyhow::{Context, bail};
use candle_core::Device;
use socius::{
    common::{Home, Silent},
    fetch,
};
use socius_models::{Batch, Checkpoint, Dtype, Model, Row};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dtype, tokens, out] = &arguments[..] else { bail!("usage: logits bf16|f32 TOKENS.json OUT.f32") };
    let dtype = match dtype.as_str() {
        "bf16" => Dtype::Bf16,
        "f32" => Dtype::F32,
        other => bail!("dtype {other:?}: bf16 or f32 is expected"),
    };
    let tokens: Vec<u32> = serde_json::from_slice(&std::fs::read(tokens).with_context(|| tokens.clone())?)?;
    let local = fetch::ensure(fetch::DEFAULT_MODEL, &Home::from_env()?, &mut Silent)?;
    let checkpoint = Checkpoint::open(&local.path)?;
    let model = Model::load(checkpoint.spec.clone(), &checkpoint, &Device::Cpu, dtype)?;
    let wanted: Vec<usize> = (0..tokens.len()).collect();
    let logits = model.forward(&Batch::new([Row::new(&tokens)]), &[], &mut [&mut model.sequence()], &wanted)?;
    let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    std::fs::write(out, bytes).with_context(|| out.clone())
}
