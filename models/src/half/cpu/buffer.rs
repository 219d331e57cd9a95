//! Buffers of activations that go back to a pool when dropped, so that a step writes to pages that the last one has touched:
//! a fresh megabyte costs its page faults and its zeros. Never knows what a buffer holds.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Values that idle buffers may hold together: 2 GiB, about what a recorded pass keeps at most.
const IDLE_VALUES_MAX: usize = 512 << 20;

/// Idle buffers, shortest first.
static IDLE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// An activation or a gradient of one.
pub(crate) struct Buffer {
    /// As long as it was made; beyond `len` is the remains of earlier use.
    values: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// `len` values, unspecified until written.
    pub(crate) fn new(len: usize) -> Self {
        let mut idle = IDLE.lock().expect("no holder of the lock panics");
        let first = idle.partition_point(|values| values.len() < len);
        // A much longer one is left for those who need it.
        let fits = idle.get(first).is_some_and(|values| values.len() <= 2 * len);
        let values = if fits { idle.remove(first) } else { vec![0.0; len] };
        Self { values, len }
    }

    /// The values, which are lost to the pool until [`give_back`] has them.
    pub(crate) fn take(mut self) -> Vec<f32> {
        let mut values = std::mem::take(&mut self.values);
        values.truncate(self.len);
        values
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut buffer = Self::new(len);
        buffer.fill(0.0);
        buffer
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.values));
    }
}

/// Keeps `given` for whoever needs about its length: the logits of [`crate::Model::forward`], once they are read, are the largest
/// buffer of a decoding step.
pub fn give_back(given: Vec<f32>) {
    let mut idle = IDLE.lock().expect("no holder of the lock panics");
    let held: usize = idle.iter().map(Vec::len).sum();
    if !given.is_empty() && held + given.len() <= IDLE_VALUES_MAX {
        let place = idle.partition_point(|values| values.len() < given.len());
        idle.insert(place, given);
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

impl AsRef<[f32]> for Buffer {
    fn as_ref(&self) -> &[f32] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_lent_again_to_whoever_needs_about_its_length() {
        // Lengths that no other test of this process takes.
        let address = |buffer: &Buffer| buffer.as_ptr();
        let first = Buffer::new(1_000_003);
        let place = address(&first);
        drop(first);
        let longer = Buffer::new(1_000_004);
        assert_ne!(address(&longer), place, "too short");
        let much_shorter = Buffer::new(500_000);
        assert_ne!(address(&much_shorter), place, "left for those who need it");
        let again = Buffer::zeros(1_000_001);
        assert_eq!((address(&again), again.len()), (place, 1_000_001));
        assert!(again.iter().all(|&value| value == 0.0));
        assert_eq!(&*again.clone(), &*again);
        let taken = again.take();
        assert_eq!(taken.len(), 1_000_001);
        give_back(taken);
        assert_eq!(address(&Buffer::new(1_000_000)), place, "given back");
    }
}
