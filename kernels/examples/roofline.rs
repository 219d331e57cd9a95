//! How near linears come to the machine's peak: `cargo run --release -p socius-kernels --example roofline`.

use socius_kernels::linear::{Output, PackedLinear, WeightType, Write, backward_input, forward};
use std::time::Instant;

fn main() {
    match socius_kernels::selected() {
        Ok(variant) => println!("{} on {} threads", variant.name(), rayon::current_num_threads()),
        Err(error) => return eprintln!("{error}"),
    }
    println!(
        "{:>5} {:>5} {:>6} {:>5} {:>14} {:>14} {:>10}",
        "type", "in", "out", "rows", "forward GF/s", "backward GF/s", "GB/s"
    );
    for kept in [WeightType::Bf16, WeightType::F32] {
        for (inputs, outputs) in [(576, 576), (576, 1536), (1536, 576), (576, 49152)] {
            let weight: Vec<f32> = (0..inputs * outputs).map(|i| (i % 255) as f32 / 255.0 - 0.5).collect();
            let packed = PackedLinear::new(&weight, (outputs, inputs), kept);
            for rows in [1, 8, 32, 512] {
                measure(&packed, rows);
            }
        }
    }
}

/// Prints the rates of one linear, each the best of many calls within a fifth of a second.
fn measure(packed: &PackedLinear, rows: usize) {
    let (inputs, outputs) = (packed.inputs(), packed.outputs());
    let mut x: Vec<f32> = (0..rows * inputs).map(|i| (i % 127) as f32 / 127.0).collect();
    let mut y = vec![0.0; rows * outputs];
    let ahead = best(|| forward(&x, rows, &mut [Output { weight: packed, y: &mut y }], Write::Set));
    let back = best(|| backward_input(&[(packed, &y)], rows, &mut x, Write::Set));
    let (flops, width) =
        ((2 * rows * inputs * outputs) as f64, if packed.weight_type() == WeightType::Bf16 { 2 } else { 4 });
    println!(
        "{:>5} {inputs:>5} {outputs:>6} {rows:>5} {:>14.1} {:>14.1} {:>10.1}",
        format!("{:?}", packed.weight_type()),
        flops / ahead * 1e-9,
        flops / back * 1e-9,
        (inputs * outputs * width) as f64 / ahead * 1e-9,
    );
}

fn best(mut body: impl FnMut()) -> f64 {
    body();
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed().as_secs_f64() < 0.2 {
        let call = Instant::now();
        body();
        best = best.min(call.elapsed().as_secs_f64());
    }
    best
}
