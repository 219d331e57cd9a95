//! Learners beside serving: each a thread with a pool of its own over the same base, which lets serving go first. Never sees HTTP.

use super::courtesy::Courtesy;
use crate::{
    agent::{AgentError, Learned, Lesson, Recipe, Session, learn},
    common::{Progress, Report},
    envs::Environment,
    library::{Comparison, Generation, SkillName},
};
use serde::Serialize;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tokio::sync::watch;
use utoipa::ToSchema;

/// Ended jobs that are remembered.
const KEPT: usize = 256;

/// What a job is at.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum JobStatus {
    /// For a learner before it to end.
    Waiting,
    /// Being born, training or being judged.
    Running,
    /// It became a skill.
    Admitted,
    /// The gate refused it.
    Refused,
    /// Somebody asked for its end; the same request goes on from there.
    Cancelled,
    /// It could not go on.
    Failed,
}

impl JobStatus {
    pub(super) fn is_over(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }
}

/// A job as it stands.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct JobState {
    pub(super) id: String,
    /// The skill that it is to become.
    pub(super) skill: String,
    /// What it learns.
    pub(super) env: String,
    pub(super) status: JobStatus,
    /// What it is doing, such as `training`.
    pub(super) phase: Option<String>,
    /// How much of that is done.
    pub(super) done: u64,
    /// Of how much.
    pub(super) total: Option<u64>,
    /// What else is worth knowing now: loss, reward, notes.
    pub(super) detail: String,
    /// Why it failed.
    pub(super) error: Option<String>,
    pub(super) result: Option<JobResult>,
}

/// What came of a job.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct JobResult {
    pub(super) admitted: bool,
    /// The gate's reason.
    pub(super) reason: String,
    /// What was published.
    pub(super) generation: Option<String>,
    pub(super) learner: String,
    pub(super) steps: usize,
    pub(super) seconds: f64,
    /// Strict test accuracy.
    pub(super) before: f64,
    pub(super) after: f64,
}

/// A job, as seen from other threads.
pub(super) struct Job {
    state: watch::Sender<JobState>,
    cancelled: AtomicBool,
}

impl Job {
    pub(super) fn state(&self) -> JobState {
        self.state.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<JobState> {
        self.state.subscribe()
    }

    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// What is to be learned.
pub(super) struct Task {
    pub(super) id: String,
    pub(super) env: Box<dyn Environment>,
    pub(super) recipe: Recipe,
    pub(super) name: SkillName,
    pub(super) parent: Option<Arc<Generation>>,
}

/// All jobs since the server started.
pub(super) struct Learners {
    session: Arc<Session>,
    courtesy: Arc<Courtesy>,
    jobs: Mutex<Vec<Arc<Job>>>,
    places: Arc<Places>,
    ending: AtomicBool,
}

/// Why a learner is not started.
pub(super) enum NotStarted {
    /// One of that name is under way.
    Taken,
    /// Too many are under way or wait.
    Full,
    /// The server is about to end.
    Ending,
    /// The system gives no thread.
    Io(std::io::Error),
}

/// Learners that may still begin.
struct Places {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Learners {
    pub(super) fn new(session: Arc<Session>, courtesy: Arc<Courtesy>, learners_max: usize) -> Self {
        let places = Arc::new(Places { free: Mutex::new(learners_max.max(1)), freed: Condvar::new() });
        Self { session, courtesy, jobs: Mutex::default(), places, ending: AtomicBool::new(false) }
    }

    /// All of them, oldest first.
    pub(super) fn list(&self) -> Vec<Arc<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn find(&self, id: &str) -> Option<Arc<Job>> {
        self.list().into_iter().find(|job| job.state.borrow().id == id)
    }

    /// Cancels all of them; none begins afterwards.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.list().iter().for_each(|job| job.cancel());
        self.wake();
    }

    /// Waits until every job is over.
    pub(super) async fn ended(&self) {
        for job in self.list() {
            // An error means that nobody changes the state any more.
            let _ = job.watch().wait_for(|state| state.status.is_over()).await;
        }
    }

    /// Has jobs that wait look whether they are still wanted.
    pub(super) fn wake(&self) {
        self.places.freed.notify_all();
    }

    /// Starts `task`.
    pub(super) fn start(&self, task: Task) -> Result<Arc<Job>, NotStarted> {
        let state = JobState {
            id: task.id.clone(),
            skill: task.name.to_string(),
            env: task.env.info().name.clone(),
            status: JobStatus::Waiting,
            phase: None,
            done: 0,
            total: None,
            detail: String::new(),
            error: None,
            result: None,
        };
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |job: &Arc<Job>| {
            let other = job.state.borrow();
            other.skill == state.skill && !other.status.is_over()
        };
        // Set before all jobs are looked at under this lock, so whoever does not see it is seen.
        if self.ending.load(Ordering::SeqCst) {
            return Err(NotStarted::Ending);
        }
        if jobs.iter().any(same) {
            return Err(NotStarted::Taken);
        }
        if jobs.len() >= KEPT {
            let over = jobs.iter().position(|job| job.state.borrow().status.is_over());
            jobs.remove(over.ok_or(NotStarted::Full)?);
        }
        let job = Arc::new(Job { state: watch::Sender::new(state), cancelled: AtomicBool::new(false) });
        let life = Life {
            session: self.session.clone(),
            courtesy: self.courtesy.clone(),
            places: self.places.clone(),
            job: job.clone(),
        };
        thread::Builder::new()
            .name(format!("learn {}", task.name))
            .spawn(move || life.live(task))
            .map_err(NotStarted::Io)?;
        jobs.push(job.clone());
        Ok(job)
    }
}

/// A learner's thread.
struct Life {
    session: Arc<Session>,
    courtesy: Arc<Courtesy>,
    places: Arc<Places>,
    job: Arc<Job>,
}

impl Life {
    fn live(self, task: Task) {
        if !self.places.take(&self.job.cancelled) {
            return self.set(|state| state.status = JobStatus::Cancelled);
        }
        self.set(|state| state.status = JobStatus::Running);
        let learned = catch_unwind(AssertUnwindSafe(|| self.learn(task)));
        self.places.give_back();
        match learned {
            Ok(Ok(learned)) => self.set(|state| {
                state.status = if learned.generation.is_some() { JobStatus::Admitted } else { JobStatus::Refused };
                state.result = Some(result(&learned));
            }),
            Ok(Err(AgentError::Cancelled)) => self.set(|state| state.status = JobStatus::Cancelled),
            Ok(Err(error)) => self.fail(error.to_string()),
            Err(_) => self.fail("the learner panicked; the server's log has the cause".into()),
        }
    }

    fn learn(&self, task: Task) -> Result<Learned, AgentError> {
        // A pool of its own: what waits for the engine must not hold the engine's threads.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build();
        let pool = pool.expect("the system gives a learner its threads");
        let Session { base, library, home, .. } = &*self.session;
        let base = base.pausing(self.courtesy.clone());
        let Task { env, recipe, name, parent, .. } = task;
        let mut watched = Watched(self.job.clone());
        pool.install(|| {
            learn(&Lesson { base: &base, env: &*env, recipe, name, parent, course: None }, library, home, &mut watched)
        })
    }

    fn fail(&self, error: String) {
        tracing::warn!(error, job = self.job.state.borrow().id, "learning failed");
        self.set(|state| {
            state.status = JobStatus::Failed;
            state.error = Some(error);
        });
    }

    fn set(&self, change: impl FnOnce(&mut JobState)) {
        self.job.state.send_modify(change);
    }
}

impl Places {
    /// Waits for a place; false if it is not wanted any more.
    fn take(&self, cancelled: &AtomicBool) -> bool {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |free: &mut usize| *free == 0 && !cancelled.load(Ordering::Relaxed);
        let mut free = self.freed.wait_while(free, wait).unwrap_or_else(PoisonError::into_inner);
        if cancelled.load(Ordering::Relaxed) {
            return false;
        }
        *free -= 1;
        true
    }

    fn give_back(&self) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.freed.notify_all();
    }
}

/// Progress into the job's state.
struct Watched(Arc<Job>);

impl Report for Watched {
    fn progress(&mut self, progress: Progress<'_>) {
        self.0.state.send_modify(|state| {
            state.phase = Some(format!("{:?}", progress.phase).to_lowercase());
            (state.done, state.total) = (progress.done, progress.total);
            if !progress.detail.is_empty() {
                state.detail = progress.detail.to_owned();
            }
        });
    }

    fn note(&mut self, line: &str) {
        self.0.state.send_modify(|state| state.detail = line.to_owned());
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Relaxed)
    }
}

fn result(learned: &Learned) -> JobResult {
    let Comparison { before, after } = learned.test;
    JobResult {
        admitted: learned.decision.admitted,
        reason: learned.decision.reason.clone(),
        generation: learned.generation.as_ref().map(|generation| generation.id.to_string()),
        learner: learned.method.to_string(),
        steps: learned.steps,
        seconds: learned.seconds,
        before: before.strict,
        after: after.strict,
    }
}
