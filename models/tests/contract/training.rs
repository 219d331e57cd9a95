//! Scores and gradients.

use super::{Form, Learner, SEED, forms, learners, logits, specs, token};
use candle_core::Device;
use socius_models::{
    Adapter, Batch, Dropout, Dtype, HeadGradient, Model, RandomSource, Row, Spec, Target, TargetTokens,
};

const PROMPT: [u32; 4] = [5, 17, 3, 96];

/// Every kind of training row: a prompt shared by two answers, rows of other adapters between, dropout.
fn rows() -> Vec<Row<'static>> {
    let answer = |tokens| Row { position: PROMPT.len(), prefix: Some(0), ..Row::new(tokens).under(Some(0)) };
    vec![
        Row::new(&PROMPT).under(Some(0)),
        answer(&[7, 1]),
        answer(&[90, 2, 11]),
        Row { dropout: Some(Dropout { p: 0.2, key: 4 }), ..Row::new(&[14, 15, 9]).under(Some(1)) },
        Row::new(&[30, 31]),
        Row::new(&[50, 20, 21, 22]).under(Some(2)),
        Row { dropout: Some(Dropout { p: 0.5, key: 5 }), ..Row::new(&[9, 8, 1]).under(Some(0)) },
        Row::new(&[70, 71]).under(Some(1)),
    ]
}

/// A target after every token and its gradient: functions of the token alone, so that a row keeps them in another batch.
fn targets(batch: &Batch) -> (Vec<Target>, Vec<f32>, Vec<f32>) {
    let after = |position: usize| {
        let next = batch.tokens()[position] * 7 % 97;
        match next % 3 {
            0 => Target { position, tokens: TargetTokens::Soft(vec![(next, 0.6), ((next + 1) % 97, 0.3)]) },
            _ => token(position, next),
        }
    };
    let targets: Vec<_> = (0..batch.tokens().len()).map(after).collect();
    let weight = |scale: u32| move |&token: &u32| ((token * scale % 13) as f32 - 6.0) / 10.0;
    let (a, b) = (batch.tokens().iter().map(weight(5)).collect(), batch.tokens().iter().map(weight(3)).collect());
    (targets, a, b)
}

fn zeros(learners: &[Learner]) -> Vec<Vec<f32>> {
    learners.iter().map(|learner| vec![0.0; learner.layout.len()]).collect()
}

/// Adds the gradients of a batch into `gradients`.
fn accumulate(form: &Form, rows: &[Row<'_>], learners: &[Learner], gradients: &mut [Vec<f32>]) {
    let batch = Batch::new(rows.iter().cloned());
    let adapters: Vec<_> = learners.iter().map(Learner::adapter).collect();
    let (targets, logprobs, entropies) = targets(&batch);
    let gradient = HeadGradient { logprobs: &logprobs, entropies: Some(&entropies) };
    let mut into: Vec<&mut [f32]> = gradients.iter_mut().map(Vec::as_mut_slice).collect();
    let recording = form.model.record(&batch, &adapters).expect("records");
    recording.backward(&targets, gradient, &mut into).expect("backward");
}

#[test]
fn scores_are_logprobs_and_entropies_of_the_softmax_of_the_logits() {
    for form in forms() {
        let learners = learners(form.model.spec());
        let adapters: Vec<_> = learners.iter().map(Learner::adapter).collect();
        let tokens = [5, 17, 3, 96, 0];
        let row = Row::new(&tokens).under(Some(0));
        let soft = vec![(3, 0.5), (96, 0.125), (3, 0.25)];
        let targets =
            [token(1, 3), token(4, 0), token(1, 96), Target { position: 1, tokens: TargetTokens::Soft(soft) }];
        let scores = form.model.score(&Batch::new([row.clone()]), &adapters, &targets).expect("scores");
        let vocab = form.model.spec().vocab;
        let logits = logits(&form.model, &[row], &adapters);
        let log_p = |position: usize| {
            let logits = logits[position * vocab..][..vocab].iter().map(|&z| f64::from(z));
            let total = logits.clone().map(f64::exp).sum::<f64>().ln();
            logits.map(|z| z - total).collect::<Vec<_>>()
        };
        let entropy = |position: usize| -log_p(position).iter().map(|l| l.exp() * l).sum::<f64>();
        let (one, four) = (log_p(1), log_p(4));
        let logprobs = [one[3], four[0], one[96], 0.75 * one[3] + 0.125 * one[96]].map(|x| x as f32);
        let entropies = [entropy(1), entropy(4), entropy(1), entropy(1)].map(|x| x as f32);
        form.assert_close("logprobs", &scores.logprobs, &logprobs);
        form.assert_close("entropies", &scores.entropies, &entropies);
        let batch = Batch::new([Row::new(&tokens).under(Some(0))]);
        let recorded = form.model.record(&batch, &adapters).expect("records").scores(&targets).expect("scores");
        form.assert_same("recorded logprobs", &recorded.logprobs, &scores.logprobs);
        form.assert_same("recorded entropies", &recorded.entropies, &scores.entropies);
    }
}

#[test]
fn an_answer_after_a_shared_prompt_scores_as_it_does_in_one_row() {
    for form in forms() {
        let learners = learners(form.model.spec());
        let adapters: Vec<_> = learners.iter().map(Learner::adapter).collect();
        let shared = Batch::new(rows().into_iter().take(3));
        let answer = form.model.score(&shared, &adapters, &[token(6, 2), token(7, 11), token(8, 0)]).expect("scores");
        let whole = [5, 17, 3, 96, 90, 2, 11];
        let targets = [token(4, 2), token(5, 11), token(6, 0)];
        let alone = form.model.score(&Batch::new([Row::new(&whole).under(Some(0))]), &adapters, &targets);
        form.assert_same("an answer", &answer.logprobs, &alone.expect("scores").logprobs);
    }
}

#[test]
fn an_adapters_gradient_does_not_depend_on_the_rows_of_others() {
    for form in forms() {
        let learners = learners(form.model.spec());
        let mut together = zeros(&learners);
        accumulate(&form, &rows(), &learners, &mut together);
        for (which, together) in together.iter().enumerate() {
            let own: Vec<_> = rows().into_iter().filter(|row| row.adapter == Some(which)).collect();
            let mut alone = zeros(&learners);
            accumulate(&form, &own, &learners, &mut alone);
            form.assert_same(&format!("gradient of learner {which}"), together, &alone[which]);
            let others = alone.iter().enumerate().filter(|&(other, _)| other != which);
            assert!(
                others.flat_map(|(_, g)| g).all(|&g| g == 0.0),
                "{}: a learner without rows has no gradient",
                form.name
            );
        }
    }
}

#[test]
fn an_adapters_gradient_does_not_depend_on_how_its_rows_are_cut_into_batches() {
    for form in forms() {
        let learners = learners(form.model.spec());
        let mut whole = zeros(&learners);
        accumulate(&form, &rows(), &learners, &mut whole);
        for cuts in [&[3, 8][..], &[3, 4, 6, 7, 8]] {
            let mut cut = zeros(&learners);
            let mut start = 0;
            for &end in cuts {
                accumulate(&form, &rows()[start..end], &learners, &mut cut);
                start = end;
            }
            for (which, (cut, whole)) in cut.iter().zip(&whole).enumerate() {
                form.assert_same(&format!("gradient of learner {which} cut at {cuts:?}"), cut, whole);
            }
        }
    }
}

#[test]
fn every_parameter_of_every_learner_gets_a_gradient() {
    for form in forms() {
        let learners = learners(form.model.spec());
        let mut gradients = zeros(&learners);
        accumulate(&form, &rows(), &learners, &mut gradients);
        for (which, (learner, gradient)) in learners.iter().zip(&gradients).enumerate() {
            for site in learner.layout.sites() {
                let without = |factor: &[f32]| factor.iter().filter(|&&g| g == 0.0).count();
                let missing = without(site.a_of(gradient)) + without(site.b_of(gradient));
                assert_eq!(missing, 0, "{}: learner {which} at {:?}", form.name, site.site);
            }
        }
    }
}

#[test]
fn a_step_against_the_gradient_lowers_the_loss_by_its_squared_norm() {
    // In bf16 the loss is a staircase, whose steps are as high as this one.
    for form in forms().into_iter().filter(|form| form.dtype == Dtype::F32) {
        let spec = form.model.spec();
        let mut learners = learners(spec);
        let batch = Batch::new(rows());
        let (targets, logprobs, entropies) = targets(&batch);
        let loss = |learners: &[Learner]| {
            let adapters: Vec<Adapter<'_>> = learners.iter().map(Learner::adapter).collect();
            let scores = form.model.score(&batch, &adapters, &targets).expect("scores");
            let weighed = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            weighed(&scores.logprobs, &logprobs) + weighed(&scores.entropies, &entropies)
        };
        let mut gradients = zeros(&learners);
        accumulate(&form, &rows(), &learners, &mut gradients);
        let squares: f64 = gradients.iter().flatten().map(|&g| f64::from(g).powi(2)).sum();
        // A step that moves the loss by 0.01, far above f32's noise and well inside the linear range.
        let rate = 0.01 / squares;
        let before = loss(&learners);
        for (learner, gradient) in learners.iter_mut().zip(&gradients) {
            learner.theta.iter_mut().zip(gradient).for_each(|(t, &g)| *t -= (rate * f64::from(g)) as f32);
        }
        let fall = before - loss(&learners);
        assert!((fall / 0.01 - 1.0).abs() < 0.05, "{}: the loss fell by {fall}", form.name);
    }
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    // Wide enough that every kernel has work for several threads.
    let spec = Spec { hidden: 162, intermediate: 420, vocab: 2_003, ..Spec::tiny() };
    let long: Vec<Vec<u32>> =
        (0..4u32).map(|row| (0..30 + 17 * row).map(|i| (i * i * 7 + row * 31) % 2_003).collect()).collect();
    let rows: Vec<_> = [Some(0), Some(1), None, Some(0)]
        .iter()
        .zip(&long)
        .map(|(&adapter, tokens)| Row::new(tokens).under(adapter))
        .collect();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let source = RandomSource { spec: spec.clone(), seed: SEED };
        let model = Model::load(spec.clone(), &source, &Device::Cpu, dtype).expect("random weights load");
        let form = Form { name: format!("{dtype:?}"), dtype, model, company: 0.0 };
        let learners = learners(&spec);
        let adapters: Vec<_> = learners.iter().map(Learner::adapter).collect();
        let run = || {
            let mut gradients = zeros(&learners);
            accumulate(&form, &rows, &learners, &mut gradients);
            (logits(&form.model, &rows, &adapters), gradients)
        };
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(run)
        };
        let one = on(1);
        for threads in [2, 3, 5] {
            assert!(on(threads) == one, "{threads} threads give other bytes in {dtype:?}");
        }
    }
}

#[test]
fn dropout_is_a_function_of_the_rows_key_alone() {
    for form in forms() {
        let learners = learners(form.model.spec());
        let adapters: Vec<_> = learners.iter().map(Learner::adapter).collect();
        let tokens = [5, 17, 3];
        let row = |key| Row { dropout: Some(Dropout { p: 0.5, key }), ..Row::new(&tokens).under(Some(0)) };
        let score = |rows: &[Row<'_>], position| {
            form.model
                .score(&Batch::new(rows.iter().cloned()), &adapters, &[token(position, 8)])
                .expect("a score")
                .logprobs
        };
        let alone = score(&[row(1)], 2);
        form.assert_same("a dropped row behind another", &score(&[row(2), row(1)], 5), &alone);
        assert_ne!(score(&[row(2)], 2), alone, "another key drops other values");
        assert_ne!(score(&[Row::new(&tokens).under(Some(0))], 2), alone, "dropout drops");
    }
}

#[test]
fn bf16_rounds_weights_and_inputs_and_nothing_that_matters() {
    let loads = [Model::load_reference, Model::load];
    for (spec, load) in specs().into_iter().flat_map(|spec| loads.map(|load| (spec.clone(), load))) {
        let learners = learners(&spec);
        let run = |dtype| {
            let source = RandomSource { spec: spec.clone(), seed: SEED };
            let model = load(spec.clone(), &source, &Device::Cpu, dtype).expect("random weights load");
            let form = Form { name: format!("{dtype:?}, {} heads", spec.heads), dtype, model, company: 0.0 };
            let mut gradients = zeros(&learners);
            accumulate(&form, &rows(), &learners, &mut gradients);
            let adapters: Vec<_> = learners.iter().map(Learner::adapter).collect();
            (logits(&form.model, &[Row::new(&PROMPT).under(Some(0))], &adapters), gradients.concat())
        };
        let (exact, rounded) = (run(Dtype::F32), run(Dtype::Bf16));
        for (what, exact, rounded) in [("logits", exact.0, rounded.0), ("gradients", exact.1, rounded.1)] {
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
            let gap = norm(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
            // bf16 keeps 8 bits: one rounding moves a value by up to 2⁻⁹ of it, a dozen in a row by a few times that.
            assert!(gap > 1e-4 && gap < 3e-2, "{what} of {} heads move by {gap}", spec.heads);
        }
    }
}
