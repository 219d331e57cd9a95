//! Prefill, decode, forks and pooled states.

use super::{Form, SEED, forms, learners, logits};
use socius_models::{Adapter, Batch, KvSequence, LayerSlot, RandomSource, Row, Slot};
use std::sync::Arc;

const TOKENS: [u32; 9] = [5, 17, 3, 96, 0, 41, 8, 8, 60];

/// Feeds `TOKENS[sequence.len()..end]` in one pass and returns the logits after each.
fn feed(
    form: &Form,
    adapters: &[Adapter<'_>],
    adapter: Option<usize>,
    sequence: &mut KvSequence,
    end: usize,
) -> Vec<f32> {
    let position = sequence.len();
    let batch = Batch::new([Row { position, ..Row::new(&TOKENS[position..end]).under(adapter) }]);
    let wanted: Vec<usize> = (0..end - position).collect();
    form.model.forward(&batch, adapters, &mut [sequence], &wanted).expect("a forward pass")
}

#[test]
fn decoding_in_steps_of_any_length_equals_one_pass() {
    for form in forms() {
        let learners = learners(form.model.spec());
        let adapters = learners.each_ref().map(|learner| learner.adapter());
        for adapter in [None, Some(0), Some(1), Some(2)] {
            let whole = logits(&form.model, &[Row::new(&TOKENS).under(adapter)], &adapters);
            for ends in [&[1, 2, 3, 4, 5, 6, 7, 8, 9][..], &[4, 5, 9], &[8, 9]] {
                let mut sequence = form.model.sequence();
                let mut stepped = Vec::new();
                for &end in ends {
                    stepped.extend(feed(&form, &adapters, adapter, &mut sequence, end));
                }
                assert_eq!(sequence.len(), TOKENS.len());
                form.assert_same(&format!("decode by {ends:?} under {adapter:?}"), &stepped, &whole);
            }
        }
    }
}

#[test]
fn forks_of_a_shared_prefix_decode_as_their_own_sequences_do() {
    for form in forms() {
        let learners = learners(form.model.spec());
        let adapters = learners.each_ref().map(|learner| learner.adapter());
        let mut prefix = form.model.sequence();
        feed(&form, &adapters, Some(0), &mut prefix, 4);
        let prefix = Arc::new(prefix);
        let endings: [&[u32]; 3] = [&[0, 41, 8], &[11, 2, 70], &[90, 1, 1]];
        let mut forks = endings.map(|_| form.model.fork(&prefix, 4));
        assert!(forks.iter().all(|fork| fork.len() == 4));
        let mut found: [Vec<f32>; 3] = Default::default();
        for step in 0..3 {
            let rows =
                endings.map(|ending| Row { position: 4 + step, ..Row::new(&ending[step..=step]).under(Some(0)) });
            let batch = Batch::new(rows);
            let mut sequences = forks.each_mut();
            let all = form.model.forward(&batch, &adapters, &mut sequences, &[0, 1, 2]).expect("a step");
            for (row, logits) in all.chunks_exact(form.model.spec().vocab).enumerate() {
                found[row].extend(logits);
            }
        }
        assert_eq!((prefix.len(), forks[2].len()), (4, 7), "a fork does not write to its prefix");
        for (ending, found) in endings.iter().zip(&found) {
            let tokens: Vec<u32> = TOKENS[..4].iter().chain(*ending).copied().collect();
            let whole = logits(&form.model, &[Row::new(&tokens).under(Some(0))], &adapters);
            form.assert_same("a fork", found, &whole[4 * form.model.spec().vocab..]);
        }
    }
}

#[test]
fn a_fork_of_a_fork_continues_any_beginning_of_it() {
    for form in forms() {
        let whole = logits(&form.model, &[Row::new(&TOKENS)], &[]);
        let mut first = form.model.sequence();
        feed(&form, &[], None, &mut first, 5);
        let mut second = form.model.fork(&Arc::new(first), 3);
        feed(&form, &[], None, &mut second, 8);
        let second = Arc::new(second);
        for len in [0, 1, 3, 4, 8] {
            let mut third = form.model.fork(&second, len);
            assert_eq!((third.len(), third.shared(), third.own()), (len, len, 0));
            let ancestors = [0, 1, 2][usize::from(len > 0) + usize::from(len > 3)];
            assert_eq!(third.ancestors().count(), ancestors, "what is not continued is not kept");
            let found = feed(&form, &[], None, &mut third, 9);
            form.assert_same(&format!("a fork at {len}"), &found, &whole[len * form.model.spec().vocab..]);
        }
    }
}

#[test]
fn a_row_has_the_logits_that_it_has_alone_whatever_stands_beside_it() {
    for form in forms() {
        let learners = learners(form.model.spec());
        let adapters = learners.each_ref().map(|learner| learner.adapter());
        let rows = [
            Row::new(&TOKENS[..5]).under(Some(1)),
            Row::new(&TOKENS[2..]),
            Row::new(&TOKENS[..1]).under(Some(0)),
            Row::new(&TOKENS[3..6]).under(Some(2)),
            Row::new(&TOKENS[1..5]).under(Some(1)),
        ];
        let together = logits(&form.model, &rows, &adapters);
        let alone: Vec<f32> =
            rows.iter().flat_map(|row| logits(&form.model, std::slice::from_ref(row), &adapters)).collect();
        form.assert_same("mixed rows", &together, &alone);
    }
}

#[test]
fn wanted_logits_are_those_of_the_listed_tokens_in_their_order() {
    for form in forms() {
        let vocab = form.model.spec().vocab;
        let all = logits(&form.model, &[Row::new(&TOKENS)], &[]);
        let batch = Batch::new([Row::new(&TOKENS)]);
        for wanted in [&[][..], &[8], &[6, 0, 6]] {
            let found = form.model.forward(&batch, &[], &mut [&mut form.model.sequence()], wanted).expect("a pass");
            assert_eq!(found.len(), wanted.len() * vocab);
            for (found, &position) in found.chunks_exact(vocab).zip(wanted) {
                form.assert_same("wanted logits", found, &all[position * vocab..][..vocab]);
            }
        }
    }
}

#[test]
fn what_a_layer_reads_is_the_normed_state_after_the_layers_before() {
    for form in forms() {
        let spec = form.model.spec();
        let source = RandomSource { spec: spec.clone(), seed: SEED };
        let mut seen = 0;
        let mut see = |layer: usize, attention: bool, inputs: &[Vec<f32>]| {
            assert_eq!((inputs.len(), inputs[0].len()), (1, spec.hidden));
            seen += 1;
            if attention {
                let batch = Batch::new([Row::new(&TOKENS[..1])]);
                let state = form.model.pooled(&batch, layer).expect("pooled").remove(0);
                let square = state.iter().map(|x| x * x).sum::<f32>() / spec.hidden as f32;
                let scale = (square + spec.norm_eps as f32).sqrt();
                let weight = source.values(Slot::Layer(layer, LayerSlot::AttentionNorm));
                let by_hand: Vec<f32> = state.iter().zip(&weight).map(|(x, w)| w * x / scale).collect();
                form.assert_close("what a layer reads", &inputs[0], &by_hand);
            }
        };
        form.model.observe(&Batch::new([Row::new(&TOKENS[..1])]), &mut see).expect("a pass");
        assert_eq!(seen, 2 * spec.layers);
    }
}

#[test]
fn pooled_states_are_means_over_a_rows_tokens_under_no_adapter() {
    for form in forms() {
        let spec = form.model.spec();
        let pooled =
            |rows: &[Row<'_>], layer| form.model.pooled(&Batch::new(rows.iter().cloned()), layer).expect("pooled");
        let rows = [Row::new(&TOKENS[..5]).under(Some(3)), Row::new(&TOKENS[4..]), Row::new(&TOKENS[..1])];
        for layer in 0..=spec.layers {
            let together = pooled(&rows, layer);
            for (row, together) in rows.iter().zip(&together) {
                form.assert_same("pooled", together, &pooled(&[Row::new(row.tokens)], layer)[0]);
            }
        }
        let source = RandomSource { spec: spec.clone(), seed: SEED };
        let embedding = source.values(Slot::Embedding);
        let of = |token: u32| &embedding[token as usize * spec.hidden..][..spec.hidden];
        let mean: Vec<f32> = (0..spec.hidden).map(|i| TOKENS.iter().map(|&t| of(t)[i]).sum::<f32>() / 9.0).collect();
        form.assert_close("the mean embedding", &pooled(&[Row::new(&TOKENS)], 0)[0], &mean);
        // One token's state after the last layer is what its logits are made of.
        let state = &pooled(&rows, spec.layers)[2];
        let scale = (state.iter().map(|x| x * x).sum::<f32>() / spec.hidden as f32 + spec.norm_eps as f32).sqrt();
        let norm = source.values(Slot::FinalNorm);
        let normed: Vec<f32> = state.iter().zip(&norm).map(|(x, w)| w * x / scale).collect();
        let head = if spec.tied_head { embedding } else { source.values(Slot::Head) };
        let by_hand: Vec<f32> =
            head.chunks_exact(spec.hidden).map(|row| row.iter().zip(&normed).map(|(w, x)| w * x).sum()).collect();
        form.assert_close("logits by hand", &logits(&form.model, &[Row::new(&TOKENS[..1])], &[]), &by_hand);
    }
}
