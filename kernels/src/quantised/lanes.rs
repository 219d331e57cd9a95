//! Sixteen integer lanes, each summing products of four codes with four activations; knows no panel.

use super::activation::Quants;
use super::format::SUPER;
use crate::simd::{LANES, Portable, Simd};
use half::f16;

const _: () = assert!(SUPER == 8 && LANES == 16);

/// # Safety
/// As for [`Simd`]; `codes_*` read the codes of a block at `p`, the scales 16 values.
pub(super) trait Codes: Copy + 'static {
    /// The lanes of sums.
    type S: Simd;
    /// 16 × i32.
    type I: Copy;
    /// 16 × 4 unsigned codes.
    type U: Copy;
    /// Rows of a register tile, at most 8.
    const ROWS: usize;
    /// What 8-bit codes are raised by where [`Codes::dot_wide`] takes them.
    const WIDE_OFFSET: i32;
    /// Rows of a tile that takes 4-bit codes unpacked, [`UNPACKED`] bytes a block, which the tiles of a panel share; 0 where none does.
    const UNPACKED_ROWS: usize = 0;

    unsafe fn splat(x: i32) -> Self::I;
    unsafe fn float(x: Self::I) -> <Self::S as Simd>::F;
    /// Inputs `16·half + 4i …` of a block, for i below 4.
    unsafe fn codes4(p: *const u8, half: usize) -> [Self::U; 4];
    unsafe fn codes6(p: *const u8, half: usize) -> [Self::U; 4];
    unsafe fn codes8(p: *const u8, half: usize) -> [Self::U; 4];
    /// `acc + Σ code·x` over the four bytes of each lane, `x` four i8, codes at most 63.
    unsafe fn dot(acc: Self::I, codes: Self::U, x: i32) -> Self::I;
    /// The same for 8-bit codes, less `(128 − WIDE_OFFSET) · Σ x`.
    unsafe fn dot_wide(acc: Self::I, codes: Self::U, x: i32) -> Self::I;
    unsafe fn f16s(p: *const u8) -> <Self::S as Simd>::F;
    unsafe fn bytes(p: *const u8) -> <Self::S as Simd>::F;
    /// Asks for the line at `p`, which need not be readable.
    unsafe fn prefetch(p: *const u8);

    /// [`Codes::dot`] over all inputs of a block of 4-bit codes, for rows whose activations lie side by side.
    #[inline(always)]
    unsafe fn block4<const R: usize>(acc: &mut [Self::I; R], codes: *const u8, x: *const Quants) {
        for half in 0..2 {
            // SAFETY: passed on.
            let codes = unsafe { Self::codes4(codes, half) };
            for r in 0..R {
                for v in 0..4 {
                    // SAFETY: `x` are `R` rows.
                    unsafe { acc[r] = Self::dot(acc[r], codes[v], four(x.add(r), 4 * half + v)) };
                }
            }
        }
    }

    /// Unpacks the 4-bit codes of a block to [`UNPACKED`] bytes at `to`, which is aligned to 64.
    #[inline(always)]
    unsafe fn unpack4(_codes: *const u8, _to: *mut u8) {
        unreachable!("these lanes take codes as they are packed");
    }

    /// [`Codes::block4`] over unpacked codes, to the same sums; `R` is [`Codes::UNPACKED_ROWS`].
    #[inline(always)]
    unsafe fn block4_unpacked<const R: usize>(_acc: &mut [Self::I; R], _codes: *const u8, _x: *const Quants) {
        unreachable!("these lanes take codes as they are packed");
    }

    /// [`Codes::dot_wide`] over all inputs of a block of 8-bit codes.
    #[inline(always)]
    unsafe fn block8<const R: usize>(acc: &mut [Self::I; R], codes: *const u8, x: *const Quants) {
        for half in 0..2 {
            // SAFETY: passed on.
            let codes = unsafe { Self::codes8(codes, half) };
            for r in 0..R {
                for v in 0..4 {
                    // SAFETY: `x` are `R` rows.
                    unsafe { acc[r] = Self::dot_wide(acc[r], codes[v], four(x.add(r), 4 * half + v)) };
                }
            }
        }
    }
}

/// Bytes of a block of unpacked codes: eight vectors.
pub(super) const UNPACKED: usize = 8 * 64;

/// Inputs `4·index …` of a block, as one word.
///
/// # Safety
/// `x` is readable, `index` below 8.
#[inline(always)]
pub(super) unsafe fn four(x: *const Quants, index: usize) -> i32 {
    // SAFETY: a block is eight such words, of their alignment.
    unsafe { (&raw const (*x).codes).cast::<i32>().add(index).read() }
}

impl Codes for Portable {
    type S = Self;
    type I = [i32; LANES];
    type U = [u8; 64];
    const ROWS: usize = 2;
    const WIDE_OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn splat(x: i32) -> [i32; LANES] {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn float(x: [i32; LANES]) -> [f32; LANES] {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn codes4(p: *const u8, half: usize) -> [[u8; 64]; 4] {
        // SAFETY: 256 readable bytes by the trait's contract.
        let low = unsafe { p.cast::<[[u8; 64]; 4]>().read() };
        low.map(|vector| vector.map(|byte| byte >> (4 * half) & 15))
    }
    #[inline(always)]
    unsafe fn codes6(p: *const u8, half: usize) -> [[u8; 64]; 4] {
        // SAFETY: 256 and 2 · 64 readable bytes by the trait's contract.
        let (low, high) = unsafe { (Self::codes4(p, half), p.add(256 + 64 * half).cast::<[u8; 64]>().read()) };
        std::array::from_fn(|v| std::array::from_fn(|i| low[v][i] | (high[i] >> (2 * v) & 3) << 4))
    }
    #[inline(always)]
    unsafe fn codes8(p: *const u8, half: usize) -> [[u8; 64]; 4] {
        // SAFETY: 512 readable bytes by the trait's contract.
        unsafe { p.add(256 * half).cast::<[[u8; 64]; 4]>().read() }
    }
    #[inline(always)]
    unsafe fn dot(acc: [i32; LANES], codes: [u8; 64], x: i32) -> [i32; LANES] {
        let x = x.to_le_bytes().map(|byte| i32::from(byte as i8));
        std::array::from_fn(|lane| (0..4).fold(acc[lane], |sum, i| sum + i32::from(codes[4 * lane + i]) * x[i]))
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: [i32; LANES], codes: [u8; 64], x: i32) -> [i32; LANES] {
        // SAFETY: passed on.
        unsafe { Self::dot(acc, codes, x) }
    }
    #[inline(always)]
    unsafe fn f16s(p: *const u8) -> [f32; LANES] {
        // SAFETY: 32 readable bytes by the trait's contract.
        let bytes = unsafe { p.cast::<[[u8; 2]; LANES]>().read() };
        bytes.map(|bytes| f16::from_le_bytes(bytes).to_f32())
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> [f32; LANES] {
        // SAFETY: 16 readable bytes by the trait's contract.
        unsafe { p.cast::<[i8; LANES]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
