//! `socius chat`: a conversation.

use super::{
    Terminal, answer,
    flags::{self, BaseFlags, SamplingFlags},
};
use crate::{
    agent::{Answer, Experience, Prompt, Question, Session, SkillChoice},
    common::{Message, Report},
    episode::Turn,
};
use jiff::Timestamp;
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

While talking: /skill NAME (or auto, none) changes who answers; /good, /bad and /teach RIGHT ANSWER say what the
last answer was worth, which `socius serve` can learn from (POST /v1/learn with feedback); /reset forgets the
conversation, /exit ends it. Ctrl-C ends an answer, Ctrl-D the conversation.")]
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
    let session = args.base.open(terminal)?;
    let start: Vec<Message> = args.system.map(flags::system).into_iter().collect();
    let mut question = Question {
        prompt: Prompt::Chat(Vec::new()),
        skill: args.skill,
        sampling: args.sampling.sampling(),
        stop: Vec::new(),
    };
    let mut messages = start.clone();
    let mut last: Option<Experience> = None;
    let mut editor = Editor::open(&session)?;
    while let Some(line) = editor.next()? {
        match parse(&line) {
            Line::Nothing => {}
            Line::Exit => break,
            Line::Wrong(message) => terminal.note(&message),
            Line::Skill(skill) => question.skill = skill,
            Line::Reset => messages.clone_from(&start),
            Line::Worth { reward, right } => match &last {
                None => terminal.note("nothing has been answered yet"),
                Some(experience) => {
                    let experience =
                        Experience { at: Timestamp::now(), reward: Some(reward), answer: right, ..experience.clone() };
                    session.remember(&experience)?;
                    terminal.note("kept");
                }
            },
            Line::Say(text) => {
                messages.push(Message::user(text));
                question.prompt = Prompt::Chat(messages.clone());
                match answer::stream(&session, &question, terminal) {
                    Ok(answer) => {
                        answer::who(&question, answer.generation.as_deref(), terminal);
                        last = Some(experience(&session, &question, &messages, &answer)?);
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

/// An answer of which nothing has been said yet.
fn experience(
    session: &Session,
    question: &Question,
    messages: &[Message],
    answer: &Answer,
) -> anyhow::Result<Experience> {
    let turn = Turn {
        prompt: session.prompt_ids(&question.prompt)?,
        action: answer.tokens.clone(),
        logprobs: answer.logprobs.clone(),
        generation: answer.generation.as_ref().map(|generation| generation.id.to_string()),
    };
    let (messages, reply) = (messages.to_vec(), answer.text.clone());
    Ok(Experience { at: Timestamp::now(), messages, reply, reward: None, answer: None, turn })
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
        assert_eq!(parse("/bad"), Line::Worth { reward: 0.0, right: None });
        assert_eq!(parse("/teach a b "), Line::Worth { reward: 0.0, right: Some("a b".into()) });
        assert!(matches!(parse("/teach"), Line::Wrong(_)));
        assert!(matches!(parse("/skill a/b"), Line::Wrong(_)));
        assert!(matches!(parse("/exit now"), Line::Wrong(_)) && matches!(parse("/help"), Line::Wrong(_)));
    }
}
