//! The lanes on x86-64 with AVX-512F, and bf16 pairs with AVX-512-BF16; knows no operation of a model.

use super::{Kernel, LANES, PairDot, Simd};
use crate::gemm::{self, Gemm};
use std::arch::x86_64::*;

/// # Safety
/// The machine has AVX-512F and AVX-512DQ.
#[target_feature(enable = "avx2,fma,avx512f,avx512dq")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: this function is compiled for the instruction set.
    unsafe { kernel.run::<Avx512>() }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512dq")]
#[inline(never)]
unsafe fn gemm_avx512(args: Gemm) {
    // SAFETY: this function is compiled for the instruction set; the pointers are the caller's promise.
    unsafe { gemm::body::<Avx512>(args) }
}

/// One zmm register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// AVX-512F lanes whose bf16 pairs are multiplied by `vdpbf16ps`.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16;

/// The lanes below `n`.
#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

// The SAFETY of every block below: the trait's contract, i.e. the caller is compiled for the instruction set and its pointers
// are valid.
impl Simd for Avx512 {
    type F = __m512;
    // 24 accumulators, 4 weights and a broadcast: 29 of 32 registers.
    const TILE_ROWS: usize = 6;
    const TILE_VECTORS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> __m512 {
        // SAFETY: see above; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(mask(n), p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, x: __m512, n: usize) {
        // SAFETY: see above; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(p, mask(n), x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn zero_where_less(a: __m512, b: __m512, x: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_maskz_mov_ps(!_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), x) }
    }
    #[inline(always)]
    unsafe fn exponent(x: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let bits = _mm512_slli_epi32::<23>(_mm512_castps_si512(x));
            _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f80_0000)))
        }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_row: usize, dst: *mut f32, dst_row: usize) {
        // SAFETY: see above; 16 rows of 16 values at both ends.
        unsafe {
            let zero = _mm512_setzero_ps();
            let mut r = [zero; LANES];
            for i in 0..LANES {
                r[i] = _mm512_loadu_ps(src.add(i * src_row));
            }
            // 4 × 4 blocks inside each 128-bit part: t[4g + c] holds column 4·part + c of rows 4g … 4g + 3.
            let mut t = [zero; LANES];
            for g in 0..4 {
                let (a, b, c, d) = (r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]);
                let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                t[4 * g] = _mm512_shuffle_ps::<0x44>(ab_low, cd_low);
                t[4 * g + 1] = _mm512_shuffle_ps::<0xee>(ab_low, cd_low);
                t[4 * g + 2] = _mm512_shuffle_ps::<0x44>(ab_high, cd_high);
                t[4 * g + 3] = _mm512_shuffle_ps::<0xee>(ab_high, cd_high);
            }
            // Then the 4 × 4 parts themselves.
            for c in 0..4 {
                let low01 = _mm512_shuffle_f32x4::<0x88>(t[c], t[4 + c]);
                let high01 = _mm512_shuffle_f32x4::<0xdd>(t[c], t[4 + c]);
                let low23 = _mm512_shuffle_f32x4::<0x88>(t[8 + c], t[12 + c]);
                let high23 = _mm512_shuffle_f32x4::<0xdd>(t[8 + c], t[12 + c]);
                let columns = [
                    _mm512_shuffle_f32x4::<0x88>(low01, low23),
                    _mm512_shuffle_f32x4::<0x88>(high01, high23),
                    _mm512_shuffle_f32x4::<0xdd>(low01, low23),
                    _mm512_shuffle_f32x4::<0xdd>(high01, high23),
                ];
                for (part, column) in columns.into_iter().enumerate() {
                    _mm512_storeu_ps(dst.add((4 * part + c) * dst_row), column);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn low(p: *const u32) -> __m512 {
        // SAFETY: see above.
        unsafe { split512(_mm512_loadu_si512(p.cast())).0 }
    }
    #[inline(always)]
    unsafe fn high(p: *const u32) -> __m512 {
        // SAFETY: see above.
        unsafe { split512(_mm512_loadu_si512(p.cast())).1 }
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
        unsafe { gemm_avx512(args) }
    }
}

impl PairDot for Avx512 {
    type S = Self;
    type Weights = (__m512, __m512);
    type Activation = (__m512, __m512);

    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> (__m512, __m512) {
        // SAFETY: see above.
        unsafe { split512(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_pair(pair: u32) -> (__m512, __m512) {
        // SAFETY: see above.
        unsafe { split512(_mm512_set1_epi32(pair as i32)) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512, a: (__m512, __m512), w: (__m512, __m512)) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a.1, w.1, _mm512_fmadd_ps(a.0, w.0, acc)) }
    }
}

/// Even and odd bf16 of each pair as f32.
#[inline(always)]
unsafe fn split512(pairs: __m512i) -> (__m512, __m512) {
    // SAFETY: see above.
    unsafe {
        let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
        (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(odd))
    }
}

impl PairDot for Avx512Bf16 {
    type S = Avx512;
    type Weights = __m512bh;
    type Activation = __m512bh;

    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> __m512bh {
        // SAFETY: see above; the two types are 64 bytes without invalid values.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_pair(pair: u32) -> __m512bh {
        // SAFETY: as for `load_pairs`.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair as i32)) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512, a: __m512bh, w: __m512bh) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_dpbf16_ps(acc, a, w) }
    }
}
