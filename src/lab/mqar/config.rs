//! What a run of the experiment is made of, and its grid. Never measures.

use crate::lab::{LabError, synthetic::Mqar as Setting};
use serde::{Deserialize, Serialize};

/// The configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A repetition each: other sequences, other initial weights.
    pub seeds: Vec<u64>,
    /// Tokens that there are.
    pub vocab: usize,
    /// See [`Setting::power`].
    pub power: f64,
    /// Widths of the models.
    pub widths: Vec<usize>,
    /// Peak learning rates; for each width and length the best on validation sequences counts.
    pub rates: Vec<f64>,
    /// Layers of attention.
    pub layers: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// Training sequences, which are seen again in another order in every epoch.
    pub examples: usize,
    /// Epochs at most.
    pub epochs: usize,
    /// Steps between two looks at the validation sequences.
    pub look: usize,
    /// Accuracy there with which training ends.
    pub enough: f64,
    /// Validation sequences.
    pub validation: usize,
    /// Test sequences.
    pub test: usize,
    /// Lengths, each with its pairs and batch.
    pub sizes: Vec<Size>,
}

/// A length of sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Tokens.
    pub length: usize,
    /// Pairs of key and value, and queries.
    pub pairs: usize,
    /// Sequences of a step.
    pub batch: usize,
}

/// A cell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Tokens of a sequence.
    pub length: usize,
    /// Pairs in it.
    pub pairs: usize,
    /// Width of the model.
    pub width: usize,
    /// Peak learning rate.
    pub rate: f64,
    /// Repetition.
    pub seed: u64,
}

impl Config {
    /// Whether it describes a run.
    ///
    /// # Errors
    /// If it does not, with what would.
    pub fn check(&self) -> Result<(), LabError> {
        let fault = |what: String| Err(LabError::Config(what));
        let empty = self.seeds.is_empty() || self.widths.is_empty() || self.rates.is_empty() || self.sizes.is_empty();
        if empty {
            return fault("seeds, widths, rates and sizes need a member each".to_owned());
        }
        let counts = [self.layers, self.heads, self.examples, self.epochs, self.look, self.validation, self.test];
        if counts.contains(&0) || self.sizes.iter().any(|size| size.batch == 0) {
            return fault("layers, heads, examples, epochs, look, validation, test and batch are above 0".to_owned());
        }
        // A rotated pair is two dimensions of a head.
        if self.widths.iter().any(|width| *width == 0 || width % (2 * self.heads) != 0) {
            return fault(format!("widths are multiples of {}, two for each head", 2 * self.heads));
        }
        if let Some(fault) = self.sizes.iter().find_map(|&size| self.setting(size).fault()) {
            return Err(LabError::Config(format!("sizes: {fault}")));
        }
        let lengths: Vec<_> = self.sizes.iter().map(|size| (size.length, size.pairs)).collect();
        if lengths.iter().enumerate().any(|(i, size)| lengths[..i].contains(size)) {
            return fault("sizes: every length with as many pairs is named once".to_owned());
        }
        Ok(())
    }

    /// The task at a size.
    pub fn setting(&self, Size { length, pairs, .. }: Size) -> Setting {
        Setting { vocab: self.vocab, length, pairs, power: self.power }
    }

    /// The size of a cell.
    ///
    /// # Errors
    /// If the configuration has none like it.
    pub fn size(&self, point: &Point) -> Result<Size, LabError> {
        let found = self.sizes.iter().find(|size| (size.length, size.pairs) == (point.length, point.pairs));
        found.copied().ok_or_else(|| LabError::Cell(format!("no size of {} tokens", point.length)))
    }

    /// The grid: short and narrow first.
    pub fn points(&self) -> Vec<(Point, f64)> {
        let mut points = Vec::new();
        for &seed in &self.seeds {
            for &Size { length, pairs, .. } in &self.sizes {
                for &width in &self.widths {
                    // Layers, and the head at every query, of which there are fixed shares of a sequence.
                    let work = length * width * (4 * self.layers * width + self.vocab * pairs / length);
                    let point = |&rate: &f64| (Point { length, pairs, width, rate, seed }, work as f64);
                    points.extend(self.rates.iter().map(point));
                }
            }
        }
        points
    }
}
