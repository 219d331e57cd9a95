//! The integer lanes on x86-64: AVX-512-VNNI, and AVX2 by pairs of 16 bits; knows no panel.

use super::activation::{Quants, scale};
use super::format::BLOCK;
use super::lanes::{Codes, four};
use crate::simd::{Avx2, Avx512};
use std::arch::x86_64::*;

/// Quantises `rows` rows side by side, to the bits of the portable form.
///
/// # Safety
/// The machine has AVX-512F and AVX-512BW.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw")]
pub(super) unsafe fn quantise(x: &[f32], rows: usize, quants: &mut [Quants]) {
    for (row, x) in x.chunks_exact(x.len() / rows).enumerate() {
        for (index, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            // SAFETY: a block is two vectors; the function is compiled for the instruction set.
            unsafe {
                let halves = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))];
                let size = halves.map(|half| _mm512_castps_si512(_mm512_abs_ps(half)));
                let (scale, inverse) = scale(_mm512_reduce_max_epu32(_mm512_max_epu32(size[0], size[1])));
                let inverse = _mm512_set1_ps(inverse);
                // To nearest, ties to even; what is not a number becomes 0 in the low byte.
                let codes = halves.map(|half| _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(half, inverse))));
                let sums = codes.map(|codes| _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(codes)));
                let of = &mut quants[index * rows + row];
                let (low, high) = of.codes.split_at_mut(16);
                _mm_storeu_si128(low.as_mut_ptr().cast(), codes[0]);
                _mm_storeu_si128(high.as_mut_ptr().cast(), codes[1]);
                (of.scale, of.total, of.sums) = (scale, scale * (sums[0] + sums[1]) as f32, sums);
            }
        }
    }
}

/// AVX-512 with `vpdpbusd`: unsigned codes times signed activations, four to a lane.
#[derive(Clone, Copy)]
pub(super) struct Vnni;

// The SAFETY of every block below: the trait's contract, i.e. the caller is compiled for the instruction set and its pointers
// are valid.
impl Codes for Vnni {
    type S = Avx512;
    type I = __m512i;
    type U = __m512i;
    // 8 sums in f32, 8 in i32, 4 vectors of codes: 20 of 32 registers.
    const ROWS: usize = 8;
    const WIDE_OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn splat(x: i32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn float(x: __m512i) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn codes4(p: *const u8, half: usize) -> [__m512i; 4] {
        // SAFETY: see above.
        unsafe {
            let mut codes = Self::codes8(p, 0);
            for codes in &mut codes {
                let shifted = if half == 0 { *codes } else { _mm512_srli_epi16::<4>(*codes) };
                *codes = _mm512_and_si512(shifted, _mm512_set1_epi8(15));
            }
            codes
        }
    }
    #[inline(always)]
    unsafe fn codes6(p: *const u8, half: usize) -> [__m512i; 4] {
        // SAFETY: see above.
        unsafe {
            let low = Self::codes4(p, half);
            let high = _mm512_loadu_si512(p.add(256 + 64 * half).cast());
            let mask = _mm512_set1_epi8(0x30);
            let or = |low, high| _mm512_or_si512(low, _mm512_and_si512(high, mask));
            [
                or(low[0], _mm512_slli_epi16::<4>(high)),
                or(low[1], _mm512_slli_epi16::<2>(high)),
                or(low[2], high),
                or(low[3], _mm512_srli_epi16::<2>(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn codes8(p: *const u8, half: usize) -> [__m512i; 4] {
        // SAFETY: see above.
        unsafe {
            let p = p.add(256 * half);
            [
                _mm512_loadu_si512(p.cast()),
                _mm512_loadu_si512(p.add(64).cast()),
                _mm512_loadu_si512(p.add(128).cast()),
                _mm512_loadu_si512(p.add(192).cast()),
            ]
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512i, codes: __m512i, x: i32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: __m512i, codes: __m512i, x: i32) -> __m512i {
        // SAFETY: see above.
        unsafe { Self::dot(acc, codes, x) }
    }
    #[inline(always)]
    unsafe fn f16s(p: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}

/// One operation on both halves.
macro_rules! both {
    (|$($x:ident),+| $body:expr) => {{
        let low = { $(let $x = $x[0];)+ $body };
        [low, { $(let $x = $x[1];)+ $body }]
    }};
}

impl Codes for Avx2 {
    type S = Self;
    type I = [__m256i; 2];
    type U = [__m256i; 2];
    // 8 registers of sums, and what one vector of codes needs; the sums in f32 are in the nearest cache meanwhile.
    const ROWS: usize = 4;
    // `vpmaddubsw` sums two products in 16 bits, too few for unsigned bytes: they are taken signed.
    const WIDE_OFFSET: i32 = 0;
    const UNPACKED_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: i32) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn float(x: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { both!(|x| _mm256_cvtepi32_ps(x)) }
    }
    #[inline(always)]
    unsafe fn codes4(p: *const u8, half: usize) -> [[__m256i; 2]; 4] {
        // SAFETY: see above.
        unsafe {
            let mut codes = Self::codes8(p, 0);
            for codes in codes.as_flattened_mut() {
                let shifted = if half == 0 { *codes } else { _mm256_srli_epi16::<4>(*codes) };
                *codes = _mm256_and_si256(shifted, _mm256_set1_epi8(15));
            }
            codes
        }
    }
    #[inline(always)]
    unsafe fn codes6(p: *const u8, half: usize) -> [[__m256i; 2]; 4] {
        // SAFETY: see above.
        unsafe {
            let [a, b, c, d] = Self::codes4(p, half);
            let high = pair(p.add(256 + 64 * half));
            let or = |low, high| _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(0x30)));
            [
                both!(|a, high| or(a, _mm256_slli_epi16::<4>(high))),
                both!(|b, high| or(b, _mm256_slli_epi16::<2>(high))),
                both!(|c, high| or(c, high)),
                both!(|d, high| or(d, _mm256_srli_epi16::<2>(high))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn codes8(p: *const u8, half: usize) -> [[__m256i; 2]; 4] {
        // SAFETY: see above.
        unsafe {
            let p = p.add(256 * half);
            [pair(p), pair(p.add(64)), pair(p.add(128)), pair(p.add(192))]
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: [__m256i; 2], codes: [__m256i; 2], x: i32) -> [__m256i; 2] {
        // SAFETY: see above. Two products are at most 2 · 63 · 127 < 2¹⁵.
        unsafe {
            let x = _mm256_set1_epi32(x);
            both!(|acc, codes| add_pairs(acc, _mm256_maddubs_epi16(codes, x)))
        }
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: [__m256i; 2], codes: [__m256i; 2], x: i32) -> [__m256i; 2] {
        // SAFETY: see above. Two products are at most 2 · 128 · 127 < 2¹⁵.
        unsafe {
            let x = _mm256_set1_epi32(x);
            both!(|acc, codes| {
                let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                add_pairs(acc, _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed)))
            })
        }
    }
    #[inline(always)]
    unsafe fn f16s(p: *const u8) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))] }
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            let float = |p: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())));
            [float(p), float(p.add(8))]
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    /// A lane's eight sums of two products are at most 8 · 2 · 15 · 127 < 2¹⁵, so they are added up in 16 bits first.
    #[inline(always)]
    unsafe fn block4<const R: usize>(acc: &mut [[__m256i; 2]; R], codes: *const u8, x: *const Quants) {
        // SAFETY: see above.
        unsafe {
            let low_bits = _mm256_set1_epi8(15);
            let mut sums = [[_mm256_setzero_si256(); 2]; R];
            for v in 0..4 {
                let both = pair(codes.add(64 * v));
                let low = both!(|both| _mm256_and_si256(both, low_bits));
                for r in 0..R {
                    let (x, sum) = (_mm256_set1_epi32(four(x.add(r), v)), sums[r]);
                    sums[r] = both!(|low, sum| _mm256_add_epi16(sum, _mm256_maddubs_epi16(low, x)));
                }
                here(sums.as_flattened_mut());
                let high = both!(|both| _mm256_and_si256(_mm256_srli_epi16::<4>(both), low_bits));
                for r in 0..R {
                    let (x, sum) = (_mm256_set1_epi32(four(x.add(r), 4 + v)), sums[r]);
                    sums[r] = both!(|high, sum| _mm256_add_epi16(sum, _mm256_maddubs_epi16(high, x)));
                }
                here(sums.as_flattened_mut());
            }
            for r in 0..R {
                let (own, sum) = (acc[r], sums[r]);
                acc[r] = both!(|own, sum| add_pairs(own, sum));
            }
        }
    }
    #[inline(always)]
    unsafe fn unpack4(codes: *const u8, to: *mut u8) {
        // SAFETY: see above.
        unsafe {
            for half in 0..2 {
                let unpacked = Self::codes4(codes, half);
                for (i, &unpacked) in unpacked.as_flattened().iter().enumerate() {
                    _mm256_store_si256(to.add(256 * half + 32 * i).cast(), unpacked);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn block4_unpacked<const R: usize>(acc: &mut [[__m256i; 2]; R], codes: *const u8, x: *const Quants) {
        // SAFETY: see above.
        unsafe {
            for (own, sum) in acc.iter_mut().zip(four_rows(codes, x)) {
                let old = *own;
                *own = both!(|old, sum| add_pairs(old, sum));
            }
        }
    }
    #[inline(always)]
    unsafe fn block8<const R: usize>(acc: &mut [[__m256i; 2]; R], codes: *const u8, x: *const Quants) {
        // SAFETY: see above. Two products are at most 2 · 128 · 127 < 2¹⁵.
        unsafe {
            for v in 0..8 {
                let both = pair(codes.add(64 * v));
                let signed = both!(|both| _mm256_xor_si256(both, _mm256_set1_epi8(-128)));
                let size = both!(|signed| _mm256_abs_epi8(signed));
                for r in 0..R {
                    let (x, own) = (_mm256_set1_epi32(four(x.add(r), v)), acc[r]);
                    acc[r] = both!(|own, size, signed| {
                        add_pairs(own, _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, signed)))
                    });
                }
            }
        }
    }
}

/// Vector `$v` of a block: its codes times the four activations of each row, which are (`first`) or are added to (`further`) the row's
/// sums.
macro_rules! vector {
    ($v:literal, $sum:ident) => {
        concat!(
            "vmovdqa {c0}, ymmword ptr [{codes} + 64 * ",
            $v,
            "]\n",
            "vmovdqa {c1}, ymmword ptr [{codes} + 64 * ",
            $v,
            " + 32]\n",
            $sum!(0, $v, "{a0}", "{b0}"),
            $sum!(1, $v, "{a1}", "{b1}"),
            $sum!(2, $v, "{a2}", "{b2}"),
            $sum!(3, $v, "{a3}", "{b3}"),
        )
    };
}

macro_rules! first {
    ($r:literal, $v:literal, $a:literal, $b:literal) => {
        concat!(
            "vpbroadcastd {x}, dword ptr [{quants} + ",
            $r,
            " * {row} + 4 * ",
            $v,
            "]\n",
            "vpmaddubsw ",
            $a,
            ", {c0}, {x}\n",
            "vpmaddubsw ",
            $b,
            ", {c1}, {x}\n",
        )
    };
}

macro_rules! further {
    ($r:literal, $v:literal, $a:literal, $b:literal) => {
        concat!(
            first!($r, $v, "{p0}", "{p1}"),
            "vpaddw ",
            $a,
            ", ",
            $a,
            ", {p0}\n",
            "vpaddw ",
            $b,
            ", ",
            $b,
            ", {p1}\n",
        )
    };
}

/// [`Codes::block4_unpacked`] of four rows up to its sums in 16 bits. Written out, because the compiler's order of the same
/// instructions takes a tenth longer on a Zen 3.
///
/// # Safety
/// `codes` are those of a block, aligned to 32; `x` are four rows.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four_rows(codes: *const u8, x: *const Quants) -> [[__m256i; 2]; 4] {
    let (a0, b0, a1, b1, a2, b2, a3, b3): (__m256i, __m256i, __m256i, __m256i, __m256i, __m256i, __m256i, __m256i);
    // SAFETY: it reads the block and the rows, and writes registers.
    unsafe {
        std::arch::asm!(
            vector!(0, first),
            vector!(1, further),
            vector!(2, further),
            vector!(3, further),
            vector!(4, further),
            vector!(5, further),
            vector!(6, further),
            vector!(7, further),
            codes = in(reg) codes,
            quants = in(reg) x,
            row = const size_of::<Quants>(),
            a0 = out(ymm_reg) a0, b0 = out(ymm_reg) b0,
            a1 = out(ymm_reg) a1, b1 = out(ymm_reg) b1,
            a2 = out(ymm_reg) a2, b2 = out(ymm_reg) b2,
            a3 = out(ymm_reg) a3, b3 = out(ymm_reg) b3,
            c0 = out(ymm_reg) _, c1 = out(ymm_reg) _, x = out(ymm_reg) _,
            p0 = out(ymm_reg) _, p1 = out(ymm_reg) _,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    [[a0, b0], [a1, b1], [a2, b2], [a3, b3]]
}

/// Does nothing, but needs every value in its register: what comes before is computed before, what comes after it after.
#[inline]
#[target_feature(enable = "avx2")]
fn here(sums: &mut [__m256i]) {
    for sum in sums {
        let mut register = *sum;
        // SAFETY: no instruction.
        unsafe {
            std::arch::asm!("/* {0} */", inout(ymm_reg) register, options(pure, nomem, nostack, preserves_flags))
        };
        *sum = register;
    }
}

/// 64 bytes.
#[inline(always)]
unsafe fn pair(p: *const u8) -> [__m256i; 2] {
    // SAFETY: see above.
    unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
}

/// `acc` plus neighbouring i16 added up.
#[inline(always)]
unsafe fn add_pairs(acc: __m256i, x: __m256i) -> __m256i {
    // SAFETY: see above.
    unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(x, _mm256_set1_epi16(1))) }
}
