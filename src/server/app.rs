//! What all handlers share, and the way from a checked request to a running one. Never sees the wire.

use super::{
    answer::Asked,
    config::Config,
    courtesy::Courtesy,
    error::ApiError,
    learners::Learners,
    metrics::Metrics,
    recent::Recent,
    request::Plan,
    worker::{Running, Worker},
};
use crate::{
    agent::{Prompt, Session, SkillChoice},
    engine::{Constraint, EngineError, Request, Sampling},
    library::{Generation, SkillRef},
    text::{Grammar, GrammarState, Grammars},
};
use axum::http::StatusCode;
use jiff::Timestamp;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// Everything a handler needs.
pub(super) struct App {
    pub(super) session: Arc<Session>,
    pub(super) config: Config,
    pub(super) worker: Worker,
    pub(super) metrics: Arc<Metrics>,
    pub(super) learners: Learners,
    pub(super) recent: Recent,
    /// None for a vocabulary without an end.
    grammars: Option<Grammars>,
    /// Whether the server is about to end.
    pub(super) draining: AtomicBool,
    /// When it started.
    pub(super) created: i64,
    /// See [`App::default_skill`]; llama-server's `/lora-adapters` sets it.
    default_skill: Mutex<Option<SkillRef>>,
    ids: AtomicU64,
}

pub(super) type Shared = Arc<App>;

/// What is to be answered.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) prompt: PromptInput,
    pub(super) plan: Plan,
    pub(super) grammar: Option<Grammar>,
}

/// A prompt as clients give it.
#[derive(Clone, Debug)]
pub(super) enum PromptInput {
    /// Through the chat template, or as it is.
    Text(Prompt),
    /// In tokens.
    Ids(Vec<u32>),
}

/// A request that runs.
pub(super) struct Begun {
    pub(super) running: Running,
    pub(super) asked: Asked,
    pub(super) prompt: Vec<u32>,
    pub(super) who: Who,
}

/// Who answers.
#[derive(Clone, Debug)]
pub(super) struct Who {
    /// As clients name it.
    pub(super) model: String,
    /// None is the base.
    pub(super) generation: Option<Arc<Generation>>,
}

impl Who {
    pub(super) fn skill(&self) -> Option<String> {
        self.generation.as_ref().map(|generation| generation.manifest.name.to_string())
    }

    pub(super) fn generation(&self) -> Option<String> {
        self.generation.as_ref().map(|generation| generation.id.to_string())
    }
}

impl App {
    pub(super) fn new(session: Session, config: Config) -> std::io::Result<Self> {
        let (courtesy, metrics) = (Arc::new(Courtesy::default()), Arc::new(Metrics::default()));
        let model = session.base.model.clone();
        let worker = Worker::start(model, config.limits, config.requests_max, courtesy.clone(), metrics.clone())?;
        let text = &session.base.text;
        let grammars = text.end_of_turn().and_then(|end| Grammars::new(&text.tokenizer, end).ok());
        let session = Arc::new(session);
        Ok(Self {
            learners: Learners::new(session.clone(), courtesy, config.learners_max),
            worker,
            metrics,
            recent: Recent::default(),
            grammars,
            draining: AtomicBool::new(false),
            created: Timestamp::now().as_second(),
            default_skill: Mutex::default(),
            ids: AtomicU64::new(0),
            session,
            config,
        })
    }

    /// An id that no other answer has, also not one of an earlier server.
    pub(super) fn id(&self, prefix: &str) -> String {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}-{:x}-{number:x}", self.created)
    }

    /// What the base is called here: the first of these, in answers.
    pub(super) fn base_names(&self) -> Vec<&str> {
        let base = &self.session.base;
        base.aliases.iter().map(String::as_str).chain([base.id.name.as_str(), "base"]).collect()
    }

    /// The skill that answers where the base is asked for.
    pub(super) fn default_skill(&self) -> MutexGuard<'_, Option<SkillRef>> {
        self.default_skill.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a prompt leaves room for a token.
    pub(super) fn fits(&self, ids: &[u32]) -> Result<(), ApiError> {
        let (prompt, context) = (ids.len(), self.session.base.spec().context_max);
        if prompt < context { Ok(()) } else { Err(EngineError::Context { prompt, context }.into()) }
    }

    /// Who is meant by `model`.
    pub(super) fn choice(&self, model: &str) -> Result<SkillChoice, ApiError> {
        let base = self.base_names();
        if model == "auto" {
            return Ok(SkillChoice::Auto);
        }
        if base.contains(&model) {
            return Ok(self.default_skill().clone().map_or(SkillChoice::None, SkillChoice::Named));
        }
        let skill = base.iter().find_map(|base| model.strip_prefix(base)?.strip_prefix(':')).unwrap_or(model);
        skill.parse().map(SkillChoice::Named).map_err(|_| no_model(model))
    }

    /// Puts `ask` in line: the prompt in tokens, the skill that answers in memory, the grammar compiled.
    pub(super) async fn begin(self: &Arc<Self>, ask: Ask) -> Result<Begun, ApiError> {
        let asked = Instant::now();
        let place = self.place()?;
        let Plan { n, stop, .. } = ask.plan.clone();
        // The place goes with the work, not with whoever waits for it: that goes on when they have left.
        let prepared = self.blocking(move |app| app.prepare(ask).map(|prepared| (place, prepared))).await?;
        let (place, (request, who)) = prepared;
        let (prompt, until) = (request.prompt.clone(), asked + self.config.time_max);
        let asked = Asked { n, stop, prompt_tokens: prompt.len(), asked, until };
        Ok(Begun { running: self.worker.submit(place, request), asked, prompt, who })
    }

    /// Runs `work` that computes, as a request among those that wait or run.
    pub(super) async fn computing<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = self.place()?;
        let done = self.blocking(move |app| {
            let done = work(app);
            // Held by the work, not by whoever waits for it: it goes on when they have left.
            drop(place);
            done
        });
        done.await
    }

    /// Room for one more request.
    fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(ApiError::ending());
        }
        self.worker.place().ok_or_else(ApiError::queue_full)
    }

    /// Runs `work` where it may take its time: on a thread of no pool, which may hold a lock while it computes (a pool's thread that
    /// waits may take up another's work, and with it wait for the same lock).
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let app = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&app)).await;
        done.unwrap_or_else(|_| Err(ApiError::internal("a request's preparation panicked")))
    }

    fn prepare(&self, ask: Ask) -> Result<(Request, Who), ApiError> {
        let Ask { prompt, plan, grammar } = ask;
        let ids = match prompt {
            PromptInput::Text(prompt) => self.session.prompt_ids(&prompt)?,
            PromptInput::Ids(ids) => ids,
        };
        let constraint = grammar.map(|grammar| self.constraint(&grammar)).transpose()?;
        let stop_ids = if plan.ends { self.session.base.text.stop_ids.clone() } else { Vec::new() };
        let sampling = Sampling { stop_ids, ..plan.sampling };
        let request = Request { constraint, ..Request::new(ids, sampling).times(plan.n) };
        // Before the router looks at it: a prompt that does not fit is not worth a pass.
        self.config.limits.check(&request, self.session.base.spec())?;
        let who = self.who(&plan.model, &request.prompt)?;
        let adapter = who.generation.as_ref().map(|generation| self.session.adapter(generation)).transpose()?;
        Ok((request.under(adapter), who))
    }

    /// Who answers this prompt where `model` is asked for.
    fn who(&self, model: &str, prompt: &[u32]) -> Result<Who, ApiError> {
        let generation = match self.session.choose(&self.choice(model)?, prompt).map_err(ApiError::from) {
            Ok(generation) => generation,
            // The skill that stood for the base is gone: the base stands for itself.
            Err(error) if error.status == StatusCode::NOT_FOUND && self.base_names().contains(&model) => {
                *self.default_skill() = None;
                None
            }
            Err(error) if error.status == StatusCode::NOT_FOUND => return Err(no_model(model)),
            Err(error) => return Err(error),
        };
        let name = generation.as_ref().map(|generation| generation.manifest.name.to_string());
        Ok(Who { model: name.unwrap_or_else(|| self.base_names()[0].to_owned()), generation })
    }

    fn constraint(&self, grammar: &Grammar) -> Result<Arc<dyn Constraint>, ApiError> {
        let missing = || ApiError::bad("this model's vocabulary has no end of text, so no grammar can be followed");
        Ok(Arc::new(Following(self.grammars.as_ref().ok_or_else(missing)?.compile(grammar)?)))
    }
}

fn no_model(model: &str) -> ApiError {
    let shown: String = model.chars().take(100).collect();
    let message = format!("the model {shown:?} does not exist: GET /v1/models lists the base and its skills");
    ApiError::not_found(message).of("model").coded("model_not_found")
}

/// A grammar as the engine follows it.
#[derive(Debug)]
struct Following(GrammarState);

impl Constraint for Following {
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self(self.0.clone()))
    }

    fn mask(&mut self, logits: &mut [f32]) -> bool {
        self.0.rule_out(logits.len(), |id| logits[id] = f32::NEG_INFINITY)
    }

    fn accept(&mut self, token: u32) {
        // What the mask allowed is accepted; a grammar that gives up says so at the next mask.
        self.0.accept(token);
    }
}
