//! Text in, token ids out, and back: a checkpoint's tokenizer and chat template. Never sees weights, tasks or rewards.

mod error;
mod gguf;
mod grammar;
mod guard;
mod held;
mod pieces;
mod pre;
mod python_json;
mod source;
mod template;
mod tokenizer;

pub use error::TextError;
pub use grammar::{Grammar, GrammarState, Grammars};
pub use held::Held;
pub use pieces::Stream;
pub use template::{ChatTemplate, TokenNames};
pub use tokenizer::{Ends, Specials, Tokenizer};

use crate::common::{Digest, Message};
use socius_models::Checkpoint;

/// Everything about a checkpoint that turns text into tokens.
pub struct Text {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template; none for a model that was not made for conversations.
    pub template: Option<ChatTemplate>,
    /// Tokens that end the model's turn, in ascending order.
    pub stop_ids: Vec<u32>,
}

impl Text {
    /// From a GGUF file's metadata, or from the files beside a folder's weights.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self, TextError> {
        let text = match checkpoint.metadata() {
            Some(metadata) => source::from_gguf(metadata)?,
            None => source::from_folder(checkpoint.path())?,
        };
        let (tokens, rows) = (text.tokenizer.len(), checkpoint.spec.vocab);
        if tokens > rows {
            let what =
                format!("has {tokens} tokens, but the model's embedding has {rows} rows: it belongs to another model");
            return Err(TextError::tokenizer(checkpoint.path().display().to_string(), what));
        }
        Ok(text)
    }

    /// The prompt of a conversation, ending where the model's turn begins. Special tokens come from the template alone: whatever
    /// the messages spell is plain text. So does a `bos`, as in transformers.
    pub fn prompt_ids(&self, messages: &[Message]) -> Result<Vec<u32>, TextError> {
        self.conversation_ids(messages, true)
    }

    /// The same, ending after the last message if `add_generation_prompt` is false.
    pub fn conversation_ids(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        let said = messages.iter().map(|message| message.content.as_str());
        let mut guard = self.tokenizer.guard(said.chain([template.source()]));
        let mut protect = |text| guard.protect(text).map(String::from).ok_or_else(tokenizer::too_many_stand_ins);
        let protected = messages
            .iter()
            .map(|message| Ok(Message { role: message.role, content: protect(&message.content)? }))
            .collect::<Result<Vec<_>, TextError>>()?;
        self.tokenizer.encode_guarded(&template.render(&protected, add_generation_prompt)?, &guard)
    }

    /// The ids of text that is given to the model as it is (`--raw`): special tokens are parsed, and `bos` is put in front if the
    /// model expects one and the text does not spell it.
    pub fn raw_ids(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let ids = self.tokenizer.encode(text, Specials::Parse)?;
        match self.tokenizer.ends() {
            Ends { bos: Some(bos), add_bos: true, .. } if ids.first() != Some(&bos) => {
                Ok([bos].into_iter().chain(ids).collect())
            }
            _ => Ok(ids),
        }
    }

    /// The token that ends the model's turn: the one that the template writes after a reply, else the end of text.
    pub fn end_of_turn(&self) -> Option<u32> {
        let reply = [Message::user("a"), Message::assistant("b")];
        let ids = self.conversation_ids(&reply, false).unwrap_or_default();
        let written = ids.iter().rev().find(|id| self.stop_ids.contains(id));
        written.copied().or(self.tokenizer.ends().eos)
    }

    /// Of everything that decides the ids of a conversation.
    pub fn digest(&self) -> Digest {
        let template = self.template.as_ref().map_or("", ChatTemplate::source);
        Digest::of_parts([&self.tokenizer.digest().bytes()[..], template.as_bytes()])
    }
}
