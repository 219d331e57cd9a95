//! Adapted linears and their gradients against sums in f64, and what an adapter's bytes must not depend on.

#![allow(clippy::single_range_in_vec_init, reason = "an adapter's rows are a list of ranges")]

use super::*;
use crate::quantised::{Format, Quantised};
use crate::simd::variants;
use crate::testing::{Values, assert_same_bits, assert_within, on_threads};
use std::slice;

/// A batch of mixed adapters over 170 rows of one linear, two of which have rows on both sides of another's, and some none.
struct Case {
    width: usize,
    outputs: usize,
    weight: PackedLinear,
    x: Vec<f32>,
    dy: Vec<f32>,
    adapters: Vec<Own>,
    dropout: bool,
}

struct Own {
    rank: usize,
    scale: f32,
    a: Vec<f32>,
    b: Vec<f32>,
    factors: Factors,
    rows: Vec<Range<usize>>,
}

const ROWS: usize = 170;
const KEPT: [WeightType; 2] = [WeightType::Bf16, WeightType::F32];

impl Case {
    fn new(width: usize, outputs: usize, dropout: bool, kept: WeightType) -> Self {
        let mut values = Values::new(3);
        let ranges = [(3, vec![0..70, 90..91]), (16, vec![70..90, 91..160]), (17, vec![160..162])];
        let adapters = ranges.map(|(rank, rows)| {
            let (scale, a, b) = (0.5 + rank as f32, values.take(rank * width), values.take(outputs * rank));
            Own { rank, scale, factors: Factors::new(&a, &b, rank, scale, kept), a, b, rows }
        });
        // A base of zeros: what is measured is the adapters' part alone.
        let weight = PackedLinear::new(&vec![0.0; outputs * width], (outputs, width), kept);
        let (x, dy) = (values.take(ROWS * width), values.take(ROWS * outputs));
        Self { width, outputs, weight, x, dy, adapters: adapters.into(), dropout }
    }

    fn linear<'a>(&'a self, adapted: Vec<Adapted<'a>>) -> Linear<'a> {
        Linear { weight: &self.weight, adapted, dropout: if self.dropout { Some(&mask) } else { None } }
    }

    fn adapted(&self) -> Vec<Adapted<'_>> {
        self.adapters.iter().map(|own| Adapted { factors: &own.factors, rows: &own.rows }).collect()
    }

    fn zeros(&self) -> Vec<(Vec<f32>, Vec<f32>)> {
        self.adapters.iter().map(|own| (vec![0.0; own.a.len()], vec![0.0; own.b.len()])).collect()
    }

    fn forward<'a>(&'a self, variant: Variant, adapted: Vec<Adapted<'a>>) -> Vec<f32> {
        let mut y = vec![f32::NAN; ROWS * self.outputs];
        let output = Output { linear: self.linear(adapted), y: &mut y };
        forward_as(variant, &self.x, ROWS, &mut [output], Write::Set);
        y
    }

    fn backward<'a>(
        &'a self,
        variant: Variant,
        adapted: Vec<Adapted<'a>>,
        sums: &mut [(Vec<f32>, Vec<f32>)],
    ) -> Vec<f32> {
        let mut dx = vec![f32::NAN; self.x.len()];
        let gradients = sums.iter_mut().map(|(a, b)| Gradient { a, b }).collect();
        let through = Through { linear: self.linear(adapted), dy: &self.dy, gradients };
        backward_as(variant, &self.x, ROWS, &mut [through], &mut dx);
        dx
    }

    /// What dropout makes of the input of the adapters.
    fn kept(&self, row: usize, element: usize) -> f64 {
        f64::from(self.x[row * self.width + element]) * self.factor(row, element)
    }

    fn factor(&self, row: usize, element: usize) -> f64 {
        let mut factors = vec![1.0; self.width];
        if self.dropout && !mask(row, &mut factors) {
            factors.fill(1.0);
        }
        f64::from(factors[element])
    }
}

/// Drops a quarter, except in every fifth row.
fn mask(row: usize, factors: &mut [f32]) -> bool {
    if row.is_multiple_of(5) {
        return false;
    }
    let mut values = Values::new(row as u64);
    factors.iter_mut().for_each(|factor| *factor = if values.next() < -0.5 { 0.0 } else { 4.0 / 3.0 });
    true
}

/// A sum and the sum of absolute terms.
fn sum(terms: impl Iterator<Item = (f64, f64)>) -> (f64, f64) {
    terms.fold((0.0, 0.0), |(sum, size), (term, magnitude)| (sum + term, size + magnitude))
}

#[test]
fn outputs_and_every_gradient_are_within_the_bound_of_f64() {
    for (width, outputs, dropout) in [(40, 70, false), (33, 64, true), (5, 3, true), (130, 17, false)] {
        for kept in KEPT {
            let case = Case::new(width, outputs, dropout, kept);
            for &variant in variants() {
                let y = case.forward(variant, case.adapted());
                let mut sums = case.zeros();
                let dx = case.backward(variant, case.adapted(), &mut sums);
                let what = format!("{variant:?} {kept:?} {width} {outputs}");
                for (own, sums) in case.adapters.iter().zip(&sums) {
                    check_adapter(&case, own, (&y, &dx, sums), kept, &what);
                }
                assert!(
                    y[162 * outputs..].iter().chain(&dx[162 * width..]).all(|&v| v == 0.0),
                    "rows without an adapter have the base alone"
                );
            }
        }
    }
}

/// Holds what one adapter gave against sums in f64.
fn check_adapter(
    case: &Case,
    Own { rank, scale, a, b, rows, .. }: &Own,
    (y, dx, (da, db)): (&[f32], &[f32], &(Vec<f32>, Vec<f32>)),
    kept: WeightType,
    what: &str,
) {
    let (width, outputs, rank, scale) = (case.width, case.outputs, *rank, f64::from(*scale));
    let all: Vec<usize> = rows.iter().cloned().flatten().collect();
    let term = |x: f64, w: f32| (x * f64::from(w), (x * f64::from(w)).abs());
    let h = |row: usize, r: usize| sum((0..width).map(|c| term(scale * case.kept(row, c), a[r * width + c])));
    let dh = |row: usize, r: usize| {
        sum((0..outputs).map(|o| term(scale * f64::from(case.dy[row * outputs + o]), b[o * rank + r])))
    };
    // Twice: the scale is rounded into B as well.
    let rounded = if kept == WeightType::Bf16 { 2f64.powi(-8) * 1.02 } else { 0.0 };
    let unit = 2.0 * 2f64.powi(-24);
    let chain = |roundings: f64| unit * (width + outputs + rank + all.len() + 8) as f64 + roundings * rounded;
    let through = |(value, size): (f64, f64), w: f64| (value * w, size * w.abs());
    for &row in &all {
        for o in 0..outputs {
            let (exact, size) = sum((0..rank).map(|r| through(h(row, r), f64::from(b[o * rank + r]))));
            assert_within(y[row * outputs + o], exact, chain(4.0) * size, format_args!("{what} y"));
        }
        for c in 0..width {
            let mask = case.factor(row, c);
            let (exact, size) = sum((0..rank).map(|r| through(dh(row, r), mask * f64::from(a[r * width + c]))));
            assert_within(dx[row * width + c], exact, chain(4.0) * size, format_args!("{what} dx"));
        }
    }
    for r in 0..rank {
        for c in (0..width).step_by(3) {
            let (exact, size) = sum(all.iter().map(|&row| through(dh(row, r), case.kept(row, c))));
            assert_within(da[r * width + c], exact, chain(2.0) * size, format_args!("{what} dA"));
        }
        for o in (0..outputs).step_by(3) {
            let dy = |row: usize| f64::from(case.dy[row * outputs + o]);
            let (exact, size) = sum(all.iter().map(|&row| through(h(row, r), dy(row))));
            assert_within(db[o * rank + r], exact, chain(2.0) * size, format_args!("{what} dB"));
        }
    }
}

#[test]
fn an_adapters_bytes_do_not_depend_on_its_company_the_cut_of_its_rows_or_the_threads() {
    for (dropout, kept) in [(false, WeightType::Bf16), (true, WeightType::Bf16), (true, WeightType::F32)] {
        let case = Case::new(50, 90, dropout, kept);
        for &variant in variants() {
            let run = |adapted: fn(&Case) -> Vec<Adapted<'_>>, sums: &mut [(Vec<f32>, Vec<f32>)]| {
                (case.forward(variant, adapted(&case)), case.backward(variant, adapted(&case), sums))
            };
            let mut joint = case.zeros();
            let (y, dx) = on_threads(1, || run(Case::adapted, &mut joint));
            let mut threaded = case.zeros();
            let (y3, dx3) = on_threads(3, || run(Case::adapted, &mut threaded));
            assert_same_bits(&y, &y3, format_args!("{variant:?} y"));
            assert_same_bits(&dx, &dx3, format_args!("{variant:?} dx"));
            assert_eq!(joint, threaded);

            for (i, own) in case.adapters.iter().enumerate() {
                // Alone, and row by row.
                let mut alone = vec![(vec![0.0; joint[i].0.len()], vec![0.0; joint[i].1.len()])];
                for row in own.rows.iter().cloned().flatten() {
                    let rows = row..row + 1;
                    let single = || vec![Adapted { factors: &own.factors, rows: slice::from_ref(&rows) }];
                    let y1 = case.forward(variant, single());
                    let dx1 = case.backward(variant, single(), &mut alone);
                    let of = |width: usize| row * width..(row + 1) * width;
                    assert_same_bits(&y1[of(90)], &y[of(90)], format_args!("{variant:?} y"));
                    assert_same_bits(&dx1[of(50)], &dx[of(50)], format_args!("{variant:?} dx"));
                }
                assert_same_bits(&alone[0].0, &joint[i].0, format_args!("{variant:?} dA of {i}"));
                assert_same_bits(&alone[0].1, &joint[i].1, format_args!("{variant:?} dB of {i}"));
            }
        }
    }
}

#[test]
fn a_row_without_dropout_has_the_same_bits_beside_rows_with_it() {
    for kept in KEPT {
        let (plain, mixed) = (Case::new(50, 90, false, kept), Case::new(50, 90, true, kept));
        for &variant in variants() {
            let run = |case: &Case| case.backward(variant, case.adapted(), &mut case.zeros());
            let (plain, mixed) = (run(&plain), run(&mixed));
            for row in (0..ROWS).step_by(5) {
                let at = row * 50..(row + 1) * 50;
                assert_same_bits(&plain[at.clone()], &mixed[at], format_args!("{variant:?} row {row}"));
            }
        }
    }
}

#[test]
#[should_panic(expected = "a row belongs to one adapter")]
fn rows_of_two_adapters_are_refused() {
    let mut case = Case::new(4, 4, false, WeightType::F32);
    case.adapters[0].rows[0].end += 1;
    case.forward(variants()[0], case.adapted());
}

#[test]
fn over_a_quantised_weight_adapters_add_what_they_add_to_zeros() {
    let (width, outputs) = (64, 40);
    let stored: Vec<u8> = (0..outputs * width / 32 * 34).map(|i| if i % 34 < 2 { 0x2a } else { i as u8 }).collect();
    let format = Format::Q8_0;
    let quantised =
        || Quantised::new(format, (outputs, width), |output| &stored[output * width / 32 * 34..][..width / 32 * 34]);
    for &variant in variants() {
        let case = Case::new(width, outputs, false, WeightType::Bf16);
        let added = case.forward(variant, case.adapted());
        let mut frozen = vec![0.0; ROWS * outputs];
        quantised::forward_as(variant, &case.x, ROWS, &mut [(&quantised(), &mut frozen)], Write::Set);
        let weight = PackedLinear::from_quantised(quantised());
        for (write, start) in [(Write::Set, 0.0), (Write::Add, 7.0)] {
            let [mut y, mut beside] = [(); 2].map(|()| vec![start; ROWS * outputs]);
            let linear = Linear { weight: &weight, adapted: case.adapted(), dropout: None };
            let both = [(linear, &mut y), (case.linear(case.adapted()), &mut beside)];
            forward_as(variant, &case.x, ROWS, &mut both.map(|(linear, y)| Output { linear, y }), write);
            for i in 0..y.len() {
                // No adapter's part is added as 0, which changes nothing.
                assert_eq!(y[i], (start + frozen[i]) + added[i], "{variant:?} {write:?} {i}");
                assert_eq!(beside[i], start + added[i], "{variant:?} {write:?} {i}");
            }
        }
    }
}

#[test]
fn adapters_of_a_row_each_give_the_bits_that_they_give_beside_one_of_many_rows() {
    // More inputs than are widened at a time, and several panels of outputs.
    for (width, outputs) in [(70, 150), (800, 20)] {
        let rows = 40;
        let mut values = Values::new(6);
        let (weights, x, old) = (values.take(outputs * width), values.take(rows * width), values.take(rows * outputs));
        for kept in KEPT {
            let weight = PackedLinear::new(&weights, (outputs, width), kept);
            let mut factors =
                |rank| Factors::new(&values.take(rank * width), &values.take(outputs * rank), rank, 0.5, kept);
            // More single rows in turn than go abreast, of one panel's width and of several; the rows up to 20 between them have none.
            let few = [(5, 0..1), (16, 9..10), (17, 12..15), (16, 15..16), (70, 16..17), (16, 17..18), (16, 18..19)];
            let few = few.map(|(rank, rows)| (factors(rank), rows));
            let many = factors(8);
            for (&variant, write) in
                variants().iter().flat_map(|variant| [(variant, Write::Set), (variant, Write::Add)])
            {
                let run = |beside: Option<Range<usize>>| {
                    let own = few.iter().map(|(factors, rows)| (factors, rows));
                    let own = own.chain(beside.as_ref().map(|rows| (&many, rows)));
                    let own = own.map(|(factors, rows)| Adapted { factors, rows: slice::from_ref(rows) });
                    let adapted = own.collect();
                    let (linear, mut y) = (Linear { weight: &weight, adapted, dropout: None }, old.clone());
                    forward_as(variant, &x, rows, &mut [Output { linear, y: &mut y }], write);
                    y
                };
                let (apart, beside) = (run(None), run(Some(20..40)));
                let shared = 20 * outputs;
                assert_same_bits(&apart[..shared], &beside[..shared], format_args!("{variant:?} {kept:?} {write:?}"));
                assert_same_bits(&apart[..shared], &on_threads(1, || run(None))[..shared], format_args!("threads"));
            }
        }
    }
}

#[test]
fn factors_packed_together_give_the_bits_of_those_packed_alone() {
    // Large enough for a slab in bf16, and too small for one.
    for (rank, width, outputs) in [(260, 1030, 1100), (3, 33, 20)] {
        for kept in KEPT {
            let mut values = Values::new(7);
            let sites: [_; 2] = std::array::from_fn(|_| (values.take(rank * width), values.take(outputs * rank)));
            let all = sites.each_ref().map(|(a, b)| Parameters { a, b, rank, scale: 1.5, kept });
            let alone = all.map(|of| Factors::new(of.a, of.b, rank, of.scale, kept));
            let weight = PackedLinear::new(&values.take(outputs * width), (outputs, width), kept);
            let x = values.take(2 * width);
            for (alone, together) in alone.iter().zip(&Factors::together(&all)) {
                let [alone, together] = [alone, together].map(|factors| {
                    let adapted = [Adapted { factors, rows: slice::from_ref(&(1..2)) }];
                    let (mut y, mut dx) = (vec![0.0; 2 * outputs], vec![0.0; 2 * width]);
                    let linear = || Linear { weight: &weight, adapted: adapted.to_vec(), dropout: None };
                    forward(&x, 2, &mut [Output { linear: linear(), y: &mut y }], Write::Set);
                    backward_input(&x, 2, &[(&linear(), &y)], &mut dx);
                    (y, dx)
                });
                assert_same_bits(&alone.0, &together.0, format_args!("{kept:?} {rank} y"));
                assert_same_bits(&alone.1, &together.1, format_args!("{kept:?} {rank} dx"));
            }
        }
    }
}
