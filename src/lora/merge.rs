//! Several adapters of one base as a single one of a given rank. Pure: weights in, weights out; knows nothing of skills.
//!
//! What is merged are the deltas `Δ = scale · B A`, never the factors: the mean of products is not the product of means. The outcome
//! is cut back to a rank by its singular values, which loses the least that a matrix of that rank can lose (Eckart & Young 1936).

use super::{
    LoraConfig, LoraError, LoraWeights,
    config::sites,
    linalg::{Columns, Svd, add, dot, svd},
};
use crate::common::Seed;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use socius_models::{Projection, Site, SiteParameters, Spec};
use std::collections::BTreeSet;

/// More directions than the rank are followed, and all are passed through the matrix this often: enough that what is cut off is
/// within a percent of the least possible even for flat spectra (Halko, Martinsson & Tropp 2011, §1.6).
const OVERSAMPLE: usize = 16;
const PASSES: usize = 3;

/// How deltas become one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "method")]
pub enum Merge {
    /// The weighted average.
    Linear,
    /// Trim, elect sign, merge (arXiv 2306.01708): each delta keeps its largest elements at each site, each element takes the sign
    /// with the larger weight in total, and the average is over those that agree.
    Ties {
        /// Share of elements that is kept.
        density: f64,
    },
    /// Drop and rescale (arXiv 2311.03099): each delta loses random elements, the others are divided by the share that is left,
    /// and the weighted average is taken.
    Dare {
        /// Share of elements that is kept.
        density: f64,
    },
}

/// Everything that decides the bytes of a merged adapter, apart from its parts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeSettings {
    /// How.
    #[serde(flatten)]
    pub merge: Merge,
    /// Rank of the outcome.
    pub rank: usize,
    /// Factor on the outcome (λ of TIES): 1 averages, and the number of parts adds equally weighted ones up.
    pub scale: f64,
    /// Of what DARE drops, and of the directions in which a dense delta's largest singular values are looked for.
    pub seed: u64,
}

/// One adapter of a merge.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Its factors.
    pub lora: &'a LoraWeights,
    /// Its share beside the others'; only proportions matter.
    pub weight: f64,
}

/// What became of a merge.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The adapter, of scale 1 everywhere.
    pub lora: LoraWeights,
    /// Share of the merged delta's squared norm that is left after cutting it back to the rank.
    pub kept: f64,
}

/// One site's factors.
struct Factors {
    a: Vec<f32>,
    b: Vec<f32>,
    /// Squared norms of the delta before and after the cut.
    norms: [f64; 2],
}

/// Merges `parts`, all of the base of architecture `spec`. A site that only some of them adapt counts as zero in the others.
///
/// # Errors
/// Names the setting that is out of range.
///
/// # Panics
/// If a part's layout is not one over `spec`.
pub fn merge(parts: &[Part<'_>], settings: &MergeSettings, spec: &Spec) -> Result<Merged, LoraError> {
    let shares = check(parts, settings)?;
    let config = configuration(parts, settings.rank, spec);
    let layout = config.layout(spec)?;
    let factors: Vec<Factors> = layout
        .sites()
        .par_iter()
        .map(|site| {
            let place = Place { parts, shares: &shares, settings, site };
            place.factors()
        })
        .collect();
    let mut theta = vec![0.0; layout.len()];
    for (site, factors) in layout.sites().iter().zip(&factors) {
        let (a, b) = site.factors_mut(&mut theta);
        a.copy_from_slice(&factors.a);
        b.copy_from_slice(&factors.b);
    }
    let [all, left] = [0, 1].map(|i| factors.iter().map(|factors| factors.norms[i]).sum::<f64>());
    let kept = if all > 0.0 { (left / all).min(1.0) } else { 1.0 };
    Ok(Merged { lora: LoraWeights { config, layout, theta }, kept })
}

/// The parts' shares, which add up to `scale`.
fn check(parts: &[Part<'_>], settings: &MergeSettings) -> Result<Vec<f64>, LoraError> {
    if parts.is_empty() {
        return Err(LoraError::config("parts", "there is nothing to merge"));
    }
    if parts.iter().any(|part| part.lora.layout.positions() > 0) {
        return Err(LoraError::config("positions", "a prefix cannot be merged; only low-rank factors can"));
    }
    if let Merge::Ties { density } | Merge::Dare { density } = settings.merge
        && !(density > 0.0 && density <= 1.0)
    {
        return Err(LoraError::config("density", format!("{density} is not a share: above 0 and at most 1")));
    }
    if !(settings.scale > 0.0 && settings.scale <= 1e6) {
        return Err(LoraError::config("scale", format!("{} is not a positive number up to 1e6", settings.scale)));
    }
    if let Some(part) = parts.iter().find(|part| !(part.weight >= 0.0 && part.weight <= 1e6)) {
        return Err(LoraError::config("weight", format!("{} is not a number from 0 to 1e6", part.weight)));
    }
    let total: f64 = parts.iter().map(|part| part.weight).sum();
    if total == 0.0 {
        return Err(LoraError::config("weight", "every part has weight 0"));
    }
    Ok(parts.iter().map(|part| part.weight / total * settings.scale).collect())
}

/// One rank at every site that at least one part adapts, and scale 1.
fn configuration(parts: &[Part<'_>], rank: usize, spec: &Spec) -> LoraConfig {
    let adapted = |site: &Site| parts.iter().any(|part| part.lora.layout.at(*site).is_some());
    let projections: BTreeSet<Projection> = sites(spec).filter(adapted).map(|site| site.projection).collect();
    let mut config = LoraConfig::uniform(rank, rank as f64, &projections.into_iter().collect::<Vec<_>>());
    config.without = sites(spec).filter(|site| config.at(*site).is_some() && !adapted(site)).collect();
    config
}

/// One site of a merge.
struct Place<'a> {
    parts: &'a [Part<'a>],
    shares: &'a [f64],
    settings: &'a MergeSettings,
    site: &'a SiteParameters,
}

impl Place<'_> {
    fn factors(&self) -> Factors {
        match self.settings.merge {
            Merge::Linear if self.ranks() < self.site.inputs.min(self.site.outputs) => self.cut_product(),
            Merge::Linear => self.cut_dense(&self.averaged(|_, _| ())),
            Merge::Ties { density } => self.cut_dense(&self.elected(density)),
            Merge::Dare { density } => self.cut_dense(&self.averaged(|part, delta| self.drop(part, delta, density))),
        }
    }

    /// Each part that adapts the site, with its number and share.
    fn here(&self) -> impl Iterator<Item = (usize, f64, &LoraWeights, &SiteParameters)> {
        let parts = self.parts.iter().zip(self.shares).enumerate();
        parts.filter_map(|(i, (part, &share))| Some((i, share, part.lora, part.lora.layout.at(self.site.site)?)))
    }

    /// An upper bound of the average's rank.
    fn ranks(&self) -> usize {
        self.here().map(|(.., own)| own.rank).sum()
    }

    /// The average `Σ share · scale · B A` is a product of stacked factors, so it is never spelled out.
    fn cut_product(&self) -> Factors {
        let (inputs, outputs) = (self.site.inputs, self.site.outputs);
        let (mut tall, mut wide) = (Vec::new(), Vec::new());
        for (_, share, lora, own) in self.here() {
            let (a, b) = (own.a_of(&lora.theta), own.b_of(&lora.theta));
            let factor = share * f64::from(own.scale);
            for k in 0..own.rank {
                tall.extend(b.iter().skip(k).step_by(own.rank).map(|&value| factor * f64::from(value)));
                wide.extend(a[k * inputs..(k + 1) * inputs].iter().map(|&value| f64::from(value)));
            }
        }
        let (tall, wide) = (Columns::new(outputs, tall), Columns::new(inputs, wide));
        let basis = tall.basis();
        if basis.count() == 0 {
            return self.nothing();
        }
        // Δᵀ·Q = Aᵀ·(BᵀQ).
        let across = wide.times(&tall.transposed_times(&basis));
        let Some(svd) = svd(&across) else { return self.nothing() };
        let all = svd.values.iter().map(|value| value * value).sum();
        self.split(&basis, svd, all)
    }

    /// The weighted average of the deltas after `change`, spelled out.
    fn averaged(&self, change: impl Fn(usize, &mut [f32])) -> Vec<f64> {
        let mut sum = vec![0.0; self.site.inputs * self.site.outputs];
        for (i, share, lora, own) in self.here() {
            let mut delta = dense(lora, own);
            change(i, &mut delta);
            sum.iter_mut().zip(&delta).for_each(|(sum, &value)| *sum += share * f64::from(value));
        }
        sum
    }

    /// Sets elements to zero, each with probability 1 − `density`, and divides the others by `density`.
    fn drop(&self, part: usize, delta: &mut [f32], density: f64) {
        let mut rng = self.seed("dare").index(part as u64).rng();
        for value in delta {
            *value = if rng.uniform() < density { (f64::from(*value) / density) as f32 } else { 0.0 };
        }
    }

    /// TIES: of the trimmed deltas, the average of those that agree with the sign of their sum.
    fn elected(&self, density: f64) -> Vec<f64> {
        let trimmed: Vec<(f64, Vec<f32>)> =
            self.here().map(|(_, share, lora, own)| (share, trim(dense(lora, own), density))).collect();
        let total: f64 = self.shares.iter().sum();
        let element = |at: usize| {
            let values = || trimmed.iter().map(|(share, delta)| (share, f64::from(delta[at])));
            let sign: f64 = values().map(|(share, value)| share * value).sum();
            let agreeing = values().filter(|(_, value)| value * sign > 0.0);
            let (sum, shares) =
                agreeing.fold((0.0, 0.0), |(sum, shares), (share, value)| (sum + share * value, shares + share));
            if shares > 0.0 { total * sum / shares } else { 0.0 }
        };
        (0..self.site.inputs * self.site.outputs).map(element).collect()
    }

    /// The largest singular values of a delta `[outputs, inputs]` that is spelled out, by subspace iteration from random directions.
    fn cut_dense(&self, delta: &[f64]) -> Factors {
        let (inputs, outputs) = (self.site.inputs, self.site.outputs);
        let count = (self.settings.rank + OVERSAMPLE).min(inputs).min(outputs);
        let mut rng = self.seed("subspace").rng();
        let mut across = Columns::new(inputs, (0..inputs * count).map(|_| rng.normal()).collect());
        let mut basis = times(delta, &across, outputs).basis();
        for _ in 0..PASSES {
            if basis.count() == 0 {
                return self.nothing();
            }
            across = transposed_times(delta, &basis, inputs);
            basis = times(delta, &across.basis(), outputs).basis();
        }
        let Some(svd) = svd(&transposed_times(delta, &basis, inputs)) else { return self.nothing() };
        self.split(&basis, svd, dot(delta, delta))
    }

    /// `basis · (left · values · rightᵀ)ᵀ` as `B A` of the wanted rank, each with the root of the singular values, so that neither
    /// factor is much larger than the other.
    fn split(&self, basis: &Columns, svd: Svd, all: f64) -> Factors {
        let (rank, inputs) = (self.settings.rank, self.site.inputs);
        let mut factors = self.nothing();
        let outward = basis.times(&svd.right);
        for (k, &value) in svd.values.iter().enumerate().take(rank) {
            let root = value.sqrt();
            let row = &mut factors.a[k * inputs..(k + 1) * inputs];
            row.iter_mut().zip(svd.left.column(k)).for_each(|(a, &along)| *a = (root * along) as f32);
            let column = factors.b.iter_mut().skip(k).step_by(rank);
            column.zip(outward.column(k)).for_each(|(b, &along)| *b = (root * along) as f32);
            factors.norms[1] += value * value;
        }
        factors.norms[0] = all;
        factors
    }

    fn nothing(&self) -> Factors {
        let rank = self.settings.rank;
        Factors { a: vec![0.0; rank * self.site.inputs], b: vec![0.0; self.site.outputs * rank], norms: [0.0; 2] }
    }

    fn seed(&self, purpose: &str) -> Seed {
        let Site { layer, projection } = self.site.site;
        Seed::new(self.settings.seed).purpose(purpose).index(layer as u64).index(projection as u64)
    }
}

/// `scale · B A`, `[outputs, inputs]`.
fn dense(lora: &LoraWeights, own: &SiteParameters) -> Vec<f32> {
    let (a, b) = (own.a_of(&lora.theta), own.b_of(&lora.theta));
    let mut delta = vec![0.0; own.outputs * own.inputs];
    for (row, weights) in delta.chunks_exact_mut(own.inputs).zip(b.chunks_exact(own.rank)) {
        for (weight, a) in weights.iter().zip(a.chunks_exact(own.inputs)) {
            row.iter_mut().zip(a).for_each(|(out, value)| *out += own.scale * weight * value);
        }
    }
    delta
}

/// Leaves the share `density` of elements of largest magnitude; of equal ones those that come first.
fn trim(mut delta: Vec<f32>, density: f64) -> Vec<f32> {
    let count = (density * delta.len() as f64).round() as usize;
    if count >= delta.len() {
        return delta;
    }
    let mut magnitudes: Vec<f32> = delta.iter().map(|value| value.abs()).collect();
    let (_, &mut threshold, _) = magnitudes.select_nth_unstable_by(count, |a, b| b.total_cmp(a));
    let mut equal = count - delta.iter().filter(|value| value.abs() > threshold).count();
    for value in &mut delta {
        let stays = value.abs() > threshold || value.abs() == threshold && equal > 0;
        equal -= usize::from(stays && value.abs() == threshold);
        *value = if stays { *value } else { 0.0 };
    }
    delta
}

/// `delta · across`, where `delta` is `[outputs, inputs]` by rows.
fn times(delta: &[f64], across: &Columns, outputs: usize) -> Columns {
    let inputs = delta.len() / outputs;
    let products = across.iter().flat_map(|column| delta.chunks_exact(inputs).map(move |row| dot(row, column)));
    Columns::new(outputs, products.collect())
}

/// `deltaᵀ · along`, where `delta` is `[outputs, inputs]` by rows.
fn transposed_times(delta: &[f64], along: &Columns, inputs: usize) -> Columns {
    let mut values = vec![0.0; inputs * along.count()];
    for (out, weights) in values.chunks_exact_mut(inputs).zip(along.iter()) {
        delta.chunks_exact(inputs).zip(weights).for_each(|(row, &weight)| add(out, weight, row));
    }
    Columns::new(inputs, values)
}

#[cfg(test)]
mod tests;
