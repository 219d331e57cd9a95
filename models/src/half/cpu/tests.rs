//! The CPU form against the reference, and what holds of it to the bit.

use super::*;
use crate::half::Pass;
use crate::half::reference::Reference;
use crate::{Adapter, Dropout, Layout, Model, RandomSource, RopeScaling, Row, Site, TargetTokens, random_values};
use candle_core::{Device, Tensor};

fn specs() -> [Spec; 2] {
    let scaling = RopeScaling::Llama3 { factor: 8.0, low_frequency: 1.0, high_frequency: 4.0, original_context: 32.0 };
    let untied = Spec { tied_head: false, rope_scaling: scaling, heads: 4, kv_heads: 4, head_dim: 10, ..Spec::tiny() };
    [Spec::tiny(), Spec { hidden: 70, intermediate: 132, vocab: 200, ..untied }]
}

struct Learner {
    layout: Layout,
    theta: Vec<f32>,
}

impl Learner {
    fn new(name: &str, layout: Layout) -> Self {
        let theta = random_values(name, &[layout.len() / 2, 2], 5).iter().map(|x| x / 5.0).collect();
        Self { layout, theta }
    }
}

/// The learner of a trained prefix, and its positions: more than a block of keys.
const TRAINED: usize = 3;
const POSITIONS: usize = 67;

/// Four learners: every site at rank 2, some sites at several ranks, rank 18 in the MLP alone, a prefix.
fn learners(spec: &Spec) -> Vec<Learner> {
    use Projection::{Down, Gate, O, Q, Up, V};
    let site = |layer, projection| Site { layer, projection };
    let mixed = [(site(0, Q), 4, 0.5), (site(0, V), 6, 2.0), (site(1, O), 2, 1.0), (site(2, Down), 4, 0.25)];
    vec![
        Learner::new("a", Layout::uniform(spec, &Projection::ALL, 2, 1.5)),
        Learner::new("b", Layout::new(spec, mixed)),
        Learner::new("c", Layout::uniform(spec, &[Gate, Up, Down], 18, 0.7)),
        Learner::new("d", Layout::prefix(spec, POSITIONS)),
    ]
}

fn adapters(learners: &[Learner]) -> Vec<Adapter<'_>> {
    learners.iter().map(|Learner { layout, theta }| Adapter::new(layout, theta)).collect()
}

/// `len` tokens of the smallest vocabulary.
fn tokens(seed: u64, len: usize) -> Vec<u32> {
    random_values("tokens", &[len], seed).iter().map(|x| ((x - 0.9) * 485.0) as u32).collect()
}

/// A row of learner `adapter`, with its tokens and the row of the same learner that it continues.
#[derive(Clone)]
struct Text {
    tokens: Vec<u32>,
    adapter: Option<usize>,
    /// Among the learner's own rows.
    continues: Option<usize>,
    dropout: Option<Dropout>,
}

/// Learners' rows in turn: prefixes with continuations, one of which is continued, rows under nothing, dropout on some, rows under a trained
/// prefix.
fn texts() -> Vec<Text> {
    let text = |seed: u64, len, adapter| Text {
        tokens: tokens(seed, len),
        adapter,
        continues: None,
        dropout: (seed % 2 == 1).then_some(Dropout { p: 0.2, key: seed }),
    };
    let continued = |text: Text| Text { continues: Some(0), ..text };
    let again = |text: Text| Text { continues: Some(1), ..text };
    vec![
        text(1, 70, Some(0)),
        text(2, 5, Some(1)),
        continued(text(4, 3, Some(0))),
        text(5, 9, None),
        continued(text(7, 12, Some(1))),
        text(8, 66, Some(2)),
        again(text(9, 1, Some(0))),
        text(11, 2, Some(1)),
        text(12, 1, None),
        text(13, 8, Some(0)),
        text(14, 40, Some(TRAINED)),
        text(16, 1, None),
        continued(text(18, 3, Some(TRAINED))),
        text(20, 6, Some(TRAINED)),
    ]
}

/// The batch of these rows, and a target after every token: single tokens, and every fifth a distribution.
fn batch(texts: &[Text]) -> (Batch, Vec<Target>) {
    let mut batch = Batch::default();
    let mut rows = vec![Vec::new(); 5];
    for Text { tokens, adapter, continues, dropout } in texts {
        let own: &mut Vec<usize> = &mut rows[adapter.map_or(4, |a| a)];
        let prefix = continues.map(|i| own[i]);
        let start = if *adapter == Some(TRAINED) { POSITIONS } else { 0 };
        let position = prefix.map_or(start, |row| batch.spans()[row].end());
        own.push(batch.push(Row { position, prefix, dropout: *dropout, ..Row::new(tokens).under(*adapter) }));
    }
    let target = |position: usize| Target {
        position,
        tokens: match position % 5 {
            0 => TargetTokens::Soft(vec![(3, 0.5), (position as u32 % 97, 0.25)]),
            _ => TargetTokens::Token((position * 7 % 97) as u32),
        },
    };
    let targets = (0..batch.tokens().len()).map(target).collect();
    (batch, targets)
}

/// The first target of each position.
fn distinct(targets: &[Target]) -> Vec<Target> {
    let first = |&(i, target): &(usize, &Target)| targets[..i].iter().all(|other| other.position != target.position);
    targets.iter().enumerate().filter(first).map(|(_, target)| target.clone()).collect()
}

fn buffer(values: Vec<f32>) -> Buffer {
    let mut buffer = Buffer::new(values.len());
    buffer.copy_from_slice(&values);
    buffer
}

fn zeros(learners: &[Learner]) -> Vec<Vec<f32>> {
    learners.iter().map(|learner| vec![0.0; learner.layout.len()]).collect()
}

fn views(gradients: &mut [Vec<f32>]) -> Vec<&mut [f32]> {
    gradients.iter_mut().map(Vec::as_mut_slice).collect()
}

/// Coefficients that belong to the token and its row, so that they follow a row into another batch.
fn coefficients(batch: &Batch) -> (Vec<f32>, Vec<f32>) {
    let of = |salt: u32| {
        batch
            .tokens()
            .iter()
            .zip(batch.positions())
            .map(move |(t, p)| ((t * 31 + p * 17 + salt) % 41) as f32 / 20.0 - 1.0)
    };
    (of(0).collect(), of(9).collect())
}

/// Scores, and ∂loss/∂θ added into `gradients`.
fn train(model: &Model, texts: &[Text], learners: &[Learner], gradients: &mut [Vec<f32>]) -> Scores {
    let (batch, mut targets) = batch(texts);
    // What is scored must follow the token too.
    for target in &mut targets {
        target.tokens = TargetTokens::Token((batch.tokens()[target.position] * 7 + 1) % 97);
    }
    let adapters = adapters(learners);
    let mut recording = model.record(&batch, &adapters).expect("records");
    let scores = recording.scores(&targets).expect("scores");
    let (c, e) = coefficients(&batch);
    let gradient = HeadGradient { logprobs: &c, entropies: Some(&e) };
    recording.backward(&targets, gradient, &mut views(gradients)).expect("backward");
    scores
}

fn load(spec: &Spec, dtype: Dtype) -> Model {
    let source = RandomSource { spec: spec.clone(), seed: 3 };
    Model::load(spec.clone(), &source, &Device::Cpu, dtype).expect("a random model loads")
}

fn on_threads<R: Send>(threads: usize, body: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small pool").install(body)
}

/// The largest difference, as a share of the largest exact value.
fn share(found: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(found.len(), exact.len());
    let most = exact.iter().fold(0f64, |most, x| most.max(x.abs()));
    let worst = found
        .iter()
        .zip(exact)
        .map(|(&f, e)| (f64::from(f) - e).abs())
        .fold(0f64, |a, b| if b > a || b.is_nan() { b } else { a });
    if most == 0.0 { worst } else { worst / most }
}

fn f64s(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().expect("flat").to_vec1().expect("f64")
}

/// Equal to the bit.
#[track_caller]
fn assert_same(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differs = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
    assert!(differs.is_none_or(|i| panic!("{what}: element {i} is {} and {}", a[i], b[i])));
}

/// Rounding that a half may add, as a share of its largest output: the longest sums of a half here have n = 132 terms, there
/// are at most six in a chain (norm, linear, factors twice, attention, linear), each off by 2(n+2)u of its absolute terms, whose
/// sum is at most √n times the result's scale for weights of unit gain.
const F32_SHARE: f64 = 6.0 * 2.0 * 134.0 * 12.0 / (1u64 << 24) as f64;
/// In bf16 every linear's input and weight, forward and backward, is off by at most 2⁻⁸ of itself, by less than 2⁻⁹ in the mean:
/// of n random terms, 2⁻⁸ of the result's scale for each linear on the way, of which there are at most six, with 4 for the
/// largest of thousands.
const BF16_SHARE: f64 = 4.0 * 6.0 / 256.0;

#[test]
fn each_half_and_its_every_gradient_is_that_of_the_f64_reference() {
    for spec in specs().map(Arc::new) {
        let source = RandomSource { spec: (*spec).clone(), seed: 3 };
        let reference = Reference::load(spec.clone(), &source, &Device::Cpu, Dtype::F64).expect("loads");
        let (batch, targets) = batch(&texts());
        let learners = learners(&spec);
        let adapters = adapters(&learners);
        let count = batch.tokens().len();
        let x = buffer(random_values("x", &[count * spec.hidden], 1).iter().map(|x| (x - 1.0) * 15.0).collect());
        let dy = buffer(random_values("dy", &[count * spec.hidden], 2).iter().map(|x| (x - 1.0) * 10.0).collect());
        let wide = |x: &[f32]| {
            let x = Tensor::from_slice(x, (count, spec.hidden), &Device::Cpu).expect("x");
            x.to_dtype(candle_core::DType::F64).expect("f64")
        };
        let exact_pass = Pass {
            batch: &batch,
            adapters: &adapters,
            segments: batch.segments(),
            whole: None,
            prepared: reference.prepare(&batch, &adapters, Some(0)).expect("prepares"),
        };
        for (dtype, allowed) in [(Dtype::F32, F32_SHARE), (Dtype::Bf16, BF16_SHARE)] {
            let cpu = Cpu::load(spec.clone(), &source, dtype).expect("loads");
            let prepared = cpu.prepare(&batch, &adapters, Some(usize::MAX)).expect("prepares");
            let pass = Pass { batch: &batch, adapters: &adapters, segments: batch.segments(), whole: None, prepared };
            let check = |name: &str, found: &[f32], exact: &[f64]| {
                let share = share(found, exact);
                assert!(share <= allowed, "{dtype:?} {name}: off by {share:e} of the largest, allowed {allowed:e}");
            };
            for layer in 0..spec.layers {
                let (at, exact_at) = (At { layer, pass: &pass }, At { layer, pass: &exact_pass });
                for half in ["attention", "mlp"] {
                    let (mut found, mut exact) = (zeros(&learners), zeros(&learners));
                    let (y, dx, exact_y, exact_dx);
                    if half == "attention" {
                        let saved;
                        (y, saved) = cpu.attention_recorded(at, x.clone()).expect("forward");
                        dx = cpu.attention_backward(at, saved, dy.clone(), &mut views(&mut found)).expect("backward");
                        let saved;
                        (exact_y, saved) = reference.attention_recorded(exact_at, wide(&x)).expect("forward");
                        exact_dx = reference.attention_backward(exact_at, saved, wide(&dy), &mut views(&mut exact));
                        assert_eq!(*y, *cpu.attention(at, x.clone(), None).expect("forward"));
                    } else {
                        let saved;
                        (y, saved) = cpu.mlp_recorded(at, x.clone()).expect("forward");
                        dx = cpu.mlp_backward(at, saved, dy.clone(), &mut views(&mut found)).expect("backward");
                        let saved;
                        (exact_y, saved) = reference.mlp_recorded(exact_at, wide(&x)).expect("forward");
                        exact_dx = reference.mlp_backward(exact_at, saved, wide(&dy), &mut views(&mut exact));
                        assert_eq!(*y, *cpu.mlp(at, x.clone()).expect("forward"));
                    }
                    let name = format!("{half} {layer}");
                    check(&format!("{name} y"), &y, &f64s(&exact_y));
                    check(&format!("{name} dx"), &dx, &f64s(&exact_dx.expect("backward")));
                    for ((learner, found), exact) in learners.iter().zip(&found).zip(&exact) {
                        let exact: Vec<f64> = exact.iter().map(|&x| f64::from(x)).collect();
                        for site in learner.layout.sites() {
                            let (a, b) = (site.a..site.b, site.b..site.b + site.outputs * site.rank);
                            check(&format!("{name} dA at {:?}", site.site), &found[a.clone()], &exact[a]);
                            check(&format!("{name} dB at {:?}", site.site), &found[b.clone()], &exact[b]);
                        }
                        if learner.layout.positions() > 0 {
                            let [keys, values] = learner.layout.keys_and_values(layer);
                            check(&format!("{name} dkeys"), &found[keys.clone()], &exact[keys]);
                            check(&format!("{name} dvalues"), &found[values.clone()], &exact[values]);
                        }
                    }
                }
            }
            let (c, e) = coefficients(&batch);
            let gradient = HeadGradient { logprobs: &c, entropies: Some(&e) };
            let found = cpu.head_backward(&pass, &x, (&targets, None), gradient, &mut []).expect("backward");
            let exact =
                reference.head_backward(&exact_pass, &wide(&x), (&targets, None), gradient, &mut []).expect("backward");
            check("head dx", &found, &f64s(&exact));
            let single = distinct(&targets);
            let gradient = HeadGradient { logprobs: &c[..single.len()], entropies: None };
            let (_, saved) = cpu.scores_recorded(&pass, &x, &single).expect("scores");
            let found = cpu.head_backward(&pass, &x, (&single, Some(saved)), gradient, &mut []).expect("backward");
            let exact =
                reference.head_backward(&exact_pass, &wide(&x), (&single, None), gradient, &mut []).expect("backward");
            check("head dx from its scores", &found, &f64s(&exact));
            let (found, exact) = (cpu.scores(&x, &targets), reference.scores(&wide(&x), &targets));
            let (found, exact) = (found.expect("scores"), exact.expect("scores"));
            let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            check("logprobs", &found.logprobs, &wide(&exact.logprobs));
            check("entropies", &found.entropies, &wide(&exact.entropies));
        }
    }
}

#[test]
fn the_bf16_form_is_the_rounded_reference_within_the_rounding_of_sums() {
    for spec in specs() {
        let source = RandomSource { spec: spec.clone(), seed: 3 };
        let reference = Model::load_reference(spec.clone(), &source, &Device::Cpu, Dtype::Bf16).expect("loads");
        let learners = learners(&spec);
        let mut gradients = [zeros(&learners), zeros(&learners)];
        let [found, expected] = &mut gradients;
        let found = train(&load(&spec, Dtype::Bf16), &texts(), &learners, found);
        let expected = train(&reference, &texts(), &learners, expected);
        // Both round the same values; where a sum's last bit differs an input may round to the neighbouring bf16, 2⁻⁸ of it,
        // one of some 50 in a sum over six halves.
        for (found, expected) in found.logprobs.iter().zip(&expected.logprobs) {
            assert!((found - expected).abs() <= 0.03, "{found} for {expected}");
        }
        for (found, expected) in gradients[0].iter().zip(&gradients[1]) {
            let exact: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
            assert!(share(found, &exact) <= BF16_SHARE, "{}", share(found, &exact));
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient_and_a_learners_is_the_same_to_the_byte_alone_beside_others_and_cut() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let spec = &specs()[0];
        let model = load(spec, dtype);
        let learners = learners(spec);
        let mut joint = zeros(&learners);
        on_threads(1, || train(&model, &texts(), &learners, &mut joint));
        assert!(joint.iter().flatten().all(|&g| g != 0.0), "a parameter has no gradient");
        let mut threaded = zeros(&learners);
        on_threads(3, || train(&model, &texts(), &learners, &mut threaded));
        for (joint, threaded) in joint.iter().zip(&threaded) {
            assert_same(joint, threaded, "threads");
        }
        for which in 0..learners.len() {
            let own: Vec<Text> = texts().into_iter().filter(|text| text.adapter == Some(which)).collect();
            let mut alone = zeros(&learners);
            train(&model, &own, &learners, &mut alone);
            assert_same(&joint[which], &alone[which], &format!("{dtype:?}: learner {which} alone"));
            // Cut where no prefix is cut off: before the last row.
            let (first, last) = own.split_at(own.len() - 1);
            if last[0].continues.is_none() && !first.is_empty() {
                let mut cut = zeros(&learners);
                train(&model, first, &learners, &mut cut);
                train(&model, last, &learners, &mut cut);
                assert_same(&joint[which], &cut[which], &format!("{dtype:?}: learner {which} in two batches"));
            }
        }
    }
}

#[test]
fn what_is_computed_again_is_what_would_have_been_kept() {
    let spec = Arc::new(specs()[1].clone());
    let cpu = Cpu::load(spec.clone(), &RandomSource { spec: (*spec).clone(), seed: 3 }, Dtype::Bf16).expect("loads");
    let (batch, _) = batch(&texts());
    let learners = learners(&spec);
    let adapters = adapters(&learners);
    let run = |bytes: usize| {
        let prepared = cpu.prepare(&batch, &adapters, Some(bytes)).expect("prepares");
        let kept_from = prepared.kept_from;
        let pass = Pass { batch: &batch, adapters: &adapters, segments: batch.segments(), whole: None, prepared };
        let at = At { layer: spec.layers - 1, pass: &pass };
        let x = cpu.embed(batch.tokens()).expect("embeds");
        let mut gradients = zeros(&learners);
        let (y, saved) = cpu.attention_recorded(at, x).expect("forward");
        let dx = cpu.attention_backward(at, saved, y.clone(), &mut views(&mut gradients)).expect("backward");
        let (_, saved) = cpu.mlp_recorded(at, y).expect("forward");
        let dx = cpu.mlp_backward(at, saved, dx, &mut views(&mut gradients)).expect("backward");
        (kept_from, dx, gradients)
    };
    let tokens = batch.tokens().len();
    let inputs = 2 * spec.layers * spec.hidden * tokens * size_of::<f32>();
    let last = 2 * spec.intermediate * tokens * size_of::<f32>();
    let (all, kept, kept_gradients) = run(usize::MAX);
    assert_eq!(all, 0, "everything is kept");
    let halves = 2 * spec.layers;
    for (bytes, first) in [(0, halves), (inputs, halves), (inputs + last - 1, halves), (inputs + last, halves - 1)] {
        let (found, again, gradients) = run(bytes);
        assert_eq!(found, first, "the first half that keeps more than its input within {bytes} bytes");
        assert_same(&kept, &again, "dx");
        for (kept, again) in kept_gradients.iter().zip(&gradients) {
            assert_same(kept, again, "gradients");
        }
    }
}

/// Logits after every token of `row`, alone, in steps of these sizes.
fn served(model: &Model, row: &Text, adapters: &[Adapter<'_>], steps: impl IntoIterator<Item = usize>) -> Vec<f32> {
    let mut sequence = model.sequence();
    let mut logits = Vec::new();
    for step in steps {
        let position = sequence.len();
        let tokens = &row.tokens[position..row.tokens.len().min(position + step)];
        let batch = Batch::new([Row { position, ..Row::new(tokens).under(row.adapter) }]);
        let wanted: Vec<usize> = (0..tokens.len()).collect();
        logits.extend(model.forward(&batch, adapters, &mut [&mut sequence], &wanted).expect("forward"));
        if sequence.len() == row.tokens.len() {
            break;
        }
    }
    logits
}

#[test]
fn decoding_with_a_cache_gives_the_bits_of_one_full_pass_alone_or_beside_others_whatever_the_threads() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let spec = &specs()[0];
        let model = load(spec, dtype);
        let learners = learners(spec);
        let adapters = adapters(&learners);
        let rows: Vec<Text> = [(20, Some(0)), (1, None), (90, Some(1)), (7, Some(2))]
            .map(|(len, adapter)| Text { tokens: tokens(len as u64, len), adapter, continues: None, dropout: None })
            .into();
        let full: Vec<_> = rows.iter().map(|row| served(&model, row, &adapters, [row.tokens.len()])).collect();
        for (row, full) in rows.iter().zip(&full) {
            let one_by_one = served(&model, row, &adapters, std::iter::repeat(1));
            assert_same(full, &one_by_one, &format!("{dtype:?}: {} tokens one by one", row.tokens.len()));
            let by_thirteen = served(&model, row, &adapters, std::iter::repeat(13));
            assert_same(full, &by_thirteen, &format!("{dtype:?}: {} tokens by thirteen", row.tokens.len()));
        }
        for threads in [1, 3] {
            // All rows in one batch, then one more token each, together.
            let together = on_threads(threads, || {
                let mut sequences: Vec<_> = rows.iter().map(|_| model.sequence()).collect();
                let mut views: Vec<_> = sequences.iter_mut().collect();
                let batch = Batch::new(rows.iter().map(|row| Row::new(&row.tokens).under(row.adapter)));
                let wanted: Vec<usize> = (0..batch.tokens().len()).collect();
                let mut logits = model.forward(&batch, &adapters, &mut views, &wanted).expect("forward");
                let next = Batch::new(
                    rows.iter().map(|row| Row { position: row.tokens.len(), ..Row::new(&[5]).under(row.adapter) }),
                );
                logits.extend(model.forward(&next, &adapters, &mut views, &[0, 1, 2, 3]).expect("forward"));
                logits
            });
            let mut expected = full.concat();
            for row in &rows {
                let longer = Text { tokens: [row.tokens.as_slice(), &[5]].concat(), ..row.clone() };
                let logits = served(&model, &longer, &adapters, [longer.tokens.len()]);
                expected.extend(&logits[logits.len() - spec.vocab..]);
            }
            assert_same(&together, &expected, &format!("{dtype:?} on {threads} threads"));
        }
    }
}

#[test]
fn a_fork_of_a_cached_prefix_and_a_prefix_in_the_batch_give_the_bits_of_the_whole_row() {
    let spec = &specs()[0];
    let model = load(spec, Dtype::Bf16);
    let learners = learners(spec);
    let adapters = adapters(&learners);
    let (prefix, rest) = (tokens(3, 71), tokens(4, 9));
    let whole =
        Text { tokens: [prefix.clone(), rest.clone()].concat(), adapter: Some(0), continues: None, dropout: None };
    let expected = served(&model, &whole, &adapters, [80]);
    let expected = &expected[71 * spec.vocab..];

    let mut cached = model.sequence();
    let batch = Batch::new([Row::new(&prefix).under(Some(0))]);
    model.forward(&batch, &adapters, &mut [&mut cached], &[]).expect("forward");
    let mut fork = model.fork(&Arc::new(cached), 71);
    let batch = Batch::new([Row { position: 71, ..Row::new(&rest).under(Some(0)) }]);
    let wanted: Vec<usize> = (0..9).collect();
    let forked = model.forward(&batch, &adapters, &mut [&mut fork], &wanted).expect("forward");
    assert_same(&forked, expected, "a fork");

    let target = |position| Target { position, tokens: TargetTokens::Token(11) };
    let shared = Batch::new([
        Row::new(&prefix).under(Some(0)),
        Row { position: 71, prefix: Some(0), ..Row::new(&[7]).under(Some(0)) },
        Row { position: 71, prefix: Some(0), ..Row::new(&rest[..2]).under(Some(0)) },
        Row { position: 73, prefix: Some(2), ..Row::new(&rest[2..]).under(Some(0)) },
    ]);
    let plain = Batch::new([Row::new(&whole.tokens).under(Some(0))]);
    let shared = model.score(&shared, &adapters, &(72..81).map(target).collect::<Vec<_>>()).expect("scores");
    let plain = model.score(&plain, &adapters, &(71..80).map(target).collect::<Vec<_>>()).expect("scores");
    assert_eq!(shared, plain);
}

#[test]
fn tokens_that_a_prefix_was_read_from_are_worth_what_it_is_to_the_bit_in_one_pass_and_token_by_token() {
    let spec = &specs()[0];
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let model = load(spec, dtype);
        let (read, rest) = (tokens(3, POSITIONS + 4), tokens(4, 9));
        let layout = Layout::prefix(spec, POSITIONS);
        let theta = model.read_prefix(&read, POSITIONS).expect("reads");
        let adapters = [Adapter::new(&layout, &theta)];
        let all = [&read[..POSITIONS], &rest].concat();
        let whole = Text { tokens: all.clone(), adapter: None, continues: None, dropout: None };
        let expected = served(&model, &whole, &[], [all.len()]);
        for step in [1, 4, 9] {
            let mut sequence = model.begin(adapters[0]).expect("begins");
            let mut logits = Vec::new();
            for tokens in rest.chunks(step) {
                let batch = Batch::new([Row { position: sequence.len(), ..Row::new(tokens).under(Some(0)) }]);
                let wanted: Vec<usize> = (0..tokens.len()).collect();
                logits.extend(model.forward(&batch, &adapters, &mut [&mut sequence], &wanted).expect("forward"));
            }
            assert_same(&logits, &expected[POSITIONS * spec.vocab..], &format!("{dtype:?} by {step}"));
        }
        let target = |position| Target { position, tokens: TargetTokens::Token(11) };
        let under = Batch::new([Row { position: POSITIONS, ..Row::new(&rest).under(Some(0)) }]);
        let under = model.score(&under, &adapters, &(0..9).map(target).collect::<Vec<_>>()).expect("scores");
        let plain = Batch::new([Row::new(&all)]);
        let plain = model.score(&plain, &[], &(POSITIONS..POSITIONS + 9).map(target).collect::<Vec<_>>());
        assert_eq!(under, plain.expect("scores"));
    }
}

/// The rows of `texts` that can stand under one learner: without dropout, which is of sites.
fn own_texts() -> Vec<Text> {
    let own = texts().into_iter().filter(|text| text.adapter == Some(0));
    own.map(|text| Text { dropout: None, ..text }).collect()
}

/// Logprobs and gradient of a learner of all weights over `own_texts`.
fn train_whole(model: &Model, theta: &[f32]) -> (Scores, Vec<f32>) {
    let layout = Layout::whole(model.spec());
    let adapters = [Adapter::new(&layout, theta)];
    let (batch, targets) = batch(&own_texts());
    let mut gradient = vec![0.0; layout.gradient_len()];
    let (c, e) = coefficients(&batch);
    let mut recording = model.record(&batch, &adapters).expect("records");
    let scores = recording.scores(&targets).expect("scores");
    let coefficients = HeadGradient { logprobs: &c, entropies: Some(&e) };
    recording.backward(&targets, coefficients, &mut [&mut gradient]).expect("backward");
    layout.fold(&mut gradient);
    gradient.truncate(layout.len());
    (scores, gradient)
}

#[test]
fn every_weight_of_a_learner_of_all_has_the_references_gradient_whatever_the_threads() {
    let [tied, untied] = specs();
    for spec in [tied.clone(), untied, Spec { intermediate: 0, ..tied }] {
        let layout = Layout::whole(&spec);
        let theta = layout.read(&spec, &RandomSource { spec: spec.clone(), seed: 8 }).expect("weights");
        let source = RandomSource { spec: spec.clone(), seed: 3 };
        // Through a whole model, not one half: six halves and a head. In bf16 both round the same values, as above.
        for (dtype, of, allowed) in [(Dtype::F32, Dtype::F64, 7.0 * F32_SHARE), (Dtype::Bf16, Dtype::Bf16, BF16_SHARE)]
        {
            let exact = Model::load_reference(spec.clone(), &source, &Device::Cpu, of).expect("loads");
            let (exact_scores, exact) = train_whole(&exact, &theta);
            let model = load(&spec, dtype);
            let (scores, found) = on_threads(1, || train_whole(&model, &theta));
            let (_, threaded) = on_threads(3, || train_whole(&model, &theta));
            assert_same(&found, &threaded, "threads");
            for slot in spec.slots() {
                let own = layout.tensor(slot);
                let exact: Vec<f64> = exact[own.clone()].iter().map(|&x| f64::from(x)).collect();
                let share = share(&found[own], &exact);
                assert!(share <= allowed, "{dtype:?} {slot:?}: off by {share:e}, allowed {allowed:e}");
            }
            if dtype == Dtype::F32 {
                for (found, exact) in scores.logprobs.iter().zip(&exact_scores.logprobs) {
                    assert!((found - exact).abs() <= 1e-4, "{found} for {exact}");
                }
            }
        }
    }
}
