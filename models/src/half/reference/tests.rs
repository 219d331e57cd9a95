//! The reference in f64 against central finite differences, and the explicit walk against one tape over the whole model.

use super::*;
use crate::batch::mix;
use crate::decoder::{Decode, Decoder};
use crate::half::Pass;
use crate::{Dropout, Layout, RandomSource, RopeScaling, Row, TargetTokens};

/// A small architecture of each kind that changes a formula.
fn specs() -> Vec<Spec> {
    let small =
        Spec { vocab: 19, hidden: 6, intermediate: 8, layers: 2, heads: 4, kv_heads: 2, head_dim: 4, ..Spec::tiny() };
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low_frequency: 1.0, high_frequency: 4.0, original_context: 32.0 };
    vec![
        small.clone(),
        Spec { tied_head: false, rope_scaling: llama3, ..small.clone() },
        Spec { heads: 3, kv_heads: 1, head_dim: 2, hidden: 5, intermediate: 7, ..small.clone() },
        Spec { heads: 2, kv_heads: 2, rope_scaling: RopeScaling::Linear { factor: 4.0 }, ..small },
    ]
}

/// Values in `[-scale, scale)`.
fn noise(seed: u64, len: usize, scale: f64) -> Vec<f64> {
    (0..len as u64).map(|i| ((mix(seed << 32 | i) >> 40) as f64 / f64::from(1 << 23) - 1.0) * scale).collect()
}

fn noise_f32(seed: u64, len: usize, scale: f64) -> Vec<f32> {
    noise(seed, len, scale).into_iter().map(|x| x as f32).collect()
}

fn decoder(spec: &Spec) -> Decoder<Reference> {
    let spec = Arc::new(spec.clone());
    let source = RandomSource { spec: (*spec).clone(), seed: 3 };
    let halves = Reference::load(spec.clone(), &source, &Device::Cpu, Dtype::F64).expect("a random model loads");
    Decoder::new(spec, halves)
}

/// A learner of its own rank on the same sites.
struct Learner {
    layout: Layout,
    theta: Vec<f32>,
}

/// Two of low-rank factors, and a trained prefix of two positions.
fn learners(spec: &Spec) -> Vec<Learner> {
    let learner = |(seed, rank): (u64, usize)| {
        let layout = Layout::uniform(spec, &Projection::ALL, rank, 0.5 + rank as f32);
        let theta = noise_f32(seed, layout.len(), 0.4);
        Learner { layout, theta }
    };
    let layout = Layout::prefix(spec, 2);
    let theta = noise_f32(3, layout.len(), 1.0);
    [(1, 2), (2, 1)].map(learner).into_iter().chain([Learner { layout, theta }]).collect()
}

fn adapters(learners: &[Learner]) -> Vec<Adapter<'_>> {
    learners.iter().map(|Learner { layout, theta }| Adapter::new(layout, theta)).collect()
}

/// Every kind of row: a prefix with a continuation that is continued, a row under nothing, rows with and without dropout, adapters
/// that come again, and rows under a trained prefix, one of which continues another.
fn batch() -> Batch {
    let dropout = Some(Dropout { p: 0.3, key: 11 });
    let continued = Row { position: 3, prefix: Some(0), ..Row::new(&[]).under(Some(0)) };
    let trained = |tokens, position| Row { position, ..Row::new(tokens).under(Some(2)) };
    Batch::new([
        Row::new(&[4, 1, 7]).under(Some(0)),
        Row { tokens: &[2, 2], ..continued.clone() },
        Row { tokens: &[5], position: 5, prefix: Some(1), ..continued },
        Row::new(&[3, 9]),
        Row { dropout, ..Row::new(&[8, 6, 18]).under(Some(1)) },
        Row { dropout, ..Row::new(&[1, 10]).under(Some(0)) },
        Row::new(&[12, 0]).under(Some(1)),
        trained(&[7, 1, 3], 2),
        trained(&[11], 2),
        Row { prefix: Some(7), ..trained(&[9, 2], 5) },
    ])
}

fn targets() -> Vec<Target> {
    let token = |position, token| Target { position, tokens: TargetTokens::Token(token) };
    let soft = |position, tokens: &[(u32, f32)]| Target { position, tokens: TargetTokens::Soft(tokens.to_vec()) };
    vec![
        token(2, 2),
        token(2, 5),
        token(4, 0),
        soft(7, &[(1, 0.25), (18, 0.75)]),
        soft(9, &[(3, 0.4), (3, 0.1), (7, 0.2)]),
        token(12, 11),
        token(14, 3),
        token(5, 18),
        token(16, 4),
        token(18, 9),
        soft(20, &[(2, 0.5), (13, 0.5)]),
    ]
}

/// Compares `gradient` with central differences of `loss` in every coordinate of `at`.
fn assert_matches_differences(name: &str, at: &[f64], gradient: &[f64], mut loss: impl FnMut(&[f64]) -> f64) {
    let step = 1e-5;
    let scale = gradient.iter().fold(0f64, |most, g| most.max(g.abs()));
    assert!(scale > 0.0, "{name}: no gradient at all");
    let mut point = at.to_vec();
    for i in 0..at.len() {
        let mut value = |x: f64| {
            point[i] = x;
            loss(&point)
        };
        // θ is f32: the step taken is the rounded one.
        let (up, down) = (f64::from((at[i] + step) as f32), f64::from((at[i] - step) as f32));
        let difference = (value(up) - value(down)) / (up - down);
        point[i] = at[i];
        let error = (difference - gradient[i]).abs();
        assert!(error <= 1e-6 * scale, "{name}[{i}]: gradient {}, difference {difference}", gradient[i]);
    }
}

/// Σ of a tensor's values times fixed noise: a scalar that sees every one of them.
fn probe(y: &Tensor) -> f64 {
    let y = y.flatten_all().expect("flat").to_vec1::<f64>().expect("f64");
    y.iter().zip(noise(77, y.len(), 1.0)).map(|(y, c)| y * c).sum()
}

fn tensor(values: Vec<f64>, like: &Tensor) -> Tensor {
    Tensor::from_vec(values, like.shape(), &Device::Cpu).expect("same shape")
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().expect("flat").to_vec1().expect("f64")
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// A pass over the rows, with learner `which` at `theta`.
fn with_pass<T>(
    decoder: &Decoder<Reference>,
    learners: &[Learner],
    theta: Option<(usize, &[f64])>,
    run: impl FnOnce(&Pass<'_, Prepared>) -> T,
) -> T {
    let moved = theta.map(|(which, theta)| (which, theta.iter().map(|&x| x as f32).collect::<Vec<_>>()));
    let mut adapters = adapters(learners);
    if let Some((which, theta)) = &moved {
        adapters[*which].theta = theta;
    }
    let batch = batch();
    let prepared = decoder.halves.prepare(&batch, &adapters, Some(0)).expect("prepares");
    run(&Pass { batch: &batch, adapters: &adapters, segments: batch.segments(), whole: None, prepared })
}

#[derive(Clone, Copy, Debug)]
enum Half {
    Attention,
    Mlp,
}

impl Half {
    fn projections(self) -> &'static [Projection] {
        match self {
            Self::Attention => &ATTENTION,
            Self::Mlp => &MLP,
        }
    }

    fn forward(self, halves: &Reference, at: At<'_, Prepared>, x: &Tensor) -> Tensor {
        match self {
            Self::Attention => halves.attention(at, x.clone(), None),
            Self::Mlp => halves.mlp(at, x.clone()),
        }
        .expect("forward")
    }

    fn backward(self, halves: &Reference, at: At<'_, Prepared>, x: &Tensor, into: &mut [&mut [f32]]) -> Tensor {
        match self {
            Self::Attention => {
                let (y, saved) = halves.attention_recorded(at, x.clone()).expect("forward");
                let dy = tensor(noise(77, y.elem_count(), 1.0), &y);
                halves.attention_backward(at, saved, dy, into)
            }
            Self::Mlp => {
                let (y, saved) = halves.mlp_recorded(at, x.clone()).expect("forward");
                let dy = tensor(noise(77, y.elem_count(), 1.0), &y);
                halves.mlp_backward(at, saved, dy, into)
            }
        }
        .expect("backward")
    }
}

/// The parameters of a learner in a half: their names and places in θ.
fn parameters(layout: &Layout, layer: usize, half: Half) -> Vec<(String, Range<usize>)> {
    let mut all = Vec::new();
    for site in half.projections().iter().filter_map(|&projection| layout.at(Site { layer, projection })) {
        all.push((format!("A of {:?}", site.site.projection), site.a..site.b));
        all.push((format!("B of {:?}", site.site.projection), site.b..site.b + site.outputs * site.rank));
    }
    if layout.positions() > 0 && matches!(half, Half::Attention) {
        let [keys, values] = layout.keys_and_values(layer);
        all.extend([("keys".to_owned(), keys), ("values".to_owned(), values)]);
    }
    all
}

/// One half of layer 1: its input's gradient, and that of every parameter of every learner.
fn half_matches_differences(half: Half) {
    for spec in &specs()[1..3] {
        let decoder = decoder(spec);
        let learners = learners(spec);
        let tokens = batch().tokens().len();
        let x = Tensor::from_vec(noise(5, tokens * spec.hidden, 1.5), (tokens, spec.hidden), &Device::Cpu).expect("x");
        let mut gradients: Vec<Vec<f32>> = learners.iter().map(|l| vec![0.0; l.layout.len()]).collect();
        let mut into: Vec<&mut [f32]> = gradients.iter_mut().map(Vec::as_mut_slice).collect();
        let run = |theta: Option<(usize, &[f64])>, x: &Tensor| {
            with_pass(&decoder, &learners, theta, |pass| {
                probe(&half.forward(&decoder.halves, At { layer: 1, pass }, x))
            })
        };
        let dx = with_pass(&decoder, &learners, None, |pass| {
            half.backward(&decoder.halves, At { layer: 1, pass }, &x, &mut into)
        });
        let name = format!("{half:?} of {} heads", spec.heads);
        assert_matches_differences(&format!("{name}: x"), &values(&x), &values(&dx), |moved| {
            run(None, &tensor(moved.to_vec(), &x))
        });
        for (which, learner) in learners.iter().enumerate() {
            let whole = wide(&learner.theta);
            let parameters = parameters(&learner.layout, 1, half);
            for (part, own) in &parameters {
                let gradient = wide(&gradients[which][own.clone()]);
                let name = format!("{name}: {part} of learner {which}");
                assert_matches_differences(&name, &whole[own.clone()], &gradient, |moved| {
                    let mut theta = whole.clone();
                    theta[own.clone()].copy_from_slice(moved);
                    run(Some((which, &theta)), &x)
                });
            }
            let elsewhere = |i: &usize| parameters.iter().all(|(_, own)| !own.contains(i));
            let written = (0..whole.len()).filter(elsewhere).find(|&i| gradients[which][i] != 0.0);
            assert_eq!(written, None, "{name} wrote into learner {which} elsewhere");
        }
    }
}

#[test]
fn the_attention_half_has_the_gradient_of_its_differences() {
    half_matches_differences(Half::Attention);
}

#[test]
fn the_mlp_half_has_the_gradient_of_its_differences() {
    half_matches_differences(Half::Mlp);
}

/// Σ of scores times fixed weights, as a loss and as what the head's backward takes.
fn score_weights() -> (Vec<f32>, Vec<f32>) {
    let count = targets().len();
    (noise_f32(21, count, 1.0), noise_f32(22, count, 1.0))
}

fn loss_of(halves: &Reference, hidden: &Tensor) -> Tensor {
    let (logprobs, entropies) = halves.score_tensors(hidden, &targets()).expect("scores");
    let (a, b) = score_weights();
    let weighed = |scores: &Tensor, weights: &[f32]| {
        let weights = Tensor::from_slice(weights, weights.len(), &Device::Cpu)?.to_dtype(DType::F64)?;
        (scores * weights)?.sum_all()
    };
    (weighed(&logprobs, &a).expect("Σ") + weighed(&entropies, &b).expect("Σ")).expect("scalar")
}

fn scalar(tensor: &Tensor) -> f64 {
    tensor.to_scalar().expect("a scalar")
}

#[test]
fn the_head_has_the_gradient_of_its_differences() {
    for spec in specs() {
        let decoder = decoder(&spec);
        let halves = &decoder.halves;
        let tokens = batch().tokens().len();
        let x = Tensor::from_vec(noise(6, tokens * spec.hidden, 1.5), (tokens, spec.hidden), &Device::Cpu).expect("x");
        let (logprobs, entropies) = score_weights();
        let gradient = HeadGradient { logprobs: &logprobs, entropies: Some(&entropies) };
        let dx = with_pass(&decoder, &learners(&spec), None, |pass| {
            halves.head_backward(pass, &x, (&targets(), None), gradient, &mut []).expect("backward")
        });
        assert_matches_differences("head: x", &values(&x), &values(&dx), |moved| {
            scalar(&loss_of(halves, &tensor(moved.to_vec(), &x)))
        });
    }
}

/// The whole model in one expression, beside the decoder's walk.
fn whole<'a>(halves: &Reference, pass: &'a Pass<'a, Prepared>, learned: &[Learned<'a>]) -> Tensor {
    let mut x = halves.embed(pass.batch.tokens()).expect("embedding");
    for (half, learned) in learned.iter().enumerate().filter(|(half, _)| half % 2 == 0 || halves.spec.has_mlp()) {
        let at = At { layer: half / 2, pass };
        x = match half % 2 {
            0 => halves.attend(at, learned, &x, None).expect("attention"),
            _ => halves.feed(at, learned, &x).expect("MLP"),
        };
    }
    loss_of(halves, &x)
}

fn all_learned<'a>(halves: &Reference, pass: &'a Pass<'a, Prepared>) -> Vec<Learned<'a>> {
    let of = |half: usize| {
        let projections: &[Projection] = if half.is_multiple_of(2) { &ATTENTION } else { &MLP };
        halves.learned(At { layer: half / 2, pass }, projections).expect("parameters")
    };
    (0..2 * halves.spec.layers).map(of).collect()
}

/// ∂loss/∂θ of every learner, by the decoder's explicit walk.
fn walked_gradients(decoder: &Decoder<Reference>, learners: &[Learner]) -> Vec<Vec<f32>> {
    let (batch, adapters) = (batch(), adapters(learners));
    let tape = decoder.record(&batch, &adapters, 0).expect("records");
    let mut gradients: Vec<Vec<f32>> = learners.iter().map(|l| vec![0.0; l.layout.len()]).collect();
    let mut into: Vec<&mut [f32]> = gradients.iter_mut().map(Vec::as_mut_slice).collect();
    let (logprobs, entropies) = score_weights();
    let gradient = HeadGradient { logprobs: &logprobs, entropies: Some(&entropies) };
    tape.backward(&targets(), gradient, &mut into).expect("backward");
    gradients
}

#[test]
fn every_parameter_of_every_learner_has_the_gradient_of_its_difference_through_the_whole_model() {
    // One architecture: a coordinate costs two passes, and the tape below covers the others.
    for spec in &specs()[2..3] {
        let decoder = decoder(spec);
        let learners = learners(spec);
        let gradients = walked_gradients(&decoder, &learners);
        for (which, learner) in learners.iter().enumerate() {
            assert!(gradients[which].iter().all(|&g| g != 0.0), "learner {which} has a parameter without a gradient");
            let name = format!("learner {which} of {} heads", spec.heads);
            assert_matches_differences(&name, &wide(&learner.theta), &wide(&gradients[which]), |theta| {
                with_pass(&decoder, &learners, Some((which, theta)), |pass| {
                    scalar(&whole(&decoder.halves, pass, &all_learned(&decoder.halves, pass)))
                })
            });
        }
    }
}

#[test]
fn the_explicit_walk_gives_what_one_tape_over_the_whole_model_gives() {
    for spec in specs() {
        let decoder = decoder(&spec);
        let learners = learners(&spec);
        let walked = walked_gradients(&decoder, &learners);
        with_pass(&decoder, &learners, None, |pass| {
            let halves = all_learned(&decoder.halves, pass).into_iter();
            let halves: Vec<_> = halves.map(|half| half.watched().expect("leaves")).collect();
            let tape = whole(&decoder.halves, pass, &halves).backward().expect("backward");
            let mut taped: Vec<Vec<f32>> = learners.iter().map(|l| vec![0.0; l.layout.len()]).collect();
            for (half, Learned { factors, prefixes }) in halves.iter().enumerate() {
                for Factors { adapter, parameters, a, b } in factors {
                    let (into_a, into_b) = parameters.factors_mut(&mut taped[*adapter]);
                    add(into_a, tape.get(a).expect("A is on the tape")).expect("A");
                    add(into_b, tape.get(b).expect("B is on the tape")).expect("B");
                }
                for Prefix { adapter, keys, values } in prefixes {
                    let [into_keys, into_values] = learners[*adapter].layout.keys_and_values(half / 2);
                    add(&mut taped[*adapter][into_keys], tape.get(keys).expect("on the tape")).expect("keys");
                    add(&mut taped[*adapter][into_values], tape.get(values).expect("on the tape")).expect("values");
                }
            }
            for (walked, taped) in walked.iter().zip(&taped) {
                let scale = taped.iter().fold(0f32, |most, g| most.max(g.abs()));
                let worst = walked.iter().zip(taped).map(|(w, t)| (w - t).abs()).fold(0f32, f32::max);
                assert!(worst <= 2.0 * f32::EPSILON * scale, "differ by {worst} of {scale}");
            }
        });
    }
}

#[test]
#[should_panic(expected = "every leaf of a half has a gradient")]
fn a_gradient_that_the_tape_lost_is_an_assertion_failure() {
    let spec = Spec::tiny();
    let decoder = decoder(&spec);
    let learners = learners(&spec);
    let mut gradients: Vec<Vec<f32>> = learners.iter().map(|l| vec![0.0; l.layout.len()]).collect();
    let mut into: Vec<&mut [f32]> = gradients.iter_mut().map(Vec::as_mut_slice).collect();
    with_pass(&decoder, &learners, None, |pass| {
        let x = Tensor::ones((pass.batch.tokens().len(), spec.hidden), DType::F64, &Device::Cpu).expect("x");
        // A half that forgets its factors.
        decoder.halves.back(At { layer: 0, pass }, &MLP, (&x, &x), &mut into, |_, x| x * 2.0)
    })
    .expect("backward");
}

/// Rows of one learner: a prefix with a continuation that is continued, and rows of their own.
fn own_batch() -> Batch {
    let continued = Row { position: 3, prefix: Some(0), ..Row::new(&[]).under(Some(0)) };
    Batch::new([
        Row::new(&[4, 1, 7]).under(Some(0)),
        Row { tokens: &[2, 2], ..continued.clone() },
        Row { tokens: &[5], position: 5, prefix: Some(1), ..continued },
        Row::new(&[3, 9, 8, 6, 18, 4]).under(Some(0)),
        Row::new(&[1, 10, 0]).under(Some(0)),
        Row::new(&[2, 11, 5, 5, 16, 7]).under(Some(0)),
    ])
}

#[test]
fn every_weight_of_a_learner_of_all_of_them_has_the_gradient_of_its_difference() {
    let small = &specs()[2];
    for spec in [small.clone(), Spec { tied_head: false, ..small.clone() }, Spec { intermediate: 0, ..small.clone() }] {
        let decoder = decoder(&spec);
        let layout = Layout::whole(&spec);
        assert_eq!(layout.len(), spec.parameters());
        // Another θ than the base's, so that a weight that is taken from the base shows.
        let theta = layout.read(&spec, &RandomSource { spec: spec.clone(), seed: 9 }).expect("weights");
        let batch = own_batch();
        let mut gradient = vec![0.0; layout.gradient_len()];
        let adapters = [Adapter::new(&layout, &theta)];
        let (logprobs, entropies) = score_weights();
        let coefficients = HeadGradient { logprobs: &logprobs, entropies: Some(&entropies) };
        let tape = decoder.record(&batch, &adapters, 0).expect("records");
        tape.backward(&targets(), coefficients, &mut [&mut gradient]).expect("backward");
        layout.fold(&mut gradient);
        let name = format!("tied {}, MLP of {}", spec.tied_head, spec.intermediate);
        assert_matches_differences(&name, &wide(&theta), &wide(&gradient[..layout.len()]), |theta| {
            let theta: Vec<f32> = theta.iter().map(|&x| x as f32).collect();
            let adapters = [Adapter::new(&layout, &theta)];
            let halves = decoder.halves.of_learner(&adapters[0]).expect("weights");
            let prepared = halves.prepare(&batch, &adapters, None).expect("prepares");
            let pass =
                Pass { batch: &batch, adapters: &adapters, segments: batch.segments(), whole: Some(0), prepared };
            let nothing = |_| Learned { factors: Vec::new(), prefixes: Vec::new() };
            scalar(&whole(&halves, &pass, &(0..2 * spec.layers).map(nothing).collect::<Vec<_>>()))
        });
    }
}
