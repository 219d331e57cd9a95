//! Answers that feedback may still come for. Knows no wire format.

use crate::{common::Message, episode::Turn};
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

/// Answers that are remembered.
const KEPT: usize = 1024;

/// An answer that was given.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) id: String,
    /// The conversation before it.
    pub(super) messages: Vec<Message>,
    pub(super) reply: String,
    pub(super) turn: Turn,
}

/// The last ones.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<Answered>>);

impl Recent {
    pub(super) fn remember(&self, answered: Answered) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(answered);
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }

    pub(super) fn find(&self, id: &str) -> Option<Answered> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().find(|answered| answered.id == id).cloned()
    }
}
