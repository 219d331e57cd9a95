//! A base whose attention is written down rather than trained: it answers every question of the language from its context, at any length, so
//! that what differs between arms is what they cost and what they lose, not how well a base happened to learn to look things up. Never
//! sees items or questions.
//!
//! As in Tracr (Lindner et al. 2023, arXiv 2301.05062), but with the heads written by hand. The residual stream is four codes
//! of twelve dimensions (a token's own symbol, the one before, the one before that, what was found) and flags of one dimension:
//!
//! | layer | head | what it does |
//! |---|---|---|
//! | 0 | 0, 1 | copy the code of the symbol one and two places back (by rotary position alone) |
//! | 1 | 0 | `GET`, `HOP`, `MAX`: attend to the values whose two preceding symbols match; for `MAX` the larger the more |
//! | 1 | 1 | `FIND`: the same with the two symbols exchanged |
//! | 1 | 2 | `WHO`: match value and second symbol, copy the first |
//! | 1 | 3 | at the second symbol of any key: was there an item with this key before? (an induction head, arXiv 2209.11895) |
//! | 2 | 0 | `TWICE`: attend to where that was so |
//! | 2 | 1 | `HOP`: look up the link of what was found |
//!
//! A head that finds nothing rests on the beginning, whose code is zero; then the last symbol of the question stays the most
//! probable, which says "not here". The MLPs are random features whose way out is zero: they do nothing until something is
//! trained on them.

use super::symbols::{ANY, BEGIN, FIND, GET, HOP, KEYS, MAX, TWICE, VALUES, VOCAB, WHO, is_value};
use crate::{common::Seed, lab::synthetic::symbols::LINK};
use candle_core::{Device, Tensor};
use socius_models::{Activation, LayerSlot, ModelError, RandomSource, RopeScaling, Slot, Spec, TensorSource};
use std::collections::HashMap;

/// Dimensions of a symbol's code.
const CODE: usize = 12;
/// Where the codes stand in the residual stream.
const OWN: usize = 0;
const BEFORE: usize = CODE;
const BEFORE_THAT: usize = 2 * CODE;
const FOUND: usize = 3 * CODE;
/// Where the flags stand.
const FLAGS: usize = 4 * CODE;
const HIDDEN: usize = 64;
const HEADS: usize = 4;
const HEAD_DIM: usize = 36;
/// Pairs of a head's dimensions that turn with position; all others do not.
const TURNING: usize = 4;
/// Radians a token of the turning pairs: the best of 2,000 random ones for [`GAP`] over all distances below 16,384.
const FREQUENCIES: [f64; TURNING] = [2.0287, 1.24182, 0.269753, 0.0421035];
/// Squared length of every embedding, and of a value's residual once the codes of the two symbols before are beside its own.
const EMBEDDED: f64 = 4.0;
const READ: f64 = EMBEDDED + 2.0;

/// Score of one matching symbol, in nats. Two matches make 2β, the best mismatch about 1.5β, and the beginning stands between.
const BETA: f64 = 600.0;
/// What values and the beginning have before other tokens.
const SELECT: f64 = 3.0 * BETA;
/// What the beginning has before all others, for heads that are not meant.
const REST: f64 = 4.0 * BETA;
/// Where the beginning stands if two symbols, or one, should match.
const BOTH: f64 = 1.75 * BETA;
const ONE: f64 = 0.75 * BETA;
/// Nats between the smallest and the largest value: 8 a step, so 2,000 of the next smaller one do not outweigh the largest.
const RANKED: f64 = 8.0 * VALUES as f64;
/// How much louder an answer is than the question's own symbol.
const LOUD: f64 = 16.0;

/// A flag's dimension.
#[derive(Clone, Copy)]
enum Flag {
    Always,
    Key,
    Value,
    Begin,
    Size,
    Filler,
    Get,
    Find,
    Who,
    Max,
    Twice,
    Hop,
    Seen,
}

impl Flag {
    fn at(self) -> usize {
        FLAGS + self as usize
    }
}

/// What a base may differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Width of the MLPs.
    pub intermediate: usize,
    /// Longest sequence in tokens.
    pub context_max: usize,
}

/// The written-down base as a checkpoint.
pub struct Circuit {
    spec: Spec,
    written: HashMap<Slot, Vec<f64>>,
    random: RandomSource,
}

impl Circuit {
    /// The base whose codes and random features come from `seed`.
    pub fn new(sizes: Sizes, seed: Seed) -> Self {
        let spec = spec(sizes);
        let random = RandomSource { spec: spec.clone(), seed: seed.purpose("features").key() };
        let codes = codes(seed);
        let mut circuit = Self { spec, written: HashMap::new(), random };
        circuit.embed(&codes);
        circuit.look_back();
        circuit.look_up();
        circuit.look_further(&codes[LINK as usize]);
        circuit
    }

    /// The architecture.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    fn embed(&mut self, codes: &[[f64; CODE]]) {
        let mut embedding = vec![0.0; VOCAB as usize * HIDDEN];
        for (token, row) in (0..VOCAB).zip(embedding.chunks_exact_mut(HIDDEN)) {
            row[OWN..CODE].copy_from_slice(&codes[token as usize]);
            row[Flag::Always.at()] = 1.0;
            let kind = match token {
                BEGIN => Some(Flag::Begin),
                ANY => None,
                GET => Some(Flag::Get),
                FIND => Some(Flag::Find),
                WHO => Some(Flag::Who),
                MAX => Some(Flag::Max),
                TWICE => Some(Flag::Twice),
                HOP => Some(Flag::Hop),
                token if is_value(token) => Some(Flag::Value),
                _ => Some(Flag::Key),
            };
            kind.into_iter().for_each(|flag| row[flag.at()] = 1.0);
            if is_value(token) {
                row[Flag::Size.at()] = f64::from(token - KEYS) / f64::from(VALUES - 1);
            }
            let length: f64 = row.iter().map(|x| x * x).sum();
            // Equal lengths, so that norms scale every token alike.
            row[Flag::Filler.at()] = (EMBEDDED - length).sqrt();
        }
        self.written.insert(Slot::Embedding, embedding);
        // The answer's probability is close to 1: it is four times as loud before the head.
        self.written.insert(Slot::FinalNorm, vec![4.0; HIDDEN]);
    }

    /// Layer 0: what stood one and two places back.
    fn look_back(&mut self) {
        let scale = normed(EMBEDDED);
        // Twenty-five nats for the right place before the next best, whose cosines sum up to GAP less.
        let amplitude = (25.0 * (HEAD_DIM as f64).sqrt() / GAP).sqrt() / scale;
        for (head, (back, into)) in [(1.0, BEFORE), (2.0, BEFORE_THAT)].into_iter().enumerate() {
            for (pair, frequency) in FREQUENCIES.into_iter().enumerate() {
                let (sin, cos) = (-back * frequency).sin_cos();
                self.q(0, head, pair, Flag::Always.at(), amplitude * cos);
                self.q(0, head, pair + HEAD_DIM / 2, Flag::Always.at(), amplitude * sin);
                self.k(0, head, pair, Flag::Always.at(), amplitude);
            }
            self.copy(0, head, (OWN, 1.0 / scale), (into, 1.0));
        }
    }

    /// Layer 1: what the items say.
    fn look_up(&mut self) {
        let heads: [([(usize, usize); 2], usize, &[(Flag, f64)], &[(usize, f64)]); 4] = [
            (
                [(BEFORE, BEFORE), (BEFORE_THAT, BEFORE_THAT)],
                OWN,
                &[(Flag::Get, BOTH), (Flag::Hop, BOTH), (Flag::Max, ONE)],
                &[(OWN, LOUD), (FOUND, 1.0)],
            ),
            ([(BEFORE, BEFORE_THAT), (BEFORE_THAT, BEFORE)], OWN, &[(Flag::Find, BOTH)], &[(OWN, LOUD)]),
            ([(BEFORE, BEFORE), (BEFORE_THAT, OWN)], BEFORE_THAT, &[(Flag::Who, BOTH)], &[(OWN, LOUD)]),
            ([(OWN, BEFORE), (BEFORE, BEFORE_THAT)], OWN, &[(Flag::Key, BOTH)], &[(FOUND, 1.0)]),
        ];
        let scale = normed(READ);
        for (head, (matches, copied, meant, into)) in heads.into_iter().enumerate() {
            for (i, (of_query, of_key)) in matches.into_iter().enumerate() {
                for j in 0..CODE {
                    self.q(1, head, still(i * CODE + j), of_query + j, nats(BETA, scale));
                    self.k(1, head, still(i * CODE + j), of_key + j, 1.0 / scale);
                }
            }
            self.rest(1, head, scale, meant);
            into.iter().for_each(|&into| self.copy(1, head, (copied, 1.0 / scale), into));
        }
        // The larger a value, the more.
        self.q(1, 0, still(SIZE), Flag::Max.at(), nats(RANKED, scale));
        self.k(1, 0, still(SIZE), Flag::Size.at(), 1.0 / scale);
        // That something was found is a thirteenth dimension of what the fourth head copies.
        self.write(LayerSlot::V, 1, (3 * HEAD_DIM + CODE, Flag::Value.at()), 1.0 / scale);
        self.write(LayerSlot::O, 1, (Flag::Seen.at(), 3 * HEAD_DIM + CODE), 1.0);
    }

    /// Layer 2: what was found before.
    fn look_further(&mut self, link: &[f64; CODE]) {
        // Where a key was seen before, flag and code of what was found are beside the rest.
        let (scale, seen) = (normed(EMBEDDED), normed(READ + 2.0));
        self.q(2, 0, still(0), Flag::Twice.at(), nats(BETA, scale));
        self.k(2, 0, still(0), Flag::Seen.at(), 1.0 / seen);
        self.q(2, 0, still(GATE), Flag::Always.at(), nats(REST, scale));
        self.q(2, 0, still(GATE), Flag::Twice.at(), nats(0.5 * BETA - REST, scale));
        self.k(2, 0, still(GATE), Flag::Begin.at(), 1.0 / normed(EMBEDDED));
        self.copy(2, 0, (FOUND, 1.0 / seen), (OWN, LOUD));
        // A question over two hops is as loud as what it found.
        let (loud, read) = (normed(READ + LOUD * LOUD + 1.0), normed(READ));
        for j in 0..CODE {
            self.q(2, 1, still(j), FOUND + j, nats(BETA, loud));
            self.k(2, 1, still(j), BEFORE + j, 1.0 / read);
            self.q(2, 1, still(CODE + j), Flag::Hop.at(), nats(BETA, loud) * link[j]);
            self.k(2, 1, still(CODE + j), BEFORE_THAT + j, 1.0 / read);
        }
        self.rest(2, 1, loud, &[(Flag::Hop, BOTH)]);
        self.copy(2, 1, (OWN, 1.0 / read), (OWN, 3.0 * LOUD));
    }

    /// Values and the beginning come before other tokens; the beginning stands where `meant` says for tokens of these flags, and before all
    /// for others.
    fn rest(&mut self, layer: usize, head: usize, scale: f64, meant: &[(Flag, f64)]) {
        self.q(layer, head, still(KIND), Flag::Always.at(), nats(SELECT, scale));
        self.k(layer, head, still(KIND), Flag::Value.at(), 1.0 / normed(READ));
        self.k(layer, head, still(KIND), Flag::Begin.at(), 1.0 / normed(EMBEDDED));
        self.q(layer, head, still(GATE), Flag::Always.at(), nats(REST, scale));
        meant.iter().for_each(|&(flag, at)| self.q(layer, head, still(GATE), flag.at(), nats(at - REST, scale)));
        self.k(layer, head, still(GATE), Flag::Begin.at(), 1.0 / normed(EMBEDDED));
    }

    /// What is attended to gives its code at `from` to the code at `into`.
    fn copy(&mut self, layer: usize, head: usize, (from, scale): (usize, f64), (into, gain): (usize, f64)) {
        for j in 0..CODE {
            self.write(LayerSlot::V, layer, (head * HEAD_DIM + j, from + j), scale);
            self.write(LayerSlot::O, layer, (into + j, head * HEAD_DIM + j), gain);
        }
    }

    fn q(&mut self, layer: usize, head: usize, dimension: usize, from: usize, weight: f64) {
        self.write(LayerSlot::Q, layer, (head * HEAD_DIM + dimension, from), weight);
    }

    fn k(&mut self, layer: usize, head: usize, dimension: usize, from: usize, weight: f64) {
        self.write(LayerSlot::K, layer, (head * HEAD_DIM + dimension, from), weight);
    }

    fn write(&mut self, slot: LayerSlot, layer: usize, (row, column): (usize, usize), weight: f64) {
        let slot = Slot::Layer(layer, slot);
        let shape = self.spec.shape(slot);
        let matrix = self.written.entry(slot).or_insert_with(|| vec![0.0; shape[0] * shape[1]]);
        matrix[row * shape[1] + column] = weight;
    }
}

impl TensorSource for Circuit {
    fn read(&self, slot: Slot) -> Result<Tensor, ModelError> {
        use LayerSlot::{AttentionNorm, Gate, MlpNorm, Up};
        let shape = self.spec.shape(slot);
        let values = match (self.written.get(&slot), slot) {
            (Some(values), _) => values.iter().map(|&w| w as f32).collect(),
            (None, Slot::Layer(_, Gate | Up)) => self.random.values(slot),
            (None, Slot::Layer(_, AttentionNorm | MlpNorm)) => vec![1.0; shape[0]],
            (None, _) => vec![0.0; shape.iter().product()],
        };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}

/// How far the cosines of [`FREQUENCIES`] summed over the turning pairs fall short of their number at any distance but 0.
const GAP: f64 = 0.14;
/// Of a head's dimensions that do not turn, those after two codes.
const KIND: usize = 2 * CODE;
const GATE: usize = KIND + 1;
const SIZE: usize = KIND + 2;

/// The `i`-th dimension of a head that does not turn with position: a turning pair is dimensions p and p + half.
fn still(i: usize) -> usize {
    let half = HEAD_DIM / 2;
    if i < half - TURNING { TURNING + i } else { i + 2 * TURNING }
}

/// What RMSNorm multiplies a residual of that squared length by.
fn normed(length: f64) -> f64 {
    (HIDDEN as f64 / length).sqrt()
}

/// The weight of a query that scores `nats` where its input and the key's product are 1.
fn nats(nats: f64, scale: f64) -> f64 {
    nats * (HEAD_DIM as f64).sqrt() / scale
}

fn spec(Sizes { intermediate, context_max }: Sizes) -> Spec {
    let theta: f64 = 10_000.0;
    let stretch = |i: usize| {
        let plain = theta.powf(-2.0 * i as f64 / HEAD_DIM as f64);
        // A pair that turns by 1e-12 radians a token does not turn.
        FREQUENCIES.get(i).map_or(plain * 1e12, |frequency| plain / frequency)
    };
    Spec {
        family: "llama".into(),
        vocab: VOCAB as usize,
        hidden: HIDDEN,
        intermediate,
        layers: 3,
        heads: HEADS,
        kv_heads: HEADS,
        head_dim: HEAD_DIM,
        norm_eps: 1e-6,
        rope_theta: theta,
        rope_scaling: RopeScaling::Factors((0..HEAD_DIM / 2).map(stretch).collect()),
        activation: Activation::Silu,
        tied_head: true,
        context_max,
    }
}

/// A unit vector a symbol, pushed apart until no two are alike; zero for those that mean nothing.
fn codes(seed: Seed) -> Vec<[f64; CODE]> {
    let mut rng = seed.purpose("codes").rng();
    let mut codes: Vec<[f64; CODE]> = (0..VOCAB).map(|_| unit(std::array::from_fn(|_| rng.normal()))).collect();
    for token in [BEGIN, ANY] {
        codes[token as usize] = [0.0; CODE];
    }
    for step in 0..300 {
        let rate = 0.3 / (1.0 + f64::from(step) / 50.0);
        let before = codes.clone();
        for (i, code) in codes.iter_mut().enumerate().filter(|(i, _)| !matches!(*i as u32, BEGIN | ANY)) {
            let mut push = [0.0; CODE];
            for (_, other) in before.iter().enumerate().filter(|(j, _)| *j != i) {
                let cosine = dot(code, other);
                // The gradient of cosine⁸: the closest pairs count most.
                let weight = 8.0 * cosine.powi(7);
                push.iter_mut().zip(other).for_each(|(push, x)| *push -= weight * x);
            }
            *code = unit(std::array::from_fn(|d| code[d] + rate * push[d]));
        }
    }
    codes
}

fn dot(a: &[f64; CODE], b: &[f64; CODE]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn unit(vector: [f64; CODE]) -> [f64; CODE] {
    let length = dot(&vector, &vector).sqrt();
    vector.map(|x| x / length)
}

#[cfg(test)]
mod tests {
    use super::super::{Context, Workload};
    use super::*;
    use socius_models::{Batch, Dtype, Model, Row};

    fn model(seed: u64) -> Model {
        let circuit = Circuit::new(Sizes { intermediate: 32, context_max: 16_384 }, Seed::new(seed));
        Model::load(circuit.spec().clone(), &circuit, &Device::Cpu, Dtype::F32).unwrap()
    }

    fn best(logits: &[f32]) -> u32 {
        (0..VOCAB).max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize])).unwrap()
    }

    /// The most probable answer to each question after the context.
    fn asked(model: &Model, context: &[u32], questions: &[[u32; 3]]) -> Vec<u32> {
        let mut read = model.sequence();
        model.forward(&Batch::new([Row::new(context)]), &[], &mut [&mut read], &[]).unwrap();
        let read = std::sync::Arc::new(read);
        let ask = |question: &[u32; 3]| {
            let mut own = model.fork(&read, read.len());
            let row = Row { position: read.len(), ..Row::new(question) };
            best(&model.forward(&Batch::new([row]), &[], &mut [&mut own], &[2]).unwrap())
        };
        questions.iter().map(ask).collect()
    }

    #[test]
    fn no_two_symbols_are_alike_and_no_distance_looks_like_another() {
        let codes = codes(Seed::new(0));
        let pairs = (0..codes.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        let closest = pairs.map(|(i, j)| dot(&codes[i], &codes[j])).fold(0.0, f64::max);
        assert!(closest < 0.6, "cosine {closest}");
        for distance in 1..16_384 {
            let sum: f64 = FREQUENCIES.iter().map(|f| (f * f64::from(distance)).cos()).sum();
            assert!(sum <= TURNING as f64 - GAP, "{distance}: {sum}");
        }
    }

    #[test]
    fn every_question_of_every_workload_is_answered_in_context() {
        for (workload, n, seed) in
            Workload::ALL.into_iter().flat_map(|workload| [(workload, 4, 0), (workload, 64, 1), (workload, 512, 2)])
        {
            let model = model(seed);
            let mut context: Context = workload.context(n, Seed::new(seed));
            context.questions.truncate(400);
            context.questions.retain(|question| n < 512 || question.tokens[0] % 4 == 0 || question.tokens[2] != GET);
            let questions: Vec<_> = context.questions.iter().map(|question| question.tokens).collect();
            let found = asked(&model, &context.tokens(), &questions);
            for (question, found) in context.questions.iter().zip(found) {
                assert_eq!(found, question.answer, "{workload:?} of {n}: {question:?}");
            }
        }
    }

    #[test]
    fn what_is_not_in_the_context_is_not_answered() {
        let model = model(0);
        let context = [BEGIN, 1, 2, KEYS + 3, 4, 5, KEYS + 6];
        let questions = [[1, 5, GET], [2, 4, FIND], [KEYS + 9, 2, WHO], [9, ANY, MAX], [ANY, ANY, TWICE], [1, 2, HOP]];
        let found = asked(&model, &context, &questions[..5]);
        assert_eq!(found, [GET, FIND, WHO, MAX, TWICE]);
        assert_eq!(asked(&model, &context, &[[1, 2, GET], [5, 4, FIND]]), [KEYS + 3, KEYS + 6]);
    }
}
