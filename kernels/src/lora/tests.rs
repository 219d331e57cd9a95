//! Adapted linears and their gradients against sums in f64, and what an adapter's bytes must not depend on.

#![allow(clippy::single_range_in_vec_init, reason = "an adapter's rows are a list of ranges")]

use super::*;
use crate::simd::variants;
use crate::testing::{Values, assert_same_bits, assert_within, on_threads};

/// A batch of mixed adapters over 170 rows, two of which have rows on both sides of another's.
struct Case {
    width: usize,
    outputs: usize,
    x: Vec<f32>,
    dy: Vec<f32>,
    adapters: Vec<(usize, f32, Vec<f32>, Vec<f32>, Vec<Range<usize>>)>,
    dropout: bool,
}

const ROWS: usize = 170;

impl Case {
    fn new(width: usize, outputs: usize, dropout: bool) -> Self {
        let mut values = Values::new(3);
        let ranges = [(3, vec![0..70, 90..91]), (16, vec![70..90, 91..160]), (17, vec![160..162])];
        let adapters = ranges.map(|(rank, rows)| {
            (rank, 0.5 + rank as f32, values.take(rank * width), values.take(outputs * rank), rows)
        });
        Self {
            width,
            outputs,
            x: values.take(ROWS * width),
            dy: values.take(ROWS * outputs),
            adapters: adapters.into(),
            dropout,
        }
    }

    fn input(&self) -> Input<'_> {
        Input { x: &self.x, width: self.width, dropout: if self.dropout { Some(&mask) } else { None } }
    }

    fn adapted(&self) -> Vec<Adapted<'_>> {
        self.adapters
            .iter()
            .map(|(rank, scale, a, b, rows)| Adapted {
                factors: Factors { a, b, rank: *rank, scale: *scale },
                rows: rows.clone(),
            })
            .collect()
    }

    fn zeros(&self) -> Vec<(Vec<f32>, Vec<f32>)> {
        self.adapters.iter().map(|(_, _, a, b, _)| (vec![0.0; a.len()], vec![0.0; b.len()])).collect()
    }

    fn backward(&self, variant: Variant, adapted: &[Adapted<'_>], sums: &mut [(Vec<f32>, Vec<f32>)]) -> Vec<f32> {
        let mut dx = vec![0.0; self.x.len()];
        let mut gradients: Vec<_> = sums.iter_mut().map(|(a, b)| Gradient { a, b }).collect();
        let through = Backward { dy: &self.dy, outputs: self.outputs, dx: &mut dx };
        backward_as(variant, self.input(), adapted, through, &mut gradients);
        dx
    }

    /// What dropout makes of the input of the adapters.
    fn kept(&self, row: usize, element: usize) -> f64 {
        f64::from(self.x[row * self.width + element]) * self.factor(row, element)
    }

    fn factor(&self, row: usize, element: usize) -> f64 {
        let mut factors = vec![1.0; self.width];
        if self.dropout {
            mask(row, &mut factors);
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
        let case = Case::new(width, outputs, dropout);
        for &variant in variants() {
            let mut y = vec![0.0; ROWS * outputs];
            forward_as(variant, case.input(), &case.adapted(), &mut y, outputs);
            let mut sums = case.zeros();
            let dx = case.backward(variant, &case.adapted(), &mut sums);
            let what = format_args!("{variant:?} {width} {outputs}").to_string();
            for (i, (rank, scale, a, b, rows)) in case.adapters.iter().enumerate() {
                let (rank, scale) = (*rank, f64::from(*scale));
                let all: Vec<usize> = rows.iter().cloned().flatten().collect();
                let term = |x: f64, w: f32| (x * f64::from(w), (x * f64::from(w)).abs());
                let h =
                    |row: usize, r: usize| sum((0..width).map(|c| term(scale * case.kept(row, c), a[r * width + c])));
                let dh = |row: usize, r: usize| {
                    sum((0..outputs).map(|o| term(scale * f64::from(case.dy[row * outputs + o]), b[o * rank + r])))
                };
                let unit = 2.0 * 2f64.powi(-24);
                let chain = unit * (width + outputs + rank + all.len() + 8) as f64;
                let through = |(value, size): (f64, f64), w: f64| (value * w, size * w.abs());
                for &row in &all {
                    for o in 0..outputs {
                        let (exact, size) = sum((0..rank).map(|r| through(h(row, r), f64::from(b[o * rank + r]))));
                        assert_within(y[row * outputs + o], exact, chain * size, format_args!("{what} y"));
                    }
                    for c in 0..width {
                        let mask = case.factor(row, c);
                        let (exact, size) =
                            sum((0..rank).map(|r| through(dh(row, r), mask * f64::from(a[r * width + c]))));
                        assert_within(dx[row * width + c], exact, chain * size, format_args!("{what} dx"));
                    }
                }
                for r in 0..rank {
                    for c in (0..width).step_by(3) {
                        let (exact, size) = sum(all.iter().map(|&row| through(dh(row, r), case.kept(row, c))));
                        assert_within(sums[i].0[r * width + c], exact, chain * size, format_args!("{what} dA"));
                    }
                    for o in (0..outputs).step_by(3) {
                        let dy = |row: usize| f64::from(case.dy[row * outputs + o]);
                        let (exact, size) = sum(all.iter().map(|&row| through(h(row, r), dy(row))));
                        assert_within(sums[i].1[o * rank + r], exact, chain * size, format_args!("{what} dB"));
                    }
                }
            }
            assert!(
                y[162 * outputs..].iter().chain(&dx[162 * width..]).all(|&v| v == 0.0),
                "rows without an adapter stay"
            );
        }
    }
}

#[test]
fn an_adapters_bytes_do_not_depend_on_its_company_the_cut_of_its_rows_or_the_threads() {
    for dropout in [false, true] {
        let case = Case::new(50, 90, dropout);
        for &variant in variants() {
            let run = |adapted: &[Adapted<'_>], sums: &mut [(Vec<f32>, Vec<f32>)]| {
                let mut y = vec![0.0; ROWS * case.outputs];
                forward_as(variant, case.input(), adapted, &mut y, case.outputs);
                (y, case.backward(variant, adapted, sums))
            };
            let mut joint = case.zeros();
            let (y, dx) = on_threads(1, || run(&case.adapted(), &mut joint));
            let mut threaded = case.zeros();
            let (y3, dx3) = on_threads(3, || run(&case.adapted(), &mut threaded));
            assert_same_bits(&y, &y3, format_args!("{variant:?} y"));
            assert_same_bits(&dx, &dx3, format_args!("{variant:?} dx"));
            assert_eq!(joint, threaded);

            for (i, adapted) in case.adapted().iter().enumerate() {
                // Alone, and row by row.
                let mut alone = vec![(vec![0.0; joint[i].0.len()], vec![0.0; joint[i].1.len()])];
                for row in adapted.rows.iter().cloned().flatten() {
                    let single = [Adapted { factors: adapted.factors, rows: vec![row..row + 1] }];
                    let (y1, dx1) = run(&single, &mut alone);
                    let of = |row: usize, width: usize| row * width..(row + 1) * width;
                    assert_same_bits(
                        &y1[of(row, case.outputs)],
                        &y[of(row, case.outputs)],
                        format_args!("{variant:?} y"),
                    );
                    assert_same_bits(
                        &dx1[of(row, case.width)],
                        &dx[of(row, case.width)],
                        format_args!("{variant:?} dx"),
                    );
                }
                assert_same_bits(&alone[0].0, &joint[i].0, format_args!("{variant:?} dA of {i}"));
                assert_same_bits(&alone[0].1, &joint[i].1, format_args!("{variant:?} dB of {i}"));
            }
        }
    }
}

#[test]
fn a_row_without_dropout_has_the_same_bits_beside_rows_with_it() {
    let (plain, mixed) = (Case::new(50, 90, false), Case::new(50, 90, true));
    for &variant in variants() {
        let run = |case: &Case| case.backward(variant, &case.adapted(), &mut case.zeros());
        let (plain, mixed) = (run(&plain), run(&mixed));
        for row in (0..ROWS).step_by(5) {
            let at = row * 50..(row + 1) * 50;
            assert_same_bits(&plain[at.clone()], &mixed[at], format_args!("{variant:?} row {row}"));
        }
    }
}

#[test]
#[should_panic(expected = "a row belongs to one adapter")]
fn rows_of_two_adapters_are_refused() {
    let case = Case::new(4, 4, false);
    let mut adapted = case.adapted();
    adapted[0].rows[0].end += 1;
    forward(case.input(), &adapted, &mut vec![0.0; ROWS * 4], 4);
}
