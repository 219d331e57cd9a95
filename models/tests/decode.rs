//! Prefill, decode, forks and pooled states through the public interface.

use candle_core::Device;
use socius_models::{Adapter, Batch, Dtype, Layout, Model, Projection, RandomSource, Row, Spec};

fn model(spec: &Spec) -> Model {
    let source = RandomSource { spec: spec.clone(), seed: 1 };
    Model::load_reference(spec.clone(), &source, &Device::Cpu, Dtype::F32).expect("a random model loads")
}

fn theta(layout: &Layout, seed: u32) -> Vec<f32> {
    (0..layout.len() as u32)
        .map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.3)
        .collect()
}

fn close(a: &[f32], b: &[f32], bound: f32) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= bound, "differ by {worst}");
}

#[test]
fn decoding_token_by_token_equals_one_pass() {
    let spec = Spec::tiny();
    let model = model(&spec);
    let layout = Layout::uniform(&spec, &Projection::ALL, 3, 0.7);
    let theta = theta(&layout, 1);
    let adapters = [Adapter { layout: &layout, theta: &theta }];
    let tokens = [5, 17, 3, 96, 0, 41, 8];
    let mut whole = model.sequence();
    let batch = Batch::new([Row::new(&tokens).under(Some(0))]);
    let all: Vec<usize> = (0..tokens.len()).collect();
    let expected = model.forward(&batch, &adapters, &mut [&mut whole], &all).expect("one pass");
    let mut stepped = model.sequence();
    let mut found = Vec::new();
    for (position, token) in tokens.iter().enumerate() {
        let row = Row { position, ..Row::new(std::slice::from_ref(token)).under(Some(0)) };
        found.extend(model.forward(&Batch::new([row]), &adapters, &mut [&mut stepped], &[0]).expect("a step"));
    }
    assert_eq!((whole.len(), stepped.len()), (tokens.len(), tokens.len()));
    close(&found, &expected, 1e-5);
}
