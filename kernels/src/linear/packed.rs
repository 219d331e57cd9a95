//! A weight cut into panels; knows how it lies in memory, not what is multiplied by it.

use super::multiply::Address;
use super::slab::Words;
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
    Bf16(Words<u32>),
    F32(Words<f32>),
}

/// Shape of a weight, and what it is kept as.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) kept: WeightType,
}

impl Shape {
    /// Words from one output to the next of a panel: pairs of inputs, or inputs.
    fn steps(self) -> usize {
        match self.kept {
            WeightType::Bf16 => self.inputs.div_ceil(2),
            WeightType::F32 => self.inputs,
        }
    }

    /// 32-bit words of its panels.
    pub(crate) fn words(self) -> usize {
        self.outputs.next_multiple_of(LANES) * self.steps()
    }

    /// Sets `words` to the panels of the weight whose value at `[output, input]` is `at`'s.
    pub(crate) fn fill(self, words: &mut [u32], at: impl Fn(usize, usize) -> f32 + Sync) {
        let at = |output: usize, input: usize| {
            if output < self.outputs && input < self.inputs { at(output, input) } else { 0.0 }
        };
        let size = (self.outputs.next_multiple_of(LANES), self.steps());
        match self.kept {
            WeightType::Bf16 => {
                fill(words, size, |output, step| tile::pair(at(output, 2 * step), at(output, 2 * step + 1)));
            }
            WeightType::F32 => fill(words, size, |output, step| at(output, step).to_bits()),
        }
    }
}

impl Packed {
    pub(super) fn new(
        (outputs, inputs): (usize, usize),
        kept: WeightType,
        at: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let shape = Shape { outputs, inputs, kept };
        let mut words = vec![0; shape.words()];
        shape.fill(&mut words, at);
        Self::of_words(shape, words)
    }

    /// A weight of `shape` whose panels have been filled.
    pub(crate) fn of_words(shape: Shape, words: impl Into<Words<u32>>) -> Self {
        let Shape { outputs, inputs, kept } = shape;
        let words = words.into();
        assert_eq!(words.len(), shape.words(), "the panels of [{outputs}, {inputs}]");
        let panels = match kept {
            WeightType::Bf16 => Panels::Bf16(words),
            WeightType::F32 => Panels::F32(words.into_floats()),
        };
        Self { outputs, inputs, panels }
    }

    /// Its product with every row of `x`.
    pub(crate) fn of_all<'a>(&'a self, x: Operand<'a>, rows: usize) -> Product<'a> {
        Product { weight: self, x, rows: 0..rows }
    }

    /// Where panel `index` starts, or would.
    pub(super) fn panel(&self, index: usize) -> Address {
        let first: *const u8 = match &self.panels {
            Panels::Bf16(words) => words.as_ptr().cast(),
            Panels::F32(words) => words.as_ptr().cast(),
        };
        Address(first.wrapping_add(index * self.panel_bytes()))
    }

    /// Of a whole one.
    pub(super) fn panel_bytes(&self) -> usize {
        let shape = Shape { outputs: self.outputs, inputs: self.inputs, kept: self.kept() };
        PANEL * shape.steps() * size_of::<u32>()
    }

    /// Bytes of its panels.
    pub(crate) fn bytes(&self) -> usize {
        Shape { outputs: self.outputs, inputs: self.inputs, kept: self.kept() }.words() * size_of::<u32>()
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
fn fill(words: &mut [u32], (padded, steps): (usize, usize), word: impl Fn(usize, usize) -> u32 + Sync) {
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
