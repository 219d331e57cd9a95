//! Losses as small functions of per-token logprobs, in plain tensor operations; never sees models, adapters or logits.
//!
//! A loss maps [`Tokens`] to one term a token, each from that token's values alone: no sums or means (the trainer weighs and
//! normalises, see [`crate::train`]). The tensor library's tape differentiates this small function and nothing else; its
//! derivatives by logprob and entropy are where the model's explicit backward pass starts. A new objective is a few lines, and
//! objectives add up:
//!
//! ```text
//! let loss = |t: &Tokens| Ok((policy_gradient(t)? + (kl_to_base(t)? * 0.05)?)?);
//! ```

use super::{Label, TrainError};
use candle_core::{Device, Tensor, Var};

/// A function from tokens to loss terms `[tokens]`.
pub type Loss<'a> = dyn Fn(&Tokens) -> Result<Tensor, TrainError> + 'a;

/// What a loss may read: tensors `[tokens]` in f64, one element a trained token.
pub struct Tokens {
    /// `log p` of the token; of a soft target, `Σ q log p`.
    pub logprob: Tensor,
    /// Entropy of the next-token distribution p in nats.
    pub entropy: Tensor,
    /// Advantage of the token.
    pub advantage: Tensor,
    /// Entropy of the soft target q in nats; 0 for plain tokens.
    pub soft_entropy: Tensor,
    sampled: Option<Tensor>,
    base: Option<Tensor>,
}

impl Tokens {
    /// Logprob that was recorded when the token was sampled.
    ///
    /// # Errors
    /// If a token's label has none.
    pub fn sampled(&self) -> Result<&Tensor, TrainError> {
        self.sampled.as_ref().ok_or(TrainError::Label("the logprob that it was sampled with"))
    }

    /// Logprob under the base.
    ///
    /// # Errors
    /// If a token's label has none.
    pub fn base(&self) -> Result<&Tensor, TrainError> {
        self.base.as_ref().ok_or(TrainError::Label("its logprob under the base"))
    }
}

/// Negative log-likelihood; of a soft target, cross-entropy.
pub fn nll(t: &Tokens) -> Result<Tensor, TrainError> {
    Ok(t.logprob.neg()?)
}

/// KL(q ‖ p) from a soft target q: cross-entropy less what no model can save (Hinton et al. 2015, arXiv 1503.02531).
pub fn distillation(t: &Tokens) -> Result<Tensor, TrainError> {
    Ok((nll(t)? - &t.soft_entropy)?)
}

/// REINFORCE (Williams 1992): `−A log p`. With the leave-one-out advantage this is RLOO (arXiv 2402.14740).
pub fn policy_gradient(t: &Tokens) -> Result<Tensor, TrainError> {
    Ok((&t.advantage * &t.logprob)?.neg()?)
}

/// How far the probability ratio may move before it stops to pay: `[1 − low, 1 + high]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// Below 1.
    pub low: f64,
    /// Above 1.
    pub high: f64,
}

impl Default for Clip {
    /// 0.2 both ways, as PPO (arXiv 1707.06347) and GRPO (arXiv 2402.03300) have it.
    fn default() -> Self {
        Self { low: 0.2, high: 0.2 }
    }
}

/// The clipped surrogate `−min(r A, clip(r) A)` with `r = p / p_sampled` (PPO, arXiv 1707.06347, eq. 7). With group-normalised
/// advantages this is GRPO (arXiv 2402.03300, eq. 3, without its KL term and with one mean over all tokens).
pub fn clipped_ratio(t: &Tokens, clip: Clip) -> Result<Tensor, TrainError> {
    let ratio = (&t.logprob - t.sampled()?)?.exp()?;
    let clipped = ratio.clamp(1.0 - clip.low, 1.0 + clip.high)?;
    let surrogate = (ratio * &t.advantage)?.minimum(&(clipped * &t.advantage)?)?;
    Ok(surrogate.neg()?)
}

/// KL(p ‖ base) on sampled tokens, by the estimator k3 `= e^d − d − 1`, `d = log base − log p` (Schulman 2020, "Approximating KL
/// divergence"; GRPO's eq. 4): unbiased as a value, never negative.
pub fn kl_to_base(t: &Tokens) -> Result<Tensor, TrainError> {
    let d = (t.base()? - &t.logprob)?;
    Ok(((d.exp()? - d)? - 1.0)?)
}

/// Negative entropy of the next-token distribution: added with a small factor, it keeps the policy from collapsing.
pub fn entropy_bonus(t: &Tokens) -> Result<Tensor, TrainError> {
    Ok(t.entropy.neg()?)
}

/// The model's scores of some tokens, their labels, and the factor `weight / n` of each.
pub(super) struct Scored<'a> {
    pub(super) logprobs: &'a [f32],
    pub(super) entropies: &'a [f32],
    pub(super) labels: &'a [&'a Label],
    pub(super) factors: &'a [f64],
}

/// A loss at some tokens: weighed terms, and their derivatives by the scores.
#[derive(Debug, PartialEq)]
pub(super) struct Evaluated {
    pub(super) terms: Vec<f64>,
    pub(super) by_logprob: Vec<f32>,
    pub(super) by_entropy: Vec<f32>,
}

/// Evaluates and differentiates `loss`, token by token: the numbers of a token do not depend on the others.
pub(super) fn evaluate(loss: &Loss<'_>, scored: &Scored<'_>) -> Result<Evaluated, TrainError> {
    let n = scored.labels.len();
    let constant = |values: Vec<f64>| Tensor::from_vec(values, n, &Device::Cpu);
    let variable = |values: &[f32]| Var::from_tensor(&constant(values.iter().map(|&v| f64::from(v)).collect())?);
    let column = |of: &dyn Fn(&Label) -> f64| constant(scored.labels.iter().map(|label| of(label)).collect());
    let optional = |of: &dyn Fn(&Label) -> Option<f32>| {
        let values: Option<Vec<f64>> = scored.labels.iter().map(|label| of(label).map(f64::from)).collect();
        values.map(constant).transpose()
    };
    let (logprob, entropy) = (variable(scored.logprobs)?, variable(scored.entropies)?);
    let tokens = Tokens {
        logprob: logprob.as_tensor().clone(),
        entropy: entropy.as_tensor().clone(),
        advantage: column(&|label| label.advantage.into())?,
        soft_entropy: column(&soft_entropy)?,
        sampled: optional(&|label| label.sampled)?,
        base: optional(&|label| label.base)?,
    };
    let terms = (loss(&tokens)? * constant(scored.factors.to_vec())?)?;
    let gradients = terms.backward()?;
    let by = |var: &Var| match gradients.get(var.as_tensor()) {
        Some(gradient) => Ok(gradient.to_vec1::<f64>()?.into_iter().map(|g| g as f32).collect()),
        None => Ok::<_, TrainError>(vec![0.0; n]),
    };
    Ok(Evaluated { by_logprob: by(&logprob)?, by_entropy: by(&entropy)?, terms: terms.to_vec1()? })
}

fn soft_entropy(label: &Label) -> f64 {
    let plogp = |&(_, q): &(u32, f32)| if q > 0.0 { f64::from(q) * f64::from(q).ln() } else { 0.0 };
    -label.soft.iter().flatten().map(plogp).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGPROBS: [f32; 5] = [-0.5, -1.7, -3.0, -0.1, -2.2];
    const ENTROPIES: [f32; 5] = [0.7, 1.1, 2.0, 0.3, 1.5];

    fn labels() -> Vec<Label> {
        // Ratios e^0.1, e^0.4, e^−0.5, e^−0.05, e^0.3: inside the clip and outside, either sign of the advantage.
        let sampled = [-0.6, -2.1, -2.5, -0.05, -2.5];
        let advantage = [1.0, 0.5, 0.8, -1.2, -0.4];
        let label = |i: usize| Label {
            weight: 1.0,
            advantage: advantage[i],
            sampled: Some(sampled[i]),
            base: Some(LOGPROBS[i] + 0.3 - 0.2 * i as f32),
            soft: Some(vec![(1, 0.25), (2, 0.75), (3, 0.0)]),
        };
        (0..5).map(label).collect()
    }

    fn at(loss: &Loss<'_>, logprobs: &[f32], entropies: &[f32]) -> Evaluated {
        let labels = labels();
        let labels: Vec<_> = labels.iter().collect();
        let factors = [0.2, 0.1, 0.2, 0.4, 0.05];
        evaluate(loss, &Scored { logprobs, entropies, labels: &labels, factors: &factors }).unwrap()
    }

    fn every_loss() -> Vec<(&'static str, Box<Loss<'static>>)> {
        vec![
            ("nll", Box::new(nll)),
            ("distillation", Box::new(distillation)),
            ("policy gradient", Box::new(policy_gradient)),
            ("clipped ratio", Box::new(|t: &Tokens| clipped_ratio(t, Clip::default()))),
            ("clipped ratio, uneven", Box::new(|t: &Tokens| clipped_ratio(t, Clip { low: 0.5, high: 0.28 }))),
            ("kl to base", Box::new(kl_to_base)),
            ("entropy bonus", Box::new(entropy_bonus)),
            ("a sum", Box::new(|t: &Tokens| Ok((policy_gradient(t)? + (kl_to_base(t)? * 0.1)?)?))),
        ]
    }

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        for (name, loss) in every_loss() {
            let exact = at(&loss, &LOGPROBS, &ENTROPIES);
            for i in 0..5 {
                let moved = |values: [f32; 5], h: f32| {
                    let mut values = values;
                    values[i] += h;
                    values
                };
                let slope = |up: Evaluated, down: Evaluated, values: [f32; 5]| {
                    let width = f64::from(moved(values, 1e-3)[i]) - f64::from(moved(values, -1e-3)[i]);
                    (up.terms[i] - down.terms[i]) / width
                };
                let by_logprob = slope(
                    at(&loss, &moved(LOGPROBS, 1e-3), &ENTROPIES),
                    at(&loss, &moved(LOGPROBS, -1e-3), &ENTROPIES),
                    LOGPROBS,
                );
                let by_entropy = slope(
                    at(&loss, &LOGPROBS, &moved(ENTROPIES, 1e-3)),
                    at(&loss, &LOGPROBS, &moved(ENTROPIES, -1e-3)),
                    ENTROPIES,
                );
                assert!((by_logprob - f64::from(exact.by_logprob[i])).abs() < 1e-6, "{name} at {i}: {by_logprob}");
                assert!((by_entropy - f64::from(exact.by_entropy[i])).abs() < 1e-6, "{name} at {i}: {by_entropy}");
            }
        }
    }

    #[test]
    fn the_clipped_ratio_stops_paying_exactly_where_it_should() {
        let clipped = at(&|t: &Tokens| clipped_ratio(t, Clip::default()), &LOGPROBS, &ENTROPIES).by_logprob;
        // Too high with a positive advantage (1) pays nothing more; too low with a positive one (2) and too high with a
        // negative one (4) still do.
        assert_eq!(clipped.iter().map(|&g| g == 0.0).collect::<Vec<_>>(), [false, true, false, false, false]);
        // On policy the ratio is 1 and the gradient is REINFORCE's.
        let sampled: Vec<f32> = labels().iter().map(|label| label.sampled.unwrap()).collect();
        let ours = at(&|t: &Tokens| clipped_ratio(t, Clip::default()), &sampled, &ENTROPIES).by_logprob;
        assert_eq!(ours, at(&policy_gradient, &sampled, &ENTROPIES).by_logprob);
    }

    #[test]
    fn kl_is_never_negative_and_zero_at_the_base() {
        assert!(at(&kl_to_base, &LOGPROBS, &ENTROPIES).terms.iter().all(|&term| term >= 0.0));
        let base: Vec<f32> = labels().iter().map(|label| label.base.unwrap()).collect();
        let there = at(&kl_to_base, &base, &ENTROPIES);
        assert!(there.terms.iter().all(|&term| term == 0.0) && there.by_logprob.iter().all(|&g| g == 0.0));
    }

    #[test]
    fn distillation_is_zero_where_the_model_matches_the_teacher() {
        let entropy = -(0.25 * 0.25f64.ln() + 0.75 * 0.75f64.ln());
        let terms = at(&distillation, &[-entropy as f32; 5], &ENTROPIES).terms;
        assert!(terms.iter().all(|term| term.abs() < 1e-7), "{terms:?}");
    }

    #[test]
    fn a_token_is_worth_the_same_alone_as_among_others() {
        for (name, loss) in every_loss() {
            let together = at(&loss, &LOGPROBS, &ENTROPIES);
            let labels = labels();
            for i in 0..5 {
                let factors = [[0.2, 0.1, 0.2, 0.4, 0.05][i]];
                let (logprobs, entropies, labels) = (&[LOGPROBS[i]], &[ENTROPIES[i]], &[&labels[i]]);
                let alone = evaluate(&loss, &Scored { logprobs, entropies, labels, factors: &factors }).unwrap();
                assert_eq!(alone.by_logprob[0].to_bits(), together.by_logprob[i].to_bits(), "{name}");
            }
        }
    }

    #[test]
    fn a_loss_that_lacks_a_value_says_which() {
        let bare = Label { weight: 1.0, ..Label::default() };
        let scored = Scored { logprobs: &[-1.0], entropies: &[1.0], labels: &[&bare], factors: &[1.0] };
        let message = evaluate(&kl_to_base, &scored).unwrap_err().to_string();
        assert!(message.contains("logprob under the base"), "{message}");
        assert!(evaluate(&|t: &Tokens| clipped_ratio(t, Clip::default()), &scored).is_err());
    }
}
