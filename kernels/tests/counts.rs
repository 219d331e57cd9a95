//! What operations count, against the products that their shapes ask for, one by one. Alone in its program, as the counters are the
//! process's.

use socius_kernels::attention::{self, Gradients, Heads, Keys, KvCache, Row, Saved, Spans};
use socius_kernels::counts::{Count, Counts, Operation};
use socius_kernels::head::{self, Coefficients, Target};
use socius_kernels::linear::{self, Output, PackedLinear, WeightGradient, WeightType, Write};
use socius_kernels::lora::{self, Adapted, Factors, Gradient, Linear, Through};
use socius_kernels::quantised::{Format, Quantised};

/// What `work` counted, kind by kind where there is anything.
fn counted(work: impl FnOnce()) -> Vec<(Operation, u64, u64)> {
    let before = Counts::now();
    work();
    let counts = Counts::now() - before;
    let kinds = Operation::ALL.map(|operation| (operation, counts.of(operation)));
    let some = kinds.into_iter().filter(|(_, count)| *count != Count::default());
    let found: Vec<_> = some.map(|(operation, Count { flops, bytes })| (operation, flops, bytes)).collect();
    let total = counts.total();
    assert_eq!(total.flops, found.iter().map(|of| of.1).sum::<u64>());
    found
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect()
}

const ROWS: usize = 7;
const IN: usize = 48;
const OUT: usize = 80;

#[test]
fn an_operation_counts_two_for_every_product_that_its_result_depends_on_and_its_operands_once() {
    linears();
    adapted_linears();
    heads();
    attention_over_rows();
    attention_over_a_cache();
}

fn linears() {
    for (kept, width) in [(WeightType::F32, 4), (WeightType::Bf16, 2)] {
        let weight = PackedLinear::new(&values(OUT * IN), (OUT, IN), kept);
        let (x, dy, mut y, mut dx) = (values(ROWS * IN), values(ROWS * OUT), values(ROWS * OUT), values(ROWS * IN));
        let flops = (2 * ROWS * IN * OUT) as u64;
        let bytes = |values: usize| (OUT * IN * width + 4 * values) as u64;
        for (write, touched) in [(Write::Set, 1), (Write::Add, 2)] {
            let there = counted(|| linear::forward(&x, ROWS, &mut [Output { weight: &weight, y: &mut y }], write));
            assert_eq!(there, [(Operation::Linear, flops, bytes(ROWS * (IN + touched * OUT)))]);
            let back = counted(|| linear::backward_input(&[(&weight, &dy)], ROWS, &mut dx, write));
            assert_eq!(back, [(Operation::Linear, flops, bytes(ROWS * (OUT + touched * IN)))]);
        }
        let mut into = vec![0.0; OUT * IN];
        let gradient = WeightGradient { x: &x, dy: &dy, into: &mut into };
        let own = counted(|| linear::add_weight_gradients(ROWS, &mut [gradient]));
        let moved = 4 * (ROWS * (IN + OUT) + 2 * IN * OUT) as u64;
        assert_eq!(own, [(Operation::WeightGradient, flops, moved)]);
    }
    let row = vec![0x2a; 64 / Format::Q8_0.block() * Format::Q8_0.block_bytes()];
    let weight = Quantised::new(Format::Q8_0, (OUT, 64), |_| &row);
    let (bytes, mut y) = (weight.bytes(), vec![0.0; ROWS * OUT]);
    let (flops, bytes) = ((2 * ROWS * 64 * OUT) as u64, (bytes + 4 * ROWS * (64 + OUT)) as u64);
    let x = values(ROWS * 64);
    let alone = counted(|| socius_kernels::quantised::forward(&x, ROWS, &mut [(&weight, &mut y)], Write::Set));
    assert_eq!(alone, [(Operation::Linear, flops, bytes)]);
    let weight = PackedLinear::from_quantised(weight);
    let among = counted(|| linear::forward(&x, ROWS, &mut [Output { weight: &weight, y: &mut y }], Write::Set));
    assert_eq!(among, alone, "a quantised weight counts alike whoever calls it");
}

fn adapted_linears() {
    const RANK: usize = 16;
    let weight = PackedLinear::new(&values(OUT * IN), (OUT, IN), WeightType::F32);
    let factors = Factors::new(&values(RANK * IN), &values(OUT * RANK), RANK, 2.0, WeightType::F32);
    let (x, dy, mut y, mut dx) = (values(ROWS * IN), values(ROWS * OUT), values(ROWS * OUT), values(ROWS * IN));
    // Three rows run under the adapter, one under none, two under it again, one under none.
    let own = 5;
    let linear =
        || Linear { weight: &weight, adapted: vec![Adapted { factors: &factors, rows: &[0..3, 4..6] }], dropout: None };
    let base = (2 * ROWS * IN * OUT) as u64;
    let low = |products: usize| (2 * own * RANK * products) as u64;
    let flops = |found: &[(Operation, u64, u64)]| found.iter().map(|of| (of.0, of.1)).collect::<Vec<_>>();
    let there = counted(|| lora::forward(&x, ROWS, &mut [lora::Output { linear: linear(), y: &mut y }], Write::Set));
    assert_eq!(flops(&there), [(Operation::Linear, base), (Operation::Lora, low(IN + OUT))]);
    assert_eq!(there[0].2, 4 * (OUT * IN + ROWS * (IN + OUT)) as u64);
    assert_eq!(there[1].2, 4 * (RANK * (IN + OUT) + 2 * own * RANK) as u64);
    let (mut a, mut b) = (vec![0.0; RANK * IN], vec![0.0; OUT * RANK]);
    let mut through = [Through { linear: linear(), dy: &dy, gradients: vec![Gradient { a: &mut a, b: &mut b }] }];
    let back = counted(|| lora::backward(&x, ROWS, &mut through, &mut dx));
    // Of A: h again, dx, dA. Of B: dh, dB.
    assert_eq!(flops(&back), [(Operation::Linear, base), (Operation::Lora, low(3 * IN + 2 * OUT))]);
    let bare = Linear { adapted: Vec::new(), ..linear() };
    let bare = counted(|| lora::forward(&x, ROWS, &mut [lora::Output { linear: bare, y: &mut y }], Write::Set));
    assert_eq!(flops(&bare), [(Operation::Linear, base)]);
}

fn heads() {
    let (vocab, width) = (OUT, IN);
    let weight = PackedLinear::new(&values(vocab * width), (vocab, width), WeightType::F32);
    let hidden = values(ROWS * width);
    let (mut logits, mut by_hidden) = (vec![0.0; ROWS * vocab], vec![0.0; ROWS * width]);
    let tokens = [(3, 1.0)];
    let targets: Vec<_> = (0..ROWS).map(|row| Target { row, tokens: &tokens }).collect();
    let product = (2 * ROWS * vocab * width) as u64;
    let flops = |found: Vec<(Operation, u64, u64)>| {
        assert!(found.iter().all(|of| of.0 == Operation::Head), "{found:?}");
        found.iter().map(|of| of.1).sum::<u64>() / product
    };
    assert_eq!(flops(counted(|| head::logits(&weight, &hidden, &mut logits))), 1);
    assert_eq!(flops(counted(|| drop(head::scores(&weight, &hidden, &targets, None)))), 1);
    assert_eq!(flops(counted(|| drop(head::scores(&weight, &hidden, &targets, Some(&mut by_hidden))))), 2);
    let coefficients = Coefficients { logprobs: &[1.0; ROWS], entropies: None };
    let mut d_head = vec![0.0; vocab * width];
    for (learned, products) in [(None, 2), (Some(&mut d_head[..]), 3)] {
        let back = counted(|| head::backward(&weight, &hidden, &targets, coefficients, &mut by_hidden, learned));
        assert_eq!(flops(back), products, "logits again, then the gradients");
    }
}

const HEADS: Heads = Heads { query: 6, kv: 2, dim: 16, scale: 0.25 };

/// Pairs of a query and a key that it sees, one by one.
fn pairs(queries: usize, len: usize) -> usize {
    (0..queries).flat_map(|i| (0..len).filter(move |&j| j <= len - queries + i)).count()
}

#[allow(clippy::single_range_in_vec_init, reason = "a row's keys are a list of ranges")]
fn attention_over_rows() {
    let (q_width, kv_width) = (HEADS.query * HEADS.dim, HEADS.kv * HEADS.dim);
    // A prompt, two continuations of it, and a row of its own.
    let rows =
        [(0..70, vec![0..70]), (70..75, vec![0..70, 70..75]), (75..76, vec![0..70, 75..76]), (76..206, vec![76..206])];
    let tokens = 206;
    let (q, k, v) = (values(tokens * q_width), values(tokens * kv_width), values(tokens * kv_width));
    let (mut out, mut logsumexp) = (vec![0.0; q.len()], vec![0.0; tokens * HEADS.query]);
    let of = |range: &std::ops::Range<usize>| range.start * kv_width..range.end * kv_width;
    let row = |(queries, keys): &(std::ops::Range<usize>, Vec<std::ops::Range<usize>>)| Row {
        queries: queries.clone(),
        keys: keys.iter().map(|range| Keys::Plain { k: &k[of(range)], v: &v[of(range)] }).collect(),
    };
    let all: Vec<_> = rows.iter().map(row).collect();
    let seen = [(70, 70), (5, 75), (1, 71), (130, 130)];
    let pairs: usize = seen.iter().map(|&(queries, len)| pairs(queries, len)).sum();
    let read: usize = seen.iter().map(|(_, len)| 2 * len * kv_width).sum();
    let there = counted(|| attention::forward(HEADS, &q, &all, &mut out, Some(&mut logsumexp)));
    let bytes = 4 * (read + 2 * tokens * q_width + tokens * HEADS.query) as u64;
    assert_eq!(there, [(Operation::Attention, (4 * q_width * pairs) as u64, bytes)]);
    let spans: Vec<_> =
        rows.iter().map(|(queries, keys)| Spans { queries: queries.clone(), keys: keys.clone() }).collect();
    let saved = Saved { q: &q, k: &k, v: &v, out: &out, logsumexp: &logsumexp };
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for kept in [WeightType::F32, WeightType::Bf16] {
        let into = Gradients { q: &mut dq, k: &mut dk, v: &mut dv };
        let back = counted(|| attention::backward((HEADS, kept), &spans, saved, &out, into));
        let bytes = 4 * (4 * tokens * q_width + 6 * tokens * kv_width + tokens * HEADS.query) as u64;
        assert_eq!(back, [(Operation::AttentionBackward, (10 * q_width * pairs) as u64, bytes)]);
    }
}

fn attention_over_a_cache() {
    let (q_width, kv_width) = (HEADS.query * HEADS.dim, HEADS.kv * HEADS.dim);
    // In bf16 a value of 16 takes a whole group of 32.
    for (kept, token_bytes) in [(WeightType::F32, 4 * 2 * kv_width), (WeightType::Bf16, 2 * 3 * kv_width)] {
        let mut cache = KvCache::new(HEADS, kept);
        cache.extend(0, &values(100 * kv_width), &values(100 * kv_width));
        let (q, mut out) = (values(3 * q_width), vec![0.0; 3 * q_width]);
        let rows = [
            Row { queries: 0..1, keys: vec![Keys::Cached(&cache, 100)] },
            Row { queries: 1..3, keys: vec![Keys::Cached(&cache, 40)] },
        ];
        let found = counted(|| attention::forward(HEADS, &q, &rows, &mut out, None));
        let flops = (4 * q_width * (pairs(1, 100) + pairs(2, 40))) as u64;
        let bytes = (140 * token_bytes + 4 * 2 * 3 * q_width) as u64;
        assert_eq!(found, [(Operation::Attention, flops, bytes)]);
    }
}
