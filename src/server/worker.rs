//! The thread that owns the engine: requests come in by a channel, tokens go out by one channel a request. Never sees HTTP or text.

use super::{courtesy::Courtesy, metrics::Metrics};
use crate::engine::{Engine, EngineError, EventKind, FinishReason, Limits, Request, RequestId};
use socius_models::Model;
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc as events};

/// Tokens that may wait for a reader; one who is further behind is cancelled.
const UNREAD_MAX: usize = 1024;

/// What a request is told.
#[derive(Debug)]
pub(super) enum Heard {
    /// Something happened to a sample.
    Event(u64, EventKind),
    /// The request ended early.
    Failed(Failure),
}

/// Why a request ended early.
#[derive(Debug)]
pub(super) enum Failure {
    /// It cannot run.
    Refused(EngineError),
    /// The pass that it was part of failed, or the engine's thread did.
    Engine,
    /// Its reader fell too far behind, or the engine is gone.
    Lost,
}

enum Command {
    Start { ticket: u64, request: Request, events: events::Sender<Heard> },
    Cancel(u64),
    CancelSample(u64, u64),
}

/// The engine, as seen from other threads.
pub(super) struct Worker {
    commands: mpsc::Sender<Command>,
    tickets: AtomicU64,
    places: Arc<Semaphore>,
    places_max: usize,
}

/// A request in flight; dropping it cancels it.
pub(super) struct Running {
    ticket: u64,
    commands: mpsc::Sender<Command>,
    events: events::Receiver<Heard>,
    _place: OwnedSemaphorePermit,
}

impl Worker {
    /// Starts the thread. It ends when the worker and all running requests are dropped.
    pub(super) fn start(
        model: Arc<Model>,
        limits: Limits,
        requests_max: usize,
        courtesy: Arc<Courtesy>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let bench = Bench { engine: Engine::new(model.clone(), limits), listeners: HashMap::new(), metrics };
        let renew = move || Engine::new(model.clone(), limits);
        thread::Builder::new().name("engine".into()).spawn(move || bench.work(&inbox, &courtesy, &renew))?;
        Ok(Self {
            commands,
            tickets: AtomicU64::new(0),
            places: Arc::new(Semaphore::new(requests_max)),
            places_max: requests_max,
        })
    }

    /// A place in line; none if too many are taken.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// Puts `request` in line.
    pub(super) fn submit(&self, place: OwnedSemaphorePermit, request: Request) -> Running {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = events::channel(UNREAD_MAX);
        // If the thread is gone the sender is dropped with the command, and the reader hears of it.
        let _ = self.commands.send(Command::Start { ticket, request, events: sender });
        Running { ticket, commands: self.commands.clone(), events, _place: place }
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.places_max - self.places.available_permits()
    }
}

impl Running {
    /// What happens next; the request has ended when nothing does.
    pub(super) async fn next(&mut self) -> Heard {
        self.events.recv().await.unwrap_or(Heard::Failed(Failure::Lost))
    }

    /// Nothing more is wanted of one sample.
    pub(super) fn cancel_sample(&self, sample: u64) {
        let _ = self.commands.send(Command::CancelSample(self.ticket, sample));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Cancel(self.ticket));
    }
}

/// Who hears of a request.
struct Listener {
    ticket: u64,
    events: events::Sender<Heard>,
    /// Samples that have not ended.
    open: u64,
}

struct Bench {
    engine: Engine,
    listeners: HashMap<RequestId, Listener>,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn work(mut self, inbox: &mpsc::Receiver<Command>, courtesy: &Courtesy, renew: &dyn Fn() -> Engine) {
        loop {
            if self.engine.in_flight() == 0 {
                courtesy.set_busy(false);
                match inbox.recv() {
                    Ok(command) => self.obey(command),
                    Err(mpsc::RecvError) => return,
                }
            }
            while let Ok(command) = inbox.try_recv() {
                self.obey(command);
            }
            courtesy.set_busy(true);
            match catch_unwind(AssertUnwindSafe(|| self.engine.step())) {
                Ok(Ok(drawn)) => drawn.into_iter().for_each(|event| self.tell(event.request, event.sample, event.kind)),
                Ok(Err(error)) => {
                    tracing::error!(%error, "a step failed");
                    self.fail_all();
                }
                Err(_) => {
                    // The panic's message went to stderr by the hook; the engine's state may be broken, the model's is not.
                    tracing::error!("a step panicked; the engine starts anew");
                    self.fail_all();
                    self.engine = renew();
                }
            }
            self.metrics.engine(&self.engine);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { ticket, request, events } => {
                let open = request.samples.end - request.samples.start;
                match self.engine.submit(request) {
                    Ok(id) => {
                        self.listeners.insert(id, Listener { ticket, events, open });
                    }
                    Err(error) => {
                        let _ = events.try_send(Heard::Failed(Failure::Refused(error)));
                    }
                }
            }
            Command::Cancel(ticket) => {
                if let Some(id) = self.find(ticket) {
                    self.engine.cancel(id);
                    self.listeners.remove(&id);
                }
            }
            Command::CancelSample(ticket, sample) => {
                if let Some(id) = self.find(ticket)
                    && self.engine.cancel_sample(id, sample)
                {
                    self.tell(id, sample, EventKind::Finished(FinishReason::Stop));
                }
            }
        }
    }

    fn find(&self, ticket: u64) -> Option<RequestId> {
        self.listeners.iter().find(|(_, listener)| listener.ticket == ticket).map(|(id, _)| *id)
    }

    fn tell(&mut self, id: RequestId, sample: u64, kind: EventKind) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        let finished = matches!(kind, EventKind::Finished(_));
        if listener.events.try_send(Heard::Event(sample, kind)).is_err() {
            // Closed: nobody listens any more. Full: whoever does is too slow, and hears so when they come to the end.
            self.engine.cancel(id);
            self.listeners.remove(&id);
            return;
        }
        listener.open -= u64::from(finished);
        if listener.open == 0 {
            self.listeners.remove(&id);
        }
    }

    fn fail_all(&mut self) {
        for (_, listener) in self.listeners.drain() {
            let _ = listener.events.try_send(Heard::Failed(Failure::Engine));
        }
    }
}
