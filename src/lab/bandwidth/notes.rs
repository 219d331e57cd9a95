//! Notes to a future self: a reader that sees one part of a context after another keeps nothing but what it wrote down. Append-only and
//! itemised, every item priced at its three tokens; what is full stays as it is. Never sees the questions that will be asked.

use crate::lab::{
    Cost, LabError, Purpose,
    attention::timed,
    synthetic::{
        Context, Item, Question, Reader,
        symbols::{ANY, BEGIN, GET, MARK, MAX, TWICE, is_value},
        tokens,
    },
};
use std::collections::BTreeSet;

/// What was answered from notes alone, or from the end of a context.
pub(super) struct Noted {
    pub(super) given: Vec<u32>,
    pub(super) fixed: Cost,
    pub(super) asked: Cost,
    /// Tokens of a context's notes, on average.
    pub(super) written: f64,
}

/// Reads every context in parts of `chunk` items, writes at most `budget` tokens of notes, and answers from those.
pub(super) fn answer(
    reader: &Reader,
    contexts: &[Context],
    questions: &[(usize, Question)],
    chunk: usize,
    budget: usize,
) -> Result<Noted, LabError> {
    let mut fixed = Cost::default();
    let mut notes: Vec<Vec<Item>> = vec![Vec::new(); contexts.len()];
    for (context, notes) in contexts.iter().zip(&mut notes) {
        for part in context.items.chunks(chunk) {
            if notes.len() * 3 + 3 > budget {
                break;
            }
            let (told, took) = timed(Purpose::Synthesised, || write(reader, part, notes))?;
            fixed += took;
            notes.extend(told);
            notes.truncate(budget / 3);
        }
    }
    let written = notes.iter().map(|notes| 3.0 * notes.len() as f64).sum::<f64>() / contexts.len() as f64;
    let texts: Vec<Vec<u32>> = notes.iter().map(|notes| tokens(notes)).collect();
    let (given, reading, asked) = from(reader, &texts, questions)?;
    Ok(Noted { given, fixed: fixed + reading, asked, written })
}

/// What a reader of `part` adds to `notes`: it asks itself whatever the part's own symbols let it ask, and writes down what the notes do not
/// say yet. Answers that stand for more than one item come first.
fn write(reader: &Reader, part: &[Item], notes: &[Item]) -> Result<(Vec<Item>, u64, f64), LabError> {
    let firsts: BTreeSet<u32> = part.iter().map(|item| item[0]).collect();
    // A class is worth a note where its items are several, or marked.
    let often = |first: &u32| *first == MARK || part.iter().filter(|item| item[0] == *first).count() > 1;
    let mut own: Vec<[u32; 3]> = firsts.iter().copied().filter(often).map(|first| [first, ANY, MAX]).collect();
    own.push([ANY, ANY, TWICE]);
    own.extend(part.iter().map(|&[a, b, _]| [a, b, GET]));
    let texts = [tokens(part), tokens(notes)];
    let (read, mut flops) = reader.read(&texts)?;
    let ask = |of: usize| own.iter().map(|question| (&read[of], question.to_vec())).collect::<Vec<_>>();
    let (here, known) = (reader.ask(&ask(0))?, reader.ask(&ask(1))?);
    flops += here.flops + known.flops;
    let spent = texts.iter().map(|text| text.len() as u64).sum::<u64>() + here.tokens + known.tokens;
    let mut told = Vec::new();
    for ((question, here), known) in own.iter().zip(here.best()).zip(known.best()) {
        let new = match question[2] {
            MAX => !is_value(known) || known < here,
            _ => known != here,
        };
        if is_value(here) && new {
            match *question {
                [a, _, MAX] => told.push([a, a, here]),
                [_, _, TWICE] => told.extend([[MARK, MARK, here]; 2]),
                [a, b, _] => told.push([a, b, here]),
            }
        }
    }
    Ok((told, spent, flops))
}

/// Answers from the last `budget` tokens of every context.
pub(super) fn end(
    reader: &Reader,
    contexts: &[Context],
    questions: &[(usize, Question)],
    budget: usize,
) -> Result<Noted, LabError> {
    let last = |context: &Context| {
        let from = context.items.len().saturating_sub(budget / 3);
        tokens(&context.items[from..])
    };
    let texts: Vec<Vec<u32>> = contexts.iter().map(last).collect();
    let (given, fixed, asked) = from(reader, &texts, questions)?;
    Ok(Noted { given, fixed, asked, written: 0.0 })
}

fn from(
    reader: &Reader,
    texts: &[Vec<u32>],
    questions: &[(usize, Question)],
) -> Result<(Vec<u32>, Cost, Cost), LabError> {
    debug_assert!(texts.iter().all(|text| text[0] == BEGIN));
    let (read, fixed) = timed(Purpose::Prefill, || {
        let (read, flops) = reader.read(texts)?;
        Ok((read, texts.iter().map(|text| text.len() as u64).sum(), flops))
    })?;
    let rows: Vec<_> = questions.iter().map(|(i, question)| (&read[*i], question.tokens.to_vec())).collect();
    let (given, asked) = timed(Purpose::Decode, || {
        let answered = reader.ask(&rows)?;
        Ok((answered.best(), answered.tokens, answered.flops))
    })?;
    Ok((given, fixed, asked))
}
