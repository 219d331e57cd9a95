//! How near quantised linears come to memory's speed: `cargo run --release -p socius-kernels --example quantised`.

use socius_kernels::linear::Write;
use socius_kernels::quantised::{Format, Quantised, forward};
use std::time::Instant;

fn main() {
    match socius_kernels::selected() {
        Ok(variant) => println!("{} on {} threads", variant.name(), rayon::current_num_threads()),
        Err(error) => return eprintln!("{error}"),
    }
    println!("{:>5} {:>5} {:>6} {:>5} {:>8} {:>8}", "type", "in", "out", "rows", "GOP/s", "GB/s");
    for format in Format::ALL {
        for (inputs, outputs) in [(576, 576), (576, 1536), (1536, 576), (576, 49_152)] {
            if inputs % format.block() > 0 {
                continue;
            }
            let row = vec![0x2a; inputs / format.block() * format.block_bytes()];
            let weight = Quantised::new(format, (outputs, inputs), |_| &row);
            for rows in [1, 8, 32, 512] {
                rayon::scope(|_| measure(&weight, rows));
            }
        }
    }
}

/// Prints the rates of one linear, the best of many calls within a fifth of a second.
fn measure(weight: &Quantised, rows: usize) {
    let (inputs, outputs) = (weight.inputs(), weight.outputs());
    let x: Vec<f32> = (0..rows * inputs).map(|i| (i % 127) as f32 / 127.0).collect();
    let mut y = vec![0.0; rows * outputs];
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed().as_secs_f64() < 0.2 {
        let call = Instant::now();
        forward(&x, rows, &mut [(weight, &mut y)], Write::Set);
        best = best.min(call.elapsed().as_secs_f64());
    }
    println!(
        "{:>5} {inputs:>5} {outputs:>6} {rows:>5} {:>8.0} {:>8.1}",
        format!("{:?}", weight.format()),
        (2 * rows * inputs * outputs) as f64 / best * 1e-9,
        weight.bytes() as f64 / best * 1e-9,
    );
}
