//! Whole training calls over a tiny random model: gradients, joint and separate learners, passes, resuming.

use super::*;
use crate::common::Seed;
use candle_core::Device;
use socius_models::{Dtype, Layout, Model, Projection, RandomSource, Spec};

fn model(dtype: Dtype) -> Model {
    let spec = Spec::tiny();
    let source = RandomSource { spec: spec.clone(), seed: 11 };
    Model::load(spec, &source, &Device::Cpu, dtype).unwrap()
}

fn learner(projections: &[Projection], rank: usize, seed: u64, dropout: f32) -> Learner {
    let layout = Layout::uniform(&Spec::tiny(), projections, rank, 2.0);
    let mut rng = Seed::new(seed).rng();
    let theta = (0..layout.len()).map(|_| 0.1 * rng.normal() as f32).collect();
    Learner::new(layout, theta, seed, dropout)
}

fn tokens(length: usize, seed: u64) -> Vec<u32> {
    let mut rng = Seed::new(seed).rng();
    (0..length).map(|_| rng.below(97) as u32).collect()
}

/// Groups of samples that share a prompt, single answers, a masked row and a soft one, of uneven lengths.
fn rows(seed: u64) -> Vec<TrainRow> {
    let sample = |group: u64, i: u64| {
        let completion = tokens(1 + (i as usize * 3) % 7, seed + 100 * group + i);
        let logprobs = vec![-4.5; completion.len()];
        TrainRow::sample(tokens(9, seed + group), completion, &logprobs, i as f32 - 1.5)
    };
    let mut rows: Vec<_> =
        (0..2).flat_map(|group| (0..4).map(move |i| (group, i))).map(|(g, i)| sample(g, i)).collect();
    rows.push(TrainRow::answer(tokens(5, seed + 7), tokens(6, seed + 8)));
    let mut masked = TrainRow::answer(tokens(4, seed + 9), tokens(8, seed + 10));
    [0, 1, 4, 6, 7].into_iter().for_each(|i| masked.labels[i].weight = 0.0);
    masked.labels[2].weight = 0.5;
    rows.push(masked);
    let teacher = (0..3).map(|i| vec![(i, 0.25), (i + 10, 0.75)]).collect();
    rows.push(TrainRow::soft(tokens(6, seed + 11), tokens(3, seed + 12), teacher));
    rows
}

/// A policy gradient with an entropy bonus on samples; plain likelihood where the advantage is 0.
fn mixed(t: &Tokens) -> Result<candle_core::Tensor, TrainError> {
    Ok(((loss::policy_gradient(t)? + (loss::nll(t)? * 0.5)?)? + (loss::entropy_bonus(t)? * 0.01)?)?)
}

fn pass(tokens_per_pass: usize) -> PassLimits {
    PassLimits { tokens_per_pass, ..PassLimits::default() }
}

/// Three steps of every learner together; the statistics of the last.
fn train(model: &Model, learners: &mut [Learner], limits: PassLimits) -> Vec<(PassStats, StepStats)> {
    let mut last = Vec::new();
    for step in 0..3 {
        let data: Vec<_> =
            (0..learners.len()).map(|i| rows(1000 * step + 10 * learners[i].layout().len() as u64)).collect();
        let job = |(learner, rows)| Job { learner, rows, loss: &mixed };
        let mut jobs: Vec<Job<'_>> = learners.iter_mut().zip(&data).map(|(l, r)| job((l, &r[..]))).collect();
        let stats = forward_backward(model, &mut jobs, limits).unwrap();
        let steps = learners.iter_mut().map(|learner| optim_step(learner, &AdamW::default()).unwrap());
        last = stats.into_iter().zip(steps).collect();
    }
    last
}

/// The keys and values of a prefix.
fn prefix(positions: usize, seed: u64) -> Learner {
    let layout = Layout::prefix(&Spec::tiny(), positions);
    let mut rng = Seed::new(seed).rng();
    let theta = (0..layout.len()).map(|_| rng.normal() as f32).collect();
    Learner::new(layout, theta, seed, 0.0)
}

fn several() -> Vec<Learner> {
    use Projection::*;
    vec![
        learner(&Projection::ALL, 4, 1, 0.0),
        prefix(9, 4),
        learner(&[Q, V], 1, 2, 0.2),
        learner(&[Gate, Up, Down], 7, 3, 0.0),
        prefix(70, 5),
    ]
}

#[test]
fn joint_and_separate_training_agree_to_the_byte() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let model = model(dtype);
        let mut joint = several();
        let joint_stats = train(&model, &mut joint, pass(4096));
        for (i, mut alone) in several().into_iter().enumerate() {
            let stats = train(&model, std::slice::from_mut(&mut alone), pass(4096));
            assert!(stats[0] == joint_stats[i], "{dtype:?}: statistics of learner {i}");
            assert!(alone == joint[i], "{dtype:?}: learner {i}");
        }
    }
}

/// Answers to prompts with a common beginning: more tokens than a pass computes in one part.
fn answers(seed: u64) -> Vec<TrainRow> {
    let beginning = tokens(24, seed);
    let answer = |i: u64| {
        let prompt = [&beginning[..], &tokens(3 + i as usize % 5, seed + 2 * i)].concat();
        TrainRow::answer(prompt, tokens(4 + i as usize % 3, seed + 2 * i + 1))
    };
    (0..24).map(answer).collect()
}

#[test]
fn learners_of_many_rows_agree_with_themselves_alone_to_the_byte() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let model = model(dtype);
        let steps = |learners: &mut [Learner], seeds: &[u64]| {
            let mut losses = Vec::new();
            for step in 0..4 {
                let data: Vec<_> = seeds.iter().map(|seed| answers(1000 * step + seed)).collect();
                let pairs = learners.iter_mut().zip(&data);
                let mut jobs: Vec<_> = pairs.map(|(learner, rows)| Job { learner, rows, loss: &loss::nll }).collect();
                let stats = forward_backward(&model, &mut jobs, PassLimits::default()).unwrap();
                losses.push(stats.into_iter().map(|stats| stats.loss).collect::<Vec<_>>());
                for learner in learners.iter_mut() {
                    optim_step(learner, &AdamW::default()).unwrap();
                }
            }
            losses
        };
        let all = || vec![learner(&Projection::ALL, 4, 1, 0.0), learner(&Projection::ALL, 4, 2, 0.0), prefix(12, 3)];
        let mut joint = all();
        let losses = steps(&mut joint, &[100, 500, 900]);
        for (i, mut alone) in all().into_iter().enumerate() {
            let own = steps(std::slice::from_mut(&mut alone), &[[100, 500, 900][i]]);
            assert!(
                own.iter().zip(&losses).all(|(own, joint)| own[0] == joint[i]),
                "{dtype:?}: learner {i}: {own:?} {losses:?}"
            );
            assert!(alone == joint[i], "{dtype:?}: learner {i}");
        }
    }
}

#[test]
fn the_size_of_a_pass_does_not_change_a_byte() {
    let model = model(Dtype::F32);
    let mut whole = several();
    let stats = train(&model, &mut whole, pass(4096));
    for size in [1, 40, 77] {
        let mut cut = several();
        assert!(train(&model, &mut cut, pass(size)) == stats, "statistics at {size} tokens a pass");
        assert!(cut == whole, "{size} tokens a pass");
    }
}

#[test]
fn a_budget_of_memory_does_not_change_a_byte() {
    let model = model(Dtype::Bf16);
    let mut free = several();
    let stats = train(&model, &mut free, pass(4096));
    for recorded_bytes_max in [0, 20_000, 200_000, 2_000_000] {
        let mut bound = several();
        let limits = PassLimits { recorded_bytes_max, ..pass(4096) };
        assert!(train(&model, &mut bound, limits) == stats, "statistics within {recorded_bytes_max} bytes");
        assert!(bound == free, "{recorded_bytes_max} bytes");
    }
}

#[test]
fn a_shared_prompt_gives_the_gradient_of_separate_prompts() {
    let model = model(Dtype::F32);
    for base in [learner(&Projection::ALL, 4, 1, 0.0), prefix(9, 1)] {
        let gradient = |share_prompts| {
            let mut learner = base.clone();
            let limits = PassLimits { share_prompts, ..PassLimits::default() };
            let job = Job { learner: &mut learner, rows: &rows(5), loss: &mixed };
            let stats = forward_backward(&model, &mut [job], limits).unwrap().remove(0);
            (learner.gradient, stats)
        };
        let ((shared, few), (separate, many)) = (gradient(true), gradient(false));
        let length = separate.iter().map(|&g| g * g).sum::<f32>().sqrt();
        let off = shared.iter().zip(&separate).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        assert!(length > 0.01 && off < 1e-5 * length, "{off} of {length}");
        assert!((few.loss - many.loss).abs() < 1e-5 && few.loss_tokens == many.loss_tokens);
        // Two groups of four read their nine prompt tokens once instead of four times.
        assert_eq!(many.tokens - few.tokens, 2 * 3 * 9);
    }
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    let model = model(Dtype::F64);
    let rows = rows(5);
    let run = |learner: &mut Learner| {
        let job = Job { learner, rows: &rows, loss: &mixed };
        forward_backward(&model, &mut [job], PassLimits::default()).unwrap()[0].loss
    };
    // A prefix changes a row as a whole by little: it is moved further.
    for (base, h) in [(learner(&Projection::ALL, 2, 1, 0.0), 2e-4), (prefix(5, 1), 2e-3)] {
        let mut exact = base.clone();
        run(&mut exact);
        // A direction that touches every parameter; scores are f32, so the width balances rounding against curvature.
        let direction: Vec<f32> = exact.gradient.iter().map(|g| g.signum()).collect();
        let at = |h: f32| {
            let mut moved = base.clone();
            moved.theta.iter_mut().zip(&direction).for_each(|(t, d)| *t += h * d);
            run(&mut moved)
        };
        let slope = (at(h) - at(-h)) / (2.0 * f64::from(h));
        let expected: f64 = exact.gradient.iter().map(|g| f64::from(g.abs())).sum();
        assert!((slope - expected).abs() < 2e-3 * expected, "{slope} {expected}");
        assert!(exact.gradient.iter().all(|&g| g != 0.0), "every parameter has a gradient");
    }
}

#[test]
fn calls_before_a_step_add_up() {
    let model = model(Dtype::F32);
    let rows = rows(5);
    let gradient = |times: usize| {
        let mut learner = learner(&[Projection::O], 2, 1, 0.0);
        for _ in 0..times {
            let job = Job { learner: &mut learner, rows: &rows, loss: &mixed };
            forward_backward(&model, &mut [job], PassLimits::default()).unwrap();
        }
        learner.gradient
    };
    let doubled = gradient(2).iter().zip(gradient(1)).map(|(two, one)| (two - 2.0 * one).abs()).fold(0.0, f32::max);
    assert!(doubled < 1e-6, "{doubled}");
}

#[test]
fn dropout_follows_the_seed_and_changes_from_row_to_row() {
    let model = model(Dtype::F32);
    let gradients = |seed, dropout| {
        let mut learner = learner(&Projection::ALL, 2, 1, dropout);
        learner.counters.seed = seed;
        let rows = [TrainRow::answer(tokens(5, 1), tokens(5, 2))];
        [(); 2].map(|()| {
            let job = Job { learner: &mut learner, rows: &rows, loss: &loss::nll };
            forward_backward(&model, &mut [job], PassLimits::default()).unwrap();
            let gradient = learner.gradient.clone();
            learner.discard_gradient();
            gradient
        })
    };
    assert!(gradients(1, 0.3) == gradients(1, 0.3));
    assert!(gradients(1, 0.3) != gradients(2, 0.3));
    let [first, second] = gradients(1, 0.3);
    assert!(first != second, "the second row has its own mask");
    let [first, second] = gradients(1, 0.0);
    assert!(first == second);
}

#[test]
fn a_learner_put_away_and_read_back_goes_on_to_the_same_bytes() {
    let model = model(Dtype::F32);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("learner.safetensors");
    let mut unbroken = several();
    train(&model, &mut unbroken, pass(100));
    let mut resumed: Vec<_> = unbroken
        .iter()
        .map(|learner| {
            learner.save(&path).unwrap();
            Learner::load(&path, model.spec()).unwrap()
        })
        .collect();
    assert!(train(&model, &mut resumed, pass(100)) == train(&model, &mut unbroken, pass(100)));
    assert!(resumed == unbroken);
}

#[test]
fn training_lowers_the_loss_of_what_it_trains_on_and_the_gap_tells_recomputed_from_recorded() {
    let model = model(Dtype::F32);
    let mut learner = learner(&Projection::ALL, 4, 1, 0.0);
    let (prompt, completion) = (tokens(8, 1), tokens(6, 2));
    let limits = PassLimits::default();
    let recorded = score(&model, Some(learner.adapter()), &[(&prompt, &completion)], limits).unwrap().remove(0);
    let mut rows = [TrainRow::sample(prompt, completion, &recorded, 1.0)];
    attach_base(&model, &mut rows, limits).unwrap();
    let settings = AdamW { lr: 5e-3, ..AdamW::default() };
    let mut stats = Vec::new();
    for _ in 0..12 {
        let job = Job { learner: &mut learner, rows: &rows, loss: &loss::nll };
        stats.push(forward_backward(&model, &mut [job], limits).unwrap().remove(0));
        optim_step(&mut learner, &settings).unwrap();
    }
    assert!(stats[0].gap.unwrap() < 1e-4, "nothing has moved yet: {:?}", stats[0]);
    assert!(stats[11].loss < 0.5 * stats[0].loss && stats[11].gap.unwrap() > 0.5, "{:?}", stats[11]);
    assert!(stats[0].kl.unwrap() > 0.0 && stats[0].loss == -stats[0].logprob);
    let sum: f32 = recorded.iter().sum();
    assert!((stats[0].loss + f64::from(sum) / 6.0).abs() < 1e-5);
}

#[test]
fn a_prefix_read_from_a_text_learns_what_comes_after_it() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let model = model(dtype);
        let layout = Layout::prefix(model.spec(), 8);
        let theta = model.read_prefix(&tokens(20, 1), 8).unwrap();
        let mut learner = Learner::new(layout, theta, 1, 0.0);
        let rows = [TrainRow::answer(tokens(4, 3), tokens(3, 4)), TrainRow::answer(tokens(4, 5), tokens(3, 6))];
        let losses: Vec<f64> = (0..60)
            .map(|_| {
                let job = Job { learner: &mut learner, rows: &rows, loss: &loss::nll };
                let stats = forward_backward(&model, &mut [job], PassLimits::default()).unwrap();
                optim_step(&mut learner, &AdamW { lr: 5e-2, ..AdamW::default() }).unwrap();
                stats[0].loss
            })
            .collect();
        assert!(losses[59] < 0.7 * losses[0], "{dtype:?}: {losses:?}");
    }
}

#[test]
fn rows_that_cannot_be_trained_on_are_refused_before_anything_is_computed() {
    let model = model(Dtype::F32);
    let good = TrainRow::answer(tokens(3, 1), tokens(3, 2));
    let with = |change: &dyn Fn(&mut TrainRow)| {
        let mut row = good.clone();
        change(&mut row);
        row
    };
    let cases = [
        (with(&|row| row.prompt.clear()), "at least one token"),
        (with(&|row| row.prompt = tokens(254, 1)), "257 tokens, and the context holds 256"),
        (with(&|row| row.completion[1] = 97), "token id 97 does not exist: ids end at 96"),
        (with(&|row| row.labels.truncate(2)), "2 labels for 3 completion tokens"),
        (with(&|row| row.labels[0].weight = f32::NAN), "not finite"),
        (with(&|row| row.labels[0].soft = Some(vec![(97, 1.0)])), "soft target"),
    ];
    for (row, expected) in cases {
        let mut learner = learner(&[Projection::Q], 1, 1, 0.0);
        let before = learner.clone();
        let rows = [good.clone(), row];
        let job = Job { learner: &mut learner, rows: &rows, loss: &loss::nll };
        let message = forward_backward(&model, &mut [job], PassLimits::default()).unwrap_err().to_string();
        assert!(message.starts_with("training row 1: ") && message.contains(expected), "{message}");
        assert!(learner == before);
    }
    let job = Job { learner: &mut prefix(251, 1), rows: &[good], loss: &loss::nll };
    let message = forward_backward(&model, &mut [job], PassLimits::default()).unwrap_err().to_string();
    assert!(message.contains("257 tokens, and the context holds 256"), "{message}");
}

/// A learner of all weights of a model of its own: attention alone with a head of its own, or a tied one with an MLP.
fn whole(tied_head: bool, seed: u64) -> (Spec, Learner) {
    let spec = Spec { tied_head, intermediate: if tied_head { 52 } else { 0 }, ..Spec::tiny() };
    let layout = Layout::whole(&spec);
    let theta = layout.read(&spec, &RandomSource { spec: spec.clone(), seed }).unwrap();
    (spec, Learner::new(layout, theta, seed, 0.0))
}

#[test]
fn learners_of_all_weights_agree_alone_together_beside_adapters_and_in_passes_of_any_size() {
    for (tied_head, dtype) in [(true, Dtype::F32), (true, Dtype::Bf16), (false, Dtype::F32)] {
        let (spec, _) = whole(tied_head, 1);
        let source = RandomSource { spec: spec.clone(), seed: 11 };
        let model = Model::load(spec.clone(), &source, &Device::Cpu, dtype).unwrap();
        let adapter = || {
            let layout = Layout::uniform(&spec, &Projection::ALL, 3, 1.0);
            let theta = (0..layout.len()).map(|i| (i % 13) as f32 / 60.0 - 0.1).collect();
            Learner::new(layout, theta, 4, 0.0)
        };
        let all = || vec![whole(tied_head, 1).1, adapter(), whole(tied_head, 2).1, adapter()];
        let mut joint = all();
        let stats = train(&model, &mut joint, pass(4096));
        for (i, mut alone) in all().into_iter().enumerate() {
            assert!(train(&model, std::slice::from_mut(&mut alone), pass(4096))[0] == stats[i], "learner {i}");
            assert!(alone == joint[i], "{dtype:?}, tied {tied_head}: learner {i} alone");
        }
        for limits in [pass(1), pass(50), PassLimits { recorded_bytes_max: 20_000, ..pass(4096) }] {
            let mut cut = all();
            assert!(train(&model, &mut cut, limits) == stats && cut == joint, "tied {tied_head}: {limits:?}");
        }
    }
}

#[test]
fn a_model_from_scratch_learns_alike_in_both_forms_and_is_a_base_afterwards() {
    let (spec, learner) = whole(false, 5);
    let source = RandomSource { spec: spec.clone(), seed: 1 };
    let forms = [Model::load, Model::load_reference].map(|load| {
        let model = load(spec.clone(), &source, &Device::Cpu, Dtype::F32).unwrap();
        let mut learner = learner.clone();
        let losses: Vec<f64> = (0..6)
            .map(|_| {
                let job = Job { learner: &mut learner, rows: &answers(3), loss: &loss::nll };
                let stats = forward_backward(&model, &mut [job], PassLimits::default()).unwrap();
                optim_step(&mut learner, &AdamW { lr: 3e-3, ..AdamW::default() }).unwrap();
                stats[0].loss
            })
            .collect();
        (losses, learner)
    });
    let [(fast, learner), (reference, _)] = &forms;
    // Adam's first steps follow the sign of a gradient; where that is nearly 0 its sign is rounding's.
    let off = fast.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(off < 2e-3 && (fast[0] - reference[0]).abs() < 1e-5, "{fast:?} {reference:?}");
    assert!(fast[5] < 0.9 * fast[0], "{fast:?}");

    let folder = tempfile::tempdir().unwrap();
    let trained = socius_models::ThetaSource { spec: &spec, layout: learner.layout(), theta: learner.theta() };
    socius_models::save(folder.path(), &spec, &trained).unwrap();
    let saved = socius_models::Checkpoint::open(folder.path()).unwrap();
    assert_eq!(saved.spec, spec);
    let base = Model::load(saved.spec.clone(), &saved, &Device::Cpu, Dtype::F32).unwrap();
    let model = Model::load(spec.clone(), &source, &Device::Cpu, Dtype::F32).unwrap();
    let (prompt, completion) = (tokens(9, 1), tokens(5, 2));
    let sequences = [(&prompt[..], &completion[..])];
    let under = score(&model, Some(learner.adapter()), &sequences, PassLimits::default()).unwrap();
    assert_eq!(score(&base, None, &sequences, PassLimits::default()).unwrap(), under);
}
