//! The built-in environments, one file a kind. None knows another.

pub(super) mod bandit;
pub(super) mod cipher;
pub(super) mod guess_number;
pub(super) mod json;
pub(super) mod letters;
pub(super) mod numbers;
pub(super) mod phonebook;
pub(super) mod secret_rule;
pub(super) mod sentences;

/// The name of an environment in a world; world 0 is the one without a number.
fn world_name(name: &str, world: u64) -> String {
    if world == 0 { name.to_owned() } else { format!("{name}@{world}") }
}
