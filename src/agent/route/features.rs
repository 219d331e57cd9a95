//! What the router reads of prompts: the base's middle-layer states, and their words. Never decides anything.

use crate::{
    agent::{AgentError, Base},
    common::{Digest, Home, Message, Role, write_atomic},
    engine::{Engine, Limits},
    episode::Episode,
    library::RoutingFeatures,
    router::{BACKGROUND, layer},
};
use std::{collections::BTreeSet, fs};

/// Prompts that the router knows a skill by: with fewer, prompts in new wordings are told from strangers' less well (docs/log.md).
pub(in crate::agent) const ROUTING_PROMPTS: usize = 128;
/// Code that pools differently must change it.
const POOLED: &str = "pooled 1";

/// Mean middle-layer states of prompts, each the conversation before a reply, as the library keeps them with a generation.
///
/// # Errors
/// If the model cannot take a prompt.
///
/// # Panics
/// Without a prompt.
pub fn routing_features(base: &Base, conversations: &[Vec<Message>]) -> Result<RoutingFeatures, AgentError> {
    let prompts = conversations.iter().map(|messages| base.prompt_ids(messages)).collect::<Result<Vec<_>, _>>()?;
    let said = |messages: &Vec<Message>| {
        let users = messages.iter().filter(|message| message.role == Role::User);
        users.map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")
    };
    Ok(of_tokens(base, &prompts)?.of_prompts(conversations.iter().map(said).collect()))
}

/// The same of prompts in tokens.
pub(super) fn of_tokens(base: &Base, prompts: &[Vec<u32>]) -> Result<RoutingFeatures, AgentError> {
    let rows = pooled(base, prompts)?;
    Ok(RoutingFeatures::new(layer(base.spec()), &rows).expect("the model gives finite rows of one width"))
}

pub(super) fn pooled(base: &Base, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, AgentError> {
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let engine = Engine::new(base.model.clone(), Limits::default());
    Ok(engine.pooled(&base.preamble()?, &prompts, layer(base.spec()))?)
}

/// What a prompt says beside the template's own words.
pub(in crate::agent) fn words(base: &Base, prompt: &[u32]) -> Result<String, AgentError> {
    let [a, b] = ["a", "b"].map(|text| base.prompt_ids(&[Message::user(text)]));
    let (a, b) = (a?, b?);
    let same = |(x, y): &(&u32, &u32)| x == y;
    let before = prompt.iter().zip(a.iter().zip(&b).take_while(same)).take_while(|(own, (x, _))| own == x).count();
    let after = prompt[before..].iter().rev().zip(a.iter().rev().zip(b.iter().rev()).take_while(same));
    let after = after.take_while(|(own, (x, _))| own == x).count();
    Ok(base.text.tokenizer.decode(&prompt[before..prompt.len() - after]))
}

/// Features of what belongs to no skill: a pass over some four hundred prompts.
pub(in crate::agent) fn background(base: &Base, home: &Home) -> Result<RoutingFeatures, AgentError> {
    let prompts = BACKGROUND.lines().map(|prompt| base.prompt_ids(&[Message::user(prompt)]));
    of_prompts(base, home, "background", &prompts.collect::<Result<Vec<_>, _>>()?)
}

/// Features of prompts in tokens, kept in `home`.
pub(in crate::agent) fn of_prompts(
    base: &Base,
    home: &Home,
    kind: &str,
    prompts: &[Vec<u32>],
) -> Result<RoutingFeatures, AgentError> {
    // Ids are u32; one that none has ends each prompt.
    let tokens = prompts.iter().flat_map(|prompt| prompt.iter().chain([&u32::MAX])).flat_map(|id| id.to_le_bytes());
    kept(base, home, kind, &tokens.collect::<Vec<_>>(), || of_tokens(base, prompts))
}

/// What features depend on beside the prompts.
pub(super) fn settings(base: &Base) -> String {
    format!("{POOLED}, after layer {}, {:?}", layer(base.spec()), base.dtype)
}

/// Features that `compute` gives, of which the home keeps the outcome under `kind`, what they are of, and the base.
pub(super) fn kept(
    base: &Base,
    home: &Home,
    kind: &str,
    of: &[u8],
    compute: impl FnOnce() -> Result<RoutingFeatures, AgentError>,
) -> Result<RoutingFeatures, AgentError> {
    let settings = settings(base);
    let key = Digest::of_parts([base.id.digest.bytes(), base.id.tokenizer.bytes(), settings.as_bytes(), of]);
    let path = home.derived().join(format!("{kind}-{}.safetensors", key.short()));
    let layer = layer(base.spec());
    if let Some(features) = fs::read(&path).ok().and_then(|bytes| RoutingFeatures::from_bytes(&bytes, layer).ok()) {
        return Ok(features);
    }
    let features = compute()?;
    // A home that cannot be written to is no reason not to route.
    let _ = fs::create_dir_all(home.derived()).and_then(|()| write_atomic(&path, &features.to_bytes()));
    Ok(features)
}

/// Up to [`ROUTING_PROMPTS`] different first prompts, evenly spread over `episodes`.
pub(super) fn prompts_of(episodes: &[Episode]) -> Vec<Vec<u32>> {
    let prompts = episodes.iter().filter_map(|episode| episode.turns.first()).map(|turn| &turn.prompt);
    let different: Vec<_> = prompts.collect::<BTreeSet<_>>().into_iter().collect();
    let count = different.len().min(ROUTING_PROMPTS);
    (0..count).map(|i| different[i * different.len() / count].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::episode::Turn;

    fn episode(prompt: u32) -> Episode {
        let turn = Turn { prompt: vec![prompt], action: vec![], logprobs: vec![], generation: None };
        Episode {
            env: "e".into(),
            item: "i".into(),
            wording: 0,
            turns: vec![turn.clone(), Turn { prompt: vec![prompt, 1], ..turn }],
            reward: 1.0,
            strict: true,
            lenient: true,
            feedback: None,
        }
    }

    #[test]
    fn a_skill_is_known_by_different_first_prompts_spread_over_what_it_was_trained_on() {
        for (different, expected) in [(0, 0), (3, 3), (128, 128), (129, 128), (400, 128)] {
            let episodes: Vec<Episode> = (0..2 * different).map(|i| episode(i % different.max(1))).collect();
            let prompts = prompts_of(&episodes);
            assert_eq!(prompts.len(), expected);
            assert!(prompts.iter().all(|prompt| prompt.len() == 1));
        }
    }
}
