//! Prompts that belong to no skill: everyday requests, and small tasks of many kinds. Plain data.

/// What the class "none of these" is made from, a prompt a line; the caller turns each into features as it does a skill's prompts.
pub const BACKGROUND: &str = include_str!("background.txt");

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn background_prompts_are_many_and_no_two_are_alike() {
        let different: BTreeSet<&str> = BACKGROUND.lines().collect();
        assert!(different.len() == BACKGROUND.lines().count() && different.len() > 400);
        assert!(different.iter().all(|line| !line.is_empty() && line.trim() == *line));
    }
}
