//! Whole steps of learning and of answering on a small random model, where what is not arithmetic shows: `cargo bench --bench steps`.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use socius::bench::{Decode, Decoding, Prefill, Train, Training};
use socius::train::PassLimits;
use socius_models::{Dtype, Model, RandomSource, Spec};
use std::{sync::Arc, time::Duration};

/// Four layers of a fifth of SmolLM2-135M's width.
fn model() -> Arc<Model> {
    let spec = Spec {
        vocab: 4096,
        hidden: 128,
        intermediate: 352,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        context_max: 2048,
        ..Spec::tiny()
    };
    let source = RandomSource { spec: spec.clone(), seed: 1 };
    Arc::new(Model::load(spec, &source, &candle_core::Device::Cpu, Dtype::Bf16).expect("a random model loads"))
}

fn train(criterion: &mut Criterion) {
    let model = model();
    let mut group = criterion.benchmark_group("train");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for (learners, batch, length) in [(1, 8, 64), (8, 1, 64), (1, 1, 512)] {
        let work = Train { learners, batch, length, rank: 8, limits: PassLimits::default() };
        let mut training = Training::new(&model, work).expect("the rank fits");
        group.throughput(Throughput::Elements((learners * batch * length) as u64));
        let id = BenchmarkId::from_parameter(format!("{learners} learners, {batch} × {length}"));
        group.bench_function(id, |bencher| bencher.iter(|| training.step().expect("it trains")));
    }
    group.finish();
}

fn prefill(criterion: &mut Criterion) {
    let model = model();
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    for length in [64, 512] {
        group.throughput(Throughput::Elements(length as u64));
        let id = BenchmarkId::from_parameter(length);
        group.bench_function(id, |bencher| bencher.iter(|| Prefill { length }.run(&model).expect("it reads")));
    }
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    const TOKENS: usize = 32;
    let model = model();
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    for (batch, adapters) in [(1, 0), (32, 0), (32, 32)] {
        let work = Decode { batch, prompt: 32, tokens: TOKENS, adapters, rank: 8 };
        let adapters = work.adapters(model.spec()).expect("the rank fits");
        group.throughput(Throughput::Elements((batch * TOKENS) as u64));
        let id = BenchmarkId::from_parameter(format!("{batch} rows, {} adapters", adapters.len()));
        group.bench_function(id, |bencher| {
            let start = || Decoding::start(&model, &work, &adapters).expect("the rows fit");
            let steps = |decoding: &mut Decoding| (0..TOKENS).for_each(|_| decoding.step().expect("it decodes"));
            bencher.iter_batched_ref(start, steps, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, train, prefill, decode);
criterion_main!(benches);
