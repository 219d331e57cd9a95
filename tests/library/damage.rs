//! A library whose files are damaged one after another: each is found, named, put aside and left out, and comes back with its bytes.
//! Shared by the test and by `examples/crash.rs`, which damages more of them.

use super::crash::{adapter, base, candidate};
use socius::{
    common::{Digest, Rng, Seed},
    episode::{Episode, Turn},
    library::{Evidence, Finding, Library, Verification},
};
use socius_models::Spec;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Skills of the library.
const SKILLS: u64 = 5;

/// Kinds of objects, as a verification names them; moves and notes are those that the index has, too.
pub(crate) const KINDS: [&str; 6] =
    ["adapter configuration", "adapter weights", "episodes", "manifest", "move or note", "routing features"];

/// What an object is, and the names that cannot be used without it.
type Known = (&'static str, Vec<String>);

/// By kind of file, how often it was damaged, and how often something of what must follow did not.
pub(crate) type Tally = BTreeMap<&'static str, [usize; 2]>;

/// Builds a library at `root` and damages `count` of its files, one at a time: a flipped bit, a missing byte, or no file.
pub(crate) fn run(root: &Path, count: usize, seed: u64) -> Tally {
    let objects = build(root);
    let mut rng = Seed::new(seed).rng();
    let mut tally = Tally::new();
    for round in 0..count {
        // Kinds in turn, so that the few moves are not lost among the many adapters.
        let kind = KINDS[round % KINDS.len()];
        let own: Vec<_> = objects.iter().filter(|(_, (of, _))| *of == kind).collect();
        let (object, (_, names)) = *rng.pick(&own);
        let [hits, misses] = tally.entry(kind).or_default();
        *hits += 1;
        *misses += usize::from(!holds(root, *object, kind, names, &mut rng));
    }
    tally
}

/// Some skills with episodes, features and a note each, of two generations; what is known of their objects.
fn build(root: &Path) -> BTreeMap<Digest, Known> {
    let library = Library::open(root).expect("the library opens");
    let spec = Spec::tiny();
    let episodes: Vec<Episode> = (0..8).map(episode).collect();
    let mut objects: BTreeMap<Digest, Known> = BTreeMap::new();
    for skill in 0..SKILLS {
        for generation in 0..2 {
            let seed = 1 + 2 * skill + generation;
            let lora = adapter(seed, &spec);
            let name = format!("skill-{skill}");
            let mut candidate = candidate(&name, seed, &lora, &spec);
            candidate.episodes = &episodes[..4 + skill as usize % 4];
            let published = library.publish(&candidate).expect("it is published");
            let finding = Finding::Note { text: format!("note {seed}") };
            library.attach(Evidence::new(published.id, finding, jiff::Timestamp::now())).expect("it is noted");
            let parts = published.manifest.blobs.all().map(|(what, blob)| (what, blob.digest));
            for (what, object) in parts.chain([("manifest", published.id)]) {
                let label = format!("{name}@{}", published.manifest.number);
                objects.entry(object).or_insert_with(|| (what, Vec::new())).1.push(label);
            }
        }
    }
    for path in files(&root.join("objects")) {
        let digest = Digest::of(fs::read(&path).expect("it is read"));
        objects.entry(digest).or_insert_with(|| ("move or note", Vec::new()));
    }
    objects
}

fn episode(seed: u64) -> Episode {
    let mut rng = Seed::new(seed).purpose("episode").rng();
    let action: Vec<u32> = (0..20).map(|_| rng.below(90) as u32).collect();
    let logprobs = action.iter().map(|_| -rng.uniform() as f32).collect();
    Episode {
        env: "made-up".into(),
        item: format!("{seed}"),
        wording: 0,
        turns: vec![Turn { prompt: vec![1, 2, 3], action, logprobs, generation: None }],
        reward: 1.0,
        strict: true,
        lenient: true,
        feedback: None,
    }
}

/// Damages `object` in one way and says whether all that must follow does.
fn holds(root: &Path, object: Digest, kind: &str, names: &[String], rng: &mut Rng) -> bool {
    let path = place(root, object);
    let whole = fs::read(&path).expect("an object is read");
    let way = rng.below(3);
    fs::remove_file(&path).expect("an object is removed");
    match way {
        0 => {
            let mut bytes = whole.clone();
            bytes[rng.below(whole.len())] ^= 1 << rng.below(8);
            fs::write(&path, bytes).expect("it is damaged");
        }
        1 => fs::write(&path, &whole[..whole.len() - 1]).expect("it is cut"),
        _ => {}
    }
    let library = Library::open(root).expect("a damaged library opens");
    let found = library.verify().expect("and can be looked at");
    let all = if kind == "move or note" {
        // The index has them too: they are written again.
        found.mended == [object] && found.is_sound()
    } else {
        named(&found, object, kind, names, way < 2) && left_out(root, names)
    };
    if kind != "move or note" {
        let _ = fs::remove_file(&path);
        fs::write(&path, &whole).expect("it is written back");
    }
    all && fs::read(&path).is_ok_and(|bytes| bytes == whole) && library.verify().is_ok_and(|found| found.is_sound())
}

fn named(found: &Verification, object: Digest, kind: &str, names: &[String], is_there: bool) -> bool {
    let [damage] = &found.damaged[..] else { return false };
    let aside = damage.quarantined.as_ref().is_some_and(|path| path.exists());
    damage.object == object
        && damage.what == kind
        && names.iter().all(|name| damage.generations.contains(name))
        && aside == is_there
        && damage.to_string().contains(&names[0])
}

/// The router's catalogue has all skills but those whose current generation is among `names`, and using one of these is an error.
fn left_out(root: &Path, names: &[String]) -> bool {
    let library = Library::open(root).expect("it opens");
    let heads = library.heads().expect("it lists");
    let current: Vec<String> = (0..SKILLS).map(|skill| format!("skill-{skill}@2")).collect();
    let out = current.iter().filter(|label| names.contains(label)).count();
    let in_it = |label: &str| heads.iter().any(|(name, _)| label.starts_with(&format!("{name}@")));
    let right = current.iter().all(|label| in_it(label) != names.contains(label));
    let usable = heads.iter().all(|(_, id)| {
        let generation = library.generation(*id);
        generation.is_ok_and(|generation| library.load_adapter(&generation, &base(), &Spec::tiny()).is_ok())
    });
    right && usable && heads.len() == SKILLS as usize - out
}

fn place(root: &Path, object: Digest) -> PathBuf {
    let hex = object.to_string();
    root.join("objects").join(&hex[..2]).join(&hex[2..])
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).expect("it lists").map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
