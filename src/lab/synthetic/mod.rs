//! A small language of symbols, contexts in it with questions whose answers are checked, and a base that answers them in context. Never
//! sees text or arms.
//!
//! A context is a beginning and N items of three symbols, `k1 k2 v`: a key of two symbols, because a table of single ones could hide in an
//! embedding, and a value. A question is three symbols of which the last says what is asked; the answer is one symbol.

mod circuit;
mod mqar;
mod reader;
pub mod symbols;
pub mod work;
mod workload;

pub use circuit::{Circuit, Sizes};
pub use mqar::{Mqar, Recall, answer};
pub use reader::{Answered, Reader, best, recall};
pub use workload::{Context, Form, Item, Question, Workload, answers, tokens};
