//! The engine over a tiny random model; reads what the model says through `Model::score`, never through files.

use super::*;
use crate::{common::Seed, lora::ActiveAdapter};
use candle_core::Device;
use socius_models::{Dtype, Layout, Projection, RandomSource, Spec, Target, TargetTokens};

fn model() -> Arc<Model> {
    let spec = Spec::tiny();
    let source = RandomSource { spec: spec.clone(), seed: 7 };
    Arc::new(Model::load(spec, &source, &Device::Cpu, Dtype::F32).unwrap())
}

fn adapter(model: &Model, rank: usize, seed: u64) -> Arc<ActiveAdapter> {
    let layout = Layout::uniform(model.spec(), &Projection::ALL, rank, 2.0);
    let mut rng = Seed::new(seed).rng();
    let theta = (0..layout.len()).map(|_| 0.2 * rng.normal() as f32).collect();
    Arc::new(ActiveAdapter::new(format!("generation {seed}"), layout, theta))
}

/// A trained prefix.
fn begun(model: &Model, positions: usize, seed: u64) -> Arc<ActiveAdapter> {
    let layout = Layout::prefix(model.spec(), positions);
    let mut rng = Seed::new(seed).rng();
    let theta = (0..layout.len()).map(|_| rng.normal() as f32).collect();
    Arc::new(ActiveAdapter::new(format!("generation {seed}"), layout, theta))
}

fn prompt(length: usize, seed: u64) -> Vec<u32> {
    let mut rng = Seed::new(seed).rng();
    (0..length).map(|_| rng.below(97) as u32).collect()
}

fn sampled(seed: u64, max_tokens: usize) -> Sampling {
    Sampling { seed: Seed::new(seed), max_tokens, ..Sampling::default() }
}

fn run(engine: &mut Engine, requests: Vec<Request>) -> Vec<Vec<Completion>> {
    engine.run_all(requests, &mut |_| ControlFlow::Continue(())).unwrap().expect("nobody breaks off")
}

/// Thirty-two requests of different lengths, adapters and settings.
fn crowd(model: &Model) -> Vec<Request> {
    let adapters = [None, Some(adapter(model, 2, 1)), Some(adapter(model, 5, 2)), Some(begun(model, 21, 3))];
    let request = |i: usize| {
        let sampling = Sampling { top_p: [1.0, 0.9][i % 2], ..sampled(i as u64, 4 + i % 5) };
        Request::new(prompt(3 + 5 * i % 41, i as u64), sampling).under(adapters[i % 4].clone())
    };
    (0..32).map(request).collect()
}

#[test]
fn a_request_gives_the_same_tokens_and_logprobs_alone_and_among_31_others_on_any_number_of_threads() {
    let model = model();
    let together = run(&mut Engine::new(model.clone(), Limits::default()), crowd(&model));
    // Few rows and tokens a step: prompts are cut into chunks, and requests wait for each other.
    let narrow = Limits { rows_max: 5, tokens_per_step: 11, cache_tokens_max: 200, prefix_tokens_max: 0 };
    assert_eq!(run(&mut Engine::new(model.clone(), narrow), crowd(&model)), together);
    for threads in 1..=4 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let run = |requests| pool.install(|| run(&mut Engine::new(model.clone(), Limits::default()), requests));
        assert_eq!(run(crowd(&model)), together, "{threads} threads");
        for (i, request) in crowd(&model).into_iter().enumerate().step_by(5) {
            assert_eq!(run(vec![request])[0], together[i], "request {i} on {threads} threads");
        }
    }
}

#[test]
fn samples_of_one_request_equal_separate_requests() {
    let model = model();
    let mut engine = Engine::new(model.clone(), Limits::default());
    let request = Request::new(prompt(20, 1), sampled(3, 6)).under(Some(adapter(&model, 3, 1)));
    let group = run(&mut engine, vec![request.clone().times(4)]).remove(0);
    for sample in 0..4 {
        let alone = run(&mut engine, vec![Request { samples: sample..sample + 1, ..request.clone() }]);
        assert_eq!(alone[0], group[sample as usize..=sample as usize]);
    }
    assert!(group.iter().any(|completion| completion.tokens != group[0].tokens), "samples differ");
}

#[test]
fn samples_share_one_prefill() {
    let model = model();
    let limits = Limits { rows_max: 8, tokens_per_step: 20, cache_tokens_max: 1000, prefix_tokens_max: 0 };
    let mut engine = Engine::new(model, limits);
    engine.submit(Request::new(prompt(20, 1), sampled(0, 3)).times(8)).unwrap();
    let drawn = engine.step().unwrap();
    assert_eq!(drawn.len(), 8, "twenty tokens a step were enough for eight first tokens");
    assert_eq!(engine.reserved_tokens(), 20 + 8 * 3);
}

#[test]
fn a_recorded_logprob_is_what_score_gives_at_every_sampling_setting() {
    let model = model();
    let settings = [
        sampled(1, 8),
        Sampling { temperature: 0.5, top_k: Some(5), ..sampled(2, 8) },
        Sampling { top_p: 0.8, min_p: 0.05, repetition_penalty: 1.3, ..sampled(3, 8) },
        Sampling::greedy(8, vec![]),
    ];
    let adapters = [adapter(&model, 4, 9), begun(&model, 70, 9)];
    for (sampling, adapter) in settings.iter().flat_map(|s| adapters.iter().map(move |adapter| (s.clone(), adapter))) {
        let request = Request::new(prompt(9, 4), sampling).under(Some(adapter.clone()));
        let prompt = request.prompt.clone();
        let completion = run(&mut Engine::new(model.clone(), Limits::default()), vec![request]).remove(0).remove(0);
        let tokens = [prompt.as_slice(), &completion.tokens].concat();
        let target = |(i, &token)| Target { position: prompt.len() - 1 + i, tokens: TargetTokens::Token(token) };
        let targets: Vec<_> = completion.tokens.iter().enumerate().map(target).collect();
        let position = adapter.layout.positions();
        let batch = Batch::new([Row { position, ..Row::new(&tokens).under(Some(0)) }]);
        let scores = model.score(&batch, &[adapter.adapter()], &targets).unwrap();
        for (recorded, recomputed) in completion.logprobs.iter().zip(&scores.logprobs) {
            assert!((recorded - recomputed).abs() < 1e-4, "{recorded} {recomputed}");
        }
        assert_eq!(completion.generation.as_deref(), Some("generation 9"));
    }
}

#[test]
fn a_stop_id_ends_a_sample_and_is_its_last_token() {
    let model = model();
    let mut engine = Engine::new(model, Limits::default());
    let free = run(&mut engine, vec![Request::new(prompt(5, 1), sampled(1, 12))]).remove(0).remove(0);
    assert_eq!((free.tokens.len(), free.finish_reason), (12, FinishReason::Length));
    let stop = free.tokens[5];
    let first = free.tokens.iter().position(|&token| token == stop).unwrap();
    let sampling = Sampling { stop_ids: vec![stop], ..sampled(1, 12) };
    let stopped = run(&mut engine, vec![Request::new(prompt(5, 1), sampling)]).remove(0).remove(0);
    assert_eq!(stopped.tokens, free.tokens[..=first]);
    assert_eq!(stopped.logprobs, free.logprobs[..=first]);
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
}

#[test]
fn the_context_ends_a_sample() {
    let mut engine = Engine::new(model(), Limits::default());
    let prefix = begun(engine.model(), 30, 1);
    for (length, adapter) in [(250, None), (220, Some(prefix))] {
        let request = Request::new(prompt(length, 1), sampled(1, 100)).under(adapter);
        let completion = run(&mut engine, vec![request]).remove(0).remove(0);
        assert_eq!((completion.tokens.len(), completion.finish_reason), (6, FinishReason::Length));
    }
}

#[test]
fn requests_hold_a_trained_prefix_in_common() {
    let model = model();
    let mut engine = Engine::new(model.clone(), Limits { cache_tokens_max: 150, ..Limits::default() });
    let adapter = begun(&model, 100, 1);
    let request = |seed| Request::new(prompt(10, seed), sampled(seed, 5)).under(Some(adapter.clone()));
    for seed in 0..3 {
        engine.submit(request(seed)).unwrap();
    }
    engine.step().unwrap();
    assert_eq!((engine.rows(), engine.reserved_tokens()), (3, 100 + 3 * 15));
    let message = engine.submit(Request::new(prompt(46, 0), sampled(0, 5)).under(Some(adapter))).unwrap_err();
    assert!(message.to_string().contains("151 cached tokens"), "{message}");
}

#[test]
fn cancelling_frees_at_once_and_leaves_the_others_as_they_were() {
    let model = model();
    let request = |seed| Request::new(prompt(10, seed), sampled(seed, 6)).times(2);
    let mut engine = Engine::new(model.clone(), Limits::default());
    let expected = run(&mut engine, vec![request(1)]).remove(0).remove(1);

    let kept = engine.submit(request(1)).unwrap();
    let running = engine.submit(request(2)).unwrap();
    let mut events = engine.step().unwrap();
    let waiting = engine.submit(request(3)).unwrap();
    assert_eq!(engine.reserved_tokens(), 2 * (10 + 2 * 6));
    assert!(engine.cancel(waiting) && engine.cancel(running) && !engine.cancel(running));
    assert!(engine.cancel_sample(kept, 0) && !engine.cancel_sample(kept, 0));
    assert_eq!((engine.in_flight(), engine.reserved_tokens()), (1, 10 + 6));
    while engine.in_flight() > 0 {
        events.extend(engine.step().unwrap());
    }
    let token = |event: &Event| match event.kind {
        EventKind::Token { token, .. } if (event.request, event.sample) == (kept, 1) => Some(token),
        _ => None,
    };
    assert_eq!(events.iter().filter_map(token).collect::<Vec<_>>(), expected.tokens);
    assert_eq!(events.last().unwrap().kind, EventKind::Finished(FinishReason::Length));
    assert!(engine.step().unwrap().is_empty());
}

#[test]
fn a_diverged_adapter_ends_its_own_samples_only() {
    let model = model();
    let mut broken = (*adapter(&model, 2, 1)).clone();
    broken.theta.fill(f32::NAN);
    let healthy = Request::new(prompt(8, 1), sampled(1, 4));
    let sick = healthy.clone().under(Some(Arc::new(broken)));
    let mut engine = Engine::new(model, Limits::default());
    let alone = run(&mut engine, vec![healthy.clone()]);
    let both = run(&mut engine, vec![sick, healthy]);
    assert_eq!((both[0][0].tokens.len(), both[0][0].finish_reason), (0, FinishReason::Diverged));
    assert_eq!(both[1], alone[0]);
}

#[test]
fn a_request_that_cannot_run_is_refused_with_what_would_be_right() {
    let limits = Limits { rows_max: 4, tokens_per_step: 16, cache_tokens_max: 300, prefix_tokens_max: 0 };
    let mut engine = Engine::new(model(), limits);
    let good = || Request::new(prompt(4, 1), sampled(1, 4));
    let rows = [
        (Request { prompt: prompt(300, 1), ..good() }, "300 tokens, and the context holds 256"),
        (good().under(Some(begun(&model(), 252, 1))), "256 tokens, and the context holds 256"),
        (Request { prompt: vec![], ..good() }, "the prompt is empty"),
        (Request { prompt: vec![5, 97], ..good() }, "token id 97 does not exist: ids end at 96"),
        (good().times(0), "no sample"),
        (good().times(5), "5 samples, and the engine holds 4"),
        (Request::new(prompt(4, 1), sampled(1, 200)).times(2), "404 cached tokens, and the engine holds 300"),
        (Request::new(prompt(4, 1), Sampling { top_p: 2.0, ..sampled(1, 1) }), "top_p is out of range: above 0"),
    ];
    for (request, expected) in rows {
        let message = engine.submit(request.clone()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(engine.run_all(vec![good(), request], &mut |_| ControlFlow::Continue(())).is_err());
        assert_eq!(engine.in_flight(), 0);
    }
}

#[test]
fn pooled_states_do_not_depend_on_how_prompts_are_packed() {
    let model = model();
    let prompts: Vec<_> = (0..7).map(|i| prompt(3 + 2 * i, i as u64)).collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let preamble = &prompts[6][..4];
    let narrow = Limits { tokens_per_step: 12, rows_max: 1, ..Limits::default() };
    let wide = Engine::new(model.clone(), Limits::default()).pooled(preamble, &prompts, 2).unwrap();
    assert_eq!(Engine::new(model.clone(), narrow).pooled(preamble, &prompts, 2).unwrap(), wide);
    assert_eq!((wide.len(), wide[0].len()), (7, model.spec().hidden));
    assert!(Engine::new(model, narrow).pooled(preamble, &prompts, 4).is_err());
}

#[test]
fn what_prompts_begin_with_in_common_is_seen_but_not_counted() {
    let model = model();
    let engine = Engine::new(model.clone(), Limits::default());
    let preamble = prompt(6, 1);
    let pooled = |preamble: &[u32], prompt: &[u32]| engine.pooled(preamble, &[prompt], 2).unwrap().remove(0);
    let (whole, other) = ([&preamble[..], &[7, 8, 9]].concat(), [&preamble[..4], &[90, 91, 92]].concat());
    for (prompt, common) in [(&whole, 6), (&other, 4), (&preamble, 5)] {
        let (all, beginning) = (pooled(&[], prompt), pooled(&[], &prompt[..common]));
        let (n, own) = (prompt.len() as f32, pooled(&preamble, prompt));
        for i in 0..all.len() {
            let expected = (n * all[i] - common as f32 * beginning[i]) / (n - common as f32);
            assert!((own[i] - expected).abs() < 1e-3, "{} is not {expected}", own[i]);
        }
    }
    assert_eq!(engine.pooled(&preamble, &[&whole, &other], 2).unwrap(), [&whole, &other].map(|p| pooled(&preamble, p)));
}

#[test]
fn a_prompt_that_begins_like_another_reads_only_the_rest_and_gives_the_same_tokens() {
    let model = model();
    let keeping = Limits { prefix_tokens_max: 4_000, ..Limits::default() };
    let beginning = prompt(140, 1);
    let adapters = [None, Some(adapter(&model, 2, 1)), Some(begun(&model, 20, 2))];
    let mut engine = Engine::new(model.clone(), keeping);
    let mut reused = Vec::new();
    for (i, adapter) in adapters.iter().chain(&adapters).enumerate() {
        for ending in [&[5, 6, 7][..], &[8], &[]] {
            let prompt = [&beginning, ending].concat();
            let request = || Request::new(prompt.clone(), sampled(i as u64, 6)).times(2).under(adapter.clone());
            let before = engine.reused_tokens();
            let found = run(&mut engine, vec![request()]);
            assert_eq!(
                found,
                run(&mut Engine::new(model.clone(), Limits::default()), vec![request()]),
                "{i} {ending:?}"
            );
            reused.push(engine.reused_tokens() - before);
        }
    }
    // Each generation reads the beginning once, under itself alone; a prompt's last token is read by every one.
    let again = [142, 140, 139];
    assert_eq!(reused, [[0, 140, 139], [0, 140, 139], [0, 140, 139], again, again, again].concat());
    assert_eq!(engine.reserved_tokens(), 0);
}

#[test]
fn a_conversation_goes_on_from_what_was_said() {
    let model = model();
    let mut engine = Engine::new(model.clone(), Limits { prefix_tokens_max: 4_000, ..Limits::default() });
    let mut said = prompt(60, 3);
    for turn in 0..3 {
        let request = Request::new(said.clone(), sampled(turn, 40));
        let found = run(&mut engine, vec![request.clone()]);
        assert_eq!(found, run(&mut Engine::new(model.clone(), Limits::default()), vec![request]));
        said.extend(&found[0][0].tokens);
        said.extend([1, 2, 3]);
    }
    // A turn's last token has been drawn and not yet read.
    assert_eq!(engine.reused_tokens(), (60 + 39) + (60 + 43 + 39));
}

#[test]
fn prompts_that_enter_together_share_what_they_begin_with() {
    let model = model();
    let adapters = [None, Some(adapter(&model, 2, 1)), Some(begun(&model, 20, 2))];
    let beginning = prompt(30, 1);
    let of = |i: u64| [&beginning[..], &prompt(5 + i as usize, 100 + i)].concat();
    let request = |i: u64| Request::new(of(i), sampled(i, 6)).under(adapters[i as usize % 3].clone());
    let requests: Vec<Request> = (0..12).map(request).collect();
    let mut sharing = Engine::new(model.clone(), Limits { prefix_tokens_max: 200, ..Limits::default() });
    let found = run(&mut sharing, requests.clone());
    assert_eq!(found, run(&mut Engine::new(model, Limits::default()), requests));
    // Each generation reads it once.
    assert_eq!(sharing.reused_tokens(), (12 - 3) * 30);
}

#[test]
fn what_some_prompts_go_on_with_is_read_once_too() {
    let model = model();
    let branch = |i: u64| [prompt(20, 1), vec![i as u32], prompt(10, 50 + i)].concat();
    // Six on each of two branches, of which three go on alike for another 17 tokens; two prompts are the same; one has nothing in common.
    let deep = [branch(0), prompt(17, 70)].concat();
    let mut prompts: Vec<Vec<u32>> =
        (0..6).flat_map(|i| [branch(1), if i < 3 { deep.clone() } else { branch(0) }]).collect();
    prompts.iter_mut().enumerate().for_each(|(i, tokens)| tokens.extend(prompt(4 + i, 100 + i as u64)));
    prompts.extend([prompts[0].clone(), prompt(40, 300)]);
    let request = |(i, prompt): (usize, &Vec<u32>)| Request::new(prompt.clone(), sampled(i as u64, 6));
    let requests: Vec<Request> = prompts.iter().enumerate().map(request).collect();
    let mut sharing = Engine::new(model.clone(), Limits { prefix_tokens_max: 1_000, ..Limits::default() });
    let found = run(&mut sharing, requests.clone());
    assert_eq!(found, run(&mut Engine::new(model, Limits::default()), requests));
    let distinct = 20 + 11 + 11 + 17;
    let whole = 7 * 31 + 6 * 31 + 3 * 17;
    assert_eq!(sharing.reused_tokens(), whole - distinct);
}

#[test]
fn what_is_kept_makes_room_for_what_runs() {
    let model = model();
    let limits = Limits { cache_tokens_max: 400, prefix_tokens_max: 300, ..Limits::default() };
    let mut engine = Engine::new(model, limits);
    for seed in 0..20 {
        let found = run(&mut engine, vec![Request::new(prompt(130, seed), sampled(seed, 5)).times(3)]);
        assert!(found[0].iter().all(|completion| completion.tokens.len() == 5));
        assert!(engine.held_tokens(None) <= 300, "{}", engine.held_tokens(None));
    }
    assert!(engine.held_tokens(None) > 0);
}

/// Only even tokens; over after `left` of them.
#[derive(Clone, Debug)]
struct Even {
    left: usize,
}

impl Constraint for Even {
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }

    fn mask(&mut self, logits: &mut [f32]) -> bool {
        let (last, over) = (logits.len() - 1, self.left == 0);
        let ruled_out = |token: usize| if over { token != last } else { token % 2 == 1 };
        logits.iter_mut().enumerate().filter(|(token, _)| ruled_out(*token)).for_each(|(_, l)| *l = f32::NEG_INFINITY);
        true
    }

    fn accept(&mut self, _: u32) {
        self.left = self.left.saturating_sub(1);
    }
}

#[test]
fn each_sample_follows_the_constraint_from_its_start() {
    let model = model();
    let mut engine = Engine::new(model, Limits::default());
    let sampling = Sampling { stop_ids: vec![96], ..sampled(1, 20) };
    let request =
        Request { constraint: Some(Arc::new(Even { left: 5 })), ..Request::new(prompt(5, 1), sampling).times(3) };
    for completion in &run(&mut engine, vec![request])[0] {
        let (end, drawn) = completion.tokens.split_last().unwrap();
        assert!(drawn.iter().all(|token| token % 2 == 0) && drawn.len() <= 5, "{drawn:?}");
        assert_eq!((*end, completion.finish_reason), (96, FinishReason::Stop));
    }
}
