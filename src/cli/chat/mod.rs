//! `socius chat`: a conversation, with a base opened here or a server elsewhere. Never knows how either answers.

mod here;
mod there;

use super::{
    Terminal,
    flags::{self, BaseFlags, SamplingFlags},
};
use crate::{
    agent::SkillChoice,
    common::{Home, Message, Report},
};
use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Talk, with answers as they come
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius chat
  socius chat --skill none --temperature 0.7
  socius chat --system 'You answer in one sentence.'
  socius chat --url http://127.0.0.1:8080               with a server that runs already

While talking: /skill NAME (or auto, none) changes who answers; /good, /bad and /teach RIGHT ANSWER say what the
last answer was worth, which learners can learn from (POST /v1/learn with feedback) and the router does; /reset
forgets the conversation, /exit ends it. Ctrl-C ends an answer, Ctrl-D the conversation.")]
pub(super) struct Args {
    /// Who answers: a skill, auto for the router's choice at each turn, none for the base
    #[arg(long, default_value = "auto", value_parser = flags::skill)]
    skill: SkillChoice,
    /// A system message before the conversation
    #[arg(long)]
    system: Option<String>,
    /// A server to talk to, instead of opening the base here
    #[arg(long, conflicts_with_all = ["model", "device", "dtype", "weights", "threads"])]
    url: Option<String>,
    /// The server's key, where it asks for one
    #[arg(long, env = "SOCIUS_API_KEY", hide_env_values = true)]
    key: Option<String>,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    base: BaseFlags,
}

/// Who is talked to.
trait Partner {
    /// Answers the conversation, shown as it comes, and tells who answered. Ctrl-C ends the answer: it is then what has come so far.
    fn answer(&mut self, messages: &[Message], skill: &SkillChoice, terminal: &mut Terminal) -> anyhow::Result<String>;

    /// Keeps what the last answer was worth.
    ///
    /// # Errors
    /// Also if there is none, or it is not remembered.
    fn judge(&mut self, reward: f32, right: Option<String>) -> anyhow::Result<()>;
}

/// What a typed line asks for.
#[derive(Debug, PartialEq)]
enum Line {
    Say(String),
    Skill(SkillChoice),
    Worth { reward: f32, right: Option<String> },
    Reset,
    Exit,
    Nothing,
    Wrong(String),
}

fn parse(line: &str) -> Line {
    let line = line.trim();
    match line.split_once(char::is_whitespace).unwrap_or((line, "")) {
        ("", _) => Line::Nothing,
        ("/exit" | "/quit", "") => Line::Exit,
        ("/reset", "") => Line::Reset,
        ("/good", "") => Line::Worth { reward: 1.0, right: None },
        ("/bad", "") => Line::Worth { reward: 0.0, right: None },
        ("/teach", right) if !right.trim().is_empty() => {
            Line::Worth { reward: 0.0, right: Some(right.trim().to_owned()) }
        }
        ("/teach", _) => Line::Wrong("/teach takes the right answer, as in /teach The capital is Paris.".into()),
        ("/skill", name) => flags::skill(name.trim()).map_or_else(|error| Line::Wrong(error.to_string()), Line::Skill),
        (command, _) if command.starts_with('/') => Line::Wrong(format!(
            "{command} is not a command: /good, /bad, /teach RIGHT ANSWER, /skill NAME, /reset and /exit are"
        )),
        _ => Line::Say(line.to_owned()),
    }
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let Args { mut skill, system, url, key, sampling, base } = args;
    let mut partner: Box<dyn Partner> = match url {
        Some(url) => Box::new(there::Client::new(url, key, &sampling)),
        None => Box::new(here::Local::new(base.open(terminal)?, sampling.sampling())),
    };
    let start: Vec<Message> = system.map(flags::system).into_iter().collect();
    let mut messages = start.clone();
    let mut editor = Editor::open(&Home::from_env()?)?;
    while let Some(line) = editor.next()? {
        match parse(&line) {
            Line::Nothing => {}
            Line::Exit => break,
            Line::Wrong(message) => terminal.note(&message),
            Line::Skill(other) => skill = other,
            Line::Reset => messages.clone_from(&start),
            Line::Worth { reward, right } => match partner.judge(reward, right) {
                Ok(()) => terminal.note("kept"),
                Err(error) => terminal.note(&error.to_string()),
            },
            Line::Say(text) => {
                messages.push(Message::user(text));
                match partner.answer(&messages, &skill, terminal) {
                    Ok(reply) => messages.push(Message::assistant(reply)),
                    // An unknown skill, a full context or a server that went away ends the turn, not the conversation.
                    Err(error) => {
                        messages.pop();
                        terminal.error(&super::one_line(&error));
                    }
                }
            }
        }
    }
    editor.close();
    Ok(json!({ "messages": messages }))
}

/// The line that is typed, with what was typed before.
struct Editor {
    inner: DefaultEditor,
    history: PathBuf,
}

impl Editor {
    fn open(home: &Home) -> anyhow::Result<Self> {
        let history = home.root().join("chat-history.txt");
        let mut inner = DefaultEditor::new()?;
        // The first conversation has none.
        let _ = inner.load_history(&history);
        Ok(Self { inner, history })
    }

    /// `None` when the user ends the conversation.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self.inner.readline("> ") {
            Ok(line) => {
                self.inner.add_history_entry(&line)?;
                Ok(Some(line))
            }
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn close(mut self) {
        // A history that cannot be written is no reason to fail a conversation that went well.
        let _ = self.inner.save_history(&self.history);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_said_unless_it_is_a_command() {
        assert_eq!(parse("  "), Line::Nothing);
        assert_eq!(parse(" hello /exit "), Line::Say("hello /exit".to_owned()));
        assert_eq!(parse("/exit"), Line::Exit);
        assert_eq!(parse("/reset"), Line::Reset);
        assert_eq!(parse("/skill none"), Line::Skill(SkillChoice::None));
        assert_eq!(parse("/bad"), Line::Worth { reward: 0.0, right: None });
        assert_eq!(parse("/teach a b "), Line::Worth { reward: 0.0, right: Some("a b".into()) });
        assert!(matches!(parse("/teach"), Line::Wrong(_)));
        assert!(matches!(parse("/skill a/b"), Line::Wrong(_)));
        assert!(matches!(parse("/exit now"), Line::Wrong(_)) && matches!(parse("/help"), Line::Wrong(_)));
    }
}
