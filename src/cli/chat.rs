//! `socius chat`: a conversation.

use super::{
    Terminal, answer,
    flags::{self, BaseFlags, SamplingFlags},
};
use crate::{
    agent::{Prompt, Question, Session, SkillChoice},
    common::{Message, Report},
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

While talking: /reset forgets the conversation, /skill NAME (or auto, none) changes who answers,
/exit ends it. Ctrl-C ends an answer, Ctrl-D the conversation.")]
pub(super) struct Args {
    /// Who answers: a skill, auto for the router's choice at each turn, none for the base
    #[arg(long, default_value = "auto", value_parser = flags::skill)]
    skill: SkillChoice,
    /// A system message before the conversation
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    base: BaseFlags,
}

/// What a typed line asks for.
#[derive(Debug, PartialEq)]
enum Line {
    Say(String),
    Skill(SkillChoice),
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
        ("/skill", name) => flags::skill(name.trim()).map_or_else(|error| Line::Wrong(error.to_string()), Line::Skill),
        (command, _) if command.starts_with('/') => {
            Line::Wrong(format!("{command} is not a command: /reset, /skill NAME and /exit are"))
        }
        _ => Line::Say(line.to_owned()),
    }
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let session = args.base.open(terminal)?;
    let start: Vec<Message> = args.system.map(flags::system).into_iter().collect();
    let mut question = Question {
        prompt: Prompt::Chat(Vec::new()),
        skill: args.skill,
        sampling: args.sampling.sampling(),
        stop: Vec::new(),
    };
    let mut messages = start.clone();
    let mut editor = Editor::open(&session)?;
    while let Some(line) = editor.next()? {
        match parse(&line) {
            Line::Nothing => {}
            Line::Exit => break,
            Line::Wrong(message) => terminal.note(&message),
            Line::Skill(skill) => question.skill = skill,
            Line::Reset => messages.clone_from(&start),
            Line::Say(text) => {
                messages.push(Message::user(text));
                question.prompt = Prompt::Chat(messages.clone());
                match answer::stream(&session, &question, terminal) {
                    Ok(answer) => {
                        answer::who(&question, answer.generation.as_deref(), terminal);
                        messages.push(Message::assistant(answer.text));
                    }
                    // An unknown skill or a full context ends the turn, not the conversation.
                    Err(error) => {
                        messages.pop();
                        terminal.error(&error.to_string());
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
    fn open(session: &Session) -> anyhow::Result<Self> {
        let history = session.home.root().join("chat-history.txt");
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
        assert!(matches!(parse("/skill a/b"), Line::Wrong(_)));
        assert!(matches!(parse("/exit now"), Line::Wrong(_)) && matches!(parse("/help"), Line::Wrong(_)));
    }
}
