//! Values and comparisons for tests; knows no kernel.

use std::fmt::Arguments;

/// A reproducible stream of values in [−1, 1).
pub(crate) struct Values(u64);

impl Values {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
}

#[track_caller]
pub(crate) fn assert_within(found: f32, exact: f64, bound: f64, what: Arguments<'_>) {
    let error = (f64::from(found) - exact).abs();
    assert!(error <= bound, "{what}: {found} for {exact}, error {error:e} above {bound:e}");
}

#[track_caller]
pub(crate) fn assert_same_bits(a: &[f32], b: &[f32], what: Arguments<'_>) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a.to_bits() == b.to_bits(), "{what}: element {i} is {a} and {b}");
    }
}

/// Runs `body` on a pool of `threads`.
pub(crate) fn on_threads<R: Send>(threads: usize, body: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small pool").install(body)
}
