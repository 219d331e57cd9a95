//! Looking at skills: lists, one generation, its history, searches, differences. Never changes anything.

use crate::{
    cli::{Terminal, answer::versioned, flags::OutlineFlags, text},
    common::Report,
    library::{
        Comparison, Evidence, Finding, Generation, History, Library, LibraryError, Move, Score, SkillName, SkillRef,
        SkillSummary,
    },
    lora::{SiteComparison, compare},
};
use serde_json::{Value, json};

/// Found skills that are worth a look.
const SHOWN_MAX: usize = 20;

pub(super) fn list(library: &Library, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let found = library.list()?;
    match found.skills.is_empty() {
        true => terminal.line("no skills yet: `socius learn` makes one")?,
        false => terminal.lines(text::table(&found.skills.iter().map(row).collect::<Vec<_>>()))?,
    }
    Ok(json!({ "skills": found.skills, "damaged": tell(&found.damaged, terminal) }))
}

fn row(skill: &SkillSummary) -> [String; 6] {
    let percent = |score: Option<f64>| score.map_or_else(|| "?".to_owned(), |score| format!("{:.1}", 100.0 * score));
    let score = match (skill.before, skill.after) {
        (None, None) => "not measured".to_owned(),
        (before, after) => format!("{} → {} %", percent(before), percent(after)),
    };
    [
        format!("{}@{}", skill.name, skill.number),
        skill.generation.short(),
        score,
        text::bytes(skill.bytes),
        skill.created.strftime("%Y-%m-%d %H:%M").to_string(),
        skill.description.clone(),
    ]
}

fn tell(damaged: &[LibraryError], terminal: &mut Terminal) -> Vec<String> {
    let lines: Vec<String> = damaged.iter().map(ToString::to_string).collect();
    lines.iter().for_each(|line| terminal.note(line));
    lines
}

pub(super) fn history(library: &Library, name: &SkillName, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let History { generations, damaged, moves } = library.history(name)?;
    let summaries: Vec<SkillSummary> = generations.iter().map(|generation| SkillSummary::from(&**generation)).collect();
    terminal.lines(text::table(&summaries.iter().map(row).collect::<Vec<_>>()))?;
    let damaged = tell(&damaged, terminal);
    terminal.line("")?;
    terminal.lines(text::table(&moves.iter().map(moved).collect::<Vec<_>>()))?;
    Ok(json!({ "name": name, "generations": summaries, "damaged": damaged, "moves": moves }))
}

fn moved(entry: &Move) -> [String; 4] {
    let target =
        |at: Option<crate::library::Target>| at.map_or_else(|| "nothing".to_owned(), |at| at.number.to_string());
    [
        entry.sequence.to_string(),
        entry.at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        entry.kind.word().to_owned(),
        format!("{} → {}", target(entry.from), target(entry.to)),
    ]
}

pub(super) fn search(
    library: &Library,
    words: &str,
    like: Option<&SkillRef>,
    terminal: &mut Terminal,
) -> anyhow::Result<Value> {
    let found = match like {
        Some(skill) => library.search_like(&*library.show(skill)?)?,
        None => library.search(words)?,
    };
    let shown = found.iter().take(SHOWN_MAX).map(|found| {
        let skill = &found.skill;
        [format!("{:6.2}", found.score), format!("{}@{}", skill.name, skill.number), skill.description.clone()]
    });
    terminal.lines(text::table(&shown.collect::<Vec<_>>()))?;
    match found.len() {
        0 => terminal.line("nothing found")?,
        count if count > SHOWN_MAX => terminal.line(format!("… and {} more", count - SHOWN_MAX))?,
        _ => {}
    }
    Ok(json!({ "skills": found }))
}

pub(super) fn show(library: &Library, skill: &SkillRef, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let generation = library.show(skill)?;
    let evidence = library.evidence(generation.id)?;
    terminal.title(&versioned(&generation))?;
    let mut rows = about(&generation);
    rows.extend(evidence.iter().map(finding));
    terminal.lines(text::table(&rows))?;
    let mut value = serde_json::to_value(&generation.manifest)?;
    value["generation"] = json!(generation.id);
    value["evidence"] = json!(evidence);
    Ok(value)
}

fn about(generation: &Generation) -> Vec<[String; 2]> {
    let manifest = &generation.manifest;
    let provenance = &manifest.provenance;
    let cost = &provenance.cost;
    let env = provenance.env.as_ref().map(|env| format!("{} {}", env.name, env.version));
    let parents: Vec<_> = provenance.parents.iter().map(|parent| parent.short()).collect();
    let bytes: u64 = manifest.blobs.all().map(|(_, blob)| blob.bytes).sum();
    let kind = if manifest.rank == 0 { "a prefix".to_owned() } else { format!("rank {}", manifest.rank) };
    let mut rows = vec![
        ["generation", &generation.id.to_string()].map(str::to_owned),
        ["for", &manifest.description].map(str::to_owned),
        ["base", &format!("{} ({})", manifest.base.name, manifest.base.digest.short())].map(str::to_owned),
        ["adapter", &format!("{kind}, {} with all that belongs to it", text::bytes(bytes))].map(str::to_owned),
        ["created", &provenance.created.to_string()].map(str::to_owned),
        ["learner", &provenance.learner].map(str::to_owned),
    ];
    let mut add = |what: &str, value: Option<String>| rows.extend(value.map(|value| [what.to_owned(), value]));
    add("environment", env);
    add("seed", provenance.seed.map(|seed| seed.to_string()));
    add("parents", (!parents.is_empty()).then(|| parents.join(", ")));
    for (what, comparison) in [("validation", provenance.validation), ("test", provenance.test)] {
        add(what, comparison.map(|scores| change(&scores)));
    }
    for (kind, scores) in &provenance.apart {
        add(kind, Some(change(scores)));
    }
    let spent = format!(
        "{} steps, {} tokens sampled, {} trained, {:.0} s",
        cost.steps, cost.sampled_tokens, cost.trained_tokens, cost.seconds
    );
    add("cost", (cost.steps > 0).then_some(spent));
    let router = if manifest.blobs.routing.is_some() { "knows it" } else { "does not know it: ask for it by name" };
    add("router", Some(router.to_owned()));
    add("gate", Some(provenance.gate.reasons.join("; ")));
    rows
}

fn finding(evidence: &Evidence) -> [String; 2] {
    match &evidence.finding {
        Finding::Evaluation { env, split, scores } => [format!("{} {split}", env.name), change(scores)],
        Finding::Divergence { env, nats_per_token, tokens } => {
            [format!("KL to base, {}", env.name), format!("{nats_per_token:.3} nats a token, over {tokens} tokens")]
        }
        Finding::Note { text } => ["note".to_owned(), text.clone()],
    }
}

fn change(scores: &Comparison) -> String {
    format!("{} → {}", score(&scores.before), score(&scores.after))
}

fn score(score: &Score) -> String {
    let [low, high] = score.ci95.map(|bound| 100.0 * bound);
    format!("{:.1} % strict [{low:.1}, {high:.1}] on {}", 100.0 * score.strict, score.items)
}

pub(super) fn diff(
    library: &Library,
    skills: [&SkillRef; 2],
    base: &OutlineFlags,
    terminal: &mut Terminal,
) -> anyhow::Result<Value> {
    let [one, other] = [library.show(skills[0])?, library.show(skills[1])?];
    let base = base.outline(terminal)?;
    let weights = |generation: &Generation| library.load_weights(generation, &base.id, &base.spec);
    let sites = compare(&weights(&one)?, &weights(&other)?);
    let settings = differences(&described(library, &one)?, &described(library, &other)?);
    terminal.title(&format!("{} against {}", versioned(&one), versioned(&other)))?;
    terminal.lines(text::table(&settings))?;
    terminal.line(if settings.is_empty() { "the same settings and scores\n" } else { "" })?;
    terminal.lines(text::table(&layers(&sites)))?;
    let whole = Overall::of(&sites);
    terminal.line(format!(
        "in all: norms {:.3} and {:.3}, cosine {}, distance {:.3}",
        whole.norms[0],
        whole.norms[1],
        cosine(whole.cosine),
        whole.distance
    ))?;
    let row = |site: &SiteComparison| {
        let SiteComparison { site, norms, cosine, distance } = site;
        let projection = format!("{:?}", site.projection).to_lowercase();
        json!({ "layer": site.layer, "projection": projection, "norms": norms, "cosine": cosine, "distance": distance })
    };
    let changed = settings.iter().map(|[what, one, other]| json!({ "what": what, "one": one, "other": other }));
    Ok(json!({
        "one": one.id,
        "other": other.id,
        "differences": changed.collect::<Vec<_>>(),
        "sites": sites.iter().map(row).collect::<Vec<_>>(),
        "norms": whole.norms,
        "cosine": whole.cosine,
        "distance": whole.distance,
    }))
}

/// All that is said about a generation, a line each.
fn described(library: &Library, generation: &Generation) -> anyhow::Result<Vec<[String; 2]>> {
    let mut rows: Vec<_> = about(generation).into_iter().filter(|[what, _]| what != "generation").collect();
    let settings = &generation.manifest.provenance.hyper_parameters;
    rows.extend(settings.iter().map(|(key, value)| [key.clone(), value.to_string()]));
    rows.extend(library.evidence(generation.id)?.iter().map(finding));
    Ok(rows)
}

/// What is said of both, and differently, or of one alone.
fn differences(one: &[[String; 2]], other: &[[String; 2]]) -> Vec<[String; 3]> {
    let value = |rows: &[[String; 2]], key: &str| {
        let values: Vec<&str> = rows.iter().filter(|[what, _]| what == key).map(|[_, value]| value.as_str()).collect();
        if values.is_empty() { "—".to_owned() } else { values.join("; ") }
    };
    let mut keys: Vec<&String> = one.iter().chain(other).map(|[what, _]| what).collect();
    let mut seen = std::collections::HashSet::new();
    keys.retain(|key| seen.insert(*key));
    let row = |key: &String| [key.clone(), value(one, key), value(other, key)];
    keys.into_iter().map(row).filter(|[_, one, other]| one != other).collect()
}

/// Two adapters over several sites.
struct Overall {
    norms: [f64; 2],
    cosine: Option<f64>,
    distance: f64,
}

impl Overall {
    fn of<'a>(sites: impl IntoIterator<Item = &'a SiteComparison>) -> Self {
        let (mut squares, mut product, mut distance) = ([0.0; 2], 0.0, 0.0);
        for site in sites {
            squares[0] += site.norms[0].powi(2);
            squares[1] += site.norms[1].powi(2);
            product += site.cosine.unwrap_or(0.0) * site.norms[0] * site.norms[1];
            distance += site.distance.powi(2);
        }
        let norms = squares.map(f64::sqrt);
        let cosine = (norms[0] > 0.0 && norms[1] > 0.0).then(|| product / (norms[0] * norms[1]));
        Self { norms, cosine, distance: distance.sqrt() }
    }
}

/// One row a projection, over all layers: two hundred sites are for `--json`.
fn layers(sites: &[SiteComparison]) -> Vec<[String; 5]> {
    let mut projections: Vec<_> = sites.iter().map(|site| site.site.projection).collect();
    projections.sort();
    projections.dedup();
    let title = ["projection", "norm", "norm", "cosine", "distance"].map(str::to_owned);
    let row = |projection| {
        let all = Overall::of(sites.iter().filter(|site| site.site.projection == projection));
        [
            format!("{projection:?}").to_lowercase(),
            format!("{:.3}", all.norms[0]),
            format!("{:.3}", all.norms[1]),
            cosine(all.cosine),
            format!("{:.3}", all.distance),
        ]
    };
    std::iter::once(title).chain(projections.into_iter().map(row)).collect()
}

fn cosine(cosine: Option<f64>) -> String {
    cosine.map_or_else(|| "none".to_owned(), |cosine| format!("{cosine:+.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_what_is_said_differently_or_of_one_alone() {
        let rows = |rows: &[(&str, &str)]| rows.iter().map(|(a, b)| [a, b].map(|s| s.to_string())).collect::<Vec<_>>();
        let one = rows(&[("lr", "1"), ("rank", "4"), ("note", "x"), ("note", "y")]);
        let other = rows(&[("lr", "2"), ("rank", "4"), ("seed", "7")]);
        let expected = [["lr", "1", "2"], ["note", "x; y", "—"], ["seed", "—", "7"]];
        assert_eq!(differences(&one, &other), expected.map(|row| row.map(str::to_owned)));
        assert!(differences(&one, &one).is_empty());
    }
}
