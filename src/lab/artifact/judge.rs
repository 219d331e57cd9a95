//! What an adapter is worth: success where it was trained and elsewhere, distance to the base, and what general text costs under it. Never
//! trains.

use super::{Config, Point};
use crate::{
    agent::{Base, Grades, Place, Play, fixed_items, play},
    common::{Phase, Report, Seed},
    envs::{self, Environment, Item, Split},
    lab::{Cost, Desk, LabError},
    lora::ActiveAdapter,
    router::BACKGROUND,
    train::score,
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Tokens of general text that are read in one row.
const BLOCK: usize = 256;

/// Everything that is asked of adapters.
pub(super) struct Judge<'a> {
    config: &'a Config,
    base: &'a Base,
    envs: Vec<(String, Box<dyn Environment>)>,
    text: Vec<u32>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(config: &'a Config, base: &'a Base) -> Result<Self, LabError> {
        let names = config.environments.iter().chain(&config.bystanders);
        let find = |name: &String| Ok((name.clone(), envs::find(name)?));
        let found = names.map(find).collect::<Result<Vec<_>, envs::EnvError>>();
        let mut text = base.plain_ids(BACKGROUND)?;
        text.truncate(config.text_tokens);
        Ok(Self { config, base, envs: found.map_err(|error| LabError::Cell(error.to_string()))?, text })
    }

    /// A look along the way: success on validation items where it learns, and general text.
    pub(super) fn look(
        &self,
        point: &Point,
        share: f64,
        adapter: &Arc<ActiveAdapter>,
        desk: &mut Desk<'_>,
    ) -> Result<(), LabError> {
        let mut right = Vec::new();
        for (_, env) in self.envs[..self.config.environments.len()].iter().filter(|(name, _)| learns(point, name)) {
            let items = fixed_items(&**env, Split::Validation, 1, self.config.validation_items)?;
            right.extend(self.grades(&**env, &items, Some(adapter), desk.report)?.strict);
        }
        let success = right.iter().filter(|&&right| right).count() as f64 / right.len() as f64;
        let nll = self.text(Some(adapter))?;
        desk.record(
            &json!({ "look": share, "success": success, "items": right.len(), "text_nats": nll }),
            Cost::default(),
        )
    }

    /// The last word, on test items everywhere.
    pub(super) fn finally(
        &self,
        point: &Point,
        adapter: Option<&Arc<ActiveAdapter>>,
        cost: Cost,
        calls: u64,
        desk: &mut Desk<'_>,
    ) -> Result<(), LabError> {
        let (mut answers, mut kl) = (Map::new(), Map::new());
        for (name, env) in &self.envs {
            let items = fixed_items(&**env, Split::Test, 1, self.config.test_items)?;
            let grades = self.grades(&**env, &items, adapter, desk.report)?;
            let digits: String = grades.strict.iter().map(|&right| if right { '1' } else { '0' }).collect();
            answers.insert(name.clone(), Value::from(digits));
            if let Some(adapter) = adapter.filter(|_| learns(point, name) && self.config.environments.contains(name)) {
                kl.insert(name.clone(), Value::from(self.divergence(&**env, &items, adapter, desk.report)?));
            }
        }
        let text = self.text(adapter)?;
        desk.record(&json!({ "answers": answers, "kl": kl, "text_nats": text, "calls": calls }), cost)
    }

    fn grades(
        &self,
        env: &dyn Environment,
        items: &[Item],
        adapter: Option<&Arc<ActiveAdapter>>,
        report: &mut dyn Report,
    ) -> Result<Grades, LabError> {
        Ok(crate::agent::judge(self.base, env, items, adapter.cloned(), report)?.0)
    }

    /// KL(adapter ‖ base) in nats a token, from one reply to each item drawn at temperature 1.
    fn divergence(
        &self,
        env: &dyn Environment,
        items: &[Item],
        adapter: &Arc<ActiveAdapter>,
        report: &mut dyn Report,
    ) -> Result<f64, LabError> {
        let replies = Play {
            places: &Place::all(env, items, Some(adapter)),
            samples: 1,
            temperature: 1.0,
            seed: Seed::new(0).purpose("divergence"),
            phase: Phase::Evaluation,
        };
        let episodes = play(self.base, &replies, report)?.concat();
        let turns: Vec<_> = episodes.iter().flat_map(|e| &e.turns).filter(|turn| !turn.action.is_empty()).collect();
        let sequences: Vec<(&[u32], &[u32])> = turns.iter().map(|t| (&t.prompt[..], &t.action[..])).collect();
        let base = score(&self.base.model, None, &sequences, self.base.limits)?;
        let own = turns.iter().flat_map(|turn| &turn.logprobs);
        let gaps: Vec<f64> =
            own.zip(base.iter().flatten()).map(|(&own, &base)| f64::from(own) - f64::from(base)).collect();
        Ok(gaps.iter().sum::<f64>() / gaps.len().max(1) as f64)
    }

    /// Mean negative log-likelihood of general text in nats a token.
    fn text(&self, adapter: Option<&Arc<ActiveAdapter>>) -> Result<f64, LabError> {
        let blocks: Vec<(&[u32], &[u32])> =
            self.text.chunks(BLOCK).filter(|block| block.len() > 1).map(|block| block.split_at(1)).collect();
        let view = adapter.map(|adapter| adapter.adapter());
        let logprobs = score(&self.base.model, view, &blocks, self.base.limits)?;
        let tokens = logprobs.iter().map(Vec::len).sum::<usize>();
        Ok(-logprobs.iter().flatten().map(|&logprob| f64::from(logprob)).sum::<f64>() / tokens.max(1) as f64)
    }
}

/// Whether the environment called `name` is one that the point's arm learns.
fn learns(point: &Point, name: &str) -> bool {
    point.env.as_deref().is_none_or(|own| own == name)
}
