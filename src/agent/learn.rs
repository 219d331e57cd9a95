//! The life of a subagent: born for an environment, judged, taught by one method, judged again on fresh items, admitted or not,
//! published. The only place where the learning loop is closed.

use super::{
    AgentError, Base, Course, Mark, Marks, Place, Play,
    budget::{Budget, Next, ToJudge},
    gate::Decision,
    judge::{APART_ITEMS, fixed_items, forms_apart},
    measure::Grades,
    method::{Material, Source, WARMUP_STEPS, sampled_tokens},
    play,
    recipe::{Method, Recipe},
    run::{Birth, Point, Run, Settings},
};
use crate::{
    common::{Home, Phase, Progress, Report, Seed, Unit},
    envs::{self, Environment, Item, Query, Split},
    library::{Comparison, Generation, Library, SkillName},
    lora::{ActiveAdapter, LoraConfig, init},
    train::{Job, Learner, Loss, PassStats, forward_backward, optim_step},
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
    /// What it studies instead of the environment's own training items.
    pub course: Option<&'a Course>,
}

impl Lesson<'_> {
    /// What the run is called: a prefix and an adapter of one name are learned beside each other.
    fn run_name(&self) -> String {
        let kind = if self.recipe.positions > 0 { "+prefix" } else { "" };
        format!("{}{kind}", self.name)
    }
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
    /// Tokens that were read before them, those of training's own samples left out.
    pub read_tokens: u64,
    /// Tokens that passed through forward and backward.
    pub trained_tokens: u64,
    /// Those of them that had a loss.
    pub scored_tokens: u64,
    /// What was seen at each step that trained.
    pub curve: Vec<Point>,
    /// Mean absolute difference between recorded and recomputed logprobs of sampled tokens, where it learned from samples.
    pub logprob_gap: Option<f64>,
    /// From birth to the end, over all sittings.
    pub seconds: f64,
    /// What was learned, admitted or not.
    pub adapter: Arc<ActiveAdapter>,
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
    let class = Class { lessons: std::slice::from_ref(lesson), library, home, marks: &Marks::default() };
    let mut learned = learn_together(&class, report)?;
    learned.next().expect("one lesson is one life")
}

/// Lessons over one base that are learned at once, each step of all in one pass over the base. Each ends at the same bytes as if it were
/// alone; budgets in time are another matter, as what one life takes all others wait for.
pub struct Class<'a> {
    /// The lessons; each has a name of its own.
    pub lessons: &'a [Lesson<'a>],
    /// Where what proves itself is published.
    pub library: &'a Library,
    /// Where runs that are not finished lie.
    pub home: &'a Home,
    /// What has been answered before, and need not be again.
    pub marks: &'a Marks,
}

/// Lives all lives of a class up to their ends; each is judged and published as its turn comes in the iterator.
///
/// # Panics
/// If the lessons are not over one base.
pub fn learn_together<'a>(
    class: &Class<'a>,
    report: &'a mut dyn Report,
) -> Result<impl Iterator<Item = Result<Learned, AgentError>> + use<'a>, AgentError> {
    let library = class.library;
    let lives = live(class, report)?;
    Ok(lives.into_iter().map(move |life| life.be_judged(library, report)))
}

/// Lives all lives of a class, which are of one name, and publishes the one that the gate admits and that does best on validation, the
/// first among equals. Its index comes with what all have learned.
///
/// # Panics
/// Without a lesson.
pub fn learn_best(class: &Class<'_>, report: &mut dyn Report) -> Result<(usize, Vec<Learned>), AgentError> {
    let mut lives = live(class, report)?;
    let verdicts = lives.iter_mut().map(|life| life.verdict(report)).collect::<Result<Vec<_>, _>>()?;
    let worth = |i: usize| (verdicts[i].decision.admitted, verdicts[i].validation.after);
    let better = |a: usize, b: usize| {
        let ((a_admitted, a), (b_admitted, b)) = (worth(a), worth(b));
        a_admitted.cmp(&b_admitted).then(a.strict.total_cmp(&b.strict)).then(a.lenient.total_cmp(&b.lenient)).is_gt()
    };
    let best = (0..lives.len()).reduce(|best, i| if better(i, best) { i } else { best }).expect("a class has a lesson");
    let mut all = Vec::with_capacity(verdicts.len());
    for (i, (life, verdict)) in lives.into_iter().zip(verdicts).enumerate() {
        all.push(life.end(verdict, (i == best).then_some(class.library), report)?);
    }
    Ok((best, all))
}

/// Trains every life of a class to its end.
fn live<'a>(class: &Class<'a>, report: &mut dyn Report) -> Result<Vec<Life<'a>>, AgentError> {
    let mut lives = class.lessons.iter().map(|lesson| Life::open(lesson, class)).collect::<Result<Vec<_>, _>>()?;
    lives.iter_mut().try_for_each(|life| life.be_born(report))?;
    train(&mut lives, report)?;
    Ok(lives)
}

/// Trains every life to the end of its budget.
fn train(lives: &mut [Life<'_>], report: &mut dyn Report) -> Result<(), AgentError> {
    let mut going: Vec<&mut Life<'_>> = lives.iter_mut().collect();
    while !going.is_empty() {
        let mut studies = Vec::new();
        for life in going {
            if let Some(steps) = life.more(report)? {
                let study = life.study(steps, report)?;
                studies.push((life, study));
            }
        }
        let details = step(&mut studies)?;
        if let (Some((life, study)), Some(detail)) = (studies.first(), details.first()) {
            let others = if studies.len() > 1 { format!(" and {} more", studies.len() - 1) } else { String::new() };
            report.progress(Progress {
                phase: Phase::Training,
                label: &format!("{}{others}", life.lesson.name),
                done: life.run.progress.step as u64,
                total: Some(study.steps as u64),
                unit: Unit::Steps,
                detail,
            });
        }
        going = studies.into_iter().map(|(life, _)| life).collect();
        let cancelled = report.cancelled();
        for life in &mut going {
            if cancelled || life.saved.elapsed().as_secs_f64() > CHECKPOINT_SECONDS {
                life.checkpoint()?;
            }
        }
        if cancelled {
            return Err(AgentError::Cancelled);
        }
    }
    Ok(())
}

/// Lives a recorded life again, of which `birth` is known and with how many steps in all each step was planned. Nothing is judged.
pub(super) fn relive<'a>(
    lesson: &'a Lesson<'a>,
    class: &Class<'a>,
    birth: Birth,
    planned: &[usize],
    report: &mut dyn Report,
) -> Result<Life<'a>, AgentError> {
    let mut life = Life::open(lesson, class)?;
    life.run.progress.birth = Some(birth);
    for (done, &steps) in (1..).zip(planned) {
        let study = life.study(steps, report)?;
        let detail = step(&mut [(&mut life, study)])?.pop().unwrap_or_default();
        report.progress(Progress {
            phase: Phase::Training,
            label: lesson.name.as_str(),
            done,
            total: Some(planned.len() as u64),
            unit: Unit::Steps,
            detail: &detail,
        });
        if report.cancelled() {
            return Err(AgentError::Cancelled);
        }
    }
    Ok(life)
}

/// What a life learns from in one step.
struct Study {
    how: Method,
    material: Material,
    loss: Box<Loss<'static>>,
    /// In all, as far as that is known now.
    steps: usize,
}

/// One step of every life, in one pass over their base. Says what each found.
fn step(studies: &mut [(&mut Life<'_>, Study)]) -> Result<Vec<String>, AgentError> {
    let Some(base) = studies.first().map(|(life, _)| life.lesson.base) else { return Ok(Vec::new()) };
    let mut jobs = Vec::new();
    for (life, study) in studies.iter_mut().filter(|(_, study)| !study.material.rows.is_empty()) {
        assert!(std::ptr::eq(life.lesson.base, base), "a class has one base");
        jobs.push(Job { learner: &mut life.run.learner, rows: &study.material.rows, loss: &*study.loss });
    }
    let found = if jobs.is_empty() { Vec::new() } else { forward_backward(&base.model, &mut jobs, base.limits)? };
    let mut found = found.into_iter();
    let mut details = Vec::new();
    for (life, study) in studies {
        let stats = if study.material.rows.is_empty() { None } else { found.next() };
        details.push(life.take_step(study, stats)?);
    }
    Ok(details)
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
    marks: &'a Marks,
    born: Instant,
    saved: Instant,
}

impl<'a> Life<'a> {
    fn open(lesson: &'a Lesson<'a>, class: &Class<'a>) -> Result<Self, AgentError> {
        let Lesson { base, env, recipe, parent, course, .. } = lesson;
        let &Class { library, home, marks, .. } = class;
        let born = Instant::now();
        let parent_weights =
            parent.as_ref().map(|parent| library.load_adapter(parent, &base.id, base.spec())).transpose()?;
        let config = parent_weights.as_ref().map_or_else(|| recipe.lora(), |(_, config)| config.clone());
        let layout = config.layout(base.spec())?;
        let newborn = parent_weights.map(|(adapter, _)| Arc::new(adapter));
        let birth = || {
            let fresh = || match (layout.positions(), course) {
                (0, _) => Ok(init(&layout, Seed::new(recipe.seed).purpose("lora"))),
                (positions, Some(course)) => base.model.read_prefix(&course.beginning, positions),
                (_, None) => panic!("a prefix is read from what a course begins with"),
            };
            let theta = newborn.as_ref().map_or_else(fresh, |adapter| Ok(adapter.theta.clone()))?;
            Ok::<_, AgentError>(Learner::new(layout.clone(), theta, recipe.seed, recipe.dropout as f32))
        };
        let settings = Settings {
            env: env.info().name.clone(),
            env_version: env.info().version.clone(),
            base: base.id.digest.to_string(),
            dtype: format!("{:?}", base.dtype),
            parent: parent.as_ref().map(|parent| parent.id.to_string()),
            recipe: recipe.clone(),
        };
        let name = lesson.run_name();
        let run = Run::open(home.runs().join(&name), &name, &settings, base.spec(), birth)?;
        let exam = Exam {
            validation: fixed_items(*env, Split::Validation, recipe.level, recipe.validation_items)?,
            test: fixed_items(*env, Split::Test, recipe.level, recipe.test_items)?,
        };
        Ok(Self { lesson, config, run, exam, newborn, marks, born, saved: born })
    }

    pub(super) fn seed(&self) -> Seed {
        Seed::new(self.lesson.recipe.seed)
    }

    pub(super) fn seconds(&self) -> f64 {
        self.run.progress.seconds + self.born.elapsed().as_secs_f64()
    }

    /// What acts now: the adapter as it stands.
    pub(super) fn active(&self) -> Arc<ActiveAdapter> {
        let generation = format!("{}:step-{}", self.lesson.run_name(), self.run.progress.step);
        let learner = &self.run.learner;
        Arc::new(ActiveAdapter::new(generation, learner.layout().clone(), learner.theta().to_vec()))
    }

    pub(super) fn source(&self) -> Source<'a> {
        let &Lesson { base, env, ref recipe, course, .. } = self.lesson;
        Source { base, env, level: recipe.level, seed: Seed::new(recipe.seed), kl: recipe.kl, course }
    }

    /// Grades of whoever `adapter` is; what it sampled is counted.
    pub(super) fn judge(
        &mut self,
        items: &[Item],
        adapter: Option<Arc<ActiveAdapter>>,
        report: &mut dyn Report,
    ) -> Result<Grades, AgentError> {
        let Lesson { base, env, .. } = self.lesson;
        let marks = self.marks.ask(base, &Place::all(*env, items, adapter.as_ref()), report)?;
        self.run.progress.sampled_tokens += marks.iter().map(|mark| mark.drawn).sum::<u64>();
        self.run.progress.read_tokens += marks.iter().map(|mark| mark.read).sum::<u64>();
        Ok(Mark::grades(&marks))
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
            places: &Place::all(self.lesson.env, items, self.newborn.as_ref()),
            samples: PROBE_SAMPLES,
            temperature: Method::Rloo.defaults().temperature,
            seed: self.seed().purpose("probe"),
            phase: Phase::Rollouts,
        };
        let groups = play(self.lesson.base, &rollouts, report)?;
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

    /// Whether there is another step to train, and of how many in all; at the end what was learned is made durable.
    fn more(&mut self, report: &mut dyn Report) -> Result<Option<usize>, AgentError> {
        loop {
            match self.next() {
                Next::Step(steps) => return Ok(Some(steps)),
                Next::Probe => self.time_judging(report)?,
                Next::Judge => return self.checkpoint().map(|()| None),
            }
        }
    }

    /// What is learned from in the next step.
    fn study(&self, steps: usize, report: &mut dyn Report) -> Result<Study, AgentError> {
        let Birth { method, warmup, .. } = *self.birth();
        let (source, step) = (self.source(), self.run.progress.step);
        let (how, material) = if step < warmup {
            (Method::Sft, source.warmup(step)?)
        } else {
            (method, source.material(method, step - warmup, &|| self.active(), report)?)
        };
        Ok(Study { how, material, loss: source.loss(how), steps })
    }

    /// Takes the step that a pass over `study` gave the gradient of. Says what it found.
    fn take_step(&mut self, study: &Study, stats: Option<PassStats>) -> Result<String, AgentError> {
        let Study { how, material, steps, .. } = study;
        let reward = material.reward();
        let mut detail = reward.map(|reward| format!("reward {reward:.2}")).unwrap_or_default();
        if let Some(stats) = stats {
            optim_step(&mut self.run.learner, &self.lesson.recipe.optimiser(*how, *steps))?;
            detail = describe(&detail, &stats);
            self.count(&stats);
            self.run.progress.curve.push(Point { step: self.run.progress.step, loss: stats.loss, reward });
        }
        self.run.append(&material.episodes)?;
        self.run.progress.sampled_tokens += material.sampled_tokens();
        self.run.progress.step += 1;
        Ok(detail)
    }

    fn count(&mut self, stats: &PassStats) {
        let progress = &mut self.run.progress;
        progress.trained_tokens += stats.tokens as u64;
        progress.scored_tokens += stats.loss_tokens as u64;
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
