//! Single-turn tasks: one prompt, one right reply. What a built-in task must say, and the environment that it then is.

use super::{Draw, EnvError, Environment, Form, Grade, HeldOut, Info, Item, Outcome, Session};
use crate::common::Message;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// A task of one prompt and one right reply.
pub(super) trait Task: Send + Sync {
    /// What identifies an item.
    type Content: Serialize + DeserializeOwned;

    /// What the task says of itself.
    fn info(&self) -> Info;

    /// A candidate of a level: any of its facts, where it is made of facts.
    ///
    /// # Panics
    /// If it has no facts; such a task says what it draws.
    fn candidate(&self, level: u32, draw: Draw) -> Self::Content {
        let mut facts = self.facts(level, Form::Direct);
        facts.swap_remove(draw.rng().below(facts.len()))
    }

    /// All facts of a level and form, if wordings are held out.
    fn facts(&self, _level: u32, _form: Form) -> Vec<Self::Content> {
        Vec::new()
    }

    /// The question in the given wording.
    fn prompt(&self, content: &Self::Content, wording: usize) -> String;

    /// The one right reply.
    fn answer(&self, content: &Self::Content) -> String;

    /// Whether the reply's first complete answer span is right (spans: `grade`).
    fn lenient(&self, answer: &str, reply: &str) -> bool;

    /// Whether the whole reply is right.
    fn strict(&self, answer: &str, reply: &str) -> bool {
        reply.trim() == answer
    }

    /// The answers that an item lets choose from, where they are few.
    fn choices(&self, _content: &Self::Content, _level: u32) -> Vec<String> {
        Vec::new()
    }
}

/// A task as an environment.
pub(super) struct SingleTurn<T> {
    task: T,
    info: Info,
}

impl<T: Task> SingleTurn<T> {
    pub(super) fn new(task: T) -> Self {
        Self { info: task.info(), task }
    }

    fn read(&self, item: &Item) -> Result<T::Content, EnvError> {
        match self.info.held_out {
            HeldOut::Items => read(&self.info, item, &item.content),
            HeldOut::Wordings => read(&self.info, item, &item.content["fact"]),
        }
    }
}

/// What an item holds, after checking that it is this environment's.
pub(super) fn read<T: DeserializeOwned>(info: &Info, item: &Item, content: &Value) -> Result<T, EnvError> {
    let wrong =
        |reason: String| EnvError::Content { env: info.name.clone(), reason, content: item.content.to_string() };
    let wordings = info.wordings.count();
    if item.wording >= wordings {
        return Err(wrong(format!("it has wordings 0 to {}, not {}", wordings - 1, item.wording)));
    }
    T::deserialize(content).map_err(|error| wrong(error.to_string()))
}

impl<T: Task + Clone + 'static> Environment for SingleTurn<T> {
    fn info(&self) -> &Info {
        &self.info
    }

    fn candidate(&self, level: u32, draw: Draw) -> Result<Value, EnvError> {
        self.info.level(level)?;
        Ok(to_value(&self.task.candidate(level, draw)))
    }

    fn facts(&self, level: u32, form: Form) -> Option<Vec<Value>> {
        let facts = || self.task.facts(level, form).iter().map(to_value).collect();
        (self.info.held_out == HeldOut::Wordings).then(facts)
    }

    fn start(&self, item: &Item) -> Result<Box<dyn Session>, EnvError> {
        let content = self.read(item)?;
        let prompt = self.task.prompt(&content, item.wording);
        let answer = self.task.answer(&content);
        Ok(Box::new(Question { task: self.task.clone(), messages: vec![Message::user(prompt)], answer, done: false }))
    }

    fn choices(&self, item: &Item) -> Result<Vec<String>, EnvError> {
        Ok(self.task.choices(&self.read(item)?, item.level))
    }
}

struct Question<T> {
    task: T,
    messages: Vec<Message>,
    answer: String,
    done: bool,
}

impl<T: Task> Session for Question<T> {
    fn observe(&self) -> &[Message] {
        &self.messages
    }

    fn teacher(&self) -> Option<String> {
        (!self.done).then(|| self.answer.clone())
    }

    fn act(&mut self, reply: &str) -> Result<Outcome, EnvError> {
        assert!(!self.done, "a reply after the episode's end");
        self.done = true;
        self.messages.push(Message::assistant(reply));
        let strict = self.task.strict(&self.answer, reply);
        let lenient = strict || self.task.lenient(&self.answer, reply);
        let feedback = Some(self.answer.clone());
        Ok(Outcome::Done(Grade { reward: f32::from(u8::from(strict)), strict, lenient, feedback }))
    }
}

/// Contents are plain structs with string keys, which JSON always holds.
pub(super) fn to_value(content: &impl Serialize) -> Value {
    serde_json::to_value(content).expect("a content is plain data")
}

/// A template with each `{}` replaced by the next argument.
///
/// # Panics
/// If their numbers differ.
pub(super) fn fill(template: &str, arguments: &[&str]) -> String {
    let mut parts = template.split("{}");
    let mut text = parts.next().unwrap_or_default().to_owned();
    let mut arguments = arguments.iter();
    for part in parts {
        text.push_str(arguments.next().expect("an argument for every {}"));
        text.push_str(part);
    }
    assert!(arguments.next().is_none(), "a {{}} for every argument in {template:?}");
    text
}
