//! The lanes in plain Rust, for machines without a variant of their own; never an intrinsic.

use super::{LANES, PairDot, Simd};
use crate::gemm::{self, Gemm};

/// Plain Rust; the compiler vectorises the loops with what every machine has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; LANES];

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type F = F;
    const TILE_ROWS: usize = 2;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F {
        // SAFETY: 16 readable values by the trait's contract; an array of f32 has the alignment of f32.
        unsafe { p.cast::<F>().read() }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> F {
        let mut x = [0.0; LANES];
        // SAFETY: `n ≤ 16` readable values by the trait's contract.
        unsafe { std::ptr::copy_nonoverlapping(p, x.as_mut_ptr(), n) };
        x
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: F) {
        // SAFETY: 16 writable values by the trait's contract.
        unsafe { p.cast::<F>().write(x) }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, x: F, n: usize) {
        // SAFETY: `n ≤ 16` writable values by the trait's contract.
        unsafe { std::ptr::copy_nonoverlapping(x.as_ptr(), p, n) }
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        // Not `mul_add`: without the instruction that is a library call for each lane.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn zero_where_less(a: F, b: F, x: F) -> F {
        std::array::from_fn(|i| if a[i] < b[i] { 0.0 } else { x[i] })
    }
    #[inline(always)]
    unsafe fn exponent(x: F) -> F {
        x.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(0x3f80_0000)))
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_row: usize, dst: *mut f32, dst_row: usize) {
        for i in 0..LANES {
            for j in 0..LANES {
                // SAFETY: 16 rows of 16 values at both ends by the trait's contract.
                unsafe { *dst.add(j * dst_row + i) = *src.add(i * src_row + j) }
            }
        }
    }
    #[inline(always)]
    unsafe fn low(p: *const u32) -> F {
        // SAFETY: 16 readable words by the trait's contract.
        unsafe { *p.cast::<[u32; LANES]>() }.map(|word| f32::from_bits(word << 16))
    }
    #[inline(always)]
    unsafe fn high(p: *const u32) -> F {
        // SAFETY: as above.
        unsafe { *p.cast::<[u32; LANES]>() }.map(|word| f32::from_bits(word & 0xffff_0000))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u32) {}
    #[inline(always)]
    unsafe fn prefetch_far(_: *const u32) {}
    #[inline(always)]
    unsafe fn gemm(args: Gemm) {
        // SAFETY: passed on.
        unsafe { portable_gemm(args) }
    }
}

#[inline(never)]
unsafe fn portable_gemm(args: Gemm) {
    // SAFETY: plain Rust needs no instruction set; the pointers are the caller's promise.
    unsafe { gemm::body::<Portable>(args) }
}

impl PairDot for Portable {
    type S = Self;
    type Weights = (F, F);
    type Activation = (f32, f32);

    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> (F, F) {
        // SAFETY: 16 readable pairs by the trait's contract.
        let pairs = unsafe { p.cast::<[u32; LANES]>().read() };
        (pairs.map(|pair| f32::from_bits(pair << 16)), pairs.map(|pair| f32::from_bits(pair & 0xffff_0000)))
    }
    #[inline(always)]
    unsafe fn splat_pair(pair: u32) -> (f32, f32) {
        (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000))
    }
    #[inline(always)]
    unsafe fn dot(acc: F, a: (f32, f32), w: (F, F)) -> F {
        std::array::from_fn(|i| acc[i] + a.0 * w.0[i] + a.1 * w.1[i])
    }
}
