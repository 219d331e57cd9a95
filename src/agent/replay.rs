//! A published generation learned again from what it records, and its bytes compared. Never publishes.

use super::{
    AgentError, Course, Lesson, Method, Outline, Recipe, Session,
    budget::planned_with,
    learn::{Class, relive},
    marks::Marks,
    measure::Grades,
    merge::merge_again,
    run::Birth,
};
use crate::{
    common::{Digest, Home, Report},
    envs::Environment,
    library::{Generation, episodes_digest},
    lora::LoraWeights,
};
use serde_json::Value;
use std::{sync::Arc, time::Instant};

/// What came of learning again.
#[derive(Debug)]
pub struct Replayed {
    /// Steps taken.
    pub steps: usize,
    /// Seconds that they took.
    pub seconds: f64,
    /// Digest of the adapter's tensors.
    pub adapter: Digest,
    /// Digest of the episodes, if there were any.
    pub episodes: Option<Digest>,
    /// Both as the generation has them.
    pub recorded: (Digest, Option<Digest>),
}

/// Learns `generation` again, in `env` and by `course` where it was learned so, for as many steps as it records. The same machine, version and
/// number format give the same bytes.
///
/// # Errors
/// If the generation does not say how it came to be, the environment or base is another, or a step fails.
pub fn replay(
    session: &Session,
    generation: &Arc<Generation>,
    env: Option<&dyn Environment>,
    course: Option<&Course>,
    report: &mut dyn Report,
) -> Result<Replayed, AgentError> {
    let start = Instant::now();
    let blobs = &generation.manifest.blobs;
    let recorded = (blobs.adapter_weights.digest, blobs.episodes.map(|blob| blob.digest));
    if generation.manifest.provenance.learner == "merge" {
        let base = Outline { id: session.base.id.clone(), spec: session.base.spec().clone() };
        let (adapter, _) = merge_again(&session.library, &base, generation)?;
        let seconds = start.elapsed().as_secs_f64();
        return Ok(Replayed { steps: 0, seconds, adapter, episodes: None, recorded });
    }
    let studied = &generation.manifest.provenance.hyper_parameters;
    if studied.get("course") != course.map(Course::summary).as_ref() {
        let what = "it was studied from documents, which are not at hand: name them with --document".to_owned();
        return Err(AgentError::NotReplayable { skill: generation.manifest.name.to_string(), what });
    }
    let record = Record::of(generation, session, env)?;
    let lesson = Lesson {
        base: &session.base,
        env: record.env,
        recipe: record.recipe,
        name: generation.manifest.name.clone(),
        parent: generation.manifest.provenance.parents.first().map(|&id| session.library.generation(id)).transpose()?,
        course,
    };
    // A run of its own: one of the same name may be under way.
    let scratch =
        tempfile::tempdir().map_err(|error| AgentError::Run { path: std::env::temp_dir(), what: error.to_string() })?;
    let home = Home::at(scratch.path());
    let marks = Marks::default();
    let class = Class { lessons: std::slice::from_ref(&lesson), library: &session.library, home: &home, marks: &marks };
    let life = relive(&lesson, &class, record.birth, &record.planned, report)?;
    let lora = LoraWeights::new(life.config.clone(), session.base.spec(), life.run.learner.theta().to_vec())?;
    Ok(Replayed {
        steps: record.planned.len(),
        seconds: start.elapsed().as_secs_f64(),
        adapter: lora.digest(),
        episodes: episodes_digest(&life.run.episodes()?),
        recorded,
    })
}

/// What a generation says about how it was learned.
struct Record<'a> {
    env: &'a dyn Environment,
    recipe: Recipe,
    birth: Birth,
    /// Steps in all that each step was planned with.
    planned: Vec<usize>,
}

impl<'a> Record<'a> {
    fn of(generation: &Generation, session: &Session, env: Option<&'a dyn Environment>) -> Result<Self, AgentError> {
        let manifest = &generation.manifest;
        let provenance = &manifest.provenance;
        let not = |what: String| AgentError::NotReplayable { skill: manifest.name.to_string(), what };
        let method: Method = provenance
            .learner
            .parse()
            .map_err(|_| not(format!("it came by {:?}, which is no way to learn", provenance.learner)))?;
        let settings = Value::from(provenance.hyper_parameters.clone());
        let dtype = format!("{:?}", session.base.dtype).to_lowercase();
        if let Some(recorded) = settings["dtype"].as_str().filter(|recorded| *recorded != dtype) {
            return Err(not(format!(
                "it was learned in {recorded}, and the base is open in {dtype}: use --dtype or --weights"
            )));
        }
        let recipe: Recipe = serde_json::from_value(settings.clone())
            .map_err(|error| not(format!("its recipe cannot be read ({error})")))?;
        let env = env.ok_or_else(|| not("its environment is not at hand".into()))?;
        let recorded = provenance.env.as_ref().map(|env| (env.name.as_str(), env.version.as_str()));
        let found = (env.info().name.as_str(), env.info().version.as_str());
        if let Some(expected) = recorded.filter(|expected| *expected != found) {
            let spelled = |(name, version): (&str, &str)| format!("{name} {version}");
            return Err(not(format!("it was learned in {}, and this is {}", spelled(expected), spelled(found))));
        }
        let plans: Vec<(usize, usize)> = serde_json::from_value(settings["plans"].clone()).unwrap_or_default();
        let steps = provenance.cost.steps as usize;
        let planned = (0..steps).map(|step| planned_with(recipe.budget, &plans, step, steps)).collect();
        let birth = Birth {
            validation: Grades::default(),
            test: Grades::default(),
            method,
            why: "recorded".into(),
            warmup: settings["warmup"].as_u64().unwrap_or(0) as usize,
        };
        Ok(Self { env, recipe, birth, planned })
    }
}
