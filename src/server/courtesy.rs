//! Serving goes before learning: while requests run, a learner takes half a layer now and then. Knows nothing of either.

use socius_models::Pause;
use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

/// How long a half-layer of a learner waits while requests run. Half a layer of a training pass takes some 15 ms, so that learning
/// goes on at about a fifth of its speed and costs serving no more than that.
const PATIENCE: Duration = Duration::from_millis(60);

/// Between the engine, which says when it is busy, and learners, who wait.
#[derive(Debug, Default)]
pub(super) struct Courtesy {
    busy: Mutex<bool>,
    idle: Condvar,
}

impl Courtesy {
    /// The engine has work, or none any more.
    pub(super) fn set_busy(&self, busy: bool) {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = busy;
        if !busy {
            self.idle.notify_all();
        }
    }
}

impl Pause for Courtesy {
    fn pause(&self) {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether the wait ended by the engine's rest or by time makes no difference.
        let _ = self.idle.wait_timeout_while(busy, PATIENCE, |busy| *busy);
    }
}
