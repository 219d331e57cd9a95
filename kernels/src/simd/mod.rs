//! Sixteen f32 lanes on whatever the machine has, and the choice of instruction set; knows no operation of a model.
//!
//! Every kernel is written once over [`Simd`]. All variants have sixteen lanes and the same order of operations, so they
//! differ only in whether `a·b + c` rounds once or twice (and, for bf16 linears, in how a pair of products is added).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Bf16};
pub(crate) use portable::Portable;

use crate::gemm::Gemm;
use std::fmt;
use std::sync::OnceLock;

/// Lanes of [`Simd::F`].
pub(crate) const LANES: usize = 16;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// 512-bit vectors, and bf16 products in pairs.
    Avx512Bf16,
    /// 512-bit vectors.
    Avx512,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// Plain Rust.
    Portable,
}

impl Variant {
    const ALL: [Self; 4] = [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];

    /// The name that `SOCIUS_SIMD` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
            match self {
                Self::Avx512Bf16 => avx512 && is_x86_feature_detected!("avx512bf16"),
                Self::Avx512 => avx512,
                Self::Avx2 => avx2,
                Self::Portable => true,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }
}

/// `SOCIUS_SIMD` names something that this machine cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedVariant(String);

impl fmt::Display for UnsupportedVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = variants().iter().map(|variant| variant.name()).collect();
        write!(f, "SOCIUS_SIMD={}: this machine runs {}; unset it to take the first", self.0, names.join(", "))
    }
}

impl std::error::Error for UnsupportedVariant {}

/// What this machine runs, fastest first; never empty.
pub fn variants() -> &'static [Variant] {
    static VARIANTS: OnceLock<Vec<Variant>> = OnceLock::new();
    VARIANTS.get_or_init(|| Variant::ALL.into_iter().filter(|variant| variant.is_supported()).collect())
}

/// The variant of this process: the one that `SOCIUS_SIMD` names, else the fastest. Read once.
///
/// # Errors
/// If `SOCIUS_SIMD` names an unknown variant or one that this machine lacks. Kernels then run the fastest; a program
/// should ask here first and refuse to start.
pub fn selected() -> Result<Variant, UnsupportedVariant> {
    static SELECTED: OnceLock<Result<Variant, UnsupportedVariant>> = OnceLock::new();
    SELECTED.get_or_init(|| choose(std::env::var("SOCIUS_SIMD").ok())).clone()
}

fn choose(forced: Option<String>) -> Result<Variant, UnsupportedVariant> {
    let Some(name) = forced.filter(|name| !name.is_empty()) else { return Ok(variants()[0]) };
    variants().iter().copied().find(|variant| variant.name() == name).ok_or(UnsupportedVariant(name))
}

/// The variant that kernels take when none is named.
pub(crate) fn active() -> Variant {
    selected().unwrap_or(variants()[0])
}

/// Sixteen f32 lanes.
///
/// # Safety
/// Every method may be called only inside a function compiled for the instruction set of `Self` on a machine that has it
/// (that is, under [`run`]), and pointers must be valid for what is read or written through them (16 values, or `n` of them).
pub(crate) trait Simd: Copy + 'static {
    /// The lanes.
    type F: Copy;
    /// Rows of a register tile.
    const TILE_ROWS: usize;
    /// Vectors across a register tile.
    const TILE_VECTORS: usize;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    /// The first `n ≤ 16` lanes; the others are 0.
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    unsafe fn store_n(p: *mut f32, x: Self::F, n: usize);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`, so a NaN in `b` is kept.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`, so a NaN in `b` is kept.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// `a·b + c`, fused where the instruction set has it.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a < b ? 0 : x`.
    unsafe fn zero_where_less(a: Self::F, b: Self::F, x: Self::F) -> Self::F;
    /// The low bits of each lane's representation, shifted into the exponent of 1.0: `2^n` for a lane of `1.5·2²³ + n`.
    unsafe fn exponent(x: Self::F) -> Self::F;
    /// Writes the transpose of 16 × 16 values: row `i` of `src` becomes column `i` of `dst`.
    unsafe fn transpose(src: *const f32, src_row: usize, dst: *mut f32, dst_row: usize);
    /// The low halves of sixteen words, each a bf16, in f32.
    unsafe fn low(p: *const u32) -> Self::F;
    /// Their high halves.
    unsafe fn high(p: *const u32) -> Self::F;
    /// The same address, from which the compiler does not know that anything was read: what is read again then needs no register
    /// meanwhile, where there are few.
    #[inline(always)]
    fn again<T>(p: *const T) -> *const T {
        p
    }
    /// Asks for the line at `p`, which need not be readable, into the nearest cache.
    unsafe fn prefetch(p: *const u32);
    /// The same into the second-level cache.
    unsafe fn prefetch_far(p: *const u32);
    /// The small matrix product, compiled once for this instruction set.
    unsafe fn gemm(args: Gemm);

    /// Sum of the lanes, by halves.
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        let mut lanes = [0f32; LANES];
        // SAFETY: `lanes` holds 16 values.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// Largest lane.
    #[inline(always)]
    unsafe fn max_lane(x: Self::F) -> f32 {
        let mut lanes = [0f32; LANES];
        // SAFETY: `lanes` holds 16 values.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        let mut largest = lanes[0];
        for lane in lanes {
            largest = if largest > lane { largest } else { lane };
        }
        largest
    }

    /// `e^x` with relative error ≤ 2⁻²² for `x` in [−87, 88]; 0 below, `e^88` above; NaN stays NaN.
    /// Range reduction to |r| ≤ ln 2 / 2 and a polynomial of degree 7 (Cephes, `expf`).
    #[inline(always)]
    unsafe fn exp(x: Self::F) -> Self::F {
        const MAGIC: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to an integer held in the low bits.
        // SAFETY: lane arithmetic only; the caller is compiled for `Self`.
        unsafe {
            let low = Self::splat(-87.0);
            let clamped = Self::min(Self::splat(88.0), Self::max(low, x));
            let shifted = Self::fma(clamped, Self::splat(std::f32::consts::LOG2_E), Self::splat(MAGIC));
            let n = Self::sub(shifted, Self::splat(MAGIC));
            let r = Self::fma(n, Self::splat(-0.693_359_4), clamped);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
                p = Self::fma(p, r, Self::splat(c));
            }
            let y = Self::add(Self::fma(Self::mul(p, r), r, r), Self::splat(1.0));
            Self::zero_where_less(x, low, Self::mul(y, Self::exponent(shifted)))
        }
    }
}

/// Steps of pairs that are widened at a time: six rows of both halves are 18 kB.
pub(crate) const WIDE_STEPS: usize = 384;

/// Weights as pairs of bf16 along the summed dimension, times a pair of bf16 activations.
///
/// # Safety
/// As for [`Simd`]; `load_pairs` reads 16 pairs.
pub(crate) trait PairDot: Copy + 'static {
    /// The accumulator's lanes.
    type S: Simd;
    /// Sixteen columns' pairs.
    type Weights: Copy;
    /// One row's pair in every lane.
    type Activation: Copy;

    unsafe fn load_pairs(p: *const u32) -> Self::Weights;
    unsafe fn splat_pair(pair: u32) -> Self::Activation;
    /// `acc + a₀·w₀ + a₁·w₁` in each lane.
    unsafe fn dot(acc: <Self::S as Simd>::F, a: Self::Activation, w: Self::Weights) -> <Self::S as Simd>::F;

    /// Whether tiles read activations as [`PairDot::widen`] leaves them.
    const WIDENED: bool = false;

    /// Widens rows of pairs, each of `steps ≤ WIDE_STEPS`, at `x` with the distances of rows and of steps.
    #[inline(always)]
    unsafe fn widen(_x: *const u32, _strides: (usize, usize), (_rows, _steps): (usize, usize), _to: *mut u32) {}

    /// [`PairDot::dot`] for a tile: rows' pairs are `x_row` apart, vectors of weights next to each other.
    #[inline(always)]
    unsafe fn step<const R: usize, const V: usize>(
        acc: &mut [[<Self::S as Simd>::F; V]; R],
        (x, x_row): (*const u32, usize),
        weights: *const u32,
    ) {
        // SAFETY: the caller's promise for every row and vector.
        unsafe {
            let mut w = [Self::load_pairs(weights); V];
            for v in 1..V {
                w[v] = Self::load_pairs(weights.add(v * LANES));
            }
            for r in 0..R {
                let a = Self::splat_pair(*x.add(r * x_row));
                for v in 0..V {
                    acc[r][v] = Self::dot(acc[r][v], a, w[v]);
                }
            }
        }
    }
}

/// A serial computation, generic over the lanes. `run` must be `#[inline(always)]`, as must all that it calls with lanes.
pub(crate) trait Kernel {
    /// # Safety
    /// See [`Simd`].
    unsafe fn run<S: Simd>(self);
}

/// Runs `kernel` compiled for `variant`.
pub(crate) fn run<K: Kernel>(variant: Variant, kernel: K) {
    assert!(variants().contains(&variant), "{} is not of this machine", variant.name());
    match variant {
        // SAFETY: the assertion above says that the machine has the instruction set.
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512Bf16 | Variant::Avx512 => unsafe { avx512::run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Variant::Avx2 => unsafe { avx2::run_avx2(kernel) },
        // SAFETY: plain Rust needs no instruction set.
        _ => unsafe { kernel.run::<Portable>() },
    }
}

/// A pointer that tasks may share because each writes its own elements.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: whoever makes one promises that tasks touch disjoint elements; it is an address otherwise.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    pub(crate) fn at(self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }

    /// `len` elements from `index`.
    ///
    /// # Safety
    /// They lie inside the slice that this was made from, and no other task touches them.
    pub(crate) unsafe fn slice<'a>(self, index: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(index), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forced_variant_that_the_machine_lacks_is_named_with_what_it_has() {
        assert_eq!(choose(None), Ok(variants()[0]));
        assert_eq!(choose(Some("portable".into())), Ok(Variant::Portable));
        let message = choose(Some("mmx".into())).unwrap_err().to_string();
        assert!(message.contains("mmx") && message.contains("portable"), "{message}");
    }

    struct Exp<'a>(&'a mut [f32; LANES]);
    impl Kernel for Exp<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            // SAFETY: the array holds 16 values.
            unsafe { S::store(self.0.as_mut_ptr(), S::exp(S::load(self.0.as_ptr()))) }
        }
    }

    #[test]
    fn exp_is_within_two_to_the_minus_22_everywhere_and_zero_far_below() {
        for &variant in variants() {
            for step in -8700..8800 {
                let x = step as f32 / 100.0;
                let mut lanes = [x; LANES];
                run(variant, Exp(&mut lanes));
                let expected = f64::from(x).exp();
                let error = (f64::from(lanes[3]) - expected).abs() / expected;
                assert!(error <= 2f64.powi(-22), "{variant:?} exp({x}) = {}: {error:e}", lanes[3]);
            }
            let mut lanes = [f32::NEG_INFINITY; LANES];
            lanes[1] = f32::NAN;
            run(variant, Exp(&mut lanes));
            assert!(lanes[0] == 0.0 && lanes[1].is_nan());
        }
    }

    struct Transpose<'a>(&'a [f32], &'a mut [f32]);
    impl Kernel for Transpose<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            // SAFETY: both hold 16 rows of 17 and of 18.
            unsafe { S::transpose(self.0.as_ptr(), 17, self.1.as_mut_ptr(), 18) }
        }
    }

    #[test]
    fn transpose_swaps_rows_and_columns() {
        let src: Vec<f32> = (0..16 * 17).map(|i| i as f32).collect();
        for &variant in variants() {
            let mut dst = vec![0.0; 16 * 18];
            run(variant, Transpose(&src, &mut dst));
            for i in 0..16 {
                for j in 0..16 {
                    assert_eq!(dst[j * 18 + i], src[i * 17 + j], "{variant:?} {i} {j}");
                }
            }
        }
    }
}
