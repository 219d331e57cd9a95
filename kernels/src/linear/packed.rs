//! A weight cut into panels; knows how it lies in memory, not what is multiplied by it.

use super::multiply::Address;
use super::{Operand, PANEL, Product, WeightType, tile};
use crate::simd::LANES;
use rayon::prelude::*;

/// A weight in panels: panel p holds outputs `64p …`, padded with zeros to a multiple of 16, input by input (bf16: pair of
/// inputs by pair; the first in the low half of a word).
pub(crate) struct Packed {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) panels: Panels,
}

pub(super) enum Panels {
    Bf16(Vec<u32>),
    F32(Vec<f32>),
}

impl Packed {
    pub(super) fn new(
        (outputs, inputs): (usize, usize),
        kept: WeightType,
        at: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let at = |output: usize, input: usize| {
            if output < outputs && input < inputs { at(output, input) } else { 0.0 }
        };
        let padded = outputs.next_multiple_of(LANES);
        let panels = match kept {
            WeightType::Bf16 => {
                let steps = inputs.div_ceil(2);
                let mut words = vec![0u32; padded * steps];
                fill(&mut words, (padded, steps), |output, step| {
                    tile::pair(at(output, 2 * step), at(output, 2 * step + 1))
                });
                Panels::Bf16(words)
            }
            WeightType::F32 => {
                let mut words = vec![0f32; padded * inputs];
                fill(&mut words, (padded, inputs), at);
                Panels::F32(words)
            }
        };
        Self { outputs, inputs, panels }
    }

    /// Its product with every row of `x`.
    pub(crate) fn of_all<'a>(&'a self, x: Operand<'a>, rows: usize) -> Product<'a> {
        Product { weight: self, x, rows: 0..rows }
    }

    /// Where panel `index` starts, or would.
    pub(super) fn panel(&self, index: usize) -> Address {
        match &self.panels {
            Panels::Bf16(words) => Address(words.as_ptr().wrapping_add(index * PANEL * self.inputs.div_ceil(2)).cast()),
            Panels::F32(words) => Address(words.as_ptr().wrapping_add(index * PANEL * self.inputs).cast()),
        }
    }

    pub(super) fn kept(&self) -> WeightType {
        match self.panels {
            Panels::Bf16(_) => WeightType::Bf16,
            Panels::F32(_) => WeightType::F32,
        }
    }

    /// The rounded weight at `[output, input]`.
    pub(super) fn at(&self, output: usize, input: usize) -> f32 {
        let first = output / PANEL * PANEL;
        let width = PANEL.min(self.outputs.next_multiple_of(LANES) - first);
        match &self.panels {
            Panels::Bf16(words) => {
                let word = words[first * self.inputs.div_ceil(2) + input / 2 * width + output - first];
                f32::from_bits(if input.is_multiple_of(2) { word << 16 } else { word & 0xffff_0000 })
            }
            Panels::F32(words) => words[first * self.inputs + input * width + output - first],
        }
    }

    /// Row `output` of the rounded weight: one column of a panel.
    pub(super) fn row(&self, output: usize, row: &mut [f32]) {
        let first = output / PANEL * PANEL;
        let width = PANEL.min(self.outputs.next_multiple_of(LANES) - first);
        match &self.panels {
            Panels::Bf16(_) => row.iter_mut().enumerate().for_each(|(input, value)| *value = self.at(output, input)),
            Panels::F32(words) => {
                let panel = &words[first * self.inputs + output - first..];
                row.iter_mut().zip(panel.iter().step_by(width)).for_each(|(value, word)| *value = *word);
            }
        }
    }
}

/// Fills panels from `word(output, step)`.
fn fill<T: Send>(words: &mut [T], (padded, steps): (usize, usize), word: impl Fn(usize, usize) -> T + Sync) {
    if steps == 0 {
        return;
    }
    words.par_chunks_mut(PANEL * steps).enumerate().for_each(|(panel, words)| {
        let width = PANEL.min(padded - panel * PANEL);
        // By 16 inputs at a time, so that a row-major source is read by cache lines.
        for first in (0..steps).step_by(LANES) {
            for column in 0..width {
                for step in first..steps.min(first + LANES) {
                    words[step * width + column] = word(panel * PANEL + column, step);
                }
            }
        }
    });
}
