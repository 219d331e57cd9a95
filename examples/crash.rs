//! Kills writers of a library at random instants and checks it after each round: `cargo run --release --example crash -- 500`.

#[path = "../tests/library/crash.rs"]
mod crash;

use std::{env, path::Path, process::Command, time::Instant};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [root, seed] = &args[..] {
        crash::work(Path::new(root), seed.parse()?);
    }
    let kills = args.first().map_or(Ok(500), |kills| kills.parse())?;
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("library");
    let exe = env::current_exe()?;
    let start = Instant::now();
    let tally = crash::run(&root, kills, 1, &|seed| {
        let mut command = Command::new(&exe);
        command.arg(&root).arg(seed.to_string());
        command
    });
    let crash::Tally { kills, done, lost, half_visible, disagreements } = tally;
    println!("{kills} kills in {:.0} s, {done} deeds reported as done", start.elapsed().as_secs_f64());
    println!("{lost} lost, {half_visible} half visible, {disagreements} differences between index and objects");
    anyhow::ensure!((lost, half_visible, disagreements) == (0, 0, 0), "the library did not hold");
    Ok(())
}
