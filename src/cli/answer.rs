//! Showing an answer while it comes, and saying who gave it. Never decides who does.

use super::{Terminal, interrupt};
use crate::{
    agent::{Answer, Question, Session, SkillChoice},
    common::Report,
    engine::FinishReason,
    library::Generation,
};
use std::{io, ops::ControlFlow};

/// Answers `question`, streaming the text to stdout for people. Ctrl-C ends the answer, not the program.
pub(super) fn stream(session: &Session, question: &Question, terminal: &mut Terminal) -> anyhow::Result<Answer> {
    let mut written: io::Result<()> = Ok(());
    let answer = session.answer(question, &mut |text| {
        written = terminal.piece(text);
        if written.is_err() || interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    interrupt::forget();
    terminal.line("")?;
    written?;
    let answer = answer?;
    if answer.finish_reason == FinishReason::Diverged {
        terminal.note("the answer ended because the model gave numbers that are not finite");
    }
    Ok(answer)
}

/// Tells on stderr who answered, unless the user named them.
pub(super) fn who(question: &Question, generation: Option<&Generation>, terminal: &mut Terminal) {
    if question.skill == SkillChoice::Auto {
        terminal.note(&match generation {
            Some(generation) => format!("[{}, chosen by the router]", versioned(generation)),
            None => "[the base: the router found no skill that fits]".to_owned(),
        });
    }
}

/// `reverse@2`.
pub(super) fn versioned(generation: &Generation) -> String {
    format!("{}@{}", generation.manifest.name, generation.manifest.number)
}

/// As OpenAI's clients spell it.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Diverged => "diverged",
    }
}
