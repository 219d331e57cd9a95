//! Register tiles of a packed linear, serial; knows panels and pointers, not tasks.

use super::{PANEL, TASK_ROWS};
use crate::gemm::{Gemm, balanced};
use crate::simd::{self, Kernel, LANES, PairDot, Simd, Variant, WIDE_STEPS};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ptr;

/// `y[rows, columns] (+)= x[rows, steps] · panel[steps, width]ᵀ`, where a step is a pair of bf16 (`u32`) or an f32.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<X> {
    pub(crate) rows: usize,
    /// In linears at most a panel's.
    pub(crate) columns: usize,
    pub(crate) steps: usize,
    pub(crate) x: *const X,
    /// Distance of its rows, and of its steps.
    pub(crate) x_strides: (usize, usize),
    pub(crate) weights: *const X,
    /// Distance of their steps.
    pub(crate) width: usize,
    pub(crate) y: *mut f32,
    pub(crate) y_row: usize,
    pub(crate) accumulate: bool,
    /// The weights that are read after these, as a rule: memory is asked for them meanwhile, unless they are these.
    pub(crate) next: *const X,
}

/// Inputs that one register sums up in f32; sums of more are added from such parts, which keeps rounding near √in less.
const PART: usize = 128;

/// Rows of a tile over one vector of outputs, an adapter's rank: with fewer sums each would wait for its last addition.
const NARROW_ROWS: usize = 12;

/// How far ahead, in words, the only tile of a panel asks for weights: 8 kB.
const AHEAD: usize = 2048;

/// Room for a task's outputs, rows [`PANEL`] apart.
pub(super) struct Part([MaybeUninit<f32>; TASK_ROWS * PANEL]);

impl Part {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; TASK_ROWS * PANEL])
    }

    pub(super) fn at(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }

    /// Adds `[rows, columns]` of it to `y`.
    ///
    /// # Safety
    /// They have been written; `y` (address, distance of rows) is valid for them and no other task's.
    pub(super) unsafe fn add_to(&self, (y, y_row): (*mut f32, usize), rows: usize, columns: usize) {
        for row in 0..rows {
            for column in 0..columns {
                // SAFETY: the caller's promise.
                unsafe { *y.add(row * y_row + column) += self.0[row * PANEL + column].assume_init() };
            }
        }
    }
}

/// # Safety
/// `x` holds `rows · steps` values, `weights` a panel (columns padded to 16), `y` `rows` rows of `columns`, and no other task
/// touches those of `y`.
pub(super) unsafe fn run_floats(variant: Variant, tiles: Tiles<f32>) {
    struct Product(Gemm);
    impl Kernel for Product {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            // SAFETY: passed on.
            unsafe { S::gemm(self.0) }
        }
    }
    assert!(tiles.rows <= TASK_ROWS && tiles.columns <= PANEL, "a part holds a task's outputs");
    let width = tiles.width;
    let mut part = Part::new();
    // At least once, so that no inputs give 0.
    for first in (0..tiles.steps.max(1)).step_by(PART) {
        let whole = first == 0 && !tiles.accumulate;
        let (c, c_row) = if whole { (tiles.y, tiles.y_row) } else { (part.at(), PANEL) };
        let product = Gemm {
            m: tiles.rows,
            n: tiles.columns,
            k: PART.min(tiles.steps - first),
            a: tiles.x.wrapping_add(first),
            a_strides: tiles.x_strides,
            b: tiles.weights.wrapping_add(first * width),
            b_row: width,
            c,
            c_row,
            accumulate: false,
        };
        simd::run(variant, Product(product));
        if !whole {
            // SAFETY: the product wrote these values of `part`; `y` is the caller's promise.
            unsafe { part.add_to((tiles.y, tiles.y_row), tiles.rows, tiles.columns) };
        }
    }
}

/// Steps that all rows of a task take before the next: 196 kB of a panel, which then stay in the second-level cache. (The
/// output's gradient to the last hidden state sums over a vocabulary: 6 MB a panel.)
const CACHED_STEPS: usize = 768;

/// # Safety
/// As for [`run_floats`].
pub(crate) unsafe fn run_pairs(variant: Variant, tiles: Tiles<u32>) {
    assert!(simd::variants().contains(&variant), "{} is not of this machine", variant.name());
    let (width, steps_max) = (tiles.width, if variant == Variant::Avx2 { WIDE_STEPS } else { CACHED_STEPS });
    // At least once, so that no inputs give 0. A sum that is put down and taken up again is the same sum.
    for first in (0..tiles.steps.max(1)).step_by(steps_max) {
        let end = tiles.steps.min(first + steps_max);
        let part = Tiles {
            steps: end - first,
            x: tiles.x.wrapping_add(first * tiles.x_strides.1),
            weights: tiles.weights.wrapping_add(first * width),
            next: if end < tiles.steps { tiles.weights.wrapping_add(end * width) } else { tiles.next },
            accumulate: tiles.accumulate || first > 0,
            ..tiles
        };
        // SAFETY: the machine has the instruction set by the assertion; the part lies inside what the caller promised.
        unsafe { compiled(variant, part) };
    }
}

/// Serial products of bf16 pairs, generic over how they are added up; `run` must be `#[inline(always)]`, as a [`Kernel`]'s.
trait PairKernel {
    /// # Safety
    /// See [`PairDot`].
    unsafe fn run<P: PairDot>(self);
}

/// Runs `kernel` compiled for `variant`, which the machine has.
unsafe fn compiled<K: PairKernel>(variant: Variant, kernel: K) {
    match variant {
        // SAFETY: the machine has the instruction set; pointers are the caller's promise.
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512Bf16 => unsafe { avx512bf16(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512 => unsafe { avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Variant::Avx2 => unsafe { avx2(kernel) },
        // SAFETY: plain Rust needs no instruction set.
        _ => unsafe { kernel.run::<simd::Portable>() },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512dq,avx512bf16")]
unsafe fn avx512bf16<K: PairKernel>(kernel: K) {
    // SAFETY: this function is compiled for the instruction set.
    unsafe { kernel.run::<simd::Avx512Bf16>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512dq")]
unsafe fn avx512<K: PairKernel>(kernel: K) {
    // SAFETY: this function is compiled for the instruction set.
    unsafe { kernel.run::<simd::Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<K: PairKernel>(kernel: K) {
    // SAFETY: this function is compiled for the instruction set.
    unsafe { kernel.run::<simd::Avx2>() }
}

impl PairKernel for Tiles<u32> {
    #[inline(always)]
    unsafe fn run<P: PairDot>(self) {
        // SAFETY: passed on.
        unsafe { body::<P>(self) }
    }
}

#[inline(always)]
unsafe fn body<P: PairDot>(t: Tiles<u32>) {
    let vectors = t.columns.div_ceil(LANES);
    let ahead = Ahead::new(&t, t.width, t.rows.div_ceil(P::S::TILE_ROWS));
    let mut widened = Widened::new();
    let mut row = 0;
    while row < t.rows {
        let narrow = vectors == 1 && P::S::TILE_VECTORS > 1;
        let rows = balanced(t.rows - row, if narrow { NARROW_ROWS } else { P::S::TILE_ROWS });
        let mut vector = 0;
        let (mut x, mut x_strides) = (t.x.wrapping_add(row * t.x_strides.0), t.x_strides);
        if P::WIDENED {
            // SAFETY: the rows are inside x, and their steps no more than there is room for.
            unsafe { widened.fill::<P>(rows, (x, x_strides), t.steps) };
            (x, x_strides) = (widened.at(), (0, 1));
        }
        while vector < vectors {
            let count = vectors_of::<P::S>(rows, vectors - vector);
            let at = At {
                x,
                x_strides,
                weights: t.weights.wrapping_add(vector * LANES),
                y: t.y.wrapping_add(row * t.y_row + vector * LANES),
                columns: t.columns - vector * LANES,
                width: t.width,
                ahead: ahead.of_tile(row, t.rows),
            };
            // SAFETY: the tile lies inside the panel, x and y.
            unsafe {
                match count {
                    4 => by_rows::<P, 4>(rows, &t, at),
                    2 => by_rows::<P, 2>(rows, &t, at),
                    _ => by_rows::<P, 1>(rows, &t, at),
                }
            }
            vector += count;
        }
        row += rows;
    }
}

/// Single rows that are multiplied side by side. A row's own sum is a chain of additions, in which each waits for the last; and several
/// weights of a few kilobytes are read from memory faster at once than in turn.
pub(crate) const ABREAST: usize = 4;

/// A row of pairs, and the panels that it is multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Single {
    pub(super) x: *const u32,
    pub(super) panels: *const u32,
    pub(super) outputs: usize,
    pub(super) y: *mut f32,
}

/// `y[outputs] (+)= panels · x` for up to [`ABREAST`] rows, each with a weight of its own, all of `steps` pairs.
///
/// # Safety
/// Every `x` holds `steps` pairs, `panels` is a weight of so many, `y` holds `outputs` values that no other task touches.
pub(super) unsafe fn run_singles(variant: Variant, singles: &[Single], steps: usize, accumulate: bool) {
    assert!(simd::variants().contains(&variant), "{} is not of this machine", variant.name());
    assert!(singles.len() <= ABREAST, "{} rows abreast", singles.len());
    // At least once, so that no inputs give 0. A sum that is put down and taken up again is the same sum.
    for first in (0..steps.max(1)).step_by(WIDE_STEPS) {
        let count = WIDE_STEPS.min(steps - first);
        // SAFETY: the machine has the instruction set by the assertion; pointers are the caller's promise.
        unsafe { compiled(variant, Singles { singles, steps, first, count, accumulate: accumulate || first > 0 }) };
    }
}

/// `count` steps from `first` of [`run_singles`].
struct Singles<'a> {
    singles: &'a [Single],
    steps: usize,
    first: usize,
    count: usize,
    accumulate: bool,
}

/// One row's product with one vector of outputs.
#[derive(Clone, Copy)]
struct Strand {
    x: *const u32,
    weights: *const u32,
    y: *mut f32,
    columns: usize,
}

impl PairKernel for Singles<'_> {
    #[inline(always)]
    unsafe fn run<P: PairDot>(self) {
        let nothing = Strand { x: ptr::null(), weights: ptr::null(), y: ptr::null_mut(), columns: 0 };
        let (mut widened, mut strands, mut held, mut held_width) = (Widened::new(), [nothing; ABREAST], 0, 0);
        for (row, single) in self.singles.iter().enumerate() {
            let mut x = single.x.wrapping_add(self.first);
            if P::WIDENED {
                // SAFETY: `count` pairs of the row.
                x = unsafe { widened.fill_row::<P>(row, x, self.count) };
            }
            for panel in (0..single.outputs).step_by(PANEL) {
                let width = PANEL.min(single.outputs.next_multiple_of(LANES) - panel);
                let weights = single.panels.wrapping_add(panel * self.steps + self.first * width);
                for vector in (0..width).step_by(LANES) {
                    if held == ABREAST || held > 0 && width != held_width {
                        // SAFETY: what has been gathered lies inside x, panels and y.
                        unsafe { self.add_up::<P>(&strands[..held], held_width) };
                        held = 0;
                    }
                    let (weights, y) = (weights.wrapping_add(vector), single.y.wrapping_add(panel + vector));
                    strands[held] = Strand { x, weights, y, columns: LANES.min(single.outputs - panel - vector) };
                    (held, held_width) = (held + 1, width);
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.add_up::<P>(&strands[..held], held_width) };
    }
}

impl Singles<'_> {
    #[inline(always)]
    unsafe fn add_up<P: PairDot>(&self, strands: &[Strand], width: usize) {
        // SAFETY: passed on.
        unsafe {
            match strands {
                [a, b, c, d] => self.strands::<P, 4>([*a, *b, *c, *d], width),
                [a, b, c] => self.strands::<P, 3>([*a, *b, *c], width),
                [a, b] => self.strands::<P, 2>([*a, *b], width),
                [a] => self.strands::<P, 1>([*a], width),
                _ => {}
            }
        }
    }

    /// Steps of all weights are `width` apart.
    #[inline(always)]
    unsafe fn strands<P: PairDot, const N: usize>(&self, strands: [Strand; N], width: usize) {
        // SAFETY: `count` steps of each; panels are padded to whole vectors, y is touched below `columns` only.
        unsafe {
            let mut acc = [[[P::S::splat(0.0)]]; N];
            if self.accumulate {
                for (acc, strand) in acc.iter_mut().zip(strands) {
                    acc[0][0] = P::S::load_n(strand.y, strand.columns);
                }
            }
            let mut weights = strands.map(|strand| strand.weights);
            for step in 0..self.count {
                for n in 0..N {
                    P::step(&mut acc[n], (strands[n].x.wrapping_add(step), 0), weights[n]);
                    weights[n] = weights[n].wrapping_add(width);
                }
            }
            for (acc, strand) in acc.into_iter().zip(strands) {
                P::S::store_n(strand.y, acc[0][0], strand.columns);
            }
        }
    }
}

/// Rows of a tile of AVX2, as it reads them.
#[repr(align(64))]
struct Widened([MaybeUninit<u32>; 2 * 6 * WIDE_STEPS]);

impl Widened {
    #[inline(always)]
    fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; 2 * 6 * WIDE_STEPS])
    }

    fn at(&self) -> *const u32 {
        self.0.as_ptr().cast()
    }

    /// # Safety
    /// `x` is readable over `rows ≤ 6` rows of `steps`.
    #[inline(always)]
    unsafe fn fill<P: PairDot>(&mut self, rows: usize, (x, strides): (*const u32, (usize, usize)), steps: usize) {
        assert!(rows <= 6 && steps <= WIDE_STEPS, "room for {rows} rows of {steps} steps");
        // SAFETY: the caller's promise, and the assertion.
        unsafe { P::widen(x, strides, (rows, steps), self.0.as_mut_ptr().cast()) };
    }

    /// Row `row` alone; where it lies now.
    ///
    /// # Safety
    /// `x` is readable over `steps`.
    #[inline(always)]
    unsafe fn fill_row<P: PairDot>(&mut self, row: usize, x: *const u32, steps: usize) -> *const u32 {
        assert!(row < 6 && steps <= WIDE_STEPS, "room for row {row} of {steps} steps");
        let to = self.0.as_mut_ptr().wrapping_add(2 * WIDE_STEPS * row).cast();
        // SAFETY: the caller's promise, and the assertion.
        unsafe { P::widen(x, (0, 1), (1, steps), to) };
        to
    }
}

/// One register tile's place.
#[derive(Clone, Copy)]
struct At {
    x: *const u32,
    x_strides: (usize, usize),
    weights: *const u32,
    y: *mut f32,
    columns: usize,
    width: usize,
    ahead: Ahead,
}

/// What memory is asked for, step by step.
#[derive(Clone, Copy)]
struct Ahead {
    /// Asked for before `turn`, and from there on; both move on by `stride` with each step.
    own: *const u32,
    next: *const u32,
    turn: usize,
    stride: usize,
    panel: usize,
}

impl Ahead {
    /// The only tile of a panel reads it from memory as it goes; of several each has its share of the next one brought.
    #[inline(always)]
    fn new(t: &Tiles<u32>, width: usize, tiles: usize) -> Self {
        let panel = width * t.steps;
        if tiles == 1 {
            let turn = t.steps - t.steps.min(AHEAD / width);
            let own = t.weights.wrapping_add(AHEAD);
            Self { own, next: t.next.wrapping_sub(turn * width), turn, stride: width, panel: 0 }
        } else if t.next == t.weights {
            Self { own: t.weights, next: t.weights, turn: 0, stride: 0, panel: 0 }
        } else {
            Self { own: t.next, next: t.next, turn: 0, stride: width / tiles, panel }
        }
    }

    #[inline(always)]
    fn of_tile(self, row: usize, rows: usize) -> Self {
        Self { next: self.next.wrapping_add(row * self.panel / rows), ..self }
    }

    #[inline(always)]
    fn at(&self, step: usize) -> *const u32 {
        (if step < self.turn { self.own } else { self.next }).wrapping_add(step * self.stride)
    }
}

/// Whether `rows` rows of `vectors` vectors of sums stay in registers. Beside two vectors of three rows AVX2 has none for what they are
/// multiplied by.
const fn fits<S: Simd>(rows: usize, vectors: usize) -> bool {
    vectors == 1 || rows * vectors <= S::TILE_ROWS * S::TILE_VECTORS && (S::TILE_VECTORS > 1 || rows < 3)
}

/// Vectors of a tile of `rows`, of `left` that are left: one row's only sum of a vector would wait for its last addition.
fn vectors_of<S: Simd>(rows: usize, left: usize) -> usize {
    [4, 2].into_iter().find(|&count| left >= count && fits::<S>(rows, count)).unwrap_or(1)
}

#[inline(always)]
unsafe fn by_rows<P: PairDot, const V: usize>(rows: usize, t: &Tiles<u32>, at: At) {
    // SAFETY: passed on.
    unsafe {
        match rows {
            1 if fits::<P::S>(1, V) => run_tile::<P, 1, V>(t, at),
            2 if fits::<P::S>(2, V) => run_tile::<P, 2, V>(t, at),
            3 if P::S::TILE_ROWS > 2 && fits::<P::S>(3, V) => run_tile::<P, 3, V>(t, at),
            4 if P::S::TILE_ROWS > 2 && fits::<P::S>(4, V) => run_tile::<P, 4, V>(t, at),
            5 if P::S::TILE_ROWS > 2 && fits::<P::S>(5, V) => run_tile::<P, 5, V>(t, at),
            6 if P::S::TILE_ROWS > 2 && fits::<P::S>(6, V) => run_tile::<P, 6, V>(t, at),
            7 if V == 1 => run_tile::<P, 7, V>(t, at),
            8 if V == 1 => run_tile::<P, 8, V>(t, at),
            9 if V == 1 => run_tile::<P, 9, V>(t, at),
            10 if V == 1 => run_tile::<P, 10, V>(t, at),
            11 if V == 1 => run_tile::<P, 11, V>(t, at),
            12 if V == 1 => run_tile::<P, 12, V>(t, at),
            _ => unreachable!("{rows} rows of {V} vectors"),
        }
    }
}

#[inline(always)]
unsafe fn run_tile<P: PairDot, const R: usize, const V: usize>(t: &Tiles<u32>, at: At) {
    // SAFETY: rows < t.rows, steps < t.steps; panels are padded to whole vectors, y is touched below `columns` only.
    unsafe {
        let zero = P::S::splat(0.0);
        let mut acc = [[zero; V]; R];
        let lanes = |v: usize| LANES.min(at.columns - v * LANES);
        if t.accumulate {
            for r in 0..R {
                for v in 0..V {
                    acc[r][v] = P::S::load_n(at.y.add(r * t.y_row + v * LANES), lanes(v));
                }
            }
        }
        let (mut x, mut weights) = (at.x, at.weights);
        for step in 0..t.steps {
            // A tile of one or two rows does little else than read.
            for line in 0..if R <= 2 { V } else { 1 } {
                P::S::prefetch_far(at.ahead.at(step).wrapping_add(line * LANES));
            }
            P::step(&mut acc, (x, at.x_strides.0), weights);
            weights = weights.wrapping_add(at.width);
            x = x.wrapping_add(at.x_strides.1);
        }
        for r in 0..R {
            for v in 0..V {
                P::S::store_n(at.y.add(r * t.y_row + v * LANES), acc[r][v], lanes(v));
            }
        }
    }
}

/// Two f32 rounded to bf16, the first in the low half.
#[inline(always)]
pub(crate) fn pair(low: f32, high: f32) -> u32 {
    round(low) >> 16 | round(high) & 0xffff_0000
}

/// The nearest bf16 in the high half (ties to even); the low half is undefined. NaN stays NaN.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    if bits & 0x7fff_ffff > 0x7f80_0000 { bits | 0x0040_0000 } else { rounded }
}

/// A row by pairs; the last of an odd row is paired with 0.
#[inline(always)]
pub(crate) fn round_row(x: &[f32], pairs: &mut [u32]) {
    let (whole, rest) = x.as_chunks::<2>();
    for (two, out) in whole.iter().zip(pairs.iter_mut()) {
        *out = pair(two[0], two[1]);
    }
    if let ([last], Some(out)) = (rest, pairs.last_mut()) {
        *out = pair(*last, 0.0);
    }
}

/// Two rows by pairs of their values at each column.
#[inline(always)]
pub(crate) fn interleave(first: &[f32], second: &[f32], pairs: &mut [u32]) {
    for ((a, b), out) in first.iter().zip(second).zip(pairs) {
        *out = pair(*a, *b);
    }
}

/// Rounds `x`, rows of `width`, to pairs of bf16; an odd row is padded with 0.
pub(super) fn round_pairs(variant: Variant, x: &[f32], width: usize, pairs: &mut [u32]) {
    struct Round<'a>(&'a [f32], usize, &'a mut [u32]);
    impl Kernel for Round<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Self(x, width, pairs) = self;
            for (x, pairs) in x.chunks_exact(width).zip(pairs.chunks_exact_mut(width.div_ceil(2))) {
                round_row(x, pairs);
            }
        }
    }
    const TASK_VALUES: usize = 1 << 16;
    if width == 0 {
        return;
    }
    let rows = (TASK_VALUES / width).max(1);
    if x.len() <= TASK_VALUES {
        simd::run(variant, Round(x, width, pairs));
    } else {
        x.par_chunks(rows * width)
            .zip(pairs.par_chunks_mut(rows * width.div_ceil(2)))
            .for_each(|(x, pairs)| simd::run(variant, Round(x, width, pairs)));
    }
}
