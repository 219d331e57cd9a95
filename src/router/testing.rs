//! Gaussian clusters for tests. Never compiled into the program.

use crate::{common::Seed, library::RoutingFeatures};

/// `rows` points around the `centre`-th random direction of length 4 in `hidden` dimensions, of unit variance over all of them.
pub(super) fn cluster(seed: u64, centre: u64, rows: usize, hidden: usize) -> RoutingFeatures {
    let mut around = Seed::new(centre).purpose("centre").rng();
    let direction: Vec<f64> = (0..hidden).map(|_| around.normal()).collect();
    let length = direction.iter().map(|value| value * value).sum::<f64>().sqrt();
    let mut rng = Seed::new(seed).purpose("point").rng();
    let spread = 1.0 / (hidden as f64).sqrt();
    let row = |_| direction.iter().map(|value| (4.0 * value / length + spread * rng.normal()) as f32).collect();
    let rows: Vec<Vec<f32>> = (0..rows).map(row).collect();
    RoutingFeatures::new(1, &rows).unwrap()
}

/// `count` points around as many different directions: prompts that have nothing in common.
pub(super) fn scattered(seed: u64, count: usize, hidden: usize) -> RoutingFeatures {
    let rows: Vec<Vec<f32>> = (0..count as u64).map(|i| cluster(i, (seed << 32) + i, 1, hidden).values).collect();
    RoutingFeatures::new(1, &rows).unwrap()
}
