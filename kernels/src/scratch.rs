//! Buffers that a thread keeps between calls, so that hot kernels do not ask the system for memory; knows nothing of contents.

use std::cell::RefCell;

/// Values that a kept buffer may hold at most, per thread: 64 MiB in all.
const KEPT_VALUES_MAX: usize = 16 << 20;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Lends `body` a buffer of `len` values of unspecified content. Calls nest: each takes a buffer of its own.
pub(crate) fn with<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken out while lent: `body` may wait on other tasks, and this thread may then run one that asks for a buffer too.
    let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = body(&mut buffer[..len]);
    FREE.with_borrow_mut(|free| {
        let kept: usize = free.iter().map(Vec::len).sum();
        if kept + buffer.len() <= KEPT_VALUES_MAX {
            free.push(buffer);
        }
    });
    result
}

/// The same for 32-bit words.
pub(crate) fn with_words<R>(len: usize, body: impl FnOnce(&mut [u32]) -> R) -> R {
    with(len, |buffer| {
        // SAFETY: f32 and u32 have the same size and alignment, and every bit pattern is a value of both.
        body(unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), buffer.len()) })
    })
}
