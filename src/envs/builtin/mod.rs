//! The built-in environments, one file a kind. None knows another.

pub(super) mod bandit;
pub(super) mod cipher;
pub(super) mod date;
pub(super) mod guess_number;
pub(super) mod json;
pub(super) mod letters;
pub(super) mod numbers;
pub(super) mod phonebook;
pub(super) mod phrases;
pub(super) mod register;
pub(super) mod secret_rule;
pub(super) mod sentences;

use super::{Form, HeldOut, Info, Level, Wordings};

/// What most environments say of themselves: items are held out, four wordings are shared, and a fifth is kept for testing.
fn info(name: &str, description: &str, levels: impl Into<Vec<Level>>) -> Info {
    Info {
        name: name.into(),
        version: "1".into(),
        description: description.into(),
        levels: levels.into(),
        wordings: Wordings::shared(4, 1),
        held_out: HeldOut::Items,
        forms: vec![Form::Direct],
    }
}

/// The name of an environment in a world; world 0 is the one without a number.
fn world_name(name: &str, world: u64) -> String {
    if world == 0 { name.to_owned() } else { format!("{name}@{world}") }
}
