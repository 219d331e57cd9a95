//! The lanes on x86-64 with AVX2 and FMA; knows no operation of a model.

use super::{Kernel, LANES, PairDot, Simd, WIDE_STEPS};
use crate::gemm::{self, Gemm};
use std::arch::{asm, x86_64::*};

/// # Safety
/// The machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: this function is compiled for the instruction set.
    unsafe { kernel.run::<Avx2>() }
}

#[target_feature(enable = "avx2,fma")]
#[inline(never)]
unsafe fn gemm_avx2(args: Gemm) {
    // SAFETY: this function is compiled for the instruction set; the pointers are the caller's promise.
    unsafe { gemm::body::<Avx2>(args) }
}

/// Two ymm registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

// The SAFETY of every block below: the trait's contract, i.e. the caller is compiled for the instruction set and its pointers
// are valid.
impl Simd for Avx2 {
    type F = [__m256; 2];
    // 12 accumulators, 2 weights and a broadcast: 15 of 16 registers.
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> [__m256; 2] {
        // SAFETY: see above; masked lanes are not read.
        unsafe {
            if n == LANES {
                return Self::load(p);
            }
            let [low, high] = masks(n);
            [_mm256_maskload_ps(p, low), _mm256_maskload_ps(p.wrapping_add(8), high)]
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: [__m256; 2]) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, x: [__m256; 2], n: usize) {
        // SAFETY: see above; masked lanes are not written.
        unsafe {
            if n == LANES {
                return Self::store(p, x);
            }
            let [low, high] = masks(n);
            _mm256_maskstore_ps(p, low, x[0]);
            _mm256_maskstore_ps(p.wrapping_add(8), high, x[1]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn min(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn zero_where_less(a: [__m256; 2], b: [__m256; 2], x: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            [
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), x[0]),
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1]), x[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn exponent(x: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            let one = _mm256_set1_epi32(0x3f80_0000);
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(x[0]));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(x[1]));
            [_mm256_castsi256_ps(_mm256_add_epi32(low, one)), _mm256_castsi256_ps(_mm256_add_epi32(high, one))]
        }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_row: usize, dst: *mut f32, dst_row: usize) {
        // SAFETY: see above; 16 rows of 16 values at both ends.
        unsafe {
            for (i, j) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
                transpose8(src.add(i * src_row + j), src_row, dst.add(j * dst_row + i), dst_row);
            }
        }
    }
    #[inline(always)]
    unsafe fn low(p: *const u32) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [p, p.add(8)].map(|p| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn high(p: *const u32) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            let mask = _mm256_set1_epi32(0xffff_0000u32 as i32);
            [p, p.add(8)].map(|p| _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(p.cast()), mask)))
        }
    }
    #[inline(always)]
    fn again<T>(mut p: *const T) -> *const T {
        // SAFETY: no instruction.
        unsafe { asm!("/* {0} */", inout(reg) p, options(nostack, preserves_flags)) };
        p
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u32) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(p: *const u32) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn gemm(args: Gemm) {
        // SAFETY: see above.
        unsafe { gemm_avx2(args) }
    }
}

impl PairDot for Avx2 {
    type S = Self;
    type Weights = ([__m256; 2], [__m256; 2]);
    type Activation = (f32, f32);

    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> Self::Weights {
        // SAFETY: see above.
        unsafe {
            let (even0, odd0) = split256(_mm256_loadu_si256(p.cast()));
            let (even1, odd1) = split256(_mm256_loadu_si256(p.add(8).cast()));
            ([even0, even1], [odd0, odd1])
        }
    }
    #[inline(always)]
    unsafe fn splat_pair(pair: u32) -> (f32, f32) {
        (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000))
    }
    #[inline(always)]
    unsafe fn dot(acc: [__m256; 2], a: (f32, f32), w: Self::Weights) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { Self::fma(Self::splat(a.1), w.1, Self::fma(Self::splat(a.0), w.0, acc)) }
    }
    // Activations are broadcast once for each vector of outputs: their halves had better be f32 by then.
    const WIDENED: bool = true;
    /// Row by row: the even halves, then the odd ones, [`WIDE_STEPS`] apart.
    #[inline(always)]
    unsafe fn widen(x: *const u32, strides: (usize, usize), (rows, steps): (usize, usize), to: *mut u32) {
        // SAFETY: see above.
        unsafe {
            for r in 0..rows {
                let (x, even) = (x.wrapping_add(r * strides.0), to.add(2 * WIDE_STEPS * r));
                let odd = even.add(WIDE_STEPS);
                let vectors = if strides.1 == 1 { steps / 8 } else { 0 };
                for step in (0..8 * vectors).step_by(8) {
                    let (low, high) = split256(_mm256_loadu_si256(x.add(step).cast()));
                    _mm256_storeu_ps(even.add(step).cast(), low);
                    _mm256_storeu_ps(odd.add(step).cast(), high);
                }
                for step in 8 * vectors..steps {
                    let pair = *x.add(step * strides.1);
                    (*even.add(step), *odd.add(step)) = (pair << 16, pair & 0xffff_0000);
                }
            }
        }
    }
    /// First all rows by the even halves, then by the odd ones: six rows' sums leave room for one half of the weights.
    #[inline(always)]
    unsafe fn step<const R: usize, const V: usize>(
        acc: &mut [[[__m256; 2]; V]; R],
        (x, _): (*const u32, usize),
        weights: *const u32,
    ) {
        // SAFETY: see above; activations are widened.
        unsafe {
            let x = x.cast::<f32>();
            for v in 0..V {
                let at = [weights.add(v * LANES), weights.add(v * LANES + 8)];
                let even = at.map(|at| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(at.cast()))));
                for r in 0..R {
                    acc[r][v] = Self::fma([_mm256_broadcast_ss(&*x.add(2 * WIDE_STEPS * r)); 2], even, acc[r][v]);
                }
                let high = _mm256_set1_epi32(0xffff_0000u32 as i32);
                let odd = at.map(|at| _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(at.cast()), high)));
                for r in 0..R {
                    let a = _mm256_broadcast_ss(&*x.add(2 * WIDE_STEPS * r + WIDE_STEPS));
                    acc[r][v] = Self::fma([a; 2], odd, acc[r][v]);
                }
            }
        }
    }
}

/// All bits of the lanes below `n`, in two registers.
#[inline(always)]
unsafe fn masks(n: usize) -> [__m256i; 2] {
    // SAFETY: see above.
    unsafe {
        let (n, lanes) = (_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        [_mm256_cmpgt_epi32(n, lanes), _mm256_cmpgt_epi32(n, _mm256_add_epi32(lanes, _mm256_set1_epi32(8)))]
    }
}

/// Writes the transpose of 8 × 8 values.
#[inline(always)]
unsafe fn transpose8(src: *const f32, src_row: usize, dst: *mut f32, dst_row: usize) {
    // SAFETY: see above.
    unsafe {
        let zero = _mm256_setzero_ps();
        // Rows i and i + 4 of one half of the columns, so that nothing need cross the halves of a register later.
        let (mut left, mut right) = ([zero; 4], [zero; 4]);
        for i in 0..4 {
            let row = |i: usize, j: usize| _mm_loadu_ps(src.add(i * src_row + j));
            left[i] = _mm256_set_m128(row(i + 4, 0), row(i, 0));
            right[i] = _mm256_set_m128(row(i + 4, 4), row(i, 4));
        }
        for (half, [a, b, c, d]) in [left, right].into_iter().enumerate() {
            let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let columns = [
                _mm256_shuffle_ps::<0x44>(ab_low, cd_low),
                _mm256_shuffle_ps::<0xee>(ab_low, cd_low),
                _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
            ];
            for (i, column) in columns.into_iter().enumerate() {
                _mm256_storeu_ps(dst.add((4 * half + i) * dst_row), column);
            }
        }
    }
}

/// Even and odd bf16 of each pair as f32.
#[inline(always)]
unsafe fn split256(pairs: __m256i) -> (__m256, __m256) {
    // SAFETY: see above.
    unsafe {
        let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32 as i32));
        (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(odd))
    }
}
