//! The model card of a skill, as the hub shows it. Pure: records in, Markdown out.

use crate::library::{Comparison, Evidence, Finding, Generation};

/// Front matter that other programs read, then where the skill comes from and what it is known to be worth.
pub fn model_card(generation: &Generation, evidence: &[Evidence]) -> String {
    let manifest = &generation.manifest;
    let provenance = &manifest.provenance;
    let base = &manifest.base.name;
    let mut card = format!(
        "---\nbase_model: {base}\nlibrary_name: peft\ntags:\n- lora\n- socius\n---\n\n# {}\n\n{}\n\n",
        manifest.name,
        if manifest.description.is_empty() { "A LoRA adapter." } else { &manifest.description }
    );
    let what = match manifest.rank {
        0 => "A trained prefix of keys and values".to_owned(),
        rank => format!("A LoRA adapter of rank {rank}"),
    };
    card += &format!(
        "{what} for [{base}](https://huggingface.co/{base}), learned by `{}`{} with socius. `{}.socius` is an \
         archive with its history, evidence and episodes: `socius skills pull` of this repository brings it into a library.\n\n",
        provenance.learner,
        provenance.env.as_ref().map_or_else(String::new, |env| format!(" in the environment `{}`", env.name)),
        manifest.name
    );
    card += "| measured on | base | skill | items |\n|---|---|---|---|\n";
    let mut rows = Vec::new();
    rows.extend(provenance.validation.map(|scores| row("validation, which the gate saw", &scores)));
    rows.extend(provenance.test.map(|scores| row("test", &scores)));
    rows.extend(provenance.apart.iter().map(|(kind, scores)| row(&format!("{kind} questions"), scores)));
    for found in evidence {
        if let Finding::Evaluation { env, split, scores } = &found.finding {
            rows.push(row(&format!("{} {split}", env.name), scores));
        }
    }
    if rows.is_empty() {
        rows.push("| nothing yet | | | |\n".into());
    }
    card += &rows.concat();
    for found in evidence {
        match &found.finding {
            Finding::Divergence { env, nats_per_token, tokens } => {
                card += &format!(
                    "\nKL to the base on prompts of `{}`: {nats_per_token:.3} nats a token, over {tokens} tokens.\n",
                    env.name
                );
            }
            Finding::Note { text } => card += &format!("\n{text}\n"),
            Finding::Evaluation { .. } => {}
        }
    }
    card += &format!("\nGate: {}.\n\nGeneration `{}`.\n", provenance.gate.reasons.join("; "), generation.id);
    card
}

fn row(what: &str, scores: &Comparison) -> String {
    let percent = |score: &crate::library::Score| {
        let [low, high] = score.ci95.map(|bound| 100.0 * bound);
        format!("{:.1} % [{low:.1}, {high:.1}]", 100.0 * score.strict)
    };
    format!("| {what} | {} | {} | {} |\n", percent(&scores.before), percent(&scores.after), scores.after.items)
}
