//! The life of a subagent: born for an environment, judged, taught by one method, judged again on fresh items, admitted or not,
//! published. The only place where the learning loop is closed.

use super::{
    AgentError, Base, Play,
    budget::{Budget, Next, ToJudge},
    gate::Decision,
    judge::{APART_ITEMS, fixed_items, forms_apart, judge},
    measure::Grades,
    method::{Source, WARMUP_STEPS, sampled_tokens},
    play,
    recipe::{Method, Recipe},
    run::{Birth, Run, Settings},
};
use crate::{
    common::{Home, Phase, Progress, Report, Seed, Unit},
    envs::{self, Environment, Item, Query, Split},
    library::{Comparison, Generation, Library, SkillName},
    lora::{ActiveAdapter, LoraConfig, init},
    train::{Job, Learner, PassLimits, PassStats, forward_backward, optim_step},
};
use std::{collections::BTreeMap, sync::Arc, time::Instant};

/// Items and samples by which the base's chance of a reward is measured.
const PROBE_ITEMS: usize = 24;
const PROBE_SAMPLES: u64 = 8;
/// Share of items solved in 8 samples from which reward alone teaches: below it most groups are all wrong and say nothing.
const PASS_MIN: f64 = 0.25;
/// A checkpoint is at most this much work behind, in seconds.
const CHECKPOINT_SECONDS: f64 = 15.0;
/// Validation items by which the time is measured that judging takes: a whole batch of the engine's.
const TIMED_ITEMS: usize = 64;

/// What is to be learned, from what, under which name.
pub struct Lesson<'a> {
    /// The base.
    pub base: &'a Base,
    /// The environment.
    pub env: &'a dyn Environment,
    /// How.
    pub recipe: Recipe,
    /// What the skill, and the run until then, is called.
    pub name: SkillName,
    /// What it starts from, instead of a fresh adapter.
    pub parent: Option<Arc<Generation>>,
}

/// A finished life.
#[derive(Debug)]
pub struct Learned {
    /// How it learned.
    pub method: Method,
    /// Why that way.
    pub why: String,
    /// Steps taken.
    pub steps: usize,
    /// On test items, before and after.
    pub test: Comparison,
    /// On those test items whose wording neither training nor validation had.
    pub held_out: Option<Comparison>,
    /// On forms of question that are reported apart.
    pub apart: BTreeMap<String, Comparison>,
    /// The gate's verdict.
    pub decision: Decision,
    /// Tokens drawn, evaluations included.
    pub sampled_tokens: u64,
    /// Tokens that passed through forward and backward.
    pub trained_tokens: u64,
    /// Mean absolute difference between recorded and recomputed logprobs of sampled tokens, where it learned from samples.
    pub logprob_gap: Option<f64>,
    /// From birth to the end, over all sittings.
    pub seconds: f64,
    /// What was published, if the gate admitted it.
    pub generation: Option<Arc<Generation>>,
}

/// Lives one subagent's life: resumes the run of this name if there is one, else begins it.
pub fn learn(
    lesson: &Lesson<'_>,
    library: &Library,
    home: &Home,
    report: &mut dyn Report,
) -> Result<Learned, AgentError> {
    let mut life = Life::open(lesson, library, home)?;
    life.be_born(report)?;
    life.train(report)?;
    life.be_judged(library, report)
}

/// The items that a life is judged by.
pub(super) struct Exam {
    pub(super) validation: Vec<Item>,
    pub(super) test: Vec<Item>,
}

pub(super) struct Life<'a> {
    pub(super) lesson: &'a Lesson<'a>,
    pub(super) config: LoraConfig,
    pub(super) run: Run,
    pub(super) exam: Exam,
    /// Who it is compared with: its parent, or the base.
    pub(super) newborn: Option<Arc<ActiveAdapter>>,
    born: Instant,
    saved: Instant,
}

impl<'a> Life<'a> {
    fn open(lesson: &'a Lesson<'a>, library: &Library, home: &Home) -> Result<Self, AgentError> {
        let Lesson { base, env, recipe, name, parent } = lesson;
        let born = Instant::now();
        let parent_weights =
            parent.as_ref().map(|parent| library.load_adapter(parent, &base.id, base.spec())).transpose()?;
        let config = parent_weights.as_ref().map_or_else(|| recipe.lora(), |(_, config)| config.clone());
        let layout = config.layout(base.spec())?;
        let newborn = parent_weights.map(|(adapter, _)| Arc::new(adapter));
        let birth = || {
            let fresh = || init(&layout, Seed::new(recipe.seed).purpose("lora"));
            let theta = newborn.as_ref().map_or_else(fresh, |adapter| adapter.theta.clone());
            Learner::new(layout.clone(), theta, recipe.seed, recipe.dropout as f32)
        };
        let settings = Settings {
            env: env.info().name.clone(),
            env_version: env.info().version.clone(),
            base: base.id.digest.to_string(),
            dtype: format!("{:?}", base.dtype),
            parent: parent.as_ref().map(|parent| parent.id.to_string()),
            recipe: recipe.clone(),
        };
        let run = Run::open(home.runs().join(name.as_str()), name.as_str(), &settings, base.spec(), birth)?;
        let exam = Exam {
            validation: fixed_items(*env, Split::Validation, recipe.level, recipe.validation_items)?,
            test: fixed_items(*env, Split::Test, recipe.level, recipe.test_items)?,
        };
        Ok(Self { lesson, config, run, exam, newborn, born, saved: born })
    }

    pub(super) fn seed(&self) -> Seed {
        Seed::new(self.lesson.recipe.seed)
    }

    pub(super) fn seconds(&self) -> f64 {
        self.run.progress.seconds + self.born.elapsed().as_secs_f64()
    }

    /// What acts now: the adapter as it stands.
    pub(super) fn active(&self) -> Arc<ActiveAdapter> {
        let generation = format!("{}:step-{}", self.lesson.name, self.run.progress.step);
        let learner = &self.run.learner;
        Arc::new(ActiveAdapter::new(generation, learner.layout().clone(), learner.theta().to_vec()))
    }

    pub(super) fn source(&self) -> Source<'a> {
        let Lesson { base, env, recipe, .. } = self.lesson;
        Source { base, env: *env, level: recipe.level, seed: Seed::new(recipe.seed), kl: recipe.kl }
    }

    /// Grades of whoever `adapter` is; what it sampled is counted.
    pub(super) fn judge(
        &mut self,
        items: &[Item],
        adapter: Option<Arc<ActiveAdapter>>,
        report: &mut dyn Report,
    ) -> Result<Grades, AgentError> {
        let (grades, episodes) = judge(self.lesson.base, self.lesson.env, items, adapter, report)?;
        self.run.progress.sampled_tokens += sampled_tokens(&episodes);
        Ok(grades)
    }

    /// Scores the newborn and decides how it is to learn.
    fn be_born(&mut self, report: &mut dyn Report) -> Result<(), AgentError> {
        if self.run.progress.birth.is_some() {
            report.note(&format!("resuming {} after step {}", self.lesson.name, self.run.progress.step));
            return Ok(());
        }
        let start = Instant::now();
        let newborn = self.newborn.clone();
        let validation = self.judge(&self.exam.validation.clone(), newborn.clone(), report)?;
        let test = self.judge(&self.exam.test.clone(), newborn, report)?;
        self.run.progress.pace.born(validation.len() + test.len(), start.elapsed().as_secs_f64());
        let (method, why, warmup) = self.choose_method(report)?;
        report.note(&format!("learner {method}: {why}"));
        self.run.progress.birth = Some(Birth { validation, test, method, why, warmup });
        self.checkpoint()
    }

    fn choose_method(&mut self, report: &mut dyn Report) -> Result<(Method, String, usize), AgentError> {
        let Lesson { env, recipe, .. } = self.lesson;
        if recipe.method == Some(Method::Sft) {
            return Ok((Method::Sft, "asked for".into(), 0));
        }
        let query = Query::new(Split::Train, recipe.level);
        let items = envs::items(*env, &query, self.seed().purpose("probe items"), PROBE_ITEMS)?;
        let teaches = env.start(&items[0])?.teacher().is_some();
        let has_choices = !env.choices(&items[0])?.is_empty();
        let pass = self.probe(&items, report)?;
        let found = format!(
            "the base solves {:.0} % of {} training items in {PROBE_SAMPLES} samples",
            100.0 * pass,
            items.len()
        );
        // A format nobody ever hits gives no reward to learn from; answers of the right form, right or wrong, open the way.
        let warmup = if pass < PASS_MIN && has_choices { WARMUP_STEPS } else { 0 };
        let opened = if warmup > 0 { ", so the format is warmed up on random labels first" } else { "" };
        Ok(match recipe.method {
            Some(method) => (method, format!("asked for; {found}{opened}"), warmup),
            None if pass >= PASS_MIN => (Method::Rloo, format!("{found}: often enough to learn from reward"), 0),
            None if teaches => {
                (Method::Sft, format!("{found}: too rarely to learn from reward, and answers are revealed"), 0)
            }
            None => (Method::Rloo, format!("{found}: rarely, but no answers are revealed{opened}"), warmup),
        })
    }

    /// Share of `items` that at least one of the probe's samples solves (pass@8).
    fn probe(&mut self, items: &[Item], report: &mut dyn Report) -> Result<f64, AgentError> {
        let rollouts = Play {
            items,
            samples: PROBE_SAMPLES,
            temperature: Method::Rloo.defaults().temperature,
            seed: self.seed().purpose("probe"),
            adapter: self.newborn.clone(),
            phase: Phase::Rollouts,
        };
        let groups = play(self.lesson.base, self.lesson.env, &rollouts, report)?;
        self.run.progress.sampled_tokens += sampled_tokens(groups.iter().flatten());
        let solved = groups.iter().filter(|group| group.iter().any(|episode| episode.strict)).count();
        Ok(solved as f64 / items.len().max(1) as f64)
    }

    pub(super) fn birth(&self) -> &Birth {
        self.run.progress.birth.as_ref().expect("training follows birth")
    }

    /// What there is to do now.
    fn next(&mut self) -> Next {
        let Birth { method, warmup, .. } = *self.birth();
        let budget = self.lesson.recipe.budget.unwrap_or(Budget::Steps(method.defaults().steps + warmup));
        let apart = forms_apart(self.lesson.env).len() * APART_ITEMS;
        let exam = self.exam.validation.len() + self.exam.test.len();
        let (now, done) = (self.seconds(), self.run.progress.step);
        self.run.progress.pace.next(budget, now, done, ToJudge { newborn: apart, learned: exam + apart })
    }

    /// Measures how long the adapter as it stands takes to be judged. How it does is not looked at.
    fn time_judging(&mut self, report: &mut dyn Report) -> Result<(), AgentError> {
        let start = Instant::now();
        let items: Vec<Item> = self.exam.validation.iter().take(TIMED_ITEMS).cloned().collect();
        self.judge(&items, Some(self.active()), report)?;
        self.run.progress.pace.judged(items.len(), start.elapsed().as_secs_f64());
        Ok(())
    }

    fn train(&mut self, report: &mut dyn Report) -> Result<(), AgentError> {
        loop {
            let steps = match self.next() {
                Next::Step(steps) => steps,
                Next::Probe => {
                    self.time_judging(report)?;
                    continue;
                }
                Next::Judge => return self.checkpoint(),
            };
            let step = self.run.progress.step;
            let detail = self.step(step, steps, report)?;
            report.progress(Progress {
                phase: Phase::Training,
                label: self.lesson.name.as_str(),
                done: step as u64 + 1,
                total: Some(steps as u64),
                unit: Unit::Steps,
                detail: &detail,
            });
            let cancelled = report.cancelled();
            if cancelled || self.saved.elapsed().as_secs_f64() > CHECKPOINT_SECONDS {
                self.checkpoint()?;
            }
            if cancelled {
                return Err(AgentError::Cancelled);
            }
        }
    }

    /// One step: material, gradient, update. Says what it found.
    fn step(&mut self, step: usize, steps: usize, report: &mut dyn Report) -> Result<String, AgentError> {
        let (method, warmup) = (self.birth().method, self.birth().warmup);
        let source = self.source();
        let warming = step < warmup;
        let material = if warming {
            source.warmup(step)?
        } else {
            let active = || self.active();
            source.material(method, step - warmup, &active, report)?
        };
        let how = if warming { Method::Sft } else { method };
        let mut detail = material.reward().map(|reward| format!("reward {reward:.2}")).unwrap_or_default();
        if !material.rows.is_empty() {
            let loss = source.loss(how);
            let jobs = &mut [Job { learner: &mut self.run.learner, rows: &material.rows, loss: &*loss }];
            let stats = forward_backward(&self.lesson.base.model, jobs, PassLimits::default())?[0];
            optim_step(&mut self.run.learner, &self.lesson.recipe.optimiser(how, steps))?;
            detail = describe(&detail, &stats);
            self.count(&stats);
        }
        self.run.append(&material.episodes)?;
        self.run.progress.sampled_tokens += material.sampled_tokens();
        self.run.progress.step += 1;
        Ok(detail)
    }

    fn count(&mut self, stats: &PassStats) {
        let progress = &mut self.run.progress;
        progress.trained_tokens += stats.tokens as u64;
        if let Some(gap) = stats.gap {
            progress.gap_sum += gap;
            progress.gap_steps += 1;
        }
    }

    fn checkpoint(&mut self) -> Result<(), AgentError> {
        let seconds = self.seconds();
        let before = std::mem::replace(&mut self.run.progress.seconds, seconds);
        let saved = self.run.checkpoint();
        self.run.progress.seconds = before;
        self.saved = Instant::now();
        saved
    }
}

fn describe(reward: &str, stats: &PassStats) -> String {
    let mut parts = vec![format!("loss {:.3}", stats.loss)];
    parts.extend((!reward.is_empty()).then(|| reward.to_owned()));
    parts.extend(stats.kl.map(|kl| format!("KL {kl:.3}")));
    parts.join(", ")
}
