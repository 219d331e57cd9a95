//! What a skill costs against reading its documents again for every query: operations, seconds, bytes. Arithmetic; never runs a model.

use super::{reading::Reading, study::Notes};
use crate::{
    agent::{
        Base, Learned,
        stream::{forward, forward_rows, training},
    },
    lora::ActiveAdapter,
};
use serde::Serialize;
use socius_models::{Dtype, Layout, Projection, Spec};

/// What one query takes: its question read and its answer drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Query {
    /// Floating-point operations.
    pub flops: f64,
    /// Wall time.
    pub seconds: f64,
    /// Bytes that are held for it beside the base and the query's own tokens.
    pub bytes: u64,
}

/// Both ways of answering, and when the skill pays.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Price {
    /// Tokens of the documents.
    pub document_tokens: usize,
    /// A query with the documents in context, read again.
    pub in_context: Query,
    /// A query to the skill.
    pub skill: Query,
    /// How many times less memory the skill holds.
    pub memory_ratio: f64,
    /// Operations that the skill cost, questions and evaluation included.
    pub flops: f64,
    /// Seconds that it cost.
    pub seconds: f64,
    /// Queries after which it has cost fewer operations; none if never.
    pub pays_after_flops: Option<u64>,
    /// Queries after which it has cost less time; none if never.
    pub pays_after_seconds: Option<u64>,
}

/// What was spent, and how queries were measured.
pub(super) struct Paid<'a> {
    pub(super) notes: &'a Notes,
    /// By everything that was learned, taken or not.
    pub(super) spent: Vec<Spent>,
    pub(super) skill: &'a ActiveAdapter,
    /// With documents in context, and by the skill.
    pub(super) readings: [&'a Reading; 2],
    pub(super) document_tokens: usize,
}

/// What learning took.
pub(super) struct Spent {
    layout: Layout,
    read_tokens: u64,
    sampled_tokens: u64,
    trained_tokens: u64,
    scored_tokens: u64,
    seconds: f64,
}

impl Spent {
    pub(super) fn of(learned: &Learned) -> Self {
        let Learned { read_tokens, sampled_tokens, trained_tokens, scored_tokens, seconds, .. } = *learned;
        let layout = learned.adapter.layout.clone();
        Self { layout, read_tokens, sampled_tokens, trained_tokens, scored_tokens, seconds }
    }

    /// Operations of training. A prefix of p positions has attention's products with them instead of factors: two forward, five backward.
    fn training(&self, spec: &Spec) -> f64 {
        let attention = 2.0 * 7.0 * (spec.layers * spec.q_dim() * self.layout.positions()) as f64;
        training(spec, self.layout.factors(), self.trained_tokens, self.scored_tokens)
            + attention * self.trained_tokens as f64
    }
}

/// Bytes of keys and values of `tokens`.
fn kv_bytes(base: &Base, tokens: usize) -> u64 {
    let spec = base.spec();
    let number = if matches!(base.dtype, Dtype::F32 | Dtype::F64) { 4 } else { 2 };
    (tokens * spec.layers * 2 * spec.kv_dim() * number) as u64
}

/// Bytes of an adapter of `parameters`, as it is kept: in f32, of which passes make a copy in bf16.
fn adapter_bytes(parameters: usize) -> u64 {
    (parameters * size_of::<f32>()) as u64
}

/// The largest of `ranks` whose adapter takes at most `share` of the documents' keys and values; the smallest if none does.
pub(super) fn rank(base: &Base, tokens: usize, ranks: &[usize], share: f64) -> usize {
    let parameters = |rank: usize| Layout::uniform(base.spec(), &Projection::ALL, rank, 1.0).len();
    let room = share * kv_bytes(base, tokens) as f64;
    let fits = |rank: &&usize| adapter_bytes(parameters(**rank)) as f64 <= room;
    let smallest = || ranks.iter().min().expect("there are ranks");
    *ranks.iter().filter(fits).max().unwrap_or_else(smallest)
}

/// The longest prefix that takes at most `share` of the memory of `tokens` tokens' keys and values, and at least one position. It is kept in
/// f32, as an adapter is.
pub(super) fn positions(base: &Base, tokens: usize, share: f64) -> usize {
    let one = adapter_bytes(Layout::prefix(base.spec(), 1).len());
    ((share * kv_bytes(base, tokens) as f64) as u64 / one).max(1) as usize
}

/// Operations that read `tokens` after `before` others, of which `drawn` are predicted.
fn after(spec: &Spec, adapter: usize, before: usize, tokens: usize, drawn: usize) -> f64 {
    let (before, tokens, drawn) = (before as u64, tokens as u64, drawn as u64);
    forward(spec, adapter, before + tokens - drawn, drawn) - forward(spec, adapter, before, 0)
}

pub(super) fn price(base: &Base, paid: &Paid<'_>) -> Price {
    let Paid { notes, ref spent, skill: ActiveAdapter { layout, .. }, readings: [documents, skill], document_tokens } =
        *paid;
    let spec = base.spec();
    let queries = skill.tokens.len().max(1);
    let mean = |total: usize| total.div_ceil(queries);
    let answer = mean(skill.tokens.iter().sum());
    let asked = |reading: &Reading| mean(reading.question_tokens) + answer;
    let in_context = Query {
        flops: forward(spec, 0, document_tokens as u64, 0) + after(spec, 0, document_tokens, asked(documents), answer),
        seconds: documents.context_seconds / documents.context_tokens.max(1) as f64 * document_tokens as f64
            + documents.seconds / queries as f64,
        bytes: kv_bytes(base, document_tokens),
    };
    let by_skill = Query {
        flops: after(spec, layout.factors(), layout.positions(), asked(skill), answer),
        seconds: skill.seconds / queries as f64,
        bytes: adapter_bytes(layout.len()),
    };
    let rows = |read, drawn| forward_rows(spec, 0, read, drawn);
    let learning = spent.iter().map(|spent| rows(spent.read_tokens, spent.sampled_tokens) + spent.training(spec));
    let flops = rows(notes.read_tokens, notes.sampled_tokens) + learning.sum::<f64>();
    let seconds = notes.seconds + spent.iter().map(|spent| spent.seconds).sum::<f64>();
    Price {
        document_tokens,
        in_context,
        skill: by_skill,
        memory_ratio: in_context.bytes as f64 / by_skill.bytes.max(1) as f64,
        flops,
        seconds,
        pays_after_flops: pays(flops, in_context.flops - by_skill.flops),
        pays_after_seconds: pays(seconds, in_context.seconds - by_skill.seconds),
    }
}

/// The number of queries that save `cost`.
fn pays(cost: f64, saved: f64) -> Option<u64> {
    (saved > 0.0).then(|| (cost / saved).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skill_pays_once_what_queries_save_covers_its_cost() {
        for (cost, saved, expected) in [(10.0, 3.0, Some(4)), (9.0, 3.0, Some(3)), (9.0, 0.0, None), (9.0, -1.0, None)]
        {
            assert_eq!(pays(cost, saved), expected);
        }
    }

    #[test]
    fn a_later_token_costs_what_attends_to_everything_before() {
        let spec = Spec::tiny();
        let attention = 4.0 * (spec.layers * spec.q_dim()) as f64;
        assert_eq!(after(&spec, 0, 9, 1, 0) - after(&spec, 0, 0, 1, 0), 9.0 * attention);
        assert_eq!(after(&spec, 0, 4, 3, 1), forward(&spec, 0, 6, 1) - forward(&spec, 0, 4, 0));
    }
}
