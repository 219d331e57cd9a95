//! What the machine can do at most, measured: multiply-adds that never leave registers, and reads of memory. Knows no operation
//! of a model.
//!
//! The peaks are those of the running [`crate::selected`] variant on rayon's current pool, so a kernel's fraction of them says
//! what that kernel leaves lying, whatever the machine.

use crate::simd::{self, Kernel, LANES, Simd, Variant};
use rayon::prelude::*;
use std::{hint::black_box, time::Instant};

/// Steps of one timed run of a multiply-add loop: about a millisecond, so that some run is not interrupted.
const STEPS: usize = 1 << 18;
/// Timed runs, of which the fastest counts: anything else that runs only makes them slower.
const RUNS: usize = 25;
/// Values of the buffer that is read: 256 MiB, beyond any cache.
const READ_VALUES: usize = 64 << 20;
/// Values that push everything else out of the caches: 64 MiB, twice the last level of most machines.
const EVICT_VALUES: usize = 16 << 20;

/// Operations and bytes a second, all threads together. A multiply-add is two operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// f32 multiply-adds.
    pub f32: f64,
    /// bf16 products summed in f32, where the running variant has an instruction for them.
    pub bf16: Option<f64>,
    /// int8 products summed in int32, where the machine has an instruction for them (VNNI).
    pub int8: Option<f64>,
    /// Bytes read from memory.
    pub read: f64,
}

impl Peaks {
    /// Measures them: about half a second.
    pub fn measure(memory: &Memory) -> Self {
        let variant = simd::active();
        Self {
            f32: rate(|| {
                let mut operations = 0;
                simd::run(variant, MultiplyAdds(&mut operations));
                operations
            }),
            bf16: bf16_products(variant).map(rate),
            int8: int8_products(variant).map(rate),
            read: (READ_VALUES * size_of::<f32>()) as f64 / fastest(|| read(&memory.0)),
        }
    }
}

/// A buffer larger than every cache.
pub struct Memory(Vec<f32>);

impl Memory {
    /// Reserves and touches it.
    #[expect(clippy::new_without_default, reason = "256 MiB are not a default")]
    pub fn new() -> Self {
        // Zeros would be one page of the system's, read again and again.
        Self(vec![1.0; READ_VALUES])
    }

    /// Reads so much of it that whatever else was in the caches is out of them.
    pub fn evict(&self) {
        read(&self.0[..EVICT_VALUES]);
    }
}

/// Sums `values` on every thread.
fn read(values: &[f32]) {
    let variant = simd::active();
    values.par_chunks(READ_VALUES >> 8).for_each(|chunk| simd::run(variant, Sum(chunk)));
}

/// Seconds of the fastest of some runs.
fn fastest(mut body: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        body();
        start.elapsed().as_secs_f64()
    };
    (0..RUNS).map(time).fold(f64::INFINITY, f64::min)
}

/// Operations a second of `body` on every thread at once; it returns how many it did.
fn rate(body: impl Fn() -> usize + Sync) -> f64 {
    let operations: usize = rayon::broadcast(|_| body()).into_iter().sum();
    operations as f64 / fastest(|| drop(rayon::broadcast(|_| body())))
}

/// Independent sums, to hide the latency of a multiply-add (four to six cycles, at up to two a cycle).
const CHAINS: usize = 12;

/// Multiply-adds of f32 lanes; says how many operations they were.
struct MultiplyAdds<'a>(&'a mut usize);

impl Kernel for MultiplyAdds<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // As many as a register tile of the variant has: more would not stay in registers.
        // SAFETY: lane arithmetic only; `simd::run` compiles this for `S`.
        *self.0 = unsafe {
            match S::TILE_ROWS * S::TILE_VECTORS {
                ..6 => chains::<S, 2>(),
                6..CHAINS => chains::<S, 6>(),
                _ => chains::<S, CHAINS>(),
            }
        };
    }
}

/// # Safety
/// See [`Simd`].
#[inline(always)]
unsafe fn chains<S: Simd, const N: usize>() -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (S::splat(black_box(1e-3)), S::splat(black_box(1e-3)));
        let mut sums = [S::splat(0.0); N];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = S::fma(a, b, *sum);
            }
        }
        for sum in sums {
            black_box(S::sum(sum));
        }
    }
    2 * LANES * N * STEPS
}

/// A sum of everything, which reads everything.
struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        const VECTORS: usize = 4;
        // SAFETY: chunks hold `VECTORS` vectors; `simd::run` compiles this for `S`.
        unsafe {
            let mut sums = [S::splat(0.0); VECTORS];
            for chunk in self.0.chunks_exact(VECTORS * LANES) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(chunk[i * LANES..].as_ptr()));
                }
            }
            for sum in sums {
                black_box(S::sum(sum));
            }
        }
    }
}

/// Products of bf16 pairs in registers, and how many operations they were; none if `variant` has no instruction for them.
fn bf16_products(variant: Variant) -> Option<fn() -> usize> {
    #[cfg(target_arch = "x86_64")]
    if variant == Variant::Avx512Bf16 {
        // SAFETY: a variant runs only on machines that have its instruction set.
        return Some(|| unsafe { x86::dpbf16() });
    }
    let _ = variant;
    None
}

/// The same of int8.
fn int8_products(variant: Variant) -> Option<fn() -> usize> {
    #[cfg(target_arch = "x86_64")]
    {
        let wide = matches!(variant, Variant::Avx512Bf16 | Variant::Avx512);
        if wide && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the machine has the instruction.
            return Some(|| unsafe { x86::dpbusd512() });
        }
        if variant != Variant::Portable && is_x86_feature_detected!("avxvnni") {
            // SAFETY: as above.
            return Some(|| unsafe { x86::dpbusd256() });
        }
    }
    let _ = variant;
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Loops of one instruction. Never called on a machine that lacks it.

    use super::{CHAINS, STEPS, black_box};
    use std::arch::x86_64::*;

    /// # Safety
    /// The machine has AVX-512-BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn dpbf16() -> usize {
        let pairs = _mm512_set1_epi32(black_box(0x3a80_3a80));
        // SAFETY: two types of 64 bytes without invalid values.
        let pairs = unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) };
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
            }
        }
        for sum in sums {
            black_box(_mm512_reduce_add_ps(sum));
        }
        // Sixteen lanes of two multiply-adds.
        64 * CHAINS * STEPS
    }

    /// # Safety
    /// The machine has AVX-512-VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn dpbusd512() -> usize {
        let bytes = _mm512_set1_epi8(black_box(1));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, bytes, bytes);
            }
        }
        for sum in sums {
            black_box(_mm512_reduce_add_epi32(sum));
        }
        // Sixteen lanes of four multiply-adds.
        128 * CHAINS * STEPS
    }

    /// # Safety
    /// The machine has AVX-VNNI.
    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) unsafe fn dpbusd256() -> usize {
        let bytes = _mm256_set1_epi8(black_box(1));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, bytes, bytes);
            }
        }
        for sum in sums {
            black_box(_mm256_extract_epi32::<0>(sum));
        }
        64 * CHAINS * STEPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_counts_what_its_peak_loops_do() {
        for &variant in simd::variants() {
            let mut operations = 0;
            simd::run(variant, MultiplyAdds(&mut operations));
            assert!(operations >= STEPS, "{variant:?}");
            assert_eq!(bf16_products(variant).is_some(), variant == Variant::Avx512Bf16);
            if let Some(products) = bf16_products(variant) {
                assert_eq!(products(), 2 * operations, "a pair in each lane of as many chains");
            }
            if let Some(products) = int8_products(variant) {
                assert!(products().is_multiple_of(STEPS), "{variant:?}");
            }
        }
    }
}
