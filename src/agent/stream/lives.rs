//! Subagents of a stream: what each is born from, and what it learns, unless that is known. Never measures what it is worth later.

use super::{
    arms::ROUTED,
    cost::{Spent, forward_rows, training},
    desk::{Desk, Life, Skill},
    directory::Directory,
    outlook::Outlook,
    spec::Stream,
};
use crate::{
    agent::{AgentError, Class, Learned, Lesson, learn_together},
    common::{Digest, Report},
    library::{Generation, SkillName},
};
use std::sync::Arc;

/// A life that is to be lived.
struct Birth {
    task: usize,
    seed: u64,
    parent: Option<Skill>,
}

impl Birth {
    /// What the outcome depends on: the task, how it is learned, and the adapter that it starts from.
    fn key(&self, desk: &Desk<'_>) -> Digest {
        let opened = &desk.tasks[self.task];
        let info = opened.env.info();
        // On how many items it is tested changes nothing of what is learned.
        let recipe = opened.task.recipe(self.seed, 0);
        let parent = self.parent.as_ref().map(|parent| parent.adapter.digest());
        desk.key("life", &serde_json::json!([info.name, info.version, recipe, parent]))
    }

    /// What the skill is called in the run's own library, which holds those of every seed and order.
    fn name(&self, desk: &Desk<'_>) -> SkillName {
        let task: String = desk.tasks[self.task].task.name.as_str().chars().take(40).collect();
        let name = format!("{task}-{}", self.key(desk).short());
        name.parse().expect("a name and some digits are a name")
    }
}

impl Desk<'_> {
    /// The life of `task` under `seed` in a library of `skills`: from the memory of the run, or lived now.
    pub(super) fn life(
        &self,
        task: usize,
        seed: u64,
        skills: &[Skill],
        outlook: &mut Outlook,
        report: &mut dyn Report,
    ) -> Result<Life, AgentError> {
        let birth = Birth { task, seed, parent: self.parent(task, skills)? };
        let key = birth.key(self);
        if self.known_life(&key).is_none() {
            outlook.time(ROUTED, || self.live(&[birth], report))?;
        }
        Ok(self.known_life(&key).expect("it has been lived"))
    }

    /// What a newborn starts from: the skill that most of its training prompts are routed to.
    fn parent(&self, task: usize, skills: &[Skill]) -> Result<Option<Skill>, AgentError> {
        if self.tasks[task].task.independent || skills.is_empty() {
            return Ok(None);
        }
        let directory = Directory::new(self, skills)?;
        Ok(directory.most(self, self.births(task)?)?.cloned())
    }

    /// Lives the lives that depend on no other, `at_once` of them together.
    pub(super) fn live_ahead(&self, outlook: &mut Outlook, report: &mut dyn Report) -> Result<(), AgentError> {
        let independent = |task: &usize| self.tasks[*task].task.independent;
        let tasks: Vec<usize> = (0..self.tasks.len()).filter(independent).collect();
        let births = self.open_seeds().into_iter();
        let births = births.flat_map(|seed| tasks.iter().map(move |&task| Birth { task, seed, parent: None }));
        let open: Vec<Birth> = births.filter(|birth| self.known_life(&birth.key(self)).is_none()).collect();
        for births in open.chunks(self.stream.at_once) {
            outlook.time_all(ROUTED, births.len(), || self.live(births, report))?;
        }
        Ok(())
    }

    /// Seeds under which the library is not known in every order.
    fn open_seeds(&self) -> Vec<u64> {
        let Stream { seeds, orders, .. } = self.stream;
        let open = |seed: &u64| orders.iter().any(|order| !self.is_finished(ROUTED, order, *seed));
        seeds.iter().copied().filter(open).collect()
    }

    /// How many lives, of those that start from the base, have not been lived.
    pub(super) fn unlived(&self) -> usize {
        let births = self
            .open_seeds()
            .into_iter()
            .flat_map(|seed| (0..self.tasks.len()).map(move |task| Birth { task, seed, parent: None }));
        births.filter(|birth| self.known_life(&birth.key(self)).is_none()).count()
    }

    /// Lives several lives at once and keeps what came of each as soon as it is known.
    fn live(&self, births: &[Birth], report: &mut dyn Report) -> Result<(), AgentError> {
        let lesson = |birth: &Birth| {
            let opened = &self.tasks[birth.task];
            Lesson {
                base: self.base(),
                env: &*opened.env,
                recipe: opened.task.recipe(birth.seed, self.stream.items),
                name: birth.name(self),
                parent: birth.parent.as_ref().map(|parent| parent.generation.clone()),
                course: None,
            }
        };
        let lessons: Vec<Lesson<'_>> = births.iter().map(lesson).collect();
        let class = Class { lessons: &lessons, library: &self.library, home: &self.home, marks: &self.marks };
        let together = births.len() as f64;
        for (birth, learned) in births.iter().zip(learn_together(&class, report)?) {
            let life = self.told(birth, &learned?, together)?;
            self.lives.borrow_mut().insert(birth.key(self), life)?;
        }
        Ok(())
    }

    fn told(&self, birth: &Birth, learned: &Learned, together: f64) -> Result<Life, AgentError> {
        let spec = self.base().spec();
        let task = &self.tasks[birth.task].task;
        let generation: Option<&Arc<Generation>> = learned.generation.as_ref();
        let mut life = Life {
            task: task.name.clone(),
            seed: birth.seed,
            parent: birth.parent.as_ref().map(|parent| self.tasks[parent.task].task.name.clone()),
            generation: generation.map(|generation| generation.id),
            adapter: None,
            learner: learned.method.to_string(),
            gate: learned.decision.reason.clone(),
            steps: learned.steps,
            curve: learned.curve.clone(),
            spent: Spent::default(),
        };
        let skill = self.skill(birth.task, &life)?;
        let adapter = learned.adapter.theta.len();
        life.adapter = skill.map(|skill| skill.adapter.digest());
        life.spent = Spent {
            read_tokens: learned.read_tokens,
            sampled_tokens: learned.sampled_tokens,
            trained_tokens: learned.trained_tokens,
            flops: forward_rows(spec, adapter, learned.read_tokens, learned.sampled_tokens)
                + training(spec, adapter, learned.trained_tokens, learned.scored_tokens),
            // Lives that learn together take their time together.
            seconds: learned.seconds / together,
        };
        Ok(life)
    }
}
