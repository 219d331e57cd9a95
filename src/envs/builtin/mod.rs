//! The built-in environments, one file a kind. None knows another.

pub(super) mod json;
pub(super) mod letters;
pub(super) mod numbers;
pub(super) mod sentences;
