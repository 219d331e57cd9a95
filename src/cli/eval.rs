//! `socius eval`: what somebody achieves in an environment, without learning.

use super::{
    Terminal,
    answer::versioned,
    flags::{self, BaseFlags},
    learn,
};
use crate::{
    agent::{self, Session, SkillChoice},
    envs::{Environment, Form, Query, Split},
    library::{Comparison, EnvId, Evidence, Finding, Generation, Score},
};
use clap::ValueEnum;
use serde_json::{Value, json};

/// Items whose replies are drawn to estimate how far a skill is from the base.
const DIVERGENCE_ITEMS: usize = 64;

/// Test a skill, the routed skills or the base in an environment
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius eval reverse                       whoever the router chooses
  socius eval reverse --skill none          the base
  socius eval cipher --skill cipher --form reversed
  socius eval json --skill reverse --record       what reverse brings or harms there, kept with it
  socius eval json --items 500 --split validation --json | tail -n 1 | jq .strict")]
pub(super) struct Args {
    /// The environment (see `socius envs`)
    #[arg(required_unless_present = "env_command", default_value = "reverse", hide_default_value = true)]
    env: String,
    /// A program that is the environment, speaking JSON lines over stdin and stdout
    #[arg(long, value_name = "CMD", conflicts_with = "env")]
    env_command: Option<String>,
    /// Who answers: a skill, auto for the router's choice at each item, none for the base
    #[arg(long, default_value = "auto", value_parser = flags::skill)]
    skill: SkillChoice,
    /// Items at most; an environment of few facts has fewer
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    items: u32,
    /// Which items: those that the gate sees, or those that are only reported
    #[arg(long, value_enum, default_value = "test")]
    split: SplitFlag,
    /// Difficulty of the items, from 1
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    level: u32,
    /// The form of the questions, in environments of facts
    #[arg(long, value_enum, default_value = "direct")]
    form: FormFlag,
    /// Keep the scores of the base and of the skill, and how far the skill's replies are from the base's, with the skill's generation
    #[arg(long)]
    record: bool,
    #[command(flatten)]
    base: BaseFlags,
}

#[derive(Clone, Copy, ValueEnum)]
enum SplitFlag {
    Validation,
    Test,
}

#[derive(Clone, Copy, ValueEnum)]
enum FormFlag {
    Direct,
    Reversed,
    TwoHop,
}

impl Args {
    fn query(&self) -> Query {
        let split = match self.split {
            SplitFlag::Validation => Split::Validation,
            SplitFlag::Test => Split::Test,
        };
        let form = match self.form {
            FormFlag::Direct => Form::Direct,
            FormFlag::Reversed => Form::Reversed,
            FormFlag::TwoHop => Form::TwoHop,
        };
        Query { form, ..Query::new(split, self.level) }
    }
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let env = learn::environment(&args.env, args.env_command.as_deref())?;
    let query = args.query();
    let session = args.base.open(terminal)?;
    let found = agent::evaluate(&session, &*env, &query, args.items as usize, &args.skill, terminal)?;
    let score = found.grades.score();
    let name = &env.info().name;
    let skill = flags::skill_text(&args.skill);
    let [low, high] = score.ci95.map(|bound| 100.0 * bound);
    let (strict, lenient, items) = (100.0 * score.strict, 100.0 * score.lenient, score.items);
    terminal
        .title(&format!("{name}, {skill}: {strict:.1} % [{low:.1}, {high:.1}] on {items} {} items", query.split))?;
    terminal.line(format!("  lenient {lenient:.1} %"))?;
    let answered = found.answered_by.iter().map(|(who, count)| format!("{who} {count}")).collect::<Vec<_>>();
    terminal.line(format!("  answered by {}", answered.join(", ")))?;
    let recorded = match (args.record, &args.skill) {
        (false, _) => Vec::new(),
        (true, SkillChoice::Named(skill)) => {
            let generation = session.library.show(skill)?;
            record(&session, &*env, &query, &generation, &score, terminal)?
        }
        (true, _) => anyhow::bail!("--record keeps the scores with a skill: name one with --skill"),
    };
    Ok(json!({
        "env": name,
        "skill": skill,
        "split": query.split,
        "level": query.level,
        "form": query.form,
        "strict": score.strict,
        "lenient": score.lenient,
        "items": score.items,
        "ci95": score.ci95,
        "answered_by": found.answered_by,
        "recorded": recorded,
    }))
}

/// Measures the base on the same items, and the skill's distance from it, and adds both to the generation's evidence.
fn record(
    session: &Session,
    env: &dyn Environment,
    query: &Query,
    generation: &Generation,
    after: &Score,
    terminal: &mut Terminal,
) -> anyhow::Result<Vec<Evidence>> {
    let base = agent::evaluate(session, env, query, after.items, &SkillChoice::None, terminal)?;
    let before = base.grades.score();
    let items = agent::fixed_items_of(env, query, after.items.min(DIVERGENCE_ITEMS))?;
    let (nats_per_token, tokens) = agent::divergence(session, env, &items, generation, terminal)?;
    let info = env.info();
    let env = EnvId { name: info.name.clone(), version: info.version.clone(), level: Some(query.level.to_string()) };
    let scores = Comparison { before, after: *after };
    let now = jiff::Timestamp::now();
    let findings = [
        Finding::Evaluation { env: env.clone(), split: query.split.to_string(), scores },
        Finding::Divergence { env, nats_per_token, tokens },
    ];
    let evidence = findings.map(|finding| Evidence::new(generation.id, finding, now));
    evidence.iter().try_for_each(|evidence| session.library.attach(evidence.clone()))?;
    terminal.line(format!(
        "  recorded with {}: base {:.1} %, KL to it {nats_per_token:.3} nats a token",
        versioned(generation),
        100.0 * before.strict
    ))?;
    Ok(evidence.to_vec())
}
