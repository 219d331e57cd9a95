//! An environment made of a user's own examples: each conversation ends where a given reply is the right one. Never sees a file's
//! name beyond its errors.

use super::{Draw, EnvError, Environment, Form, Grade, HeldOut, Info, Item, Level, Outcome, Session, Wordings};
use crate::common::{Digest, Message, Role};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::BTreeSet;

/// From this many examples on, some are held out to judge by; fewer are all learned, and judged by recall.
const HOLD_OUT_FROM: usize = 60;
/// Bytes of reply a token, at least: what the reply limit is derived from.
const BYTES_PER_TOKEN_MIN: usize = 2;

/// What is wrong with a line of examples.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ExampleError {
    /// From 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong, and what is expected.
    pub what: String,
}

/// One example: what is said before, and the right reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Example {
    messages: Vec<Message>,
    reply: String,
}

/// A line as users write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Pair { prompt: String, completion: String },
    Conversation { messages: Vec<Message> },
}

impl Line {
    fn check(self) -> Result<Example, &'static str> {
        let example = match self {
            Self::Pair { prompt, completion } => Example { messages: vec![Message::user(prompt)], reply: completion },
            Self::Conversation { mut messages } => match messages.pop() {
                Some(last) if last.role == Role::Assistant => Example { messages, reply: last.content },
                _ => return Err("the last message must be the assistant's: it is what is learned"),
            },
        };
        match &example {
            Example { messages, .. } if messages.is_empty() => Err("nothing is said before the reply"),
            Example { reply, .. } if reply.trim().is_empty() => Err("the reply is empty"),
            _ => Ok(example),
        }
    }
}

/// A prompt as users write it: of a line of examples the reply does not count.
#[derive(Deserialize)]
#[serde(untagged)]
enum PromptLine {
    Prompt { prompt: String },
    Conversation { messages: Vec<Message> },
}

impl PromptLine {
    fn check(self) -> Result<Vec<Message>, &'static str> {
        let mut messages = match self {
            Self::Prompt { prompt } => vec![Message::user(prompt)],
            Self::Conversation { messages } => messages,
        };
        messages.pop_if(|last| last.role == Role::Assistant);
        if messages.is_empty() { Err("nothing is said in it") } else { Ok(messages) }
    }
}

/// Conversations up to a reply, from JSON lines, each `{"prompt": …}` or `{"messages": […]}`; a reply at the end is left out, so
/// that lines of examples serve too.
///
/// # Errors
/// The first line that is neither, or that there is no line at all.
pub fn prompts(text: &str) -> Result<Vec<Vec<Message>>, ExampleError> {
    let expected = r#"{"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}, …]}"#;
    read_lines(text, expected, PromptLine::check)
}

/// What every line that is not blank says; at least one.
fn read_lines<L: DeserializeOwned, T>(
    text: &str,
    expected: &str,
    check: fn(L) -> Result<T, &'static str>,
) -> Result<Vec<T>, ExampleError> {
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fault = |what: String| ExampleError { line: i + 1, what };
        let parsed: L = serde_json::from_str(line).map_err(|error| {
            let why = if error.is_data() { String::new() } else { format!(" ({error})") };
            fault(format!("{expected} is expected{why}"))
        })?;
        found.push(check(parsed).map_err(|what| fault(what.into()))?);
    }
    match found.is_empty() {
        true => Err(ExampleError { line: 0, what: "there is no line in it".into() }),
        false => Ok(found),
    }
}

/// Examples as an environment: strict and lenient are both the whole reply, but for surrounding white space.
pub struct Examples {
    info: Info,
    facts: Vec<Value>,
}

impl Examples {
    /// From JSON lines, each `{"prompt", "completion"}` or `{"messages": […]}` that ends with the assistant's reply. `name` is what
    /// the skill will be described by.
    ///
    /// # Errors
    /// The first line that is neither, or that there is no line at all.
    pub fn parse(name: &str, text: &str) -> Result<Self, ExampleError> {
        let expected = r#"{"prompt": "…", "completion": "…"} or {"messages": [{"role": "user", "content": "…"}, …]}"#;
        Ok(Self::new(name, &read_lines(text, expected, Line::check)?, Digest::of(text)))
    }

    fn new(name: &str, examples: &[Example], digest: Digest) -> Self {
        let facts: Vec<Value> =
            examples.iter().map(|example| serde_json::to_value(example).expect("an example is JSON")).collect();
        let different: BTreeSet<String> = facts.iter().map(super::canonical).collect();
        let longest = examples.iter().map(|example| example.reply.len()).max().unwrap_or(0);
        let held_out = different.len() >= HOLD_OUT_FROM;
        let first = &examples[0].messages[examples[0].messages.len() - 1].content;
        let excerpt: String = first.chars().take(80).collect();
        Self {
            info: Info {
                name: name.to_owned(),
                version: digest.short(),
                description: format!("{} taught examples, such as: {excerpt}", different.len()),
                levels: vec![Level::new("the examples", longest / BYTES_PER_TOKEN_MIN + 8)],
                wordings: if held_out {
                    Wordings::shared(1, 0)
                } else {
                    Wordings { train: 0..1, validation: 0..1, test: 0..1 }
                },
                held_out: if held_out { HeldOut::Items } else { HeldOut::Wordings },
                forms: vec![Form::Direct],
            },
            facts,
        }
    }

    /// Whether some examples are kept apart to judge by.
    pub fn holds_out(&self) -> bool {
        self.info.held_out == HeldOut::Items
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    /// Never: [`Examples::parse`] refuses that.
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }
}

impl Environment for Examples {
    fn info(&self) -> &Info {
        &self.info
    }

    fn candidate(&self, _: u32, draw: Draw) -> Result<Value, EnvError> {
        Ok(draw.rng().pick(&self.facts).clone())
    }

    fn facts(&self, _: u32, _: Form) -> Option<Vec<Value>> {
        (!self.holds_out()).then(|| self.facts.clone())
    }

    fn start(&self, item: &Item) -> Result<Box<dyn Session>, EnvError> {
        let fact = item.content.get("fact").unwrap_or(&item.content);
        let example: Example = serde_json::from_value(fact.clone()).map_err(|error| EnvError::Content {
            env: self.info.name.clone(),
            reason: error.to_string(),
            content: item.content.to_string(),
        })?;
        Ok(Box::new(Recital { example }))
    }
}

/// One example being asked.
struct Recital {
    example: Example,
}

impl Session for Recital {
    fn observe(&self) -> &[Message] {
        &self.example.messages
    }

    fn teacher(&self) -> Option<String> {
        Some(self.example.reply.clone())
    }

    fn act(&mut self, reply: &str) -> Result<Outcome, EnvError> {
        let right = reply.trim() == self.example.reply.trim();
        Ok(Outcome::Done(Grade {
            reward: f32::from(right),
            strict: right,
            lenient: right,
            feedback: Some(self.example.reply.clone()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Seed;
    use crate::envs::{Query, Split, items};

    fn lines(n: usize) -> String {
        (0..n).map(|i| format!("{{\"prompt\": \"say {i}\", \"completion\": \"it is {i}\"}}\n")).collect()
    }

    #[test]
    fn both_kinds_of_line_are_read_and_graded_by_the_whole_reply() {
        let chat = r#"{"messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}"#;
        let env = Examples::parse("mine", &format!("{}\n\n{chat}\n", lines(1))).unwrap();
        assert_eq!(env.len(), 2);
        for item in items(&env, &Query::new(Split::Test, 1), Seed::new(1), 8).unwrap() {
            let right = env.start(&item).unwrap().teacher().unwrap();
            for (reply, strict) in [(right.clone(), true), (format!(" {right}\n"), true), (format!("{right}!"), false)]
            {
                let Outcome::Done(grade) = env.start(&item).unwrap().act(&reply).unwrap() else { panic!("one turn") };
                assert_eq!(grade.strict, strict, "{reply:?}");
            }
        }
    }

    #[test]
    fn few_examples_are_all_learned_and_many_are_split() {
        let seen = |env: &Examples, split| items(env, &Query::new(split, 1), Seed::new(2), 500).unwrap();
        let few = Examples::parse("few", &lines(20)).unwrap();
        assert!(!few.holds_out() && Split::ALL.iter().all(|&split| seen(&few, split).len() == 20));
        let many = Examples::parse("many", &lines(200)).unwrap();
        let ids = |split| seen(&many, split).iter().map(|item| item.id).collect::<BTreeSet<_>>();
        assert!(many.holds_out() && ids(Split::Train).is_disjoint(&ids(Split::Test)));
        assert!(ids(Split::Train).len() > 80);
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_expected() {
        for (text, line, what) in [
            ("", 0, "no line"),
            ("{\"prompt\": \"a\"}", 1, "is expected"),
            ("{\"prompt\": \"a\", \"completion\": \" \"}", 1, "reply is empty"),
            ("\n[", 2, "is expected"),
            ("{\"messages\": []}", 1, "assistant"),
            ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", 1, "assistant"),
            ("{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}", 1, "before the reply"),
        ] {
            let error = Examples::parse("x", text).err().expect(text);
            assert!(error.line == line && error.what.contains(what), "{text:?}: {error}");
        }
    }

    #[test]
    fn prompts_are_read_with_and_without_replies() {
        let text = r#"
            {"prompt": "a?"}
            {"prompt": "a?", "completion": "b"}
            {"messages": [{"role": "user", "content": "a?"}]}
            {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
        "#;
        assert_eq!(prompts(text).unwrap(), vec![vec![Message::user("a?")]; 4]);
        for (text, line, what) in [
            ("", 0, "no line"),
            ("\n{\"completion\": \"b\"}", 2, "is expected"),
            ("{\"messages\": []}", 1, "nothing is said"),
            ("{\"messages\": [{\"role\": \"assistant\", \"content\": \"b\"}]}", 1, "nothing is said"),
        ] {
            let error = prompts(text).unwrap_err();
            assert!(error.line == line && error.what.contains(what), "{text:?}: {error}");
        }
    }
}
