//! The end of a life: judged on fresh items, admitted or refused, and what is admitted becomes a generation of the library.

use super::{
    AgentError, Learned, Lesson,
    gate::Decision,
    judge::{APART_ITEMS, fixed_items_of, forms_apart},
    learn::Life,
    measure::Grades,
    route::{ROUTING_PROMPTS, routing_features},
};
use crate::{
    common::{Report, Seed},
    envs::{self, Item, Phrasing, Query, Split},
    library::{
        Candidate, Comparison, Cost, EnvId, GateDecision, Generation, ItemsUsed, Library, Provenance, RoutingFeatures,
    },
    lora::LoraWeights,
};
use std::{collections::BTreeMap, sync::Arc};

/// What judging the learned adapter found.
pub(super) struct Verdict {
    pub(super) validation: Comparison,
    test: Comparison,
    held_out: Option<Comparison>,
    apart: BTreeMap<String, Comparison>,
    pub(super) decision: Decision,
}

impl Life<'_> {
    /// Judges what was learned, publishes it if the gate admits it, and ends the run.
    pub(super) fn be_judged(mut self, library: &Library, report: &mut dyn Report) -> Result<Learned, AgentError> {
        let verdict = self.verdict(report)?;
        self.end(verdict, Some(library), report)
    }

    /// Publishes what was judged in `library`, if there is one and the gate admits it, and ends the run.
    pub(super) fn end(
        mut self,
        verdict: Verdict,
        library: Option<&Library>,
        report: &mut dyn Report,
    ) -> Result<Learned, AgentError> {
        let generation = match library.filter(|_| verdict.decision.admitted) {
            Some(library) => Some(self.publish(&verdict, library, report)?),
            None => None,
        };
        let seconds = self.seconds();
        let progress = &self.run.progress;
        let birth = self.birth().clone();
        let learned = Learned {
            method: birth.method,
            why: birth.why,
            steps: progress.step,
            test: verdict.test,
            held_out: verdict.held_out,
            apart: verdict.apart,
            decision: verdict.decision,
            sampled_tokens: progress.sampled_tokens,
            read_tokens: progress.read_tokens,
            trained_tokens: progress.trained_tokens,
            scored_tokens: progress.scored_tokens,
            curve: progress.curve.clone(),
            logprob_gap: (progress.gap_steps > 0).then(|| progress.gap_sum / progress.gap_steps as f64),
            seconds,
            adapter: self.active(),
            generation,
        };
        self.run.finish()?;
        Ok(learned)
    }

    pub(super) fn verdict(&mut self, report: &mut dyn Report) -> Result<Verdict, AgentError> {
        let birth = self.birth().clone();
        let (validation_items, test_items) = (self.exam.validation.clone(), self.exam.test.clone());
        let validation = self.judge(&validation_items, Some(self.active()), report)?;
        let decision = self.lesson.recipe.gate.decide(&birth.validation, &validation, self.seed());
        let test = self.judge(&test_items, Some(self.active()), report)?;
        let wordings = &self.lesson.env.info().wordings;
        let held: Vec<usize> = (0..test_items.len()).filter(|&i| wordings.is_held_out(test_items[i].wording)).collect();
        let held_out = (!held.is_empty()).then(|| compare(&birth.test.only(&held), &test.only(&held)));
        Ok(Verdict {
            validation: compare(&birth.validation, &validation),
            test: compare(&birth.test, &test),
            held_out,
            apart: self.apart(report)?,
            decision,
        })
    }

    /// Forms of question that training never had, each before and after.
    fn apart(&mut self, report: &mut dyn Report) -> Result<BTreeMap<String, Comparison>, AgentError> {
        let mut found = BTreeMap::new();
        for form in forms_apart(self.lesson.env) {
            let level = self.lesson.recipe.level;
            let query = Query { split: Split::Test, level, form, phrasing: Phrasing::Any };
            let items = fixed_items_of(self.lesson.env, &query, APART_ITEMS)?;
            let before = self.judge(&items, self.newborn.clone(), report)?;
            let after = self.judge(&items, Some(self.active()), report)?;
            found.insert(form.to_string(), compare(&before, &after));
        }
        Ok(found)
    }

    fn publish(
        &mut self,
        verdict: &Verdict,
        library: &Library,
        report: &mut dyn Report,
    ) -> Result<Arc<Generation>, AgentError> {
        let Lesson { base, env, recipe, name, parent, course } = self.lesson;
        let info = env.info();
        let theta = self.run.learner.theta().to_vec();
        let lora = LoraWeights::new(self.config.clone(), base.spec(), theta)?;
        let ids = |items: &[Item]| items.iter().map(|item| item.id.to_string()).collect::<Vec<_>>();
        let mut settings = serde_json::to_value(recipe).expect("a recipe is JSON");
        if !self.run.progress.pace.plans.is_empty() {
            // (steps taken, steps in all) of each plan: what the learning rate followed under a budget in time.
            settings["plans"] = serde_json::json!(self.run.progress.pace.plans);
        }
        settings["warmup"] = serde_json::json!(self.birth().warmup);
        if let Some(course) = course {
            settings["course"] = serde_json::json!(course.summary());
        }
        settings["dtype"] = serde_json::json!(format!("{:?}", base.dtype).to_lowercase());
        settings["socius"] = serde_json::json!(env!("CARGO_PKG_VERSION"));
        let provenance = self.run.settle(Provenance {
            env: Some(EnvId {
                name: info.name.clone(),
                version: info.version.clone(),
                level: Some(recipe.level.to_string()),
            }),
            learner: self.birth().method.to_string(),
            hyper_parameters: settings.as_object().cloned().unwrap_or_default(),
            seed: Some(recipe.seed),
            items: ItemsUsed {
                train: ids(&self.source().used(self.birth().method, self.run.progress.step - self.birth().warmup)?),
                validation: ids(&self.exam.validation),
                test: ids(&self.exam.test),
            },
            cost: Cost {
                sampled_tokens: self.run.progress.sampled_tokens,
                trained_tokens: self.run.progress.trained_tokens,
                steps: self.run.progress.step as u64,
                seconds: self.seconds(),
            },
            validation: Some(verdict.validation),
            test: Some(verdict.test),
            apart: verdict.apart.clone(),
            parents: parent.iter().map(|parent| parent.id).collect(),
            gate: GateDecision { admitted: true, reasons: vec![verdict.decision.reason.clone()] },
            created: jiff::Timestamp::now(),
        })?;
        let episodes = self.run.episodes()?;
        report.note(&format!("publishing {name}"));
        Ok(library.publish(&Candidate {
            name: name.clone(),
            description: info.description.clone(),
            base: base.id.clone(),
            spec: base.spec(),
            lora: &lora,
            episodes: &episodes,
            routing: Some(self.routing()?),
            provenance,
        })?)
    }

    /// What the router is to know the skill by: prompts of training items in training's wordings.
    fn routing(&self) -> Result<RoutingFeatures, AgentError> {
        let Lesson { base, env, recipe, course, .. } = self.lesson;
        let query = Query::new(Split::Train, recipe.level);
        let seed = Seed::new(0).purpose("routing prompts");
        let items = match course {
            Some(course) => (0..ROUTING_PROMPTS as u64).map(|i| course.item(*env, seed, i)).collect(),
            None => envs::items(*env, &query, seed, ROUTING_PROMPTS)?,
        };
        let said = items.iter().map(|item| Ok(env.start(item)?.observe().to_vec()));
        routing_features(base, &said.collect::<Result<Vec<_>, AgentError>>()?)
    }
}

fn compare(before: &Grades, after: &Grades) -> Comparison {
    Comparison { before: before.score(), after: after.score() }
}
