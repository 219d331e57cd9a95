//! Every operation of a training step and of decode steps at SmolLM2-135M's shapes, data in the caches where it fits:
//! `cargo bench --bench kernels -- FILTER`. `socius bench roofline` has the same operations with data in memory.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use socius::bench::ops::{Op, Shapes};
use socius_kernels::linear::WeightType;
use socius_models::Spec;
use std::time::Duration;

fn smollm2() -> Spec {
    Spec {
        vocab: 49_152,
        hidden: 576,
        intermediate: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        rope_theta: 100_000.0,
        context_max: 8192,
        ..Spec::tiny()
    }
}

fn kernels(criterion: &mut Criterion) {
    let spec = smollm2();
    for (kept, name) in [(WeightType::Bf16, "bf16"), (WeightType::F32, "f32")] {
        let shapes = Shapes { spec: &spec, kept, batch: 1, length: 256, rank: 16 };
        run(criterion, &format!("{name}/train 1 × 256"), shapes.train());
        for (batch, adapters) in [(1, 0), (32, 0), (32, 32)] {
            let ops = Shapes { batch, ..shapes }.decode(adapters);
            run(criterion, &format!("{name}/decode {batch} under {adapters}"), ops);
        }
    }
}

fn run(criterion: &mut Criterion, group: &str, ops: Vec<Op>) {
    let mut group = criterion.benchmark_group(group);
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    for mut op in ops {
        group.bench_function(BenchmarkId::from_parameter(op.name.clone()), |bencher| bencher.iter(|| op.run()));
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
