//! Linears under every variant against an f64 product, and what a row's bits must not depend on.

use super::*;
use crate::simd::variants;
use crate::testing::{Values, assert_same_bits, assert_within, on_threads};
use proptest::prelude::*;
use rayon::prelude::*;

const KEPT: [WeightType; 2] = [WeightType::Bf16, WeightType::F32];

fn bound(inputs: usize, size: f64) -> f64 {
    2.0 * (inputs + 2) as f64 * 2f64.powi(-24) * size + inputs as f64 * 2f64.powi(-126)
}

fn check(rows: usize, outputs: usize, inputs: usize, seed: u64) {
    let mut values = Values::new(seed);
    let (weight, x) = (values.take(outputs * inputs), values.take(rows * inputs));
    let (dy, old) = (values.take(rows * outputs), values.take(rows * outputs.max(inputs)));
    for kept in KEPT {
        let packed = PackedLinear::new(&weight, (outputs, inputs), kept);
        for &variant in variants() {
            for write in [Write::Set, Write::Add] {
                let mut y = old[..rows * outputs].to_vec();
                forward_as(variant, &x, rows, &mut [Output { weight: &packed, y: &mut y }], write);
                let mut dx = old[..rows * inputs].to_vec();
                backward_input_as(variant, &[(&packed, &dy)], rows, &mut dx, write);
                let start = |i: usize| if write == Write::Add { f64::from(old[i]) } else { 0.0 };
                for row in 0..rows {
                    for o in 0..outputs {
                        let (sum, size) =
                            reference(&x[row * inputs..][..inputs], &weight[o * inputs..][..inputs], kept);
                        let i = row * outputs + o;
                        let bound = bound(inputs, size + start(i).abs());
                        assert_within(y[i], start(i) + sum, bound, format_args!("{variant:?} {kept:?} y[{row}, {o}]"));
                    }
                    for c in 0..inputs {
                        let column: Vec<f32> = (0..outputs).map(|o| weight[o * inputs + c]).collect();
                        let (sum, size) = reference(&dy[row * outputs..][..outputs], &column, kept);
                        let i = row * inputs + c;
                        let bound = bound(outputs, size + start(i).abs());
                        assert_within(
                            dx[i],
                            start(i) + sum,
                            bound,
                            format_args!("{variant:?} {kept:?} dx[{row}, {c}]"),
                        );
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn every_variant_is_within_the_bound_of_the_reference(
        rows in 1usize..20, outputs in 1usize..150, inputs in 1usize..90, seed: u64,
    ) {
        check(rows, outputs, inputs, seed);
    }
}

#[test]
fn sizes_on_both_sides_of_every_tile_are_within_the_bound() {
    for (rows, outputs, inputs) in [(1, 1, 1), (6, 64, 64), (7, 65, 63), (97, 16, 3), (5, 129, 2), (12, 31, 130)] {
        check(rows, outputs, inputs, 7);
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_a_thousand_on_one_thread_and_on_three() {
    let (rows, outputs, inputs) = (1000, 200, 77);
    let mut values = Values::new(5);
    let (weight, x, dy) = (values.take(outputs * inputs), values.take(rows * inputs), values.take(rows * outputs));
    for kept in KEPT {
        let packed = PackedLinear::new(&weight, (outputs, inputs), kept);
        for &variant in variants() {
            let all = |threads: usize| {
                let (mut y, mut dx) = (vec![0.0; rows * outputs], vec![0.0; rows * inputs]);
                on_threads(threads, || {
                    forward_as(variant, &x, rows, &mut [Output { weight: &packed, y: &mut y }], Write::Set);
                    backward_input_as(variant, &[(&packed, &dy), (&packed, &dy)], rows, &mut dx, Write::Set);
                });
                (y, dx)
            };
            let (y, dx) = all(1);
            let (y3, dx3) = all(3);
            assert_same_bits(&y, &y3, format_args!("{variant:?} forward"));
            assert_same_bits(&dx, &dx3, format_args!("{variant:?} backward"));
            for row in [0, 1, 5, 95, 96, 500, 999] {
                let (mut y1, mut dx1) = (vec![0.0; outputs], vec![0.0; inputs]);
                let (x, dy) = (&x[row * inputs..][..inputs], &dy[row * outputs..][..outputs]);
                forward_as(variant, x, 1, &mut [Output { weight: &packed, y: &mut y1 }], Write::Set);
                backward_input_as(variant, &[(&packed, dy), (&packed, dy)], 1, &mut dx1, Write::Set);
                assert_same_bits(&y1, &y[row * outputs..][..outputs], format_args!("{variant:?} row {row}"));
                assert_same_bits(&dx1, &dx[row * inputs..][..inputs], format_args!("{variant:?} row {row}"));
            }
        }
    }
}

#[test]
fn a_weight_that_several_passes_need_at_once_is_packed_without_waiting_for_one_another() {
    let weight = Values::new(9).take(600 * 90);
    let (done, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a small pool");
        for _ in 0..100 {
            let all: Vec<_> = (0..16).map(|_| PackedLinear::new(&weight, (600, 90), WeightType::Bf16)).collect();
            let pass = || pool.install(|| all.par_iter().for_each(PackedLinear::ready_backward));
            std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(pass))));
        }
        done.send(()).expect("the test waits");
    });
    heard.recv_timeout(std::time::Duration::from_secs(120)).expect("no thread waits for ever");
}

#[test]
fn linears_over_one_input_give_what_they_give_apart() {
    let (rows, inputs) = (9, 50);
    let mut values = Values::new(6);
    let x = values.take(rows * inputs);
    let weights = [30, 70, 5].map(|of| PackedLinear::new(&values.take(of * inputs), (of, inputs), WeightType::Bf16));
    let apart = weights.each_ref().map(|weight| {
        let mut y = vec![0.0; rows * weight.outputs()];
        forward(&x, rows, &mut [Output { weight, y: &mut y }], Write::Set);
        y
    });
    let mut together = apart.clone().map(|y| vec![1.0; y.len()]);
    let mut outputs: Vec<_> =
        weights.iter().zip(&mut together).map(|(weight, y)| Output { weight, y: y.as_mut_slice() }).collect();
    forward(&x, rows, &mut outputs, Write::Set);
    assert_eq!(together, apart);
}

#[test]
fn a_row_of_the_weight_is_the_rounded_row_that_went_in() {
    let (outputs, inputs) = (131, 33);
    let weight = Values::new(8).take(outputs * inputs);
    for kept in KEPT {
        let packed = PackedLinear::new(&weight, (outputs, inputs), kept);
        for output in [0, 63, 64, 127, 128, 130] {
            let mut row = vec![0.0; inputs];
            packed.row(output, &mut row);
            for (found, &given) in row.iter().zip(&weight[output * inputs..]) {
                let expected = if kept == WeightType::Bf16 { half::bf16::from_f32(given).to_f32() } else { given };
                assert_eq!(*found, expected);
            }
        }
    }
}

#[test]
fn rounding_to_bf16_is_that_of_the_half_crate_for_every_kind_of_number() {
    let special = [0.0, -0.0, 1.0, f32::MAX, f32::MIN_POSITIVE, 1e-45, f32::INFINITY, f32::NEG_INFINITY];
    let patterns =
        (0..=0xffff_u32).flat_map(|high| [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low));
    for x in special.into_iter().chain(patterns.map(f32::from_bits)) {
        let expected = half::bf16::from_f32(x);
        assert_eq!(tile::pair(x, 0.0), u32::from(expected.to_bits()), "{x:?} {:x}", x.to_bits());
        assert_eq!(tile::pair(0.0, x), u32::from(expected.to_bits()) << 16, "{x:?}");
    }
}
