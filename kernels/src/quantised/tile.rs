//! Register tiles of a quantised linear, serial; knows one panel and some rows, not tasks.

use super::activation::Quants;
use super::format::{BLOCK, Format};
use super::lanes::{Codes, UNPACKED, four};
use super::panel::Geometry;
use crate::gemm::balanced;
#[cfg(target_arch = "x86_64")]
use crate::simd::Avx2;
use crate::simd::{self, LANES, Portable, Simd, Variant};

/// `y[rows, outputs] (+)= x[rows, blocks] · panelᵀ` for panels that follow one another.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) format: Format,
    pub(super) rows: usize,
    pub(super) blocks: usize,
    pub(super) outputs: usize,
    /// By groups of rows, as [`super::activation::row_groups`] has them.
    pub(super) x: *const Quants,
    pub(super) panels: *const u8,
    /// Room for [`unpacked_bytes`], aligned to 64.
    pub(super) unpacked: *mut u8,
    pub(super) y: *mut f32,
    pub(super) y_row: usize,
    pub(super) accumulate: bool,
}

/// # Safety
/// `x` holds `rows · blocks` blocks, `panels` the panels of `outputs`, `y` `rows` rows of `outputs`, and no other task touches
/// those of `y`.
pub(super) unsafe fn run(variant: Variant, tiles: Tiles) {
    // SAFETY: passed on.
    unsafe {
        match tiles.format {
            Format::Q4_0 => run_as::<Q40>(variant, tiles),
            Format::Q4_1 => run_as::<Q41>(variant, tiles),
            Format::Q8_0 => run_as::<Q80>(variant, tiles),
            Format::Q4K => run_as::<Q4K>(variant, tiles),
            Format::Q6K => run_as::<Q6K>(variant, tiles),
        }
    }
}

/// Bytes of a panel's codes, unpacked for tiles that share them.
pub(super) fn unpacked_bytes(variant: Variant, format: Format, blocks: usize) -> usize {
    match variant {
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512Bf16 | Variant::Avx512 if has_vnni() => 0,
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512Bf16 | Variant::Avx512 | Variant::Avx2 if format.bits() == 4 => blocks * UNPACKED,
        _ => 0,
    }
}

/// Rows of a register tile at most.
pub(super) fn rows_max(variant: Variant) -> usize {
    match variant {
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512Bf16 | Variant::Avx512 if has_vnni() => super::x86::Vnni::ROWS,
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512Bf16 | Variant::Avx512 | Variant::Avx2 if is_x86_feature_detected!("f16c") => Avx2::ROWS,
        _ => Portable::ROWS,
    }
}

unsafe fn run_as<F: Stored>(variant: Variant, tiles: Tiles) {
    assert!(simd::variants().contains(&variant), "{} is not of this machine", variant.name());
    match variant {
        // SAFETY: the machine has the instruction set by the guard; pointers are the caller's promise.
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512Bf16 | Variant::Avx512 if has_vnni() => unsafe { vnni::<F>(tiles) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512Bf16 | Variant::Avx512 | Variant::Avx2 if is_x86_feature_detected!("f16c") => unsafe {
            avx2::<F>(tiles);
        },
        // SAFETY: plain Rust needs no instruction set.
        _ => unsafe { body::<Portable, F>(tiles) },
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bw")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512dq,avx512bw,avx512vnni")]
unsafe fn vnni<F: Stored>(tiles: Tiles) {
    // SAFETY: this function is compiled for the instruction set.
    unsafe { body::<super::x86::Vnni, F>(tiles) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<F: Stored>(tiles: Tiles) {
    // SAFETY: this function is compiled for the instruction set.
    unsafe { body::<Avx2, F>(tiles) }
}

/// A format as a type, so that tiles are compiled for each.
trait Stored {
    const FORMAT: Format;
    const GEOMETRY: Geometry = Geometry::of(Self::FORMAT);
}

macro_rules! stored {
    ($($name:ident = $format:ident),+) => {$(
        struct $name;
        impl Stored for $name {
            const FORMAT: Format = Format::$format;
        }
    )+};
}
stored!(Q40 = Q4_0, Q41 = Q4_1, Q80 = Q8_0, Q4K = Q4K, Q6K = Q6K);

#[inline(always)]
unsafe fn body<C: Codes, F: Stored>(t: Tiles) {
    let tiles = t.rows.div_ceil(C::ROWS);
    let panel_bytes = F::GEOMETRY.panel(t.blocks);
    let unpacks = F::FORMAT.bits() == 4 && tiles > 1 && balanced(t.rows, C::ROWS) == C::UNPACKED_ROWS;
    for panel in 0..t.outputs.div_ceil(LANES) {
        let own = t.panels.wrapping_add(panel * panel_bytes);
        for block in 0..if unpacks { t.blocks } else { 0 } {
            // SAFETY: the block lies inside the panel, its codes inside the room for them.
            unsafe { C::unpack4(own.add(block * F::GEOMETRY.codes), t.unpacked.add(block * UNPACKED)) };
        }
        let mut row = 0;
        while row < t.rows {
            let rows = balanced(t.rows - row, C::ROWS);
            let at = At {
                x: t.x.wrapping_add(row * t.blocks),
                panel: own,
                unpacked: unpacks.then_some(t.unpacked.cast_const()),
                // One tile reads its panel from memory as it goes; several have the next one brought meanwhile, each its share.
                ahead: own.wrapping_add(if tiles == 1 { AHEAD } else { panel_bytes + row * panel_bytes / t.rows }),
                stride: (F::GEOMETRY.codes + F::GEOMETRY.scales) / tiles,
                y: t.y.wrapping_add(row * t.y_row + panel * LANES),
                columns: LANES.min(t.outputs - panel * LANES),
            };
            // SAFETY: the tile lies inside the panels, x and y.
            unsafe {
                match rows {
                    1 => run_tile::<C, F, 1>(&t, at),
                    2 => run_tile::<C, F, 2>(&t, at),
                    3 if C::ROWS > 2 => run_tile::<C, F, 3>(&t, at),
                    4 if C::ROWS > 2 => run_tile::<C, F, 4>(&t, at),
                    5 if C::ROWS > 2 => run_tile::<C, F, 5>(&t, at),
                    6 if C::ROWS > 2 => run_tile::<C, F, 6>(&t, at),
                    7 if C::ROWS > 2 => run_tile::<C, F, 7>(&t, at),
                    8 if C::ROWS > 2 => run_tile::<C, F, 8>(&t, at),
                    _ => unreachable!("a tile has at most {} rows", C::ROWS),
                }
            }
            row += rows;
        }
    }
}

/// One register tile's place.
#[derive(Clone, Copy)]
struct At {
    x: *const Quants,
    panel: *const u8,
    /// Its codes where they are unpacked.
    unpacked: Option<*const u8>,
    /// What to ask memory for, and how far that moves on with each block.
    ahead: *const u8,
    stride: usize,
    y: *mut f32,
    columns: usize,
}

/// How far ahead one row asks for codes, into the second-level cache: 31 GB/s from memory on two threads of a Zen 4, where plain
/// reading has 32, and 19 without.
const AHEAD: usize = 8192;

#[inline(always)]
unsafe fn run_tile<C: Codes, F: Stored, const R: usize>(t: &Tiles, at: At) {
    let (format, geometry) = (F::FORMAT, F::GEOMETRY);
    let offset = if format.bits() == 8 { C::WIDE_OFFSET } else { format.offset() };
    // SAFETY: rows < t.rows, blocks < t.blocks; panels hold sixteen outputs, y is touched below `columns` only.
    unsafe {
        let mut y = [C::S::splat(0.0); R];
        for block in 0..t.blocks {
            let codes_at = at.panel.add(block * geometry.codes);
            let scales = at.panel.add(geometry.scales_at(block, t.blocks));
            let wide = if format.has_supers() { at.panel.add(geometry.supers_at(block, t.blocks)) } else { scales };
            let quants = |r: usize| &*at.x.add(block * R + r);
            for line in 0..at.stride.div_ceil(64) {
                C::prefetch(at.ahead.wrapping_add(block * at.stride + 64 * line));
            }
            let mut acc = [C::splat(0); R];
            if format.has_halves() {
                for half in 0..2 {
                    let codes = C::codes6(codes_at, half);
                    let scale = C::S::mul(C::f16s(wide), C::bytes(scales.add(LANES * half)));
                    for r in 0..R {
                        acc[r] = C::splat(-offset * quants(r).sums[half]);
                        for v in 0..4 {
                            acc[r] = C::dot(acc[r], codes[v], four(quants(r), 4 * half + v));
                        }
                        let scale = C::S::mul(scale, C::S::splat(quants(r).scale));
                        y[r] = C::S::fma(C::float(acc[r]), scale, y[r]);
                    }
                }
            } else {
                if offset != 0 {
                    for r in 0..R {
                        let [first, second] = quants(r).sums;
                        acc[r] = C::splat(-offset * (first + second));
                    }
                }
                let x = at.x.add(block * R);
                match (format.bits(), at.unpacked) {
                    (4, Some(codes)) if R == C::UNPACKED_ROWS => {
                        C::block4_unpacked(&mut acc, codes.add(block * UNPACKED), x)
                    }
                    (4, _) => C::block4(&mut acc, codes_at, x),
                    _ => C::block8(&mut acc, codes_at, x),
                }
                let scale = C::f16s(wide);
                let scale = if format.has_supers() { C::S::mul(scale, C::bytes(scales)) } else { scale };
                for r in 0..R {
                    let scale = C::S::mul(scale, C::S::splat(quants(r).scale));
                    y[r] = C::S::fma(C::float(acc[r]), scale, y[r]);
                }
            }
            if format.has_min() {
                let min = C::f16s(wide.add(2 * LANES));
                let min = if format.has_supers() { C::S::mul(min, C::bytes(scales.add(LANES))) } else { min };
                for r in 0..R {
                    y[r] = C::S::fma(min, C::S::splat(quants(r).total), y[r]);
                }
            }
        }
        for r in 0..R {
            let to = at.y.add(r * t.y_row);
            if t.accumulate {
                y[r] = C::S::add(C::S::load_n(to, at.columns), y[r]);
            }
            C::S::store_n(to, y[r], at.columns);
        }
    }
}

const _: () = assert!(BLOCK == 32);
