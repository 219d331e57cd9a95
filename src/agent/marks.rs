//! How single questions were answered, kept by who answered what: greedy decoding is a pure function, so nothing is asked twice. Never
//! trains.

use super::{AgentError, Base, Grades, Place, Play, play};
use crate::{
    common::{Digest, Journal, JournalError, Report},
    envs::EnvError,
    episode::Episode,
    lora::ActiveAdapter,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// Raised when the same question to the same adapter may be answered or counted otherwise than before.
const VERSION: &str = "greedy 1";
/// Questions asked before what they gave is written down: some 15 seconds on two cores.
const ASKED_AT_ONCE: usize = 256;

/// How one question was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// The whole reply was right.
    pub strict: bool,
    /// Its first complete answer span was.
    pub lenient: bool,
    /// Tokens read, over all turns.
    pub read: u64,
    /// Tokens drawn.
    pub drawn: u64,
    /// Its share of the time that asking took.
    pub seconds: f64,
}

impl Mark {
    /// As lists, in order.
    pub fn grades(marks: &[Self]) -> Grades {
        Grades {
            strict: marks.iter().map(|mark| mark.strict).collect(),
            lenient: marks.iter().map(|mark| mark.lenient).collect(),
        }
    }

    fn of(episode: &Episode, seconds: f64) -> Self {
        let (read, drawn) = (
            |turn: &crate::episode::Turn| turn.prompt.len() as u64,
            |turn: &crate::episode::Turn| turn.action.len() as u64,
        );
        Self {
            strict: episode.strict,
            lenient: episode.lenient,
            read: episode.turns.iter().map(read).sum(),
            drawn: episode.turns.iter().map(drawn).sum(),
            seconds,
        }
    }
}

/// All marks that are known. The default keeps nothing.
#[derive(Default)]
pub struct Marks(Option<Mutex<Journal<Mark>>>);

impl Marks {
    /// Those in the file at `path`, where new ones are added.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        Ok(Self(Some(Mutex::new(Journal::open(path)?))))
    }

    /// One greedy attempt at each place, asked in common batches unless it is known.
    pub fn ask(&self, base: &Base, places: &[Place<'_>], report: &mut dyn Report) -> Result<Vec<Mark>, AgentError> {
        let Some(journal) = &self.0 else { return play_all(base, places, report) };
        let lock = || journal.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = keys(base, places)?;
        let mut fresh = HashSet::new();
        let new: Vec<usize> = {
            let known = lock();
            let asked = |&place: &usize| known.get(&keys[place]).is_none() && fresh.insert(keys[place]);
            (0..places.len()).filter(asked).collect()
        };
        for part in new.chunks(ASKED_AT_ONCE) {
            let open: Vec<Place<'_>> = part.iter().map(|&place| places[place].clone()).collect();
            let marks = play_all(base, &open, report)?;
            for (&place, mark) in part.iter().zip(marks) {
                lock().insert(keys[place], mark)?;
            }
        }
        let known = lock();
        Ok(keys.iter().map(|key| *known.get(key).expect("what was not known has been asked")).collect())
    }
}

fn play_all(base: &Base, places: &[Place<'_>], report: &mut dyn Report) -> Result<Vec<Mark>, AgentError> {
    let begun = Instant::now();
    let episodes = play(base, &Play::greedy(places), report)?;
    let seconds = begun.elapsed().as_secs_f64() / places.len().max(1) as f64;
    Ok(episodes.iter().flatten().map(|episode| Mark::of(episode, seconds)).collect())
}

/// What each answer depends on: base, adapter, environment, question.
fn keys(base: &Base, places: &[Place<'_>]) -> Result<Vec<Digest>, EnvError> {
    let mut who: HashMap<*const ActiveAdapter, Digest> = HashMap::new();
    let dtype = format!("{:?}", base.dtype);
    let key = |Place { env, item, adapter }: &Place<'_>| {
        let info = env.info();
        let who = adapter.as_ref().map(|adapter| *who.entry(Arc::as_ptr(adapter)).or_insert_with(|| adapter.digest()));
        let limit = info.level(item.level)?.reply_tokens_max as u64;
        let numbers = [u64::from(item.level), item.wording as u64, limit].map(u64::to_le_bytes).concat();
        let parts: [&[u8]; 9] = [
            VERSION.as_bytes(),
            base.id.digest.bytes(),
            base.id.tokenizer.bytes(),
            dtype.as_bytes(),
            who.as_ref().map_or(&[], |who| &who.bytes()[..]),
            info.name.as_bytes(),
            info.version.as_bytes(),
            item.id.bytes(),
            &numbers,
        ];
        Ok(Digest::of_parts(parts))
    };
    places.iter().map(key).collect()
}
