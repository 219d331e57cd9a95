//! Index and ledger as bytes, which can be computed again: a digest, a header in JSON, then numbers in one flat run. Whatever does
//! not read back whole is none. Never touches a disk.

use super::{
    Ledger, RouterError, Skipped, Terms,
    index::{Index, Named, Strangers, Thresholds},
    ledger::Known,
    statistics::{GRID, Statistics},
    text::Bm25,
};
use crate::{
    common::Digest,
    library::{BaseId, RoutingFeatures, SkillName},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use socius_kernels::linear::{PackedLinear, WeightType};
use std::collections::BTreeMap;

/// Changes with the layout of either file, and with what is computed from the same skills.
pub const FORMAT: u32 = 4;
const DIGEST: usize = 32;

#[derive(Serialize, Deserialize)]
struct IndexHeader {
    format: u32,
    /// What it was solved from.
    key: Digest,
    hidden: usize,
    skills: Vec<Named>,
    /// Biases of the background's prompts, whose weights follow the skills'.
    strangers: Vec<f32>,
    thresholds: Thresholds,
    /// With the number of their postings, which follow the weights.
    terms: Vec<(String, u32)>,
}

impl Index {
    /// What [`Index::from_bytes`] reads; `key` says what it was solved from.
    pub fn to_bytes(&self, key: Digest) -> Vec<u8> {
        let hidden = self.weights.as_ref().map_or(0, PackedLinear::inputs);
        let (terms, postings) = self.text.parts();
        let header = IndexHeader {
            format: FORMAT,
            key,
            hidden,
            skills: self.skills.clone(),
            strangers: self.strangers.as_ref().map_or_else(Vec::new, |strangers| strangers.biases.clone()),
            thresholds: self.thresholds,
            terms: terms.into_iter().map(|(term, count)| (term.to_owned(), count)).collect(),
        };
        let mut body = Vec::with_capacity(4 * hidden * (header.skills.len() + header.strangers.len()) + postings.len());
        let mut row = vec![0.0f32; hidden];
        let strangers = self.strangers.iter().map(|strangers| &strangers.weights);
        for weights in self.weights.iter().chain(strangers) {
            for output in 0..weights.outputs() {
                weights.row(output, &mut row);
                body.extend(row.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        body.extend(postings);
        sealed(&header, &body)
    }

    /// The index that was solved from what `key` says; none if these bytes are not that, whole.
    pub fn from_bytes(bytes: &[u8], key: Digest) -> Option<Self> {
        let (header, body): (IndexHeader, _) = opened(bytes)?;
        let IndexHeader { format, key: found, hidden, skills, strangers, thresholds, terms } = header;
        if format != FORMAT || found != key || (hidden == 0 && !skills.is_empty()) {
            return None;
        }
        let (values, rest) = body.split_at_checked(skills.len().checked_mul(4 * hidden)?)?;
        let (away, postings) = rest.split_at_checked(strangers.len().checked_mul(4 * hidden)?)?;
        let [values, away] = [values, away].map(|bytes| numbers::<4, f32>(bytes, f32::from_le_bytes));
        let weights = (!skills.is_empty()).then(|| PackedLinear::new(&values, (skills.len(), hidden), WeightType::F32));
        let strangers = Strangers::new(hidden, strangers, &away);
        let text = Bm25::from_parts(skills.len(), terms, postings)?;
        Some(Self { skills, weights, strangers, text, thresholds })
    }
}

#[derive(Serialize, Deserialize)]
struct LedgerHeader {
    format: u32,
    /// Of the background that it was begun with.
    background: Digest,
    base: BaseId,
    skills: BTreeMap<SkillName, KnownHeader>,
    skipped: BTreeMap<SkillName, Skipped>,
}

#[derive(Serialize, Deserialize)]
struct KnownHeader {
    generation: Digest,
    promise: f64,
    terms: Terms,
    rows: usize,
    sampled: usize,
}

impl Ledger {
    /// What [`Ledger::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let hidden = self.background.hidden;
        let known = |known: &Known| KnownHeader {
            generation: known.generation,
            promise: known.promise,
            terms: known.terms.clone(),
            rows: known.rows,
            sampled: known.sample.len() / hidden,
        };
        let header = LedgerHeader {
            format: FORMAT,
            background: Digest::of(self.background.to_bytes()),
            base: self.base.clone(),
            skills: self.skills.iter().map(|(name, skill)| (name.clone(), known(skill))).collect(),
            skipped: self.skipped.clone(),
        };
        let mut body: Vec<u8> = self.statistics.values().into_iter().flat_map(f64::to_le_bytes).collect();
        for skill in self.skills.values() {
            body.extend(skill.sum.iter().flat_map(|value| value.to_le_bytes()));
            let grid = |value: &f32| (f64::from(*value) * GRID) as i16;
            body.extend(skill.sample.iter().flat_map(|value| grid(value).to_le_bytes()));
        }
        sealed(&header, &body)
    }

    /// The ledger over `base` that began with `background`; none if these bytes are not that, whole.
    ///
    /// # Errors
    /// As [`Ledger::new`].
    pub fn from_bytes(bytes: &[u8], base: &BaseId, background: &RoutingFeatures) -> Result<Option<Self>, RouterError> {
        let mut ledger = Self::new(base.clone(), background.clone())?;
        let Some((header, body)) = opened::<LedgerHeader>(bytes) else { return Ok(None) };
        let same =
            header.format == FORMAT && header.base.same(base) && header.background == Digest::of(background.to_bytes());
        Ok((same && ledger.fill(header, body).is_some()).then_some(ledger))
    }

    fn fill(&mut self, header: LedgerHeader, body: &[u8]) -> Option<()> {
        let hidden = self.background.hidden;
        let (statistics, mut rest) = body.split_at_checked(8 * (1 + hidden + hidden * hidden))?;
        self.statistics = Statistics::from_values(hidden, &numbers(statistics, f64::from_le_bytes))?;
        self.skipped = header.skipped;
        for (name, known) in header.skills {
            let KnownHeader { generation, promise, terms, rows, sampled } = known;
            let (sum, after) = rest.split_at_checked(8 * hidden)?;
            let (sample, after) = after.split_at_checked(2 * hidden.checked_mul(sampled)?)?;
            rest = after;
            let sum = numbers(sum, f64::from_le_bytes);
            let grid: Vec<i16> = numbers(sample, i16::from_le_bytes);
            let sample = grid.into_iter().map(|value| (f64::from(value) / GRID) as f32).collect();
            self.skills.insert(name, Known { generation, promise, terms, rows, sum, sample });
        }
        rest.is_empty().then_some(())
    }
}

/// SHA-256 of the rest, length of the header, header, body.
fn sealed(header: &impl Serialize, body: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).expect("a header is JSON");
    let mut bytes = vec![0; DIGEST];
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header);
    bytes.extend(body);
    let digest = Digest::of(&bytes[DIGEST..]);
    bytes[..DIGEST].copy_from_slice(digest.bytes());
    bytes
}

fn opened<H: DeserializeOwned>(bytes: &[u8]) -> Option<(H, &[u8])> {
    let (digest, rest) = bytes.split_at_checked(DIGEST)?;
    if Digest::of(rest).bytes() != digest {
        return None;
    }
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (header, body) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some((serde_json::from_slice(header).ok()?, body))
}

fn numbers<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|chunk| read(chunk.try_into().expect("a chunk of N bytes"))).collect()
}
