//! The frozen base that every subagent is born from: weights, text and identity together. Never sees tasks or skills.

use super::AgentError;
use crate::{
    common::{Home, Message, Phase, Progress, Report, Unit},
    fetch::{self, LocalModel},
    library::BaseId,
    text::{Specials, Text},
    train::PassLimits,
};
use socius_models::{Checkpoint, DeviceChoice, Dtype, Model, Pause, Spec, device};
use std::sync::Arc;

/// A base in memory.
pub struct Base {
    /// The weights.
    pub model: Arc<Model>,
    /// Tokenizer and chat template.
    pub text: Arc<Text>,
    /// Which checkpoint it is.
    pub id: BaseId,
    /// Other names of the same checkpoint.
    pub aliases: Vec<String>,
    /// What weights and linear inputs are rounded to.
    pub dtype: Dtype,
    /// How training over it is cut into passes, and what these may keep.
    pub limits: PassLimits,
}

/// Which base, where, and in what precision.
#[derive(Clone, Debug)]
pub struct BaseChoice {
    /// A card's name, a hub id or a path.
    pub model: String,
    /// Where it runs.
    pub device: DeviceChoice,
    /// What weights and linear inputs are rounded to.
    pub dtype: Dtype,
}

/// What is known of a base without loading its weights: enough to merge, compare and export its adapters.
pub struct Outline {
    /// Which checkpoint it is.
    pub id: BaseId,
    /// Its architecture.
    pub spec: Spec,
}

impl Outline {
    /// Fetches the checkpoint if need be, and reads its head.
    pub fn open(model: &str, home: &Home, report: &mut dyn Report) -> Result<Self, AgentError> {
        let local = fetch::ensure(model, home, report)?;
        let checkpoint = Checkpoint::open(&local.path)?;
        let id = identity(&local, &Text::open(&checkpoint)?);
        Ok(Self { id, spec: checkpoint.spec.clone() })
    }
}

/// Adapters that we export name the unquantised original, as other programs expect.
fn identity(local: &LocalModel, text: &Text) -> BaseId {
    let hub = local.card.and_then(|card| card.base_name());
    BaseId { name: hub.unwrap_or(&local.name).to_owned(), digest: local.digest, tokenizer: text.digest() }
}

impl Base {
    /// Fetches the checkpoint if need be and loads it.
    pub fn open(choice: &BaseChoice, home: &Home, report: &mut dyn Report) -> Result<Self, AgentError> {
        let local = fetch::ensure(&choice.model, home, report)?;
        let (place, note) = device(choice.device)?;
        note.iter().for_each(|note| report.note(note));
        let loading = |done| Progress {
            phase: Phase::Loading,
            label: &local.name,
            done,
            total: Some(local.bytes),
            unit: Unit::Bytes,
            detail: "",
        };
        report.progress(loading(0));
        // Quantised weights have kernels on the CPU only.
        let dtype = if place.is_cpu() || choice.dtype != Dtype::Quantised { choice.dtype } else { Dtype::Bf16 };
        let checkpoint = Checkpoint::open(&local.path)?;
        let text = Arc::new(Text::open(&checkpoint)?);
        let model = Arc::new(Model::load(checkpoint.spec.clone(), &checkpoint, &place, dtype)?);
        report.progress(loading(local.bytes));
        let id = identity(&local, &text);
        Ok(Self { model, text, id, aliases: vec![local.name.clone()], dtype, limits: PassLimits::default() })
    }

    /// The same base, for work that lets others go first: its passes call `pause` between half-layers.
    pub fn pausing(&self, pause: Arc<dyn Pause>) -> Self {
        Self {
            model: Arc::new(self.model.pausing(pause)),
            text: self.text.clone(),
            id: self.id.clone(),
            aliases: self.aliases.clone(),
            limits: self.limits,
            dtype: self.dtype,
        }
    }

    /// The architecture.
    pub fn spec(&self) -> &Spec {
        self.model.spec()
    }
    /// The prompt of a conversation, ending where the model's turn begins.
    pub fn prompt_ids(&self, messages: &[Message]) -> Result<Vec<u32>, AgentError> {
        Ok(self.text.prompt_ids(messages)?)
    }

    /// What every conversation that a user opens begins with: the template's own words.
    pub fn preamble(&self) -> Result<Vec<u32>, AgentError> {
        let [a, b] = ["a", "b"].map(|text| self.prompt_ids(&[Message::user(text)]));
        Ok(a?.into_iter().zip(b?).take_while(|(a, b)| a == b).map(|(a, _)| a).collect())
    }

    /// Text as plain text: whatever it spells, no token of it is special.
    pub fn plain_ids(&self, text: &str) -> Result<Vec<u32>, AgentError> {
        Ok(self.text.tokenizer.encode(text, Specials::Plain)?)
    }

    /// What the model ought to say for `reply`: its tokens, and the end of its turn.
    pub fn reply_ids(&self, reply: &str) -> Result<Vec<u32>, AgentError> {
        let mut ids = self.plain_ids(reply)?;
        ids.extend(self.text.end_of_turn());
        Ok(ids)
    }

    /// What sampled tokens say, without the end of the turn.
    pub fn reply(&self, tokens: &[u32]) -> String {
        let end = tokens.iter().position(|token| self.text.stop_ids.contains(token)).unwrap_or(tokens.len());
        self.text.tokenizer.decode(&tokens[..end])
    }
}
