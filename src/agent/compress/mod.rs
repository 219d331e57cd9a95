//! Documents become a skill: questions are made of them, an adapter is trained to answer without them, and what that is worth is measured
//! against reading them again for every query. Never sees flags or terminals.

mod price;
mod reading;
mod study;

pub use price::{Price, Query};
pub use reading::Reading;

use super::{
    AgentError, Base, Budget, Class, Course, Learned, Lesson, Marks, Recipe, Session, fixed_items, learn_best,
    measure::{Grades, improvement},
};
use crate::{
    common::{Digest, Journal, Report, Seed},
    envs::{Document, Documents, Environment, Item, Split},
    library::{Score, SkillName},
    train::score,
};
use price::{Paid, Spent};
use reading::{Reader, read};
use serde::Serialize;
use std::fs;
use study::{Notes, study};

/// Bytes of a passage at most: some 400 tokens of English.
const PASSAGE_BYTES_MAX: usize = 1_800;
/// Ranks to choose from.
const RANKS: [usize; 5] = [16, 8, 4, 2, 1];
/// The rank is the largest whose parameters take at most this share of the documents' keys and values.
const MEMORY_SHARE: f64 = 0.1;
/// Rows of a step, as [`super::Method::Sft`] has it.
const ROWS: usize = 8;
/// Passes over the course, if no budget is given.
const PASSES: f64 = 3.0;
/// Within so much of the accuracy with the documents in context, the skill stands for them.
const CLOSE: f64 = 0.05;

/// What is to be compressed, and how.
pub struct Compression<'a> {
    /// The base, and where skills go.
    pub session: &'a Session,
    /// The documents.
    pub documents: &'a [Document],
    /// What the skill is called.
    pub name: SkillName,
    /// Seed, budget, gate, numbers of items. Its rank counts if `rank_given`.
    pub recipe: Recipe,
    /// Whether the recipe's rank was asked for; otherwise the largest is taken that needs a tenth of the documents' memory.
    pub rank_given: bool,
    /// What is trained.
    pub arm: Arm,
}

/// What documents become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// Low-rank factors at every linear.
    Adapter,
    /// Keys and values before the prompt (a cartridge), of as much memory as an adapter may have.
    Prefix,
    /// Whichever of the two does better on validation questions.
    Best,
}

impl Arm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Adapter, Self::Prefix, Self::Best];

    /// As flags spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adapter => "adapter",
            Self::Prefix => "prefix",
            Self::Best => "best",
        }
    }
}

/// How questions were answered that training never had.
#[derive(Clone, Debug, Serialize)]
pub struct Quality {
    /// Questions that were asked.
    pub questions: usize,
    /// With the documents in context, as much of them as fits.
    pub in_context: Score,
    /// With the one passage in context that the question is about.
    pub passage_in_context: Score,
    /// By the skill, without them.
    pub skill: Score,
    /// By the base, without them.
    pub neither: Score,
    /// 95 % interval of skill less documents in context, of first complete answers over the same questions.
    pub difference95: [f64; 2],
    /// Whether the skill is within five points of the documents in context.
    pub close: bool,
    /// Mean logprob of the right answers, in nats a token.
    pub nats: Nats,
    /// The same of the model's own answers to its own questions, which it gave with the passage in context; none if it wrote too few.
    pub written: Option<Nats>,
}

/// Mean logprobs in nats a token.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Nats {
    /// Questions.
    pub questions: usize,
    /// With the documents in context; of written questions, with their passage.
    pub in_context: f64,
    /// Under the skill.
    pub skill: f64,
    /// Under the base alone.
    pub neither: f64,
}

/// What came of it.
#[derive(Debug)]
pub struct Compressed {
    /// The life of the adapter.
    pub learned: Learned,
    /// What it is worth.
    pub quality: Quality,
    /// What it costs.
    pub price: Price,
    /// Passages, and all graded questions that they give.
    pub passages: usize,
    /// What the skill is.
    pub arm: Arm,
    /// Rank of the adapter, or positions of the prefix.
    pub size: usize,
    /// Of two arms the other one, which did no better on validation.
    pub passed_over: Option<PassedOver>,
    /// Questions that the model wrote and answered.
    pub written: usize,
}

/// What was tried and not taken.
#[derive(Clone, Debug, Serialize)]
pub struct PassedOver {
    /// What it was.
    pub arm: Arm,
    /// Rank of the adapter, or positions of the prefix.
    pub size: usize,
    /// What the gate found.
    pub reason: String,
}

/// Compresses; whatever breaks it off, the same call goes on.
///
/// # Errors
/// If the documents hold too few questions, or anything that a life can end of.
pub fn compress(compression: &Compression<'_>, report: &mut dyn Report) -> Result<Compressed, AgentError> {
    let Compression { session, documents, name, recipe, rank_given, arm } = compression;
    let base = &session.base;
    let env = open(session, documents)?;
    let mut kept = Kept::open(session)?;
    let notes = study(base, &env, Seed::new(recipe.seed), Some(&mut kept.notes), report)?;
    let (course, apart) = course(base, &env, &notes)?;
    let tokens = course.beginning.len();
    let rank = if *rank_given { recipe.rank } else { price::rank(base, tokens, &RANKS, MEMORY_SHARE) };
    let steps = (PASSES * course.items.len() as f64 / ROWS as f64).ceil() as usize;
    let recipe = Recipe {
        rank,
        alpha: 2.0 * rank as f64,
        positions: 0,
        budget: recipe.budget.or(Some(Budget::Steps(steps))),
        ..recipe.clone()
    };

    let test = fixed_items(&env, Split::Test, recipe.level, recipe.test_items)?;
    let mut ask = |reader: Reader<'_>, report: &mut dyn Report| kept.reading(session, &env, &test, reader, report);
    let whole = ask(Reader::Documents, report)?;
    let passage = ask(Reader::Passage, report)?;
    let neither = ask(Reader::Alone(None), report)?;

    let prefix = Recipe { positions: price::positions(base, tokens, MEMORY_SHARE), ..recipe.clone() };
    let tried = match arm {
        Arm::Adapter => vec![recipe.clone()],
        Arm::Prefix => vec![prefix],
        Arm::Best => vec![recipe.clone(), prefix],
    };
    let lesson = |recipe| Lesson { base, env: &env, recipe, name: name.clone(), parent: None, course: Some(&course) };
    let lessons: Vec<_> = tried.into_iter().map(lesson).collect();
    let class = Class { lessons: &lessons, library: &session.library, home: &session.home, marks: &Marks::default() };
    let (best, mut all) = learn_best(&class, report)?;
    let spent = all.iter().map(Spent::of).collect();
    let learned = all.swap_remove(best);
    let skill = read(base, &env, &test, Reader::Alone(Some(&learned.adapter)), report)?;

    let seed = Seed::new(recipe.seed);
    let grades = [&whole, &passage, &skill, &neither].map(Reading::grades);
    let difference95 = improvement(&grades[0].lenient, &grades[2].lenient, seed);
    let [in_context, passage_in_context, skilled, without] = grades.map(|grades: Grades| grades.score());
    let quality = Quality {
        questions: test.len(),
        in_context,
        passage_in_context,
        skill: skilled,
        neither: without,
        difference95,
        close: skilled.lenient + CLOSE >= in_context.lenient,
        nats: Nats { questions: test.len(), in_context: whole.nats(), skill: skill.nats(), neither: neither.nats() },
        written: written(base, &env, (&notes, &apart), &learned)?,
    };
    let paid =
        Paid { notes: &notes, spent, skill: &learned.adapter, readings: [&whole, &skill], document_tokens: tokens };
    let price = price::price(base, &paid);
    let made = |learned: &Learned| match learned.adapter.layout.positions() {
        0 => (Arm::Adapter, rank),
        positions => (Arm::Prefix, positions),
    };
    let passed_over = all.pop().map(|other| {
        let (arm, size) = made(&other);
        PassedOver { arm, size, reason: other.decision.reason }
    });
    let (arm, size) = made(&learned);
    let (passages, written) = (env.passages().len(), notes.all.len());
    Ok(Compressed { learned, quality, price, passages, arm, size, passed_over, written })
}

/// The environment and the course of a skill that was compressed from `documents`, made again from nothing that is kept.
///
/// # Errors
/// As [`compress`].
pub fn restudy(
    session: &Session,
    documents: &[Document],
    seed: u64,
    report: &mut dyn Report,
) -> Result<(Documents, Course), AgentError> {
    let env = open(session, documents)?;
    let notes = study(&session.base, &env, Seed::new(seed), None, report)?;
    let (course, _) = course(&session.base, &env, &notes)?;
    Ok((env, course))
}

fn open(session: &Session, documents: &[Document]) -> Result<Documents, AgentError> {
    // A token is at least a byte, so that a third of the context holds any passage.
    let bytes = PASSAGE_BYTES_MAX.min(session.base.spec().context_max / 3);
    Ok(Documents::new(documents, bytes)?)
}

/// What is trained on, and the written questions that are not, by their places in the notes.
fn course(base: &Base, env: &Documents, notes: &Notes) -> Result<(Course, Vec<usize>), AgentError> {
    let beginning = reading::tokens(base, env)?;
    let mut course = Course { items: env.lessons(), beginning, ..Course::default() };
    let mut apart = Vec::new();
    for (place, note) in notes.all.iter().enumerate() {
        let item = env.written(note.passage, &note.question, &note.answer);
        if env.split(&item) != Split::Train {
            apart.push(place);
        } else if course.taught.insert(item.id, note.taught.clone()).is_none() {
            course.items.push(item);
        }
    }
    Ok((course, apart))
}

/// How probable the model's own answers are that training did not have: those at the places `apart`.
fn written(
    base: &Base,
    env: &Documents,
    (notes, apart): (&Notes, &[usize]),
    learned: &Learned,
) -> Result<Option<Nats>, AgentError> {
    if apart.is_empty() {
        return Ok(None);
    }
    let notes: Vec<_> = apart.iter().map(|&place| &notes.all[place]).collect();
    let prompt = |note: &&study::Note| {
        let item = env.written(note.passage, &note.question, &note.answer);
        base.prompt_ids(env.start(&item)?.observe())
    };
    let prompts = notes.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
    let sequences: Vec<(&[u32], &[u32])> =
        prompts.iter().zip(&notes).map(|(prompt, note)| (&prompt[..], &note.taught.answer[..])).collect();
    let tokens = notes.iter().map(|note| note.taught.answer.len()).sum::<usize>() as f64;
    let mean = |adapter| -> Result<f64, AgentError> {
        let logprobs = score(&base.model, adapter, &sequences, base.limits)?;
        Ok(logprobs.iter().flatten().map(|&logprob| f64::from(logprob)).sum::<f64>() / tokens)
    };
    Ok(Some(Nats {
        questions: notes.len(),
        in_context: notes.iter().map(|note| note.logprob).sum::<f64>() / tokens,
        skill: mean(Some(learned.adapter.adapter()))?,
        neither: mean(None)?,
    }))
}

/// What was found out before learning and need not be again, in the home.
struct Kept {
    notes: Journal<study::PassageNotes>,
    readings: Journal<Reading>,
}

impl Kept {
    fn open(session: &Session) -> Result<Self, AgentError> {
        let folder = session.home.derived().join("compress");
        fs::create_dir_all(&folder)
            .map_err(|error| AgentError::Run { path: folder.clone(), what: error.to_string() })?;
        let notes = Journal::open(&folder.join("notes.jsonl"))?;
        Ok(Self { notes, readings: Journal::open(&folder.join("readings.jsonl"))? })
    }

    /// How `reader` answers `items`, asked unless that is known.
    fn reading(
        &mut self,
        session: &Session,
        env: &Documents,
        items: &[Item],
        reader: Reader<'_>,
        report: &mut dyn Report,
    ) -> Result<Reading, AgentError> {
        let base = &session.base;
        let ids: Vec<u8> =
            items.iter().flat_map(|item| [&item.id.bytes()[..], &[item.wording as u8]].concat()).collect();
        let key = Digest::of_parts([
            reading::VERSION.as_bytes(),
            reader.name().as_bytes(),
            base.id.digest.bytes(),
            base.id.tokenizer.bytes(),
            format!("{:?}", base.dtype).as_bytes(),
            env.info().version.as_bytes(),
            &ids,
        ]);
        if let Some(known) = self.readings.get(&key) {
            return Ok(known.clone());
        }
        let found = read(base, env, items, reader, report)?;
        self.readings.insert(key, found.clone())?;
        Ok(found)
    }
}
