//! The solved router: a flat table of weight rows, one a skill, and their words. From a prompt's features or words to scores, and
//! from scores to a choice. Immutable; never sees files or a model.

use super::{
    Evidence, Route, RouteBy, RouterError, Scored, solve::times, statistics::unit, text::Bm25, usefulness::Usefulness,
};
use crate::{common::Digest, library::SkillName};
use socius_kernels::linear::{PackedLinear, WeightType};

/// Skills that a route names, best first.
const SHOWN: usize = 16;

/// One skill, solved.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: SkillName,
    pub(super) generation: Digest,
    pub(super) promise: f64,
    pub(super) bias: f32,
    pub(super) scale: f32,
    /// `[hidden]`.
    pub(super) weights: Vec<f32>,
}

/// What a choice must reach.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Thresholds {
    pub(super) features: f64,
    pub(super) text: f64,
    /// Skills that score less than this below the best are told apart by words.
    pub(super) margin: f64,
}

/// What the router knows of one skill beside its weights.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Named {
    pub(super) name: SkillName,
    pub(super) generation: Digest,
    pub(super) promise: f64,
    pub(super) bias: f32,
    /// What the skill's own prompts score before they are divided by it.
    pub(super) scale: f32,
}

/// How near a prompt is to each prompt of the background.
pub(super) struct Strangers {
    /// `[prompts, hidden]`.
    pub(super) weights: PackedLinear,
    pub(super) biases: Vec<f32>,
}

impl Strangers {
    /// None without any; `weights` are `[prompts, hidden]`.
    pub(super) fn new(hidden: usize, biases: Vec<f32>, weights: &[f32]) -> Option<Self> {
        let weights =
            (!biases.is_empty()).then(|| PackedLinear::new(weights, (biases.len(), hidden), WeightType::F32))?;
        Some(Self { weights, biases })
    }

    fn nearest(&self, row: &[f32]) -> f64 {
        let products = times(&self.weights, row);
        products.iter().zip(&self.biases).map(|(a, b)| f64::from(a + b)).fold(f64::NEG_INFINITY, f64::max)
    }
}

/// The router as it answers prompts.
pub struct Index {
    /// By name.
    pub(super) skills: Vec<Named>,
    /// `[skills, hidden]`; none without skills.
    pub(super) weights: Option<PackedLinear>,
    /// What is taken from every score, before it is scaled, is the most that any of these says; none without skills.
    pub(super) strangers: Option<Strangers>,
    pub(super) text: Bm25,
    pub(super) thresholds: Thresholds,
}

impl Index {
    pub(super) fn new(rows: Vec<Row>, strangers: Vec<(f32, Vec<f32>)>, text: Bm25, thresholds: Thresholds) -> Self {
        let hidden = rows.first().map_or(0, |row| row.weights.len());
        let flat: Vec<f32> = rows.iter().flat_map(|row| row.weights.iter().copied()).collect();
        let weights = (!rows.is_empty()).then(|| PackedLinear::new(&flat, (rows.len(), hidden), WeightType::F32));
        let skills = rows.into_iter().map(|Row { name, generation, promise, bias, scale, .. }| Named {
            name,
            generation,
            promise,
            bias,
            scale,
        });
        let (biases, away): (Vec<f32>, Vec<Vec<f32>>) = strangers.into_iter().unzip();
        let strangers = Strangers::new(hidden, biases, &away.concat());
        Self { skills: skills.collect(), weights, strangers, text, thresholds }
    }

    /// Names and generations that can be routed to, by name: the order of all scores.
    pub fn skills(&self) -> impl ExactSizeIterator<Item = (&SkillName, Digest)> {
        self.skills.iter().map(|skill| (&skill.name, skill.generation))
    }

    /// Every skill's score of a prompt of which `features` (`[hidden]`) are the pooled state: about 1 for its own prompts, about 0
    /// for others'.
    ///
    /// # Errors
    /// If `features` are of another width, or not finite.
    pub fn by_features(&self, features: &[f32]) -> Result<Vec<f64>, RouterError> {
        let Some(weights) = &self.weights else { return Ok(Vec::new()) };
        let expected = weights.inputs();
        if features.len() != expected {
            return Err(RouterError::Width { found: features.len(), expected });
        }
        if let Some(value) = features.iter().find(|value| !value.is_finite()) {
            return Err(RouterError::NotFinite(*value));
        }
        let row = unit(features);
        let nearest = self.strangers.as_ref().map_or(0.0, |strangers| strangers.nearest(&row));
        let products = times(weights, &row);
        let score =
            |(product, skill): (&f32, &Named)| (f64::from(product + skill.bias) - nearest) / f64::from(skill.scale);
        Ok(products.iter().zip(&self.skills).map(score).collect())
    }

    /// Every skill's score of a prompt by its words: its BM25 score as a part of what a document could have at most.
    pub fn by_text(&self, prompt: &str) -> Vec<f64> {
        self.text.scores(prompt)
    }

    /// Chooses by `scores`, one a skill in their order.
    pub fn choose(&self, by: RouteBy, scores: &[f64], evidence: &Evidence<'_>) -> Route {
        assert_eq!(scores.len(), self.skills.len(), "one score a skill");
        let (threshold, margin) = match by {
            RouteBy::Ridge => (self.thresholds.features, self.thresholds.margin),
            RouteBy::Bm25 => (self.thresholds.text, 0.0),
            // Votes sum to 1, and say nothing of strangers.
            RouteBy::Arrow => (0.0, 0.0),
        };
        let words = evidence.words.map(|prompt| self.by_text(prompt));
        let mut found: Vec<(usize, Scored)> = (best(scores, threshold).into_iter())
            .map(|skill| {
                let Named { name, generation, promise, .. } = &self.skills[skill];
                let usefulness = evidence.usefulness(*generation, *promise);
                let text = words.as_ref().map(|words| words[skill]);
                let score = scores[skill] * if scores[skill] > 0.0 { usefulness } else { 1.0 };
                (skill, Scored { skill: name.clone(), score, prompt: scores[skill], text, usefulness })
            })
            .collect();
        // Indices are in the order of names, which breaks ties.
        found.sort_by(|(i, a), (j, b)| b.score.total_cmp(&a.score).then(i.cmp(j)));
        let chosen = decide(&found, threshold, margin);
        let lead = match &found[..] {
            [] => None,
            [(_, best)] => Some(best.score - threshold),
            [(_, best), (_, second), ..] => Some(best.score - second.score.max(threshold)),
        };
        let chosen_skill = chosen.map(|place| found[place].0);
        found.truncate(SHOWN);
        Route {
            choice: chosen_skill.map(|skill| self.skills[skill].name.clone()),
            generation: chosen_skill.map(|skill| self.skills[skill].generation),
            scores: found.into_iter().map(|(_, scored)| scored).collect(),
            skills: self.skills.len(),
            by,
            threshold,
            margin,
            lead,
            contested: chosen.is_some_and(|place| place > 0),
        }
    }
}

/// Those that reach `threshold` and at least the best few, in no order.
fn best(scores: &[f64], threshold: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let by_score = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if order.len() > SHOWN {
        order.select_nth_unstable_by(SHOWN, by_score);
        let rest = order.split_off(SHOWN);
        order.extend(rest.into_iter().filter(|&skill| threshold > 0.0 && scores[skill] >= threshold));
    }
    order
}

/// The place of the choice among `found`, best first: the best, unless others reach the threshold within the margin and the words of
/// one of them fit better by more than it is behind.
fn decide(found: &[(usize, Scored)], threshold: f64, margin: f64) -> Option<usize> {
    let best = found.first().filter(|(_, best)| best.score >= threshold)?.1.score;
    let contenders = found.iter().take_while(|(_, s)| s.score >= threshold && s.score > best - margin).count().max(1);
    let both = |place: usize| found[place].1.score + found[place].1.text.unwrap_or(0.0);
    (0..contenders).reduce(|a, b| if both(b) > both(a) { b } else { a })
}

impl Evidence<'_> {
    fn usefulness(&self, generation: Digest, promise: f64) -> f64 {
        match (self.outcomes.get(&generation), self.explore) {
            (record, Some(seed)) => {
                let record = record.copied().unwrap_or_default();
                Usefulness { record, promise }.draw(seed.purpose(&generation.to_string()))
            }
            (Some(record), None) => Usefulness { record: *record, promise }.mean(),
            (None, None) => 1.0,
        }
    }
}
