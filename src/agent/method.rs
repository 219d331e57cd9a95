//! What a subagent learns from at each step: items and episodes in, training rows out. Never steps an optimiser.

use super::{AgentError, Base, Course, Place, Play, play, recipe::Method, reveal};
use crate::{
    common::{Phase, Report, Seed},
    envs::{self, Environment, Item, Query, Split},
    episode::{Episode, Turn},
    lora::ActiveAdapter,
    train::{Loss, PassLimits, TrainRow, attach_base, group_normalised, leave_one_out, loss},
};
use std::{collections::HashSet, sync::Arc};

/// Purpose of the seed of training items.
const TRAIN: &str = "train items";
/// Reward from which an episode counts as a success.
const SUCCESS: f32 = 0.999;
/// Examples of a format warm-up, 8 a step: 3 steps.
pub(super) const WARMUP_STEPS: usize = 3;
const WARMUP_ITEMS: usize = 8;

/// A step's material.
pub(super) struct Material {
    /// What is trained on; empty when there is nothing to learn (no success, or every sample alike).
    pub(super) rows: Vec<TrainRow>,
    /// What was sampled for it.
    pub(super) episodes: Vec<Episode>,
}

impl Material {
    /// Tokens that were drawn.
    pub(super) fn sampled_tokens(&self) -> u64 {
        sampled_tokens(&self.episodes)
    }

    /// Mean reward of the episodes, if there are any.
    pub(super) fn reward(&self) -> Option<f64> {
        let total: f64 = self.episodes.iter().map(|episode| f64::from(episode.reward)).sum();
        (!self.episodes.is_empty()).then(|| total / self.episodes.len() as f64)
    }
}

/// Tokens that were drawn in `episodes`.
pub(super) fn sampled_tokens<'a>(episodes: impl IntoIterator<Item = &'a Episode>) -> u64 {
    episodes.into_iter().flat_map(|episode| &episode.turns).map(|turn| turn.action.len() as u64).sum()
}

/// What a learner draws its material from.
pub(super) struct Source<'a> {
    pub(super) base: &'a Base,
    pub(super) env: &'a dyn Environment,
    pub(super) level: u32,
    pub(super) seed: Seed,
    pub(super) kl: f64,
    /// What is studied instead of items that the environment draws.
    pub(super) course: Option<&'a Course>,
}

impl Source<'_> {
    /// The `count` training items of step `step`.
    fn items(&self, purpose: &str, step: usize, count: usize) -> Result<Vec<Item>, AgentError> {
        let query = Query::new(Split::Train, self.level);
        let index = |i: usize| (step * count + i) as u64;
        if let (TRAIN, Some(course)) = (purpose, self.course) {
            let draw = |i| course.item(self.env, self.seed.purpose(TRAIN), index(i));
            return Ok((0..count).map(draw).collect());
        }
        let item = |i| envs::item(self.env, &query, self.seed.purpose(purpose), index(i));
        Ok((0..count).map(item).collect::<Result<_, _>>()?)
    }

    /// The different items of the first `steps` steps.
    pub(super) fn used(&self, method: Method, steps: usize) -> Result<Vec<Item>, AgentError> {
        let mut seen = HashSet::new();
        let mut items = Vec::new();
        for step in 0..steps {
            items.extend(self.items(TRAIN, step, method.defaults().items)?);
        }
        items.retain(|item| seen.insert(item.id));
        Ok(items)
    }

    /// The material of step `step` under `method`, sampled under `adapter` where it samples.
    pub(super) fn material(
        &self,
        method: Method,
        step: usize,
        adapter: &dyn Fn() -> Arc<ActiveAdapter>,
        report: &mut dyn Report,
    ) -> Result<Material, AgentError> {
        let defaults = method.defaults();
        let items = self.items(TRAIN, step, defaults.items)?;
        if !method.samples() {
            let rows = items.iter().map(|item| self.answers(item)).collect::<Result<Vec<_>, _>>()?.concat();
            return Ok(Material { rows, episodes: Vec::new() });
        }
        let rollouts = Play {
            places: &Place::all(self.env, &items, Some(&adapter())),
            samples: defaults.samples,
            temperature: defaults.temperature,
            seed: self.seed.purpose("rollouts").index(step as u64),
            phase: Phase::Rollouts,
        };
        let groups = play(self.base, &rollouts, report)?;
        let pulled = self.is_pulled_to_base(method);
        let mut rows: Vec<TrainRow> = groups.iter().flat_map(|group| learn_from(method, group, pulled)).collect();
        if pulled {
            attach_base(&self.base.model, &mut rows, PassLimits::default())?;
        }
        Ok(Material { rows, episodes: groups.concat() })
    }

    /// Random answers of the right form: what is asked for, but not what is right.
    pub(super) fn warmup(&self, step: usize) -> Result<Material, AgentError> {
        let mut rows = Vec::new();
        for (i, item) in self.items("warm-up items", step, WARMUP_ITEMS)?.iter().enumerate() {
            let choices = self.env.choices(item)?;
            if choices.is_empty() {
                continue;
            }
            let seed = self.seed.purpose("warm-up labels").index((step * WARMUP_ITEMS + i) as u64);
            let prompt = self.base.prompt_ids(self.env.start(item)?.observe())?;
            rows.push(TrainRow::answer(prompt, self.base.reply_ids(seed.rng().pick::<String>(&choices))?));
        }
        Ok(Material { rows, episodes: Vec::new() })
    }

    /// The `index`-th training item.
    pub(super) fn train_item(&self, index: usize) -> Result<Item, AgentError> {
        Ok(envs::item(self.env, &Query::new(Split::Train, self.level), self.seed.purpose(TRAIN), index as u64)?)
    }

    /// One row a turn that the environment's teacher would take.
    pub(super) fn answers(&self, item: &Item) -> Result<Vec<TrainRow>, AgentError> {
        if let Some(taught) = self.course.and_then(|course| course.taught.get(&item.id)) {
            let prompt = self.base.prompt_ids(self.env.start(item)?.observe())?;
            return Ok(vec![taught.row(prompt)]);
        }
        let turns = reveal(self.base, self.env, item)?.turns;
        Ok(turns.into_iter().map(|turn| TrainRow::answer(turn.prompt, turn.action)).collect())
    }

    /// Whether the loss has a term for the distance to the base.
    fn is_pulled_to_base(&self, method: Method) -> bool {
        self.kl > 0.0 && matches!(method, Method::Rloo | Method::Grpo)
    }

    /// What `method` minimises.
    pub(super) fn loss(&self, method: Method) -> Box<Loss<'static>> {
        let kl = self.kl;
        let objective: fn(&crate::train::Tokens) -> _ = match method {
            Method::Sft | Method::Raft => return Box::new(loss::nll),
            Method::Rloo => loss::policy_gradient,
            Method::Grpo => |tokens| loss::clipped_ratio(tokens, loss::Clip::default()),
        };
        if !self.is_pulled_to_base(method) {
            return Box::new(objective);
        }
        Box::new(move |tokens| Ok((objective(tokens)? + (loss::kl_to_base(tokens)? * kl)?)?))
    }
}

/// The rows of a group of samples of one item. An episode without an advantage (a failure under RAFT, a whole group of equal
/// rewards) adds nothing to the gradient and has no row, unless its distance to the base counts (`pulled`).
fn learn_from(method: Method, group: &[Episode], pulled: bool) -> Vec<TrainRow> {
    let rewards: Vec<f32> = group.iter().map(|episode| episode.reward).collect();
    let advantages = match method {
        Method::Sft => unreachable!("supervised learning samples nothing"),
        Method::Raft => rewards.iter().map(|&reward| f32::from(reward >= SUCCESS)).collect(),
        Method::Rloo => leave_one_out(&rewards),
        Method::Grpo => group_normalised(&rewards),
    };
    let told = group.iter().zip(advantages).filter(|(_, advantage)| pulled || *advantage != 0.0);
    let row = |(episode, advantage): (&Episode, f32)| {
        let row =
            move |turn: &Turn| TrainRow::sample(turn.prompt.clone(), turn.action.clone(), &turn.logprobs, advantage);
        episode.turns.iter().map(row).collect::<Vec<_>>()
    };
    told.flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_episodes_that_tell_something_are_trained_on() {
        let group = |rewards: &[f32]| -> Vec<Episode> {
            let episode = |(i, &reward): (u32, &f32)| {
                let turn = Turn { prompt: vec![1], action: vec![i], logprobs: vec![-0.5], generation: None };
                Episode {
                    env: "reverse".into(),
                    item: "0f".into(),
                    wording: 0,
                    turns: vec![turn],
                    reward,
                    strict: reward == 1.0,
                    lenient: false,
                    feedback: None,
                }
            };
            (0..).zip(rewards).map(episode).collect()
        };
        // Which samples have a row; 0.7 and a third are not exact in binary.
        let rows: [(Method, &[f32], bool, &[u32]); 10] = [
            (Method::Raft, &[0.0, 1.0, 0.5], false, &[1]),
            (Method::Rloo, &[0.0, 1.0, 0.0], false, &[0, 1, 2]),
            (Method::Grpo, &[0.0, 1.0, 0.0], false, &[0, 1, 2]),
            (Method::Grpo, &[0.0, 0.5, 1.0], false, &[0, 2]),
            (Method::Rloo, &[0.7; 7], false, &[]),
            (Method::Grpo, &[0.7; 7], false, &[]),
            (Method::Rloo, &[1.0 / 3.0; 3], false, &[]),
            (Method::Grpo, &[1.0 / 3.0; 3], false, &[]),
            (Method::Rloo, &[1.0; 2], true, &[0, 1]),
            (Method::Grpo, &[0.0; 2], true, &[0, 1]),
        ];
        for (method, rewards, pulled, expected) in rows {
            let rows = learn_from(method, &group(rewards), pulled);
            let found: Vec<u32> = rows.iter().map(|row| row.completion[0]).collect();
            assert_eq!(found, expected, "{method} {rewards:?}");
        }
    }
}
