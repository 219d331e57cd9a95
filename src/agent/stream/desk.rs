//! The run's own folder and everything that is opened once: what has been measured is found here by what it depends on. Decides nothing.

use super::{arms::ArmRun, cost::Spent, spec::Stream, spec::Task};
use crate::{
    agent::{AgentError, Base, Marks, Point, Session, fixed_items, route::features},
    common::{Digest, Home, Journal, JournalError, Message, Seed},
    envs::{self, Environment, Item, Query, Split},
    library::{AdapterCache, Generation, Library, RoutingFeatures, SkillName},
    lora::ActiveAdapter,
};
use serde::{Deserialize, Serialize};
use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
};

/// Raised when the same stream may give other results than before.
const VERSION: &str = "stream 1";
/// Adapters in memory: 1 GiB hold some fifty of rank 16 over the default base.
const CACHE_BYTES: usize = 1 << 30;
/// Training prompts that are routed to find what a newborn starts from.
const BIRTH_PROMPTS: usize = 64;

/// What a life, or a baseline's training on a task, came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Life {
    /// The task.
    pub task: SkillName,
    /// The seed.
    pub seed: u64,
    /// The task whose skill it was born from; none is the base.
    pub parent: Option<SkillName>,
    /// In the run's own library; none where the gate refused it, and for baselines.
    pub generation: Option<Digest>,
    /// Of sites and θ.
    pub adapter: Option<Digest>,
    /// How it learned.
    pub learner: String,
    /// What the gate said; nothing for baselines.
    pub gate: String,
    /// Steps taken.
    pub steps: usize,
    /// What was seen at each.
    pub curve: Vec<Point>,
    /// What it took, being judged included.
    pub spent: Spent,
}

/// One measured cell: an arm's answers to a task's test items after some tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// `routed`, `base` or a baseline.
    pub arm: String,
    /// The seed; none for the base.
    pub seed: Option<u64>,
    /// What had been learned by then, in order.
    pub after: Vec<SkillName>,
    /// What was asked.
    pub task: SkillName,
    /// Share of whole replies that were right.
    pub strict: f64,
    /// Share of first complete answer spans that were.
    pub lenient: f64,
    /// Questions.
    pub items: usize,
    /// Questions by the task whose skill answered (or `base`, or the arm where it is one adapter).
    pub answered_by: BTreeMap<String, usize>,
    /// What answering takes; what was known already counts too.
    pub spent: Spent,
}

/// Prompts as the router reads them.
pub(super) struct Prompts {
    pub(super) features: RoutingFeatures,
    pub(super) ids: Vec<Vec<u32>>,
}

/// A task, opened.
pub(super) struct Opened {
    pub(super) task: Task,
    pub(super) env: Box<dyn Environment>,
    /// What it is tested on.
    pub(super) items: Vec<Item>,
    tested: OnceCell<Prompts>,
    births: OnceCell<Prompts>,
}

/// A skill of one library among the run's many.
#[derive(Clone)]
pub(super) struct Skill {
    pub(super) task: usize,
    pub(super) generation: Arc<Generation>,
    pub(super) adapter: Arc<ActiveAdapter>,
}

/// The workplace of a run.
pub(super) struct Desk<'a> {
    pub(super) session: &'a Session,
    pub(super) stream: &'a Stream,
    pub(super) tasks: Vec<Opened>,
    pub(super) home: Home,
    pub(super) library: Library,
    pub(super) marks: Marks,
    pub(super) lives: RefCell<Journal<Life>>,
    pub(super) cells: RefCell<Journal<Cell>>,
    pub(super) finished: RefCell<Journal<ArmRun>>,
    pub(super) published: RefCell<Journal<Published>>,
    cache: AdapterCache,
    background: OnceCell<RoutingFeatures>,
    /// Held while the run is: another process would learn the same things beside it.
    _lock: fs::File,
}

/// Where a generation of the run's library stands in the user's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Published {
    pub(super) name: SkillName,
    pub(super) generation: Digest,
}

impl<'a> Desk<'a> {
    /// Opens `folder`, made if there is none.
    pub(super) fn open(session: &'a Session, stream: &'a Stream, folder: &Path) -> Result<Self, AgentError> {
        fs::create_dir_all(folder).map_err(|error| fault(folder, &error))?;
        let home = Home::at(folder);
        let lock = lock(&home)?;
        let open = |task: &Task| {
            let env = envs::find(&task.env)?;
            let items = fixed_items(&*env, Split::Test, task.level, stream.items)?;
            Ok(Opened { task: task.clone(), env, items, tested: OnceCell::new(), births: OnceCell::new() })
        };
        let file = |name: &str| home.root().join(name);
        Ok(Self {
            tasks: stream.tasks.iter().map(open).collect::<Result<_, AgentError>>()?,
            library: Library::open(&home.library())?,
            marks: Marks::open(&file("answers.jsonl"))?,
            lives: RefCell::new(Journal::open(&file("lives.jsonl"))?),
            cells: RefCell::new(Journal::open(&file("cells.jsonl"))?),
            finished: RefCell::new(Journal::open(&file("finished.jsonl"))?),
            published: RefCell::new(Journal::open(&file("published.jsonl"))?),
            cache: AdapterCache::new(CACHE_BYTES),
            background: OnceCell::new(),
            _lock: lock,
            session,
            stream,
            home,
        })
    }

    pub(super) fn base(&self) -> &'a Base {
        &self.session.base
    }

    /// The key of a result that depends on the base, the code, and what `of` says.
    pub(super) fn key(&self, kind: &str, of: &serde_json::Value) -> Digest {
        let base = self.base();
        let dtype = format!("{:?}", base.dtype);
        let of = of.to_string();
        let parts = [VERSION.as_bytes(), kind.as_bytes(), base.id.digest.bytes(), base.id.tokenizer.bytes()];
        Digest::of_parts(parts.into_iter().chain([dtype.as_bytes(), of.as_bytes()]))
    }

    /// What a task is, as far as results depend on it.
    pub(super) fn identity(&self, task: usize) -> serde_json::Value {
        let Opened { task, env, .. } = &self.tasks[task];
        let info = env.info();
        let how = (task.learner, task.steps, task.rank, task.lr, task.independent);
        serde_json::json!([info.name, info.version, task.level, how])
    }

    pub(super) fn names(&self, tasks: &[usize]) -> Vec<SkillName> {
        tasks.iter().map(|&task| self.tasks[task].task.name.clone()).collect()
    }

    pub(super) fn known_life(&self, key: &Digest) -> Option<Life> {
        self.lives.borrow().get(key).cloned()
    }

    /// The skill that `life` gave, if it did.
    pub(super) fn skill(&self, task: usize, life: &Life) -> Result<Option<Skill>, AgentError> {
        let Some(id) = life.generation else { return Ok(None) };
        let generation = self.library.generation(id)?;
        let base = self.base();
        let adapter = self.cache.get(&self.library, &generation, &base.id, base.spec())?;
        Ok(Some(Skill { task, generation, adapter }))
    }

    /// A task's test prompts.
    pub(super) fn tested(&self, task: usize) -> Result<&Prompts, AgentError> {
        let Opened { env, items, tested, .. } = &self.tasks[task];
        get_or_try(tested, || self.prompts(&**env, items))
    }

    /// Training prompts by which a newborn is routed.
    pub(super) fn births(&self, task: usize) -> Result<&Prompts, AgentError> {
        let Opened { env, task, births, .. } = &self.tasks[task];
        get_or_try(births, || {
            let query = Query::new(Split::Train, task.level);
            let items = envs::items(&**env, &query, Seed::new(0).purpose("births"), BIRTH_PROMPTS)?;
            self.prompts(&**env, &items)
        })
    }

    fn prompts(&self, env: &dyn Environment, items: &[Item]) -> Result<Prompts, AgentError> {
        let base = self.base();
        let said = items.iter().map(|item| Ok(env.start(item)?.observe().to_vec()));
        let said: Vec<Vec<Message>> = said.collect::<Result<_, AgentError>>()?;
        let ids = said.iter().map(|messages| base.prompt_ids(messages)).collect::<Result<Vec<_>, _>>()?;
        let features = features::of_prompts(base, &self.home, "prompts", &ids)?;
        Ok(Prompts { features, ids })
    }

    pub(super) fn background(&self) -> Result<&RoutingFeatures, AgentError> {
        get_or_try(&self.background, || features::background(self.base(), &self.session.home))
    }
}

fn get_or_try<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T, AgentError>) -> Result<&T, AgentError> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = make()?;
    Ok(cell.get_or_init(|| value))
}

/// One process works in a run's folder at a time; the lock dies with it.
fn lock(home: &Home) -> Result<fs::File, AgentError> {
    let path = home.root().join("run.lock");
    let file = fs::File::create(&path).map_err(|error| fault(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(fault(home.root(), &"another process works in this folder; wait for it"))
        }
        Err(fs::TryLockError::Error(error)) => Err(fault(&path, &error)),
    }
}

pub(super) fn fault(path: &Path, error: &dyn std::fmt::Display) -> AgentError {
    AgentError::Journal(JournalError { path: path.to_owned(), what: error.to_string() })
}
