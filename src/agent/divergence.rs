//! How far a skill's replies are from the base's: what forgetting goes with (RL's Razor, arXiv 2509.04259). Never trains.

use super::{AgentError, Place, Play, Session, play};
use crate::{
    common::{Phase, Report, Seed},
    envs::{Environment, Item},
    library::Generation,
    train::score,
};

/// `mean ln p(token | skill) − ln p(token | base)` over the tokens of one reply of the skill's to each of `items`, drawn at temperature
/// 1: an unbiased estimate of KL(skill ‖ base) a token. With the number of tokens.
///
/// # Errors
/// If the adapter is damaged, or the environment or the model fails.
pub fn divergence(
    session: &Session,
    env: &dyn Environment,
    items: &[Item],
    generation: &Generation,
    report: &mut dyn Report,
) -> Result<(f64, u64), AgentError> {
    let adapter = session.adapter(generation)?;
    let replies = Play {
        places: &Place::all(env, items, Some(&adapter)),
        samples: 1,
        temperature: 1.0,
        seed: Seed::new(0).purpose("divergence"),
        phase: Phase::Evaluation,
    };
    let episodes = play(&session.base, &replies, report)?.concat();
    let turns: Vec<_> =
        episodes.iter().flat_map(|episode| &episode.turns).filter(|turn| !turn.action.is_empty()).collect();
    let sequences: Vec<(&[u32], &[u32])> = turns.iter().map(|turn| (&turn.prompt[..], &turn.action[..])).collect();
    let base = score(&session.base.model, None, &sequences, session.base.limits)?;
    let pairs = turns.iter().zip(&base).flat_map(|(turn, base)| turn.logprobs.iter().zip(base));
    let (sum, tokens) =
        pairs.fold((0.0, 0), |(sum, tokens), (own, base)| (sum + f64::from(*own) - f64::from(*base), tokens + 1));
    Ok((sum / (tokens as f64).max(1.0), tokens))
}
