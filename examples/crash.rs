//! Kills writers of a library at random instants and checks it after each round, then damages its files: `cargo run --release
//! --example crash -- 500 [SEED]`, with as many kills as damaged files.

#[path = "../tests/library/crash.rs"]
mod crash;
#[path = "../tests/library/damage.rs"]
mod damage;

use std::{env, path::Path, process::Command, time::Instant};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [work, root, seed] = &args[..]
        && work == "work"
    {
        crash::work(Path::new(root), seed.parse()?);
    }
    let kills = args.first().map_or(Ok(500), |kills| kills.parse())?;
    let seed = args.get(1).map_or(Ok(1), |seed| seed.parse())?;
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("library");
    let exe = env::current_exe()?;
    let start = Instant::now();
    let tally = crash::run(&root, kills, seed, &|seed| {
        let mut command = Command::new(&exe);
        command.arg("work").arg(&root).arg(seed.to_string());
        command
    });
    let crash::Tally { kills, done, lost, half_visible, disagreements } = tally;
    println!("{kills} kills in {:.0} s, {done} deeds reported as done", start.elapsed().as_secs_f64());
    println!("{lost} lost, {half_visible} half visible, {disagreements} differences between index and objects");
    let start = Instant::now();
    let damaged = damage::run(&folder.path().join("damaged"), kills, seed);
    println!("damaged in {:.0} s:", start.elapsed().as_secs_f64());
    for (kind, [hits, misses]) in &damaged {
        println!("  {hits} × {kind}, {misses} not found, named, put aside, left out or brought back");
    }
    anyhow::ensure!(damaged.values().all(|[_, misses]| *misses == 0), "damage was not dealt with");
    anyhow::ensure!((lost, half_visible, disagreements) == (0, 0, 0), "the library did not hold");
    Ok(())
}
