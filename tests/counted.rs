//! What the kernels count of whole passes, against the lab's count from the architecture. The counters are the process's, so one
//! measures at a time.

use candle_core::Device;
use socius::lab::synthetic::work::{Stretch, attention, forward, head, linears};
use socius::lora;
use socius::train::{Job, Learner, Loss, PassLimits, TrainRow, forward_backward, loss};
use socius_kernels::counts::{Counts, Operation};
use socius_models::{Batch, Dtype, InitialSource, KvSequence, Layout, Model, Projection, Row, Spec};
use std::sync::{Mutex, PoisonError};

/// The share by which counts may differ.
const CLOSE: f64 = 0.01;

/// What the kernels count while `work` runs alone.
fn counted<T>(work: impl FnOnce() -> T) -> (T, impl Fn(&[Operation]) -> f64) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Counts::now();
    let value = work();
    let counts = Counts::now() - before;
    (value, move |kinds: &[Operation]| kinds.iter().map(|&kind| counts.of(kind).flops as f64).sum())
}

fn assert_close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= CLOSE * expected, "{what}: counted {found:.6e}, analytic {expected:.6e}");
}

/// Grouped queries and a narrow MLP; Zoology's attention alone; a wide MLP.
fn specs() -> [(&'static str, Spec); 3] {
    let alone = Spec { intermediate: 0, ..Spec::small(512, 64, 2, 1) };
    [("tiny", Spec { context_max: 1024, ..Spec::tiny() }), ("alone", alone), ("small", Spec::small(90, 48, 2, 3))]
}

fn model(spec: &Spec, dtype: Dtype) -> Model {
    let initial = InitialSource { spec: spec.clone(), seed: 1 };
    Model::load(spec.clone(), &initial, &Device::Cpu, dtype).unwrap()
}

fn tokens(spec: &Spec, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 31 + 7) % spec.vocab as u32).collect()
}

/// Runs `rows` tokens each after what `sequences` hold, and scores the last of each.
fn pass(model: &Model, rows: &[Vec<u32>], sequences: &mut [KvSequence]) {
    let row = |(tokens, sequence): (&'_ Vec<u32>, &KvSequence)| (tokens.clone(), sequence.len());
    let placed: Vec<_> = rows.iter().zip(&*sequences).map(row).collect();
    let batch = Batch::new(placed.iter().map(|(tokens, position)| Row { position: *position, ..Row::new(tokens) }));
    let wanted: Vec<usize> = batch.spans().iter().map(|span| span.tokens.end - 1).collect();
    let mut sequences: Vec<&mut KvSequence> = sequences.iter_mut().collect();
    model.forward(&batch, &[], &mut sequences, &wanted).unwrap();
}

/// The analytic count of stretches, part by part and as a whole.
fn assert_forward(spec: &Spec, count: impl Fn(&[Operation]) -> f64, stretches: &[Stretch], what: &str) {
    let sum = |part: fn(&Spec, Stretch) -> f64| stretches.iter().map(|&stretch| part(spec, stretch)).sum::<f64>();
    assert_close(count(&[Operation::Attention]), sum(attention), &format!("{what}: attention"));
    assert_close(count(&[Operation::Linear]), sum(linears), &format!("{what}: linears"));
    assert_close(count(&[Operation::Head]), sum(head), &format!("{what}: head"));
    assert_close(count(&Operation::ALL), sum(forward), &format!("{what}: everything"));
}

#[test]
fn prefill_and_decode_over_a_cache_count_what_the_architecture_says() {
    for (name, spec) in specs() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let model = model(&spec, dtype);
            for lengths in [vec![1], vec![64], vec![300], vec![3, 70, 129, 1, 200]] {
                let what = format!("{name} {dtype:?} {lengths:?}");
                let rows: Vec<Vec<u32>> = lengths.iter().map(|&length| tokens(&spec, length)).collect();
                let mut sequences: Vec<KvSequence> = rows.iter().map(|_| model.sequence()).collect();
                let (_, count) = counted(|| pass(&model, &rows, &mut sequences));
                let read: Vec<_> = lengths.iter().map(|&tokens| Stretch { cached: 0, tokens, scored: 1 }).collect();
                assert_forward(&spec, count, &read, &format!("{what} prefill"));
                for new in [1, 3] {
                    let rows: Vec<Vec<u32>> = lengths.iter().map(|_| tokens(&spec, new)).collect();
                    let cached: Vec<usize> = sequences.iter().map(KvSequence::len).collect();
                    let (_, count) = counted(|| pass(&model, &rows, &mut sequences));
                    let asked: Vec<_> =
                        cached.iter().map(|&cached| Stretch { cached, tokens: new, scored: 1 }).collect();
                    assert_forward(&spec, count, &asked, &format!("{what} decode of {new}"));
                }
            }
        }
    }
}

#[test]
fn a_window_counts_what_its_own_tokens_say_however_long_the_context_was() {
    for (name, spec) in specs() {
        let model = model(&spec, Dtype::F32);
        let all = tokens(&spec, 400);
        for window in [16, 48, 192] {
            // As the lab's window arm reads it: the beginning and the last tokens, then questions of three.
            let text = [&all[..1], &all[all.len() - window..]].concat();
            let mut read = [model.sequence()];
            let (_, count) = counted(|| pass(&model, std::slice::from_ref(&text), &mut read));
            let stretch = Stretch { cached: 0, tokens: window + 1, scored: 1 };
            assert_forward(&spec, count, &[stretch], &format!("{name} window of {window}"));
            let [read] = read.map(std::sync::Arc::new);
            let mut forks: Vec<KvSequence> = (0..5).map(|_| model.fork(&read, read.len())).collect();
            let (_, count) = counted(|| pass(&model, &vec![tokens(&spec, 3); 5], &mut forks));
            let stretch = Stretch { cached: window + 1, tokens: 3, scored: 1 };
            assert_forward(&spec, count, &[stretch; 5], &format!("{name} questions after {window}"));
        }
    }
}

/// One step of rows of these lengths whose last `scored` tokens are trained on.
fn step(model: &Model, learner: &mut Learner, lengths: &[usize], scored: usize) -> Vec<Stretch> {
    let row = |&length: &usize| {
        // A last token is predicted and not read.
        let all = tokens(model.spec(), length + 1);
        let (prompt, completion) = all.split_at(length + 1 - scored);
        TrainRow::answer(prompt.to_vec(), completion.to_vec())
    };
    let rows: Vec<_> = lengths.iter().map(row).collect();
    let nll: &Loss<'_> = &loss::nll;
    let limits = PassLimits { share_prompts: false, ..PassLimits::default() };
    forward_backward(model, &mut [Job { learner, rows: &rows, loss: nll }], limits).unwrap();
    lengths.iter().map(|&tokens| Stretch { cached: 0, tokens, scored }).collect()
}

#[test]
fn a_step_of_all_weights_counts_what_the_architecture_says_and_its_logits_twice() {
    for (name, spec) in specs() {
        let model = model(&spec, Dtype::F32);
        let layout = Layout::whole(&spec);
        let theta = layout.read(&spec, &InitialSource { spec: spec.clone(), seed: 2 }).unwrap();
        for (lengths, scored) in [(vec![64], 64), (vec![200, 5, 130], 4), (vec![32; 8], 32)] {
            let mut learner = Learner::new(layout.clone(), theta.clone(), 1, 0.0);
            let (stretches, count) = counted(|| step(&model, &mut learner, &lengths, scored));
            let sum = |part: fn(&Spec, Stretch) -> f64| stretches.iter().map(|&s| part(&spec, s)).sum::<f64>();
            let what = |part: &str| format!("{name} {lengths:?}: {part}");
            assert_close(count(&[Operation::Attention]), sum(attention), &what("attention"));
            assert_close(count(&[Operation::AttentionBackward]), 2.5 * sum(attention), &what("attention, back"));
            assert_close(count(&[Operation::Linear]), 2.0 * sum(linears), &what("linears, there and back"));
            assert_close(count(&[Operation::WeightGradient]), sum(linears), &what("linears' own gradients"));
            // Logits, those again for the way back, and two gradients; the analytic count has them once.
            assert_close(count(&[Operation::Head]), 4.0 * sum(head), &what("head"));
        }
    }
}

#[test]
fn a_step_of_an_adapter_counts_what_the_architecture_says_and_its_low_rank_inputs_twice() {
    const RANK: usize = 4;
    for (name, spec) in specs() {
        let layout = Layout::uniform(&spec, &Projection::ALL, RANK, 2.0);
        let theta = lora::init(&layout, socius::common::Seed::new(3));
        let inputs: usize = layout.sites().iter().map(|site| RANK * site.inputs).sum();
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let model = model(&spec, dtype);
            for (lengths, scored) in [(vec![64], 64), (vec![200, 5, 130], 4)] {
                let mut learner = Learner::new(layout.clone(), theta.clone(), 1, 0.0);
                let (stretches, count) = counted(|| step(&model, &mut learner, &lengths, scored));
                let sum = |part: fn(&Spec, Stretch) -> f64| stretches.iter().map(|&s| part(&spec, s)).sum::<f64>();
                let what = |part: &str| format!("{name} {dtype:?} {lengths:?}: {part}");
                assert_close(count(&[Operation::Attention]), sum(attention), &what("attention"));
                assert_close(count(&[Operation::AttentionBackward]), 2.5 * sum(attention), &what("attention, back"));
                assert_close(count(&[Operation::Linear]), 2.0 * sum(linears), &what("linears, there and back"));
                assert_close(count(&[Operation::Head]), 2.0 * sum(head), &what("head"));
                let tokens: usize = lengths.iter().sum();
                // 2 forward and 4 back a parameter, and A x once more.
                let low = tokens as f64 * (6 * layout.len() + 2 * inputs) as f64;
                assert_close(count(&[Operation::Lora]), low, &what("adapter"));
                assert_eq!(count(&[Operation::WeightGradient]), 0.0);
            }
        }
    }
}
