//! Quantised linears under every variant against an f64 product on the stored blocks, and what a row's bits must not depend on.

use super::activation::{Quants, WORDS, quantise};
use super::reference::{reference, unrounded};
use super::*;
use crate::linear::{self, Output, PackedLinear, WeightType};
use crate::simd::variants;
use crate::testing::{Values, assert_same_bits, assert_within, on_threads};
use half::f16;
use proptest::prelude::*;

/// Random blocks: every code and small integer there is, f16 scales of the size that checkpoints have.
struct Stored {
    format: Format,
    bytes: Vec<u8>,
    row: usize,
}

impl Stored {
    fn new(format: Format, (outputs, inputs): (usize, usize), values: &mut Values) -> Self {
        let row = inputs / format.block() * format.block_bytes();
        let mut bytes: Vec<u8> = (0..outputs * row).map(|_| (values.next() * 128.0) as i32 as u8).collect();
        let f16s: &[usize] = match format {
            Format::Q4_0 | Format::Q8_0 => &[0],
            Format::Q4_1 | Format::Q4K => &[0, 2],
            Format::Q6K => &[208],
        };
        for stored in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in f16s {
                stored[at..at + 2].copy_from_slice(&f16::from_f32(values.next() * 0.1).to_le_bytes());
            }
        }
        Self { format, bytes, row }
    }

    fn row(&self, output: usize) -> &[u8] {
        &self.bytes[output * self.row..][..self.row]
    }

    fn packed(&self, shape: (usize, usize)) -> Quantised {
        Quantised::new(self.format, shape, |output| self.row(output))
    }
}

fn with_quants<R>(variant: Variant, x: &[f32], body: impl FnOnce(&[Quants]) -> R) -> R {
    body(quantise(variant, x, (1, 1), &mut vec![0; x.len() / BLOCK * WORDS]))
}

fn check(rows: usize, outputs: usize, stored_blocks: usize, seed: u64) {
    for format in Format::ALL {
        let inputs = stored_blocks * format.block();
        let mut values = Values::new(seed);
        let stored = Stored::new(format, (outputs, inputs), &mut values);
        let packed = stored.packed((outputs, inputs));
        // Blocks of very different size, one of them all 0.
        let x: Vec<f32> =
            (0..rows * inputs).map(|i| values.next() * [1.0, 30.0, 1e-3, 0.0, 1e4][i / BLOCK % 5]).collect();
        let old = values.take(rows * outputs);
        for &variant in variants() {
            for write in [Write::Set, Write::Add] {
                let mut y = old.clone();
                forward_as(variant, &x, rows, &mut [(&packed, &mut y)], write);
                for (i, (&found, &old)) in y.iter().zip(&old).enumerate() {
                    let (row, x) = (stored.row(i % outputs), &x[i / outputs * inputs..][..inputs]);
                    let start = if write == Write::Add { f64::from(old) } else { 0.0 };
                    let (sum, size) = with_quants(variant, x, |x| reference(format, row, x));
                    let bound = 2.0 * (inputs / 16 + 4) as f64 * 2f64.powi(-24) * (start.abs() + size);
                    let what = format!("{variant:?} {format:?} y[{}, {}]", i / outputs, i % outputs);
                    assert_within(found, start + sum, bound, format_args!("{what}"));
                    let (exact, rounding) = unrounded(format, row, x);
                    let bound = bound + (1.0 + 2f64.powi(-13)) * rounding;
                    assert_within(found, start + exact, bound, format_args!("{what} from unrounded activations"));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_variant_is_within_the_bound_of_the_reference(
        rows in 1usize..20, outputs in 1usize..70, blocks in 1usize..4, seed: u64,
    ) {
        check(rows, outputs, blocks, seed);
    }
}

#[test]
fn sizes_on_both_sides_of_every_tile_and_task_are_within_the_bound() {
    for (rows, outputs, blocks) in [(1, 1, 1), (8, 16, 2), (9, 17, 1), (65, 15, 1), (2, 129, 3), (3, 257, 5)] {
        check(rows, outputs, blocks, 7);
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_a_thousand_on_one_thread_and_on_three() {
    let (rows, outputs, inputs) = (1000, 150, 512);
    for format in Format::ALL {
        let mut values = Values::new(5);
        let packed = Stored::new(format, (outputs, inputs), &mut values).packed((outputs, inputs));
        let x = values.take(rows * inputs);
        for &variant in variants() {
            let run = |x: &[f32], rows: usize| {
                let mut y = vec![f32::NAN; rows * outputs];
                forward_as(variant, x, rows, &mut [(&packed, &mut y)], Write::Set);
                y
            };
            let y = on_threads(1, || run(&x, rows));
            assert_same_bits(&y, &on_threads(3, || run(&x, rows)), format_args!("{variant:?} {format:?}"));
            for row in [0, 1, 7, 8, 63, 64, 500, 999] {
                let alone = run(&x[row * inputs..][..inputs], 1);
                assert_same_bits(&alone, &y[row * outputs..][..outputs], format_args!("{variant:?} row {row}"));
            }
        }
    }
}

#[test]
fn linears_over_one_input_give_what_they_give_apart() {
    let (rows, inputs) = (9, 256);
    let mut values = Values::new(6);
    let x = values.take(rows * inputs);
    let weights = [(30, Format::Q4_1), (130, Format::Q6K), (5, Format::Q8_0)]
        .map(|(outputs, format)| Stored::new(format, (outputs, inputs), &mut values).packed((outputs, inputs)));
    let apart = weights.each_ref().map(|weight| {
        let mut y = vec![0.0; rows * weight.outputs()];
        forward(&x, rows, &mut [(weight, &mut y)], Write::Set);
        y
    });
    let mut together = apart.clone().map(|y| vec![1.0; y.len()]);
    let mut outputs: Vec<_> = weights.iter().zip(together.iter_mut().map(Vec::as_mut_slice)).collect();
    forward(&x, rows, &mut outputs, Write::Set);
    assert_eq!(together, apart);
}

#[test]
fn a_row_of_the_weight_is_that_of_the_stored_blocks() {
    let (outputs, inputs) = (37, 512);
    for format in Format::ALL {
        let stored = Stored::new(format, (outputs, inputs), &mut Values::new(8));
        let packed = stored.packed((outputs, inputs));
        let values = packed.values();
        for output in 0..outputs {
            for (index, row) in values[output * inputs..][..inputs].chunks_exact(BLOCK).enumerate() {
                let exact = format.read(stored.row(output), index).exact(format.offset());
                for (&found, (exact, size)) in row.iter().zip(exact) {
                    assert_within(found, exact, size * 2f64.powi(-23), format_args!("{format:?} row {output}"));
                }
            }
        }
    }
}

#[test]
fn activations_round_to_the_nearest_of_255_steps_under_every_variant() {
    let mut x = Values::new(9).take(64 * BLOCK);
    for (block, x) in x.chunks_exact_mut(BLOCK).enumerate() {
        let scale = [1.0, 1e-20, 1e30, 0.3][block % 4];
        x.iter_mut().for_each(|x| *x *= scale);
    }
    for &variant in variants() {
        with_quants(variant, &x, |quants| {
            for (x, quants) in x.chunks_exact(BLOCK).zip(quants) {
                let largest = f64::from(x.iter().fold(0f32, |most, x| most.max(x.abs())));
                for (&x, &code) in x.iter().zip(&quants.codes) {
                    let found = f64::from(quants.scale) * f64::from(code);
                    let error = (found - f64::from(x)).abs();
                    assert!(error <= largest / 254.0 * (1.0 + 2f64.powi(-13)), "{variant:?} {found} for {x}");
                }
                let sum =
                    |half: usize| quants.codes[16 * half..][..16].iter().map(|&code| i32::from(code)).sum::<i32>();
                assert_eq!(quants.sums, [sum(0), sum(1)]);
                assert_eq!(quants.total, quants.scale * (sum(0) + sum(1)) as f32);
            }
        });
    }
}

#[test]
fn a_value_that_is_not_finite_makes_its_row_nan_and_no_other() {
    let (outputs, inputs) = (20, 256);
    for format in Format::ALL {
        let packed = Stored::new(format, (outputs, inputs), &mut Values::new(3)).packed((outputs, inputs));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.5; 2 * inputs];
            x[inputs + 40] = bad;
            for &variant in variants() {
                let mut y = vec![0.0; 2 * outputs];
                forward_as(variant, &x, 2, &mut [(&packed, &mut y)], Write::Set);
                assert!(y[..outputs].iter().all(|y| y.is_finite()), "{variant:?} {format:?}");
                assert!(y[outputs..].iter().all(|y| y.is_nan()), "{variant:?} {format:?}");
            }
        }
    }
}

#[test]
fn as_a_linear_it_runs_beside_others_and_its_backward_pass_is_that_of_its_values_in_bf16() {
    let (rows, outputs, inputs) = (3, 40, 64);
    let mut values = Values::new(11);
    let quantised = Stored::new(Format::Q4_1, (outputs, inputs), &mut values).packed((outputs, inputs));
    let (x, dy) = (values.take(rows * inputs), values.take(rows * outputs));
    let plain = PackedLinear::new(&quantised.values(), (outputs, inputs), WeightType::Bf16);
    let [mut alone, mut expected] = [(); 2].map(|()| vec![0.0; rows * outputs]);
    forward(&x, rows, &mut [(&quantised, &mut alone)], Write::Set);
    linear::forward(&x, rows, &mut [Output { weight: &plain, y: &mut expected }], Write::Set);
    let linear = PackedLinear::from_quantised(quantised);
    let [mut y, mut beside] = [(); 2].map(|()| vec![0.0; rows * outputs]);
    let mut both = [Output { weight: &linear, y: &mut y }, Output { weight: &plain, y: &mut beside }];
    linear::forward(&x, rows, &mut both, Write::Set);
    assert_eq!((&y, &beside), (&alone, &expected));
    let [dx, dx_plain] = [&linear, &plain].map(|weight| {
        let mut dx = vec![0.0; rows * inputs];
        linear::backward_input(&[(weight, &dy)], rows, &mut dx, Write::Set);
        dx
    });
    assert_eq!(dx, dx_plain);
}

#[test]
fn activations_are_quantised_to_the_same_bits_by_every_variant() {
    let (rows, inputs) = (19, 3 * BLOCK);
    let mut values = Values::new(9);
    let mut x: Vec<f32> = (0..rows * inputs).map(|i| values.next() * [1.0, 1e-31, 1e5][i / BLOCK % 3]).collect();
    (x[5], x[inputs], x[2 * inputs + 40]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let all = |variant| {
        let mut words = vec![0; x.len() / BLOCK * WORDS];
        let quants = quantise(variant, &x, (rows, 8), &mut words);
        quants
            .iter()
            .for_each(|of| assert!(of.scale.is_nan() || of.codes.iter().all(|code| code.unsigned_abs() <= 127)));
        let bits = |x: f32| if x.is_nan() { u32::MAX } else { x.to_bits() };
        quants.iter().map(|of| (bits(of.scale), bits(of.total), of.codes, of.sums)).collect::<Vec<_>>()
    };
    for &variant in variants() {
        assert_eq!(all(variant), all(Variant::Portable), "{variant:?}");
    }
}
