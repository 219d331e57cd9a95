//! A library under processes that are killed at random instants: what they do, and what must hold afterwards. Shared by the test and by
//! `examples/crash.rs`, which kills more of them.

use socius::{
    common::{Digest, Seed},
    library::{BaseId, Candidate, Evidence, Finding, GateDecision, Library, LibraryError, Provenance, RoutingFeatures},
    lora::{LoraConfig, LoraWeights},
};
use socius_models::{Projection, Spec};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Processes that work on the library at once.
const WRITERS: u64 = 3;
/// Within this time of its first deed a writer is killed.
const LIFE_MS: f64 = 120.0;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Processes that were killed.
    pub(crate) kills: usize,
    /// Deeds that had been reported as done.
    pub(crate) done: usize,
    /// Publications that were reported, and are not there.
    pub(crate) lost: usize,
    /// Generations that are listed, and are not whole.
    pub(crate) half_visible: usize,
    /// Differences between the index and the objects.
    pub(crate) disagreements: usize,
}

/// The base that the skills are of.
pub(crate) fn base() -> BaseId {
    BaseId { name: "org/Tiny".into(), digest: Digest::of("weights"), tokenizer: Digest::of("tokenizer") }
}

/// An adapter of random values, which `seed` decides.
pub(crate) fn adapter(seed: u64, spec: &Spec) -> LoraWeights {
    let config = LoraConfig::uniform(2, 4.0, &[Projection::Q]);
    let count = config.layout(spec).expect("it fits").len();
    let mut rng = Seed::new(seed).rng();
    LoraWeights::new(config, spec, (0..count).map(|_| rng.normal() as f32).collect()).expect("it fits")
}

/// A candidate without a history.
pub(crate) fn candidate<'a>(name: &str, seed: u64, lora: &'a LoraWeights, spec: &'a Spec) -> Candidate<'a> {
    let mut rng = Seed::new(seed).rng();
    let row: Vec<f32> = (0..spec.hidden).map(|_| rng.normal() as f32).collect();
    let gate = GateDecision { admitted: true, reasons: vec!["made up".into()] };
    Candidate {
        name: name.parse().expect("a name"),
        description: format!("skill {seed}"),
        base: base(),
        spec,
        lora,
        episodes: &[],
        routing: RoutingFeatures::new(1, &[row]).ok(),
        provenance: Provenance { gate, ..Provenance::imported(jiff::Timestamp::now()) },
    }
}

/// Works on the library at `root` until it is killed, and says on stdout what it has done. Half of the deeds are about a name of its own,
/// the others about one that all share.
pub(crate) fn work(root: &Path, seed: u64) -> ! {
    let library = Library::open(root).expect("the library opens");
    let spec = Spec::tiny();
    let mut rng = Seed::new(seed).rng();
    let archive = root.with_file_name(format!("archive-{}.socius", std::process::id()));
    loop {
        let own = format!("own-{seed}");
        let name = if rng.below(2) == 0 { "shared" } else { &own };
        let parsed = name.parse().expect("a name");
        let deed = match rng.below(12) {
            0 => library.rollback(&parsed, None).map(|_| "moved".to_owned()),
            1 => library.promote(&parsed, 1).map(|_| "moved".to_owned()),
            2 => library.collect(false).map(|_| "collected".to_owned()),
            3 => library.remove(&parsed).map(|()| format!("removed {name}")),
            4 => library.export_archive(&[parsed], &archive).map(|_| "exported".to_owned()),
            5 if archive.exists() => library.import_archive(&archive).map(|_| "imported".to_owned()),
            6 => library.show(&parsed.into()).and_then(|generation| {
                let finding = Finding::Note { text: format!("note {}", rng.next_u64()) };
                library.attach(Evidence::new(generation.id, finding, jiff::Timestamp::now()))?;
                Ok("noted".to_owned())
            }),
            _ => {
                let seed = rng.next_u64();
                let lora = adapter(seed, &spec);
                let published = library.publish(&candidate(name, seed, &lora, &spec));
                published.map(|generation| format!("published {name} {} {}", generation.manifest.number, generation.id))
            }
        };
        match deed {
            Ok(done) => {
                println!("{done}");
                std::io::stdout().flush().expect("the parent listens");
            }
            // What another writer has removed meanwhile, or a history that went another way, is no fault.
            Err(
                LibraryError::NotFound { .. }
                | LibraryError::Unmovable { .. }
                | LibraryError::Diverged { .. }
                | LibraryError::Archive { .. },
            ) => {}
            Err(error) => {
                println!("failed {error}");
                std::process::exit(1);
            }
        }
    }
}

/// Lets writers work on the library at `root` and kills them, again and again, until `kills` have died; after each round the library is
/// opened and checked. `writer` is the command that calls [`work`] with a seed.
pub(crate) fn run(root: &Path, kills: usize, seed: u64, writer: &dyn Fn(u64) -> Command) -> Tally {
    let mut tally = Tally::default();
    let mut rng = Seed::new(seed).rng();
    while tally.kills < kills {
        let before: BTreeMap<String, usize> = published(&Library::open(root).expect("it opens"));
        let rounds = (0..WRITERS).map(|_| rng.next_u64()).collect::<Vec<_>>();
        let mut writers: Vec<(Child, mpsc::Receiver<String>)> =
            rounds.iter().map(|seed| listen(writer(*seed))).collect();
        let mut deeds = Vec::new();
        for (child, lines) in &mut writers {
            // Any instant from its first deed on; the first one takes as long as a process takes to start.
            deeds.extend(lines.recv_timeout(Duration::from_secs(20)));
            thread::sleep(Duration::from_secs_f64(rng.uniform() * LIFE_MS / 1e3 / WRITERS as f64));
            child.kill().expect("it lives");
            tally.kills += 1;
        }
        for (mut child, lines) in writers {
            child.wait().expect("it was killed");
            deeds.extend(lines);
        }
        check(root, &deeds, &before, &mut tally);
    }
    tally
}

fn listen(mut command: Command) -> (Child, mpsc::Receiver<String>) {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("the writer starts");
    let stdout = child.stdout.take().expect("it is piped");
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // The test harness's own lines are none of a writer's.
            let words = ["published ", "removed ", "moved", "collected", "exported", "imported", "noted", "failed "];
            if words.iter().any(|word| line.starts_with(word)) && sender.send(line).is_err() {
                break;
            }
        }
    });
    (child, receiver)
}

/// Numbers that each name's journal has given.
fn published(library: &Library) -> BTreeMap<String, usize> {
    let names = library.list().expect("it lists").skills.into_iter().map(|skill| skill.name);
    names.map(|name| (name.to_string(), library.history(&name).expect("it is there").moves.len())).collect()
}

/// Counts what does not hold of the library at `root` after `deeds`.
pub(crate) fn check(root: &Path, deeds: &[String], before: &BTreeMap<String, usize>, tally: &mut Tally) {
    let library = Library::open(root).expect("what was killed leaves a library that opens");
    let found = library.verify().expect("and can be read");
    tally.done += deeds.len();
    tally.half_visible += found.damaged.len();
    tally.disagreements += found.index.len() + found.mended.len();
    for (name, moves) in before {
        if let Ok(history) = library.history(&name.parse().expect("a name")) {
            tally.lost += usize::from(history.moves.len() < *moves);
        }
    }
    let mut journals: BTreeMap<&str, Vec<Digest>> = BTreeMap::new();
    for deed in deeds {
        if let Some(why) = deed.strip_prefix("failed ") {
            panic!("a writer failed: {why}");
        }
        let mut words = deed.split(' ');
        let (Some("published"), Some(name), Some(_), Some(id)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let id: Digest = id.parse().expect("a digest");
        let journal = journals.entry(name).or_insert_with(|| {
            let moves = library.journal(&name.parse().expect("a name")).expect("it is read");
            moves.iter().filter_map(|entry| entry.to).map(|to| to.generation).collect()
        });
        tally.lost += usize::from(!journal.contains(&id));
    }
    for skill in library.list().expect("it lists").skills {
        let history = library.history(&skill.name).expect("it is there");
        let numbers: Vec<u32> = history.generations.iter().map(|generation| generation.manifest.number).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        for generation in &history.generations {
            tally.half_visible += usize::from(library.load_adapter(generation, &base(), &Spec::tiny()).is_err());
        }
    }
}
