//! Quantised weights in panels of sixteen outputs, as tiles read them; knows no activation.
//!
//! A panel holds, one after another: the codes of its blocks, their scales, their superblocks' scales.
//! - Codes of a block: 64 · bits bytes. A vector of 64 bytes is four inputs of each of the 16 outputs. With 8 bits there are
//!   eight such vectors; with 4, four vectors hold inputs 0–15 in the low nibbles and 16–31 in the high ones; with 6, two more
//!   follow, whose bit pairs v (from the lowest) are the high bits of vector v of inputs 0–15 and of 16–31.
//! - Scales of a block: 16 f16, and 16 f16 minima; in a K format 16 bytes for each half that has a scale, and for minima.
//! - Scales of a superblock: 16 f16, and 16 f16 for minima.

use super::format::{BLOCK, Block, Format, SUPER};
use crate::simd::LANES;
use half::f16;
use rayon::prelude::*;

/// Bytes of what a panel of one format holds.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    /// Codes of a block.
    pub(super) codes: usize,
    /// Scales of a block.
    pub(super) scales: usize,
    /// Scales of a superblock.
    pub(super) supers: usize,
}

impl Geometry {
    pub(super) const fn of(format: Format) -> Self {
        let mins = format.has_min() as usize;
        let codes = LANES * BLOCK * format.bits() / 8;
        match format.has_supers() {
            true => Self {
                codes,
                scales: LANES * (1 + format.has_halves() as usize + mins),
                supers: 2 * LANES * (1 + mins),
            },
            false => Self { codes, scales: 2 * LANES * (1 + mins), supers: 0 },
        }
    }

    /// Where the scales of `block` start, of `blocks` in the panel.
    pub(super) const fn scales_at(self, block: usize, blocks: usize) -> usize {
        blocks * self.codes + block * self.scales
    }

    /// Where the superblock's scales start.
    pub(super) const fn supers_at(self, block: usize, blocks: usize) -> usize {
        blocks * (self.codes + self.scales) + block / SUPER * self.supers
    }

    /// Bytes of a panel, a multiple of 64.
    pub(super) const fn panel(self, blocks: usize) -> usize {
        self.supers_at(blocks, blocks).next_multiple_of(64)
    }
}

/// A cache line, so that vectors of codes do not straddle two.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read as bytes of many lines")] [u8; 64]);

/// All panels of a weight.
pub(super) struct Panels {
    format: Format,
    blocks: usize,
    lines: Vec<Line>,
}

impl Panels {
    /// Repacks `outputs` rows of `inputs`; `row(output)` is the stored row.
    pub(super) fn new<'a>(
        format: Format,
        (outputs, inputs): (usize, usize),
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Self {
        let (geometry, blocks) = (Geometry::of(format), inputs / BLOCK);
        let lines = geometry.panel(blocks) / 64;
        let mut panels = Self { format, blocks, lines: vec![Line([0; 64]); outputs.div_ceil(LANES) * lines] };
        if lines == 0 {
            return panels;
        }
        panels.lines.par_chunks_mut(lines).enumerate().for_each(|(panel, lines)| {
            let bytes = lines.as_flattened_bytes_mut();
            for lane in 0..LANES.min(outputs - panel * LANES) {
                let row = row(panel * LANES + lane);
                for index in 0..blocks {
                    write(format, bytes, (index, blocks), lane, &format.read(row, index));
                }
            }
        });
        panels
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// The panel's bytes.
    pub(super) fn panel(&self, index: usize) -> *const u8 {
        let lines = Geometry::of(self.format).panel(self.blocks) / 64;
        self.lines[index * lines..(index + 1) * lines].as_ptr().cast()
    }

    /// Row `output` in f32: `scale·(code − offset)` rounded, and with a minimum the sum rounded.
    pub(super) fn row(&self, output: usize, row: &mut [f32]) {
        let lines = Geometry::of(self.format).panel(self.blocks) / 64;
        let bytes = self.lines[output / LANES * lines..][..lines].as_flattened_bytes();
        for (index, row) in row.chunks_exact_mut(BLOCK).enumerate() {
            let block = read(self.format, bytes, (index, self.blocks), output % LANES);
            let min = f16::from_bits(block.min_scale).to_f32() * f32::from(block.min);
            for (i, value) in row.iter_mut().enumerate() {
                let scale = f16::from_bits(block.scale).to_f32() * f32::from(block.scales[i / 16]);
                *value = scale * (i32::from(block.codes[i]) - self.format.offset()) as f32 + min;
            }
        }
    }
}

trait AsBytes {
    fn as_flattened_bytes(&self) -> &[u8];
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8];
}

impl AsBytes for [Line] {
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: a line is 64 bytes without padding.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), size_of_val(self)) }
    }

    fn as_flattened_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and any bytes are a line.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), size_of_val(self)) }
    }
}

/// The byte and the shift of code `input` of a lane, and the same of its two high bits where there are 6.
fn place(format: Format, lane: usize, input: usize) -> ((usize, usize), Option<(usize, usize)>) {
    let (half, vector) = (input / 16, input % 16 / 4);
    let byte = lane * 4 + input % 4;
    match format.bits() {
        8 => ((input / 4 * 64 + byte, 0), None),
        bits => ((vector * 64 + byte, half * 4), (bits == 6).then_some((256 + half * 64 + byte, vector * 2))),
    }
}

fn write(format: Format, panel: &mut [u8], (index, blocks): (usize, usize), lane: usize, block: &Block) {
    let geometry = Geometry::of(format);
    let codes = &mut panel[index * geometry.codes..][..geometry.codes];
    for (input, &code) in block.codes.iter().enumerate() {
        let ((byte, shift), high) = place(format, lane, input);
        codes[byte] |= if format.bits() == 8 { code } else { (code & 15) << shift };
        if let Some((byte, shift)) = high {
            codes[byte] |= code >> 4 << shift;
        }
    }
    let f16_at = |lane: usize| 2 * lane..2 * lane + 2;
    let scales = &mut panel[geometry.scales_at(index, blocks)..][..geometry.scales];
    let wide = if format.has_supers() {
        scales[lane] = block.scales[0] as u8;
        if format.has_halves() {
            scales[LANES + lane] = block.scales[1] as u8;
        }
        if format.has_min() {
            scales[LANES + lane] = block.min as u8;
        }
        &mut panel[geometry.supers_at(index, blocks)..][..geometry.supers]
    } else {
        scales
    };
    wide[f16_at(lane)].copy_from_slice(&block.scale.to_le_bytes());
    if format.has_min() {
        wide[f16_at(LANES + lane)].copy_from_slice(&block.min_scale.to_le_bytes());
    }
}

fn read(format: Format, panel: &[u8], (index, blocks): (usize, usize), lane: usize) -> Block {
    let geometry = Geometry::of(format);
    let codes = &panel[index * geometry.codes..];
    let code = |input| {
        let ((byte, shift), high) = place(format, lane, input);
        let mask = if format.bits() == 8 { 255 } else { 15 };
        codes[byte] >> shift & mask | high.map_or(0, |(byte, shift)| (codes[byte] >> shift & 3) << 4)
    };
    let scales = &panel[geometry.scales_at(index, blocks)..];
    let wide = if format.has_supers() { &panel[geometry.supers_at(index, blocks)..] } else { scales };
    let f16 = |lane: usize| u16::from_le_bytes([wide[2 * lane], wide[2 * lane + 1]]);
    let second = if format.has_halves() { LANES + lane } else { lane };
    let supers = format.has_supers();
    Block {
        codes: std::array::from_fn(code),
        scale: f16(lane),
        scales: if supers { [scales[lane] as i8, scales[second] as i8] } else { [1; 2] },
        min_scale: if format.has_min() { f16(LANES + lane) } else { 0 },
        min: if !format.has_min() {
            0
        } else if supers {
            scales[LANES + lane] as i8
        } else {
            1
        },
    }
}
