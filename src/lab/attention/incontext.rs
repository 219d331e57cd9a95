//! Arms that answer from a context: all of it, its end, or what retrieval finds in it. Never trains.

use super::{
    bm25::Bm25,
    found::{Answers, Bench, timed},
};
use crate::lab::{
    Cost, LabError, Purpose,
    synthetic::{Context, Question, symbols::BEGIN, tokens, work::cache_bytes},
};
use socius_models::KvSequence;
use std::{collections::BTreeMap, sync::Arc};

/// A: every context is read once and its questions asked after it; and as if it were read again for each.
pub(super) fn attention(bench: &mut Bench<'_, '_>) -> Result<(), LabError> {
    let contexts: Vec<Vec<u32>> = bench.contexts.iter().map(|context| context.tokens()).collect();
    let (given, fixed, asked) = after(bench, &contexts)?;
    let kept_bytes = cache_bytes(bench.reader.spec(), contexts[0].len());
    let (none, setting) = (BTreeMap::new(), BTreeMap::from([("tokens".to_owned(), contexts[0].len() as f64)]));
    let forward = bench.forward().len() as f64;
    // The reading of the contexts, once for every question: it is the same computation each time.
    let again = asked.clone() + fixed.clone() * (forward / contexts.len() as f64);
    let cached =
        Answers { variant: "cached", given: given.clone(), fixed, asked, kept_bytes, setting: setting.clone() };
    bench.record(cached)?;
    let reread = Answers {
        variant: "re-read for each question",
        given,
        fixed: Cost::default(),
        asked: again,
        kept_bytes: 0,
        setting: none,
    };
    bench.record(reread)?;
    Ok(())
}

/// A′: the beginning and the last tokens, at the positions that they have in this shorter text (what StreamingLLM, arXiv 2309.17453, calls
/// a sliding window with recomputation). Reading the rest is not charged, which is a lower bound.
pub(super) fn window(bench: &mut Bench<'_, '_>) -> Result<(), LabError> {
    for window in bench.config.window.clone() {
        let end = |context: &Context| {
            let all = context.tokens();
            let last = all.len().saturating_sub(window).max(1);
            [&[BEGIN], &all[last..]].concat()
        };
        let contexts: Vec<Vec<u32>> = bench.contexts.iter().map(end).collect();
        let (given, fixed, asked) = after(bench, &contexts)?;
        let kept_bytes = cache_bytes(bench.reader.spec(), contexts[0].len());
        let setting = BTreeMap::from([("tokens".to_owned(), window as f64)]);
        let variant = format!("{window} tokens");
        bench.record(Answers { variant: &variant, given, fixed, asked, kept_bytes, setting })?;
    }
    Ok(())
}

/// Answers to all questions after `contexts` that stand for the bench's, the reading of all, and the asking of the forward ones.
fn after(bench: &Bench<'_, '_>, contexts: &[Vec<u32>]) -> Result<(Vec<Option<u32>>, Cost, Cost), LabError> {
    let reader = &bench.reader;
    let (read, fixed) = timed(Purpose::Prefill, || {
        let (read, flops) = reader.read(contexts)?;
        Ok((read, contexts.iter().map(|tokens| tokens.len() as u64).sum(), flops))
    })?;
    let ask = |questions: Vec<(usize, Question)>| {
        let asked: Vec<(&Arc<KvSequence>, Vec<u32>)> =
            questions.iter().map(|(i, question)| (&read[*i], question.tokens.to_vec())).collect();
        timed(Purpose::Decode, || {
            let answered = reader.ask(&asked)?;
            Ok((answered.best(), answered.tokens, answered.flops))
        })
    };
    let (_, asked) = ask(bench.forward())?;
    let (given, _) = ask(bench.all())?;
    Ok((given.into_iter().map(Some).collect(), fixed, asked))
}

/// D: for each question the items that BM25 finds, in the order of the text, are read.
pub(super) fn retrieval(bench: &mut Bench<'_, '_>) -> Result<(), LabError> {
    let documents = |items: &[[u32; 3]]| items.iter().map(|item| item.to_vec()).collect::<Vec<_>>();
    let (indices, fixed) = timed(Purpose::Router, || {
        let indices: Vec<Bm25> = bench.contexts.iter().map(|context| Bm25::new(&documents(&context.items))).collect();
        // A multiplication, a division and two additions for every posting.
        Ok((indices, 0, bench.contexts.iter().map(|context| 12.0 * context.items.len() as f64).sum()))
    })?;
    let kept_bytes = indices.iter().map(Bm25::bytes).max().unwrap_or(0);
    for k in bench.config.retrieved.clone() {
        let (begun, _) = bench.reader.read(&[vec![BEGIN]])?;
        let look = |questions: &[(usize, Question)]| {
            let mut work = 0.0;
            let rows: Vec<(&Arc<KvSequence>, Vec<u32>)> = questions
                .iter()
                .map(|(i, question)| {
                    let (mut found, looked) = indices[*i].search(&question.tokens, k);
                    work += looked;
                    found.sort_unstable();
                    let items: Vec<[u32; 3]> = found.iter().map(|&item| bench.contexts[*i].items[item]).collect();
                    (&begun[0], [&tokens(&items)[1..], &question.tokens].concat())
                })
                .collect();
            (rows, work)
        };
        let forward = bench.forward();
        let (rows, searching) = timed(Purpose::Router, || {
            let (rows, work) = look(&forward);
            Ok((rows, 0, work))
        })?;
        let (_, reading) = timed(Purpose::Decode, || {
            let answered = bench.reader.ask(&rows)?;
            Ok((answered.best(), answered.tokens, answered.flops))
        })?;
        let given = bench.reader.ask(&look(&bench.all()).0)?.best().into_iter().map(Some).collect();
        let setting = BTreeMap::from([("items".to_owned(), k as f64)]);
        let variant = format!("{k} items");
        let (fixed, asked) = (fixed.clone(), searching + reading);
        bench.record(Answers { variant: &variant, given, fixed, asked, kept_bytes, setting })?;
    }
    Ok(())
}
