//! Finding skills: by words in what is said about them, and by what their prompts look like to the base. Never sees a prompt.

use super::{Generation, Library, LibraryError, SkillSummary};
use crate::common::Digest;
use serde::Serialize;
use std::collections::HashMap;

/// A skill that was looked for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The skill.
    #[serde(flatten)]
    pub skill: SkillSummary,
    /// How well it fits: higher is better, and only comparable within one search.
    pub score: f64,
}

/// What a word weighs where it occurs.
const NAME: f64 = 4.0;
const ENVIRONMENT: f64 = 2.0;
const WORDS: f64 = 1.0;

impl Library {
    /// Skills of whose name, environment, description or notes every word of `text` is a part, the best first. Case does not matter.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn search(&self, text: &str) -> Result<Vec<Found>, LibraryError> {
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        let mut notes: HashMap<Digest, String> = HashMap::new();
        for (id, note) in self.index.notes()? {
            notes.entry(id).or_default().push_str(&format!("{}\n", note.to_lowercase()));
        }
        let fit = |skill: SkillSummary| {
            let fields = [
                (NAME, skill.name.as_str().to_lowercase()),
                (ENVIRONMENT, skill.env.as_deref().unwrap_or_default().to_lowercase()),
                (WORDS, skill.description.to_lowercase()),
                (WORDS, notes.get(&skill.generation).cloned().unwrap_or_default()),
            ];
            let score = words.iter().map(|word| weight(word, &fields)).sum::<Option<f64>>()?;
            Some(Found { skill, score })
        };
        Ok(ranked(self.list()?.skills.into_iter().filter_map(fit).collect()))
    }

    /// The other skills that the router knows, by the cosine between the means of their routing features and of this one's, each less
    /// the mean over all skills; those whose features were taken after another layer are left out.
    ///
    /// # Errors
    /// If the index cannot be read, or `generation` has no routing features or damaged ones.
    pub fn search_like(&self, generation: &Generation) -> Result<Vec<Found>, LibraryError> {
        let own = self.features(generation.id, &generation.manifest.blobs)?.ok_or_else(|| {
            let what = format!("{} has no routing features to compare", generation.manifest.name);
            LibraryError::NotFound { what }
        })?;
        let mut skills: HashMap<Digest, SkillSummary> =
            self.list()?.skills.into_iter().map(|skill| (skill.generation, skill)).collect();
        let same = |(id, layer, bytes): (Digest, usize, Vec<u8>)| {
            (layer == own.layer && bytes.len() == 4 * own.hidden).then(|| (id, values(&bytes)))
        };
        let centroids: Vec<(Digest, Vec<f32>)> = self.index.centroids()?.into_iter().filter_map(same).collect();
        let mean = mean(centroids.iter().map(|(_, centroid)| centroid.as_slice()), own.hidden);
        let own = own.centroid();
        let fit = |(id, centroid): (Digest, Vec<f32>)| {
            let skill = skills.remove(&id).filter(|_| id != generation.id)?;
            Some(Found { skill, score: cosine(&own, &centroid, &mean) })
        };
        Ok(ranked(centroids.into_iter().filter_map(fit).collect()))
    }
}

/// The most that `word` weighs in a field, double where it is a whole word of it; none where it is in no field.
fn weight(word: &str, fields: &[(f64, String)]) -> Option<f64> {
    let within = |(weight, field): &(f64, String)| {
        let whole = || field.split(|c: char| !c.is_alphanumeric()).any(|part| part == word);
        field.contains(word).then(|| if whole() { 2.0 * weight } else { *weight })
    };
    fields.iter().filter_map(within).max_by(f64::total_cmp)
}

fn ranked(mut found: Vec<Found>) -> Vec<Found> {
    found.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.skill.name.cmp(&b.skill.name)));
    found
}

fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]])).collect()
}

fn mean<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, width: usize) -> Vec<f32> {
    let count = rows.len().max(1) as f64;
    let mut sum = vec![0.0_f64; width];
    rows.for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value)));
    sum.iter().map(|sum| (sum / count) as f32).collect()
}

fn cosine(a: &[f32], b: &[f32], mean: &[f32]) -> f64 {
    let (mut aa, mut bb, mut ab) = (0.0, 0.0, 0.0);
    for ((a, b), mean) in a.iter().zip(b).zip(mean) {
        let (a, b) = (f64::from(a - mean), f64::from(b - mean));
        (aa, bb, ab) = (aa + a * a, bb + b * b, ab + a * b);
    }
    if aa > 0.0 && bb > 0.0 { ab / (aa * bb).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Fixture;
    use super::*;
    use crate::library::{Candidate, Evidence, Finding};

    fn names(found: &[Found]) -> Vec<&str> {
        found.iter().map(|found| found.skill.name.as_str()).collect()
    }

    #[test]
    fn every_word_must_occur_and_names_weigh_most() {
        let fixture = Fixture::new();
        for (i, (name, description)) in
            [("cities", "names of cities"), ("reverse-words", "turns letters"), ("other", "Cities, turned")]
                .into_iter()
                .enumerate()
        {
            let lora = fixture.lora(i as u64 + 1);
            let candidate = fixture.candidate(name, 1, &lora);
            fixture.library.publish(&Candidate { description: description.into(), ..candidate }).unwrap();
        }
        let search = |text: &str| fixture.library.search(text).unwrap();
        assert_eq!(names(&search("CITIES")), ["cities", "other"]);
        assert_eq!(names(&search("turn")), ["other", "reverse-words"]);
        assert_eq!(names(&search("turn cit")), ["other"]);
        // Every skill here was learned in `reverse`.
        assert_eq!(names(&search("reverse")), ["reverse-words", "cities", "other"]);
        assert_eq!(names(&search("")).len(), 3);
        assert!(search("nothing").is_empty());
        let id = search("other")[0].skill.generation;
        let finding = Finding::Note { text: "Knows Danish".into() };
        fixture.library.attach(Evidence::new(id, finding, "2025-01-02T03:04:05Z".parse().unwrap())).unwrap();
        assert_eq!(names(&search("danish")), ["other"]);
    }

    #[test]
    fn skills_with_similar_prompts_are_found_nearest_first() {
        let fixture = Fixture::new();
        for (i, (name, features)) in [("a", 1), ("b", 1), ("c", 2), ("d", 3)].into_iter().enumerate() {
            let lora = fixture.lora(i as u64 + 1);
            fixture.library.publish(&fixture.candidate(name, features, &lora)).unwrap();
        }
        let a = fixture.library.show(&"a".parse().unwrap()).unwrap();
        let found = fixture.library.search_like(&a).unwrap();
        assert_eq!((found.len(), found[0].skill.name.as_str()), (3, "b"));
        assert!((found[0].score - 1.0).abs() < 1e-6 && found[1].score < 0.9, "{found:?}");
    }
}
