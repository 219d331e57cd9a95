//! Ctrl-C: the first one asks long work to end cleanly, the second ends the process. Knows nothing of what is interrupted.

use std::{
    process,
    sync::atomic::{AtomicBool, Ordering},
};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on the first Ctrl-C (or SIGTERM) only sets a flag.
pub(super) fn install() {
    let handler = || {
        if ASKED.swap(true, Ordering::SeqCst) {
            process::exit(1);
        }
        eprintln!("ending cleanly; once more to end at once");
    };
    // Without a handler Ctrl-C ends the process at once, which every command survives.
    let _ = ctrlc::set_handler(handler);
}

/// Whether the user asked for an end.
pub(super) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// What was asked to end has ended; the next Ctrl-C is a first one again.
pub(super) fn forget() {
    ASKED.store(false, Ordering::SeqCst);
}
