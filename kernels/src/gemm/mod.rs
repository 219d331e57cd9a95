//! The small f32 matrix product that LoRA, attention and f32 linears are made of: serial, any strides; knows no threads.
//!
//! `C += A·B` (or `C = A·B`): every element of C is summed over k = 0, 1, … in order, starting from its old value (or 0), in
//! one register. So cutting `k` into several calls, or rows and columns into tiles, does not change a bit.
//!
//! Error: `|C − exact| ≤ γ·(|C₀| + Σ|a||b|)` with γ = 2(k+1)·2⁻²⁴ (Higham, Accuracy and Stability, §3.1; the 2 for
//! variants that round the product too).

use crate::simd::{LANES, Simd};

/// `C[m, n] (+)= A[m, k] · B[k, n]`.
#[derive(Clone, Copy)]
pub(crate) struct Gemm {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: *const f32,
    /// Distance of A's rows, and of its columns.
    pub(crate) a_strides: (usize, usize),
    pub(crate) b: *const f32,
    pub(crate) b_row: usize,
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    /// Whether C's old value is the start of the sum.
    pub(crate) accumulate: bool,
}

/// One register tile's place.
#[derive(Clone, Copy)]
struct Tile {
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    /// Columns of the last vector.
    lanes: usize,
}

/// # Safety
/// Under [`crate::simd::run`] or the like for `S`; A, B and C are valid over their shapes, and C overlaps neither.
#[inline(always)]
pub(crate) unsafe fn body<S: Simd>(g: Gemm) {
    let wide = S::TILE_VECTORS * LANES;
    let mut j = 0;
    while j < g.n {
        let vectors = if g.n - j >= wide { S::TILE_VECTORS } else { 1 };
        let lanes = LANES.min(g.n - j);
        let mut i = 0;
        while i < g.m {
            let rows = balanced(g.m - i, S::TILE_ROWS);
            let tile = Tile {
                a: g.a.wrapping_add(i * g.a_strides.0),
                b: g.b.wrapping_add(j),
                c: g.c.wrapping_add(i * g.c_row + j),
                lanes,
            };
            // SAFETY: the tile lies inside the matrices.
            unsafe {
                if vectors > 1 {
                    by_rows::<S, 4>(rows, &g, tile);
                } else {
                    by_rows::<S, 1>(rows, &g, tile);
                }
            }
            i += rows;
        }
        j += if vectors > 1 { wide } else { lanes };
    }
}

/// Rows of the next tile when `left` are to be cut into the fewest tiles of at most `max`, as even as possible.
#[inline(always)]
pub(crate) fn balanced(left: usize, max: usize) -> usize {
    left.div_ceil(left.div_ceil(max))
}

#[inline(always)]
unsafe fn by_rows<S: Simd, const V: usize>(rows: usize, g: &Gemm, tile: Tile) {
    // SAFETY: passed on.
    unsafe {
        match rows {
            1 => run_tile::<S, 1, V>(g, tile),
            2 => run_tile::<S, 2, V>(g, tile),
            3 if S::TILE_ROWS > 2 => run_tile::<S, 3, V>(g, tile),
            4 if S::TILE_ROWS > 2 => run_tile::<S, 4, V>(g, tile),
            5 if S::TILE_ROWS > 2 => run_tile::<S, 5, V>(g, tile),
            6 if S::TILE_ROWS > 2 => run_tile::<S, 6, V>(g, tile),
            _ => unreachable!("a tile has at most {} rows", S::TILE_ROWS),
        }
    }
}

#[inline(always)]
unsafe fn run_tile<S: Simd, const R: usize, const V: usize>(g: &Gemm, tile: Tile) {
    if V > S::TILE_VECTORS {
        unreachable!("a tile has at most {} vectors", S::TILE_VECTORS);
    }
    let full = V > 1 || tile.lanes == LANES;
    // SAFETY: rows < m, columns < n and steps < k by the caller; partial vectors touch `lanes` columns only.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; R];
        if g.accumulate {
            for r in 0..R {
                for v in 0..V {
                    let c = tile.c.add(r * g.c_row + v * LANES);
                    acc[r][v] = if full { S::load(c) } else { S::load_n(c, tile.lanes) };
                }
            }
        }
        if full {
            for k in 0..g.k {
                let mut b = [S::splat(0.0); V];
                for v in 0..V {
                    b[v] = S::load(tile.b.add(k * g.b_row + v * LANES));
                }
                for r in 0..R {
                    let a = S::splat(*tile.a.add(r * g.a_strides.0 + k * g.a_strides.1));
                    for v in 0..V {
                        acc[r][v] = S::fma(a, b[v], acc[r][v]);
                    }
                }
            }
        } else {
            for k in 0..g.k {
                let b = S::load_n(tile.b.add(k * g.b_row), tile.lanes);
                for r in 0..R {
                    let a = S::splat(*tile.a.add(r * g.a_strides.0 + k * g.a_strides.1));
                    acc[r][0] = S::fma(a, b, acc[r][0]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                let c = tile.c.add(r * g.c_row + v * LANES);
                if full {
                    S::store(c, acc[r][v]);
                } else {
                    S::store_n(c, acc[r][v], tile.lanes);
                }
            }
        }
    }
}

/// Writes the transpose of `src` (`[rows, columns]`, row-major, row distance `src_row`) to `dst` (`[columns, dst_row]`).
///
/// # Safety
/// As for [`Simd`]; `src` is readable over its shape, `dst` writable over `columns` rows of `rows ≤ dst_row` values.
#[inline(always)]
pub(crate) unsafe fn transpose<S: Simd>(
    (src, src_row): (*const f32, usize),
    (rows, columns): (usize, usize),
    (dst, dst_row): (*mut f32, usize),
) {
    let (full_rows, full_columns) = (rows / LANES * LANES, columns / LANES * LANES);
    // SAFETY: blocks and single elements lie inside both shapes.
    unsafe {
        for i in (0..full_rows).step_by(LANES) {
            for j in (0..full_columns).step_by(LANES) {
                S::transpose(src.add(i * src_row + j), src_row, dst.add(j * dst_row + i), dst_row);
            }
        }
        for i in 0..rows {
            for j in if i < full_rows { full_columns } else { 0 }..columns {
                *dst.add(j * dst_row + i) = *src.add(i * src_row + j);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, run, variants};
    use crate::testing::{Values, assert_within};

    struct Product(Gemm);
    impl Kernel for Product {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            // SAFETY: the test below gives pointers of its own vectors, of the shapes that it names.
            unsafe { S::gemm(self.0) }
        }
    }

    #[test]
    fn products_of_awkward_sizes_and_strides_are_within_the_bound() {
        let mut values = Values::new(1);
        for (m, n, k) in [(1, 1, 1), (1, 16, 5), (2, 17, 3), (7, 64, 33), (13, 100, 64), (6, 130, 9), (3, 15, 0)] {
            for (transposed, accumulate) in [(false, false), (true, true)] {
                let (a, b, c) = (values.take(m * k), values.take(k * (n + 3)), values.take(m * (n + 1)));
                let a_strides = if transposed { (1, m) } else { (k, 1) };
                for &variant in variants() {
                    let mut out = c.clone();
                    run(
                        variant,
                        Product(Gemm {
                            m,
                            n,
                            k,
                            a: a.as_ptr(),
                            a_strides,
                            b: b.as_ptr(),
                            b_row: n + 3,
                            c: out.as_mut_ptr(),
                            c_row: n + 1,
                            accumulate,
                        }),
                    );
                    for i in 0..m {
                        for j in 0..n {
                            let start = if accumulate { f64::from(c[i * (n + 1) + j]) } else { 0.0 };
                            let term = |l: usize| {
                                f64::from(a[i * a_strides.0 + l * a_strides.1]) * f64::from(b[l * (n + 3) + j])
                            };
                            let exact = start + (0..k).map(term).sum::<f64>();
                            let size = start.abs() + (0..k).map(|l| term(l).abs()).sum::<f64>();
                            let bound = 2.0 * (k + 1) as f64 * 2f64.powi(-24) * size;
                            assert_within(out[i * (n + 1) + j], exact, bound, format_args!("{variant:?} {m}x{n}x{k}"));
                        }
                        assert_eq!(out[i * (n + 1) + n], c[i * (n + 1) + n], "a column beyond C was written");
                    }
                }
            }
        }
    }
}
