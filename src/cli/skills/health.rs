//! Whether the library is sound, and what of it nobody needs. Never judges what a skill is worth.

use crate::{
    cli::{Terminal, Unwell, text},
    common::{Home, Report},
    library::{Library, Verification},
};
use serde_json::{Value, json};

pub(super) fn verify(home: &Home, rebuild: bool, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let root = home.library();
    let library = if rebuild { Library::rebuild(&root)? } else { Library::open(&root)? };
    let found = library.verify()?;
    let Verification { checked, bytes, ref damaged, ref mended, ref index } = found;
    if rebuild {
        terminal.line("the index is made again from the objects")?;
    }
    terminal.lines(damaged.iter().map(ToString::to_string))?;
    terminal.lines(index.iter().map(|problem| format!("index: {problem}")))?;
    if !mended.is_empty() {
        terminal.line(format!("{} records were written again from the index", mended.len()))?;
    }
    terminal.line(format!(
        "{checked} objects, {}: {} damaged, {} differences between index and objects",
        text::bytes(bytes),
        damaged.len(),
        index.len()
    ))?;
    if !found.is_sound() && !index.is_empty() {
        terminal.note("`socius skills verify --rebuild` makes the index again");
    }
    let sound = found.is_sound();
    let value = json!({
        "checked": checked, "bytes": bytes, "damaged": damaged, "mended": mended, "index": index, "sound": sound,
    });
    match sound {
        true => Ok(value),
        false => {
            let message = format!("{} damaged objects, {} differences in the index", damaged.len(), index.len());
            Err(Unwell { message, value }.into())
        }
    }
}

pub(super) fn collect(library: &Library, dry_run: bool, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let found = library.collect(dry_run)?;
    let verb = if dry_run { "would be removed" } else { "removed" };
    terminal.line(format!("{} objects, {}, {verb}; {} stay", found.objects, text::bytes(found.bytes), found.kept))?;
    let mut value = json!(found);
    value["dry_run"] = json!(dry_run);
    Ok(value)
}
