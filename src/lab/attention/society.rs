//! C: agents that read N/n₀ items each and tell each other at most β tokens. Code decides who is asked and who reads whom; the base answers.
//! Never sees right answers.

use super::{
    bm25::Bm25,
    config::SocietyConfig,
    found::{Answers, Bench, timed},
};
use crate::lab::{
    Cost, LabError, Purpose,
    synthetic::{
        Context, Form, Item, Question, Reader,
        symbols::{BEGIN, FIND, GET, HOP, KEYS, MARK, MAX, TWICE, WHO, is_value},
        tokens,
        work::cache_bytes,
    },
};
use serde::{Deserialize, Serialize};
use socius_models::KvSequence;
use std::{collections::BTreeMap, sync::Arc};

/// Who reads whose messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    /// One agent reads all messages.
    Flat,
    /// Groups of messages are read by an agent each, whose messages are grouped again, until one is left.
    Tree,
    /// One agent after another reads its own items and the board, and adds to the board.
    Blackboard,
}

/// How agents talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Society {
    /// β: tokens of a message.
    pub message: usize,
    /// Who reads whom.
    pub topology: Topology,
    /// Messages that an agent of a tree reads.
    pub fan: usize,
    /// How many agents the router asks; none asks all.
    pub routed: Option<usize>,
}

/// The agents of every context, each of which has read n₀ items. Different societies may ask them.
pub struct Agents {
    /// The items of each agent.
    chunks: Vec<Vec<Vec<Item>>>,
    /// What each keeps of them.
    read: Vec<Vec<Arc<KvSequence>>>,
    /// What an agent keeps that has read nothing.
    begun: Arc<KvSequence>,
    reading: Cost,
    /// Keys and values of a context's agents, at most.
    pub kept_bytes: u64,
}

/// What a society answered and what it took.
pub struct Spoken {
    /// One answer a question.
    pub given: Vec<u32>,
    /// Reading the items, once, and the router's index.
    pub fixed: Cost,
    /// All questions.
    pub asked: Cost,
}

impl Agents {
    /// Lets agents read `chunk` items of a context each.
    ///
    /// # Errors
    /// If a pass fails.
    pub fn read(reader: &Reader, contexts: &[Context], chunk: usize) -> Result<Self, LabError> {
        let split = |context: &Context| context.items.chunks(chunk).map(<[Item]>::to_vec).collect();
        let chunks: Vec<Vec<Vec<Item>>> = contexts.iter().map(split).collect();
        let texts: Vec<Vec<u32>> = chunks.iter().flatten().map(|items| tokens(items)).collect();
        let (read, reading) = timed(Purpose::Prefill, || {
            let (read, flops) = reader.read(&texts)?;
            Ok((read, texts.iter().map(|text| text.len() as u64).sum(), flops))
        })?;
        let mut read = read.into_iter();
        let read = chunks.iter().map(|chunks| read.by_ref().take(chunks.len()).collect()).collect();
        let (begun, _) = reader.read(&[vec![BEGIN]])?;
        let held = |chunks: &Vec<Vec<Item>>| chunks.iter().map(|items| 1 + 3 * items.len()).sum();
        let kept_bytes = chunks.iter().map(|chunks| cache_bytes(reader.spec(), held(chunks))).max().unwrap_or(0);
        Ok(Self { chunks, read, begun: Arc::clone(&begun[0]), reading, kept_bytes })
    }
}

/// The society arm of a cell.
pub(super) fn measure(bench: &mut Bench<'_, '_>, config: &SocietyConfig) -> Result<(), LabError> {
    let agents = Agents::read(&bench.reader, &bench.contexts, config.chunk)?;
    let kept_bytes = agents.kept_bytes;
    for topology in config.topologies.iter().copied() {
        for routed in [None, Some(config.routed)] {
            // A router and a board that everyone reads in turn do not go together.
            if routed.is_some() && topology != Topology::Flat {
                continue;
            }
            let society = Society { message: config.message, topology, fan: config.fan, routed };
            let questions = bench.forward();
            let spoken = society.answer(&bench.reader, &agents, &questions)?;
            let mut forward = spoken.given.into_iter();
            let all = bench.all();
            let given =
                all.iter().map(|(_, question)| if question.form == Form::Forward { forward.next() } else { None });
            let given = given.collect();
            let variant = society.name();
            let setting = BTreeMap::from([
                ("chunk".to_owned(), config.chunk as f64),
                ("message".to_owned(), society.message as f64),
                ("agents".to_owned(), bench.point.n.div_ceil(config.chunk) as f64),
            ]);
            let Spoken { fixed, asked, .. } = spoken;
            bench.record(Answers { variant: &variant, given, fixed, asked, kept_bytes, setting })?;
        }
    }
    Ok(())
}

/// Questions as agents are asked them: a reading, and what follows it.
type Asked<'a> = (&'a Arc<KvSequence>, Vec<u32>);

impl Society {
    /// In a few words.
    pub fn name(&self) -> String {
        let topology = match self.topology {
            Topology::Flat => "flat",
            Topology::Tree => "tree",
            Topology::Blackboard => "blackboard",
        };
        self.routed.map_or_else(|| topology.to_owned(), |asked| format!("{topology}, {asked} routed"))
    }

    /// Answers each question about the context beside it.
    ///
    /// # Errors
    /// If a pass fails.
    pub fn answer(
        &self,
        reader: &Reader,
        agents: &Agents,
        questions: &[(usize, Question)],
    ) -> Result<Spoken, LabError> {
        let Agents { chunks, read, begun, reading, .. } = agents;
        let mut fixed = reading.clone();
        let whom = self.route(chunks, questions, &mut fixed)?;
        let mut asked = whom.1;
        let given = match self.topology {
            Topology::Blackboard => {
                let mut boards: Vec<Vec<Item>> = vec![Vec::new(); questions.len()];
                let mut given = vec![0; questions.len()];
                let longest = whom.0.iter().map(Vec::len).max().unwrap_or(0);
                for turn in 0..longest {
                    let on: Vec<usize> = (0..questions.len()).filter(|&i| turn < whom.0[i].len()).collect();
                    let rows: Vec<Asked<'_>> = on
                        .iter()
                        .map(|&i| {
                            let (context, question) = questions[i];
                            let board = boards[i].iter().flatten().copied();
                            (&read[context][whom.0[i][turn]], board.chain(question.tokens).collect())
                        })
                        .collect();
                    let answers = self.ask(reader, &rows, Purpose::Message, &mut asked)?;
                    for (&i, answer) in on.iter().zip(answers) {
                        let (context, question) = questions[i];
                        let own = &chunks[context][whom.0[i][turn]];
                        // What says nothing new is not said.
                        if answer != given[i] || !says(question.tokens, answer) {
                            boards[i].extend(self.message(question.tokens, answer, own));
                        }
                        given[i] = answer;
                    }
                }
                given
            }
            Topology::Flat | Topology::Tree => {
                let rows: Vec<Asked<'_>> = questions
                    .iter()
                    .zip(&whom.0)
                    .flat_map(|((context, question), chunks)| {
                        chunks.iter().map(|&chunk| (&read[*context][chunk], question.tokens.to_vec()))
                    })
                    .collect();
                let answers = self.ask(reader, &rows, Purpose::Decode, &mut asked)?;
                let mut answers = answers.into_iter();
                let mut messages: Vec<Vec<Vec<Item>>> = questions
                    .iter()
                    .zip(&whom.0)
                    .map(|((context, question), asked)| {
                        let told = |&chunk: &usize| {
                            let answer = answers.next().expect("an answer an agent");
                            self.message(question.tokens, answer, &chunks[*context][chunk])
                        };
                        asked.iter().map(told).collect()
                    })
                    .collect();
                self.gather(reader, (begun, questions), &mut messages, &mut asked)?
            }
        };
        Ok(Spoken { given, fixed, asked })
    }

    /// Which agents are asked each question, and what choosing took; the index over their items is added to `fixed`.
    fn route(
        &self,
        chunks: &[Vec<Vec<Item>>],
        questions: &[(usize, Question)],
        fixed: &mut Cost,
    ) -> Result<(Vec<Vec<usize>>, Cost), LabError> {
        let everyone = |context: usize| (0..chunks[context].len()).collect::<Vec<_>>();
        let Some(most) = self.routed else {
            return Ok((questions.iter().map(|(context, _)| everyone(*context)).collect(), Cost::default()));
        };
        let documents = |chunks: &Vec<Vec<Item>>| chunks.iter().map(|items| items.concat()).collect::<Vec<_>>();
        let (indices, indexing) = timed(Purpose::Router, || {
            let indices: Vec<Bm25> = chunks.iter().map(|chunks| Bm25::new(&documents(chunks))).collect();
            let items: usize = chunks.iter().flatten().map(|items| items.len()).sum();
            Ok((indices, 0, 12.0 * items as f64))
        })?;
        *fixed += indexing;
        timed(Purpose::Router, || {
            let mut work = 0.0;
            let choose = |(context, question): &(usize, Question)| {
                let (mut found, looked) = indices[*context].search(&question.tokens, most);
                work += looked;
                found.sort_unstable();
                // Where no word says who knows, everyone may.
                if found.is_empty() { everyone(*context) } else { found }
            };
            let whom = questions.iter().map(choose).collect();
            Ok((whom, 0, work))
        })
    }

    /// Reads messages until one agent has answered: all at once, or in groups whose readers pass on a message each.
    fn gather(
        &self,
        reader: &Reader,
        (begun, questions): (&Arc<KvSequence>, &[(usize, Question)]),
        messages: &mut [Vec<Vec<Item>>],
        cost: &mut Cost,
    ) -> Result<Vec<u32>, LabError> {
        let fan = if self.topology == Topology::Tree { self.fan } else { usize::MAX };
        loop {
            let last = messages.iter().all(|messages| messages.len() <= fan);
            let rows: Vec<Asked<'_>> = questions
                .iter()
                .zip(messages.iter())
                .flat_map(|((_, question), messages)| {
                    groups(messages, fan).map(|items| (begun, [&items.concat()[..], &question.tokens].concat()))
                })
                .collect();
            let mut answers = self.ask(reader, &rows, Purpose::Message, cost)?.into_iter();
            if last {
                return Ok(answers.collect());
            }
            for ((_, question), messages) in questions.iter().zip(messages.iter_mut()) {
                let next = groups(messages, fan)
                    .map(|items| {
                        let answer = answers.next().expect("an answer a group");
                        self.message(question.tokens, answer, &items)
                    })
                    .collect();
                *messages = next;
            }
        }
    }

    fn ask(
        &self,
        reader: &Reader,
        rows: &[Asked<'_>],
        purpose: Purpose,
        cost: &mut Cost,
    ) -> Result<Vec<u32>, LabError> {
        let (answers, took) = timed(purpose, || {
            let answered = reader.ask(rows)?;
            Ok((answered.best(), answered.tokens, answered.flops))
        })?;
        *cost += took;
        Ok(answers)
    }

    /// What an agent tells of its answer and what it has read: items of at most β tokens from which the same question can be answered. Who has
    /// found no key twice tells as many of its items as the message holds: another may have the same.
    fn message(&self, question: [u32; 3], answer: u32, read: &[Item]) -> Vec<Item> {
        let room = self.message / 3;
        if says(question, answer) {
            return stated(question, answer).into_iter().take(room).collect();
        }
        match question[2] {
            TWICE => read.iter().copied().take(room).collect(),
            _ => Vec::new(),
        }
    }
}

/// Items of neighbouring messages, `fan` messages at a time; one empty group if there is none.
fn groups(messages: &[Vec<Item>], fan: usize) -> impl Iterator<Item = Vec<Item>> {
    let size = fan.min(messages.len()).max(1);
    let none = messages.is_empty().then(Vec::new);
    messages.chunks(size).map(|group| group.concat()).chain(none)
}

/// Whether an answer answers, rather than saying that nothing was found.
fn says(question: [u32; 3], answer: u32) -> bool {
    match question[2] {
        WHO => answer < KEYS,
        _ => is_value(answer),
    }
}

/// Items that say what was answered to that question.
fn stated([a, b, asked]: [u32; 3], answer: u32) -> Vec<Item> {
    match asked {
        GET | HOP => vec![[a, b, answer]],
        FIND => vec![[b, a, answer]],
        WHO => vec![[answer, b, a]],
        MAX => vec![[a, a, answer]],
        // The key is not known any more: one that no item has, twice, stands for it.
        TWICE => vec![[MARK, MARK, answer]; 2],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        common::Seed,
        lab::synthetic::{Sizes, Workload, answers},
    };

    fn recall(society: Society, workload: Workload, n: usize) -> f64 {
        let sizes = Sizes { intermediate: 8, context_max: 4096 };
        let reader = Reader::new(sizes, Seed::new(1)).unwrap();
        let contexts = workload.contexts(n, 24, Seed::new(2));
        let questions: Vec<(usize, Question)> = contexts
            .iter()
            .enumerate()
            .flat_map(|(i, context)| context.forward().iter().map(move |&question| (i, question)))
            .take(24)
            .collect();
        let agents = Agents::read(&reader, &contexts, 8).unwrap();
        let spoken = society.answer(&reader, &agents, &questions).unwrap();
        let right = spoken.given.iter().zip(&questions).filter(|(given, (_, question))| **given == question.answer);
        assert!(spoken.fixed.total_flops() > 0.0 && spoken.asked.total_flops() > 0.0);
        right.count() as f64 / questions.len() as f64
    }

    #[test]
    fn one_item_a_message_is_enough_for_needles_books_and_largest_values() {
        for topology in [Topology::Flat, Topology::Tree, Topology::Blackboard] {
            for workload in [Workload::Needle, Workload::Book, Workload::Aggregate] {
                let society = Society { message: 3, topology, fan: 2, routed: None };
                assert_eq!(recall(society, workload, 40), 1.0, "{topology:?} {workload:?}");
            }
        }
        let routed = Society { message: 3, topology: Topology::Flat, fan: 2, routed: Some(3) };
        assert_eq!(recall(routed, Workload::Needle, 64), 1.0);
    }

    #[test]
    fn pairs_need_messages_as_long_as_what_was_read() {
        let society = |message| Society { message, topology: Topology::Flat, fan: 4, routed: None };
        assert_eq!(recall(society(24), Workload::Pairs, 64), 1.0);
        assert!(recall(society(6), Workload::Pairs, 64) < 0.7);
    }

    #[test]
    fn a_message_answers_the_question_that_it_was_made_for() {
        let society = Society { message: 6, topology: Topology::Flat, fan: 2, routed: None };
        for (question, answer) in
            [([1, 2, GET], 70), ([1, 2, FIND], 70), ([70, 2, WHO], 5), ([9, 83, MAX], 71), ([83, 83, TWICE], 66)]
        {
            let told = society.message(question, answer, &[]);
            assert_eq!(answers(&told, question), [answer].into(), "{question:?}");
        }
        assert!(society.message([1, 2, GET], GET, &[[1, 3, 66]]).is_empty());
        let digest = society.message([83, 83, TWICE], TWICE, &[[1, 3, 66], [1, 4, 66], [2, 2, 65]]);
        assert_eq!(digest, [[1, 3, 66], [1, 4, 66]]);
    }
}
