//! What is trained on: a prompt, a completion, and what the loss needs to know of each completion token. Never where it came from.

use super::TrainError;
use socius_models::{Spec, TargetTokens};

/// What the loss may read of one completion token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Label {
    /// Factor of the token's term; 0 leaves the token out of loss, statistics and normalisation.
    pub weight: f32,
    /// How much better than expected the sample was.
    pub advantage: f32,
    /// Logprob that was recorded when the token was sampled.
    pub sampled: Option<f32>,
    /// Logprob under the base, as [`super::attach_base`] finds it.
    pub base: Option<f32>,
    /// A teacher's distribution (token, probability) to be matched instead of the token itself.
    pub soft: Option<Vec<(u32, f32)>>,
}

/// One sequence. Neighbouring rows of a learner that have the same prompt compute it once.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainRow {
    /// Token ids that are only read; at least one.
    pub prompt: Vec<u32>,
    /// Token ids that follow; at least one.
    pub completion: Vec<u32>,
    /// One a completion token.
    pub labels: Vec<Label>,
}

impl TrainRow {
    /// A revealed answer: every token has weight 1.
    pub fn answer(prompt: Vec<u32>, completion: Vec<u32>) -> Self {
        let labels = vec![Label { weight: 1.0, ..Label::default() }; completion.len()];
        Self { prompt, completion, labels }
    }

    /// A sample with the logprobs recorded when it was drawn, and its advantage (for every token).
    ///
    /// # Panics
    /// Unless there is one logprob a token.
    pub fn sample(prompt: Vec<u32>, completion: Vec<u32>, logprobs: &[f32], advantage: f32) -> Self {
        assert_eq!(completion.len(), logprobs.len(), "one logprob a sampled token");
        let label = |&logprob| Label { weight: 1.0, advantage, sampled: Some(logprob), ..Label::default() };
        Self { prompt, completion, labels: logprobs.iter().map(label).collect() }
    }

    /// A teacher's next-token distributions along `completion`.
    ///
    /// # Panics
    /// Unless there is one distribution a token.
    pub fn soft(prompt: Vec<u32>, completion: Vec<u32>, teacher: Vec<Vec<(u32, f32)>>) -> Self {
        assert_eq!(completion.len(), teacher.len(), "one distribution a token");
        let label = |soft| Label { weight: 1.0, soft: Some(soft), ..Label::default() };
        Self { prompt, completion, labels: teacher.into_iter().map(label).collect() }
    }

    /// Tokens that have a loss.
    pub fn loss_tokens(&self) -> usize {
        self.labels.iter().filter(|label| label.weight != 0.0).count()
    }

    /// The completion up to its last token that has a loss: what comes after it is not computed.
    pub(super) fn trained(&self) -> &[u32] {
        let end = self.labels.iter().rposition(|label| label.weight != 0.0).map_or(0, |last| last + 1);
        &self.completion[..end]
    }

    /// What is scored at completion token `i`.
    pub(super) fn target(&self, i: usize) -> TargetTokens {
        match &self.labels[i].soft {
            Some(soft) => TargetTokens::Soft(soft.clone()),
            None => TargetTokens::Token(self.completion[i]),
        }
    }

    /// Whether a pass over `spec` can take the row, the `row`-th of its call, after a trained prefix of `before` positions.
    pub(super) fn check(&self, row: usize, before: usize, spec: &Spec) -> Result<(), TrainError> {
        let soft = self.labels.iter().filter_map(|label| label.soft.as_ref());
        let numbers = |label: &Label| {
            let given = [Some(label.weight), Some(label.advantage), label.sampled, label.base];
            given.into_iter().flatten().all(f32::is_finite)
        };
        let what = if let Some(what) = sequence_fault(&self.prompt, &self.completion, before, spec) {
            what
        } else if self.labels.len() != self.completion.len() {
            format!("{} labels for {} completion tokens: one a token", self.labels.len(), self.completion.len())
        } else if !self.labels.iter().all(numbers) {
            "a weight, advantage or logprob is not finite: each must be a number".into()
        } else if soft.flatten().any(|&(id, p)| id as usize >= spec.vocab || !(0.0..=1.0).contains(&p)) {
            format!("a soft target is no probability of a token id below {}", spec.vocab)
        } else {
            return Ok(());
        };
        Err(TrainError::Row { row, what })
    }
}

/// What keeps a sequence from being scored after a trained prefix of `before` positions, if anything does.
pub(super) fn sequence_fault(prompt: &[u32], completion: &[u32], before: usize, spec: &Spec) -> Option<String> {
    let length = before + prompt.len() + completion.len();
    if prompt.is_empty() || completion.is_empty() {
        Some("prompt and completion need at least one token each".into())
    } else if length > spec.context_max {
        Some(format!("{length} tokens, and the context holds {}: shorten the row", spec.context_max))
    } else {
        let unknown = prompt.iter().chain(completion).find(|&&id| id as usize >= spec.vocab)?;
        Some(format!("token id {unknown} does not exist: ids end at {}", spec.vocab - 1))
    }
}
