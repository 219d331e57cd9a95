//! `socius learn`: the life of one subagent, from birth to skill.

use super::{
    Terminal, answer,
    flags::{self, BaseFlags, MemoryFlag},
};
use crate::{
    agent::{self, Budget, Learned, Lesson, Method, Prompt, Question, Recipe, Session, SkillChoice, UnknownMethod},
    common::Seed,
    engine::Sampling,
    envs::{self, Environment, HeldOut, Query, Split},
    library::{Comparison, Score, SkillName, SkillRef},
};
use anyhow::Context;
use serde_json::{Value, json};

/// Let one subagent learn: act, be graded, train, be tested on fresh items, become a skill
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius learn                                   reverse, with the learner that fits
  socius learn json --learner rloo --seed 3
  socius learn cipher --budget 5m --name my-cipher
  socius learn reverse --parent reverse@1 --steps 40
  socius learn --env-command 'python3 my_env.py' --name mine

An interrupted run goes on when the same command is given again. A candidate that the gate refuses
is a finished run: exit code 0, with the reason.")]
pub(super) struct Args {
    /// The environment (see `socius envs`)
    #[arg(default_value = "reverse")]
    env: String,
    /// A program that is the environment, speaking JSON lines over stdin and stdout
    #[arg(long, value_name = "CMD", conflicts_with = "env")]
    env_command: Option<String>,
    /// What the skill is called; the environment's name without
    #[arg(long)]
    name: Option<SkillName>,
    /// A skill to start from, instead of the base
    #[arg(long, value_name = "SKILL")]
    parent: Option<SkillRef>,
    /// Difficulty of the items, from 1
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    level: u32,
    /// Items of the test that is reported
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    test_items: u32,
    /// auto, sft (revealed answers), raft, rloo or grpo (reward alone)
    #[arg(long, default_value = "auto", value_parser = learner)]
    learner: Learner,
    /// Weight of the KL to the base in reward-only learning
    #[arg(long, default_value_t = 0.0, value_parser = rate)]
    kl: f64,
    #[command(flatten)]
    training: TrainingFlags,
    #[command(flatten)]
    base: BaseFlags,
}

/// Rank of an adapter if nobody says otherwise.
const RANK: u32 = 16;

/// How much, and with what, to learn.
#[derive(clap::Args)]
pub(super) struct TrainingFlags {
    /// Time from base score to gate, such as 90s or 5m
    #[arg(long, value_parser = flags::budget, conflicts_with = "steps")]
    budget: Option<Budget>,
    /// Optimiser steps; the learner's own number without
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Rank of the adapter; 16 without, and for `compress` what fits a tenth of the documents' memory
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    rank: Option<u32>,
    /// Peak learning rate; the learner's own without
    #[arg(long, value_parser = rate)]
    lr: Option<f64>,
    /// Probability of dropping an adapter's input in training
    #[arg(long, default_value_t = 0.0, value_parser = flags::fraction)]
    dropout: f32,
    /// A seed makes the run repeatable to the byte on one machine
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    memory: MemoryFlag,
}

/// A method, or the choice of one.
#[derive(Clone, Copy)]
struct Learner(Option<Method>);

fn learner(text: &str) -> Result<Learner, UnknownMethod> {
    if text == "auto" { Ok(Learner(None)) } else { text.parse().map(|method| Learner(Some(method))) }
}

fn rate(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|rate: &f64| (0.0..=1.0).contains(rate));
    found.ok_or_else(|| "a number from 0 to 1 is expected, such as 5e-4".to_owned())
}

impl TrainingFlags {
    /// Opens the base to train over.
    pub(super) fn open(&self, base: &BaseFlags, terminal: &mut Terminal) -> anyhow::Result<Session> {
        let mut session = base.open(terminal)?;
        session.base.limits = self.memory.limits();
        Ok(session)
    }

    /// Whether a rank was asked for.
    pub(super) fn rank_given(&self) -> bool {
        self.rank.is_some()
    }

    pub(super) fn recipe(&self) -> Recipe {
        let rank = self.rank.unwrap_or(RANK);
        Recipe {
            seed: self.seed,
            budget: self.budget.or(self.steps.map(|steps| Budget::Steps(steps as usize))),
            rank: rank as usize,
            alpha: 2.0 * f64::from(rank),
            lr: self.lr,
            dropout: f64::from(self.dropout),
            ..Recipe::default()
        }
    }
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let env = environment(&args.env, args.env_command.as_deref())?;
    env.info().level(args.level)?;
    let name = args.name.map_or_else(|| default_name(&*env), Ok)?;
    let recipe = Recipe {
        method: args.learner.0,
        kl: args.kl,
        level: args.level,
        test_items: args.test_items as usize,
        ..args.training.recipe()
    };
    let session = args.training.open(&args.base, terminal)?;
    let parent = args.parent.map(|parent| session.library.show(&parent)).transpose()?;
    live(&session, &Lesson { base: &session.base, env: &*env, recipe, name, parent, course: None }, terminal)
}

/// Lives the life, shows what came of it, and gives it as JSON.
pub(super) fn live(session: &Session, lesson: &Lesson<'_>, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let learned = agent::learn(lesson, &session.library, &session.home, terminal)?;
    show(lesson, &learned, terminal)?;
    let shown = match learned.generation {
        Some(_) => Some(demonstrate(session, lesson, terminal)?),
        None => None,
    };
    let mut value = to_json(lesson, &learned);
    value["shown"] = json!(shown);
    Ok(value)
}

/// A built-in environment, or a program.
pub(super) fn environment(name: &str, command: Option<&str>) -> anyhow::Result<Box<dyn Environment>> {
    match command {
        Some(command) => Ok(Box::new(envs::ProcessEnvironment::spawn(command)?)),
        None => Ok(envs::find(name)?),
    }
}

/// The environment's name as far as a skill may be called that.
fn default_name(env: &dyn Environment) -> anyhow::Result<SkillName> {
    let name = &env.info().name;
    name.replace('@', "-").parse().with_context(|| format!("give a name with --name: {name:?} cannot be one"))
}

fn show(lesson: &Lesson<'_>, learned: &Learned, terminal: &mut Terminal) -> anyhow::Result<()> {
    let env = &lesson.env.info().name;
    let score = |score: &Score| {
        let [low, high] = score.ci95.map(|bound| 100.0 * bound);
        format!("{:.1} % [{low:.1}, {high:.1}]", 100.0 * score.strict)
    };
    let change = |test: &Comparison| format!("{} → {}", score(&test.before), score(&test.after));
    let Learned { method, steps, seconds, sampled_tokens, trained_tokens, test, .. } = learned;
    terminal.title(&format!("{env}: {} on {} test items", change(test), test.after.items))?;
    if let Some(test) = &learned.held_out {
        terminal.line(format!("  in wordings never trained on: {} on {}", change(test), test.after.items))?;
    }
    for (form, test) in &learned.apart {
        terminal.line(format!("  {form} questions, never trained on: {} on {}", change(test), test.after.items))?;
    }
    terminal.line(format!(
        "  {method}, {steps} steps, {seconds:.0} s, {sampled_tokens} tokens sampled, {trained_tokens} trained"
    ))?;
    terminal.line(format!("  {}", learned.decision.reason))?;
    match &learned.generation {
        Some(generation) => {
            terminal.line(format!("  skill {} ({})", answer::versioned(generation), generation.id.short()))?;
        }
        None => terminal.line("  not admitted: no skill was published")?,
    }
    Ok(())
}

/// A fresh prompt, to the base and through the router.
fn demonstrate(session: &Session, lesson: &Lesson<'_>, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let level = lesson.recipe.level;
    let seed = Seed::new(lesson.recipe.seed).purpose("demonstration");
    let item = envs::item(lesson.env, &Query::new(Split::Test, level), seed, 0)?;
    let messages = lesson.env.start(&item)?.observe().to_vec();
    let max_tokens = lesson.env.info().level(level)?.reply_tokens_max;
    let ask = |skill| {
        let sampling = Sampling::greedy(max_tokens, Vec::new());
        let question = Question { prompt: Prompt::Chat(messages.clone()), skill, sampling, stop: Vec::new() };
        session.answer(&question, &mut |_| std::ops::ControlFlow::Continue(()))
    };
    let (base, routed) = (ask(SkillChoice::None)?, ask(SkillChoice::Auto)?);
    let who = routed.generation.as_deref().map_or_else(|| "the base".to_owned(), answer::versioned);
    let prompt = messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n");
    terminal.line("")?;
    let info = lesson.env.info();
    let unseen = info.held_out == HeldOut::Items || info.wordings.is_held_out(item.wording);
    let never = if unseen { " that it has never seen" } else { "" };
    terminal.title(&format!("A prompt{never}, through the router:"))?;
    terminal.lines(prompt.lines().map(|line| format!("  > {line}")))?;
    terminal.line(format!("  the base:  {}", base.text.replace('\n', " ")))?;
    terminal.line(format!("  routed to {who}:  {}", routed.text.replace('\n', " ")))?;
    Ok(json!({
        "prompt": prompt,
        "base": base.text,
        "answer": routed.text,
        "skill": routed.generation.map(|generation| generation.manifest.name.clone()),
    }))
}

fn to_json(lesson: &Lesson<'_>, learned: &Learned) -> Value {
    json!({
        "skill": lesson.name,
        "generation": learned.generation.as_ref().map(|generation| generation.id),
        "env": lesson.env.info().name,
        "level": lesson.recipe.level,
        "learner": learned.method.to_string(),
        "why": learned.why,
        "seed": lesson.recipe.seed,
        "steps": learned.steps,
        "before": learned.test.before,
        "after": learned.test.after,
        "held_out": learned.held_out,
        "apart": learned.apart,
        "sampled_tokens": learned.sampled_tokens,
        "trained_tokens": learned.trained_tokens,
        "logprob_gap": learned.logprob_gap,
        "seconds": learned.seconds,
        "admitted": learned.decision.admitted,
        "reason": learned.decision.reason,
        "improvement95": learned.decision.improvement95,
    })
}
