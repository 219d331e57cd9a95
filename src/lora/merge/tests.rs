//! Merging against its definitions, spelled out element by element on small bases.

use super::*;
use crate::lora::testing::{mixed, random, uniform};
use proptest::prelude::*;

const LINEAR: MergeSettings = MergeSettings { merge: Merge::Linear, rank: 4, scale: 1.0, seed: 1 };

fn parts<'a>(rows: &[(&'a LoraWeights, f64)]) -> Vec<Part<'a>> {
    rows.iter().map(|&(lora, weight)| Part { lora, weight }).collect()
}

/// Every site's delta, one after another; zeros where a site is not adapted.
fn deltas(lora: &LoraWeights, spec: &Spec) -> Vec<f64> {
    let all = LoraConfig::uniform(1, 1.0, &Projection::ALL).layout(spec).unwrap();
    let delta = |site: &SiteParameters| match lora.layout.at(site.site) {
        Some(own) => dense(lora, own),
        None => vec![0.0; site.inputs * site.outputs],
    };
    all.sites().iter().flat_map(delta).map(f64::from).collect()
}

/// `|a − b| / |b|` in the Frobenius norm.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    (dot(&difference, &difference) / dot(b, b)).sqrt()
}

fn rank_of(lora: &LoraWeights, rank: usize, seed: u64, spec: &Spec) -> LoraWeights {
    random(LoraConfig::uniform(rank, 3.0, &lora.config.projections), spec, seed)
}

#[test]
fn one_adapter_alone_stays_what_it_was_under_every_method() {
    let spec = Spec::tiny();
    for lora in [uniform(&spec), mixed(&spec)] {
        for merge in [Merge::Linear, Merge::Ties { density: 1.0 }, Merge::Dare { density: 1.0 }] {
            let settings = MergeSettings { merge, rank: 5, ..LINEAR };
            let merged = super::merge(&parts(&[(&lora, 0.3)]), &settings, &spec).unwrap();
            assert!(distance(&deltas(&merged.lora, &spec), &deltas(&lora, &spec)) < 1e-5, "{merge:?}");
            assert!(merged.kept > 1.0 - 1e-9, "{merge:?}: {}", merged.kept);
            assert_eq!(merged.lora.layout.sites().len(), lora.layout.sites().len());
        }
    }
}

#[test]
fn an_average_that_fits_into_the_rank_is_exact_and_sites_that_one_lacks_count_as_zero() {
    let spec = Spec::tiny();
    let (a, b) = (uniform(&spec), mixed(&spec));
    let settings = MergeSettings { rank: 9, scale: 2.0, ..LINEAR };
    let merged = merge(&parts(&[(&a, 1.0), (&b, 3.0)]), &settings, &spec).unwrap();
    let (of_a, of_b) = (deltas(&a, &spec), deltas(&b, &spec));
    let expected: Vec<f64> = of_a.iter().zip(&of_b).map(|(a, b)| 0.5 * a + 1.5 * b).collect();
    assert!(distance(&deltas(&merged.lora, &spec), &expected) < 1e-5);
    assert!(merged.lora.layout.sites().iter().all(|site| site.scale == 1.0 && site.rank == 9));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn a_cut_loses_what_it_says_and_the_order_of_parts_does_not_matter(seeds in any::<[u64; 3]>(), rank in 1_usize..8) {
        let spec = Spec::tiny();
        let first = uniform(&spec);
        let [a, b, c] = seeds.map(|seed| rank_of(&first, 3, seed, &spec));
        let settings = MergeSettings { rank, ..LINEAR };
        let rows = [(&a, 1.0), (&b, 2.0), (&c, 0.5)];
        let merged = merge(&parts(&rows), &settings, &spec).unwrap();
        let whole = merge(&parts(&rows), &MergeSettings { rank: 9, ..settings }, &spec).unwrap();
        let lost = distance(&deltas(&merged.lora, &spec), &deltas(&whole.lora, &spec)).powi(2);
        prop_assert!((lost - (1.0 - merged.kept)).abs() < 1e-5, "{lost} against {}", merged.kept);
        let turned = merge(&parts(&[rows[2], rows[0], rows[1]]), &settings, &spec).unwrap();
        prop_assert!(distance(&deltas(&turned.lora, &spec), &deltas(&merged.lora, &spec)) < 1e-4);
    }
}

#[test]
fn a_dense_delta_is_cut_as_well_as_the_stacked_factors_are() {
    let spec = Spec::tiny();
    let first = uniform(&spec);
    let rows: Vec<_> = (1..=4).map(|seed| rank_of(&first, 2, seed, &spec)).collect();
    let rows: Vec<_> = rows.iter().map(|lora| (lora, 1.0)).collect();
    let settings = MergeSettings { rank: 3, ..LINEAR };
    let product = merge(&parts(&rows), &settings, &spec).unwrap();
    // Nothing is dropped: the same average, spelled out.
    let dense = MergeSettings { merge: Merge::Dare { density: 1.0 }, ..settings };
    let dense = merge(&parts(&rows), &dense, &spec).unwrap();
    assert!((product.kept - dense.kept).abs() < 1e-4, "{} {}", product.kept, dense.kept);
    // More ranks than the narrowest site is wide (12): the average takes the dense way by itself.
    let many: Vec<_> = (1..=7).map(|seed| rank_of(&first, 2, seed, &spec)).collect();
    let many: Vec<_> = many.iter().map(|lora| (lora, 1.0)).collect();
    let whole = merge(&parts(&many), &MergeSettings { rank: 14, ..LINEAR }, &spec).unwrap();
    let mut expected = vec![0.0; deltas(many[0].0, &spec).len()];
    many.iter().for_each(|(lora, _)| add(&mut expected, 1.0 / 7.0, &deltas(lora, &spec)));
    assert!(distance(&deltas(&whole.lora, &spec), &expected) < 1e-5);
}

/// A place over one site, for looking at deltas before they are cut.
fn elected(rows: &[(&LoraWeights, f64)], density: f64) -> Vec<Vec<f64>> {
    let parts = parts(rows);
    let settings = MergeSettings { merge: Merge::Ties { density }, ..LINEAR };
    let shares = check(&parts, &settings).unwrap();
    let layout = rows[0].0.layout.clone();
    let place = |site| Place { parts: &parts, shares: &shares, settings: &settings, site }.elected(density);
    layout.sites().iter().map(place).collect()
}

#[test]
fn ties_keeps_the_largest_elects_by_weight_and_averages_those_that_agree() {
    let spec = Spec::tiny();
    let first = uniform(&spec);
    let loras = [1, 2, 3].map(|seed| rank_of(&first, 2, seed, &spec));
    let weights = [1.0, 1.0, 2.0];
    let rows: Vec<_> = loras.iter().zip(weights).collect();
    let found = elected(&rows, 0.25);
    for (site, found) in loras[0].layout.sites().iter().zip(found) {
        let trimmed: Vec<Vec<f32>> = loras.iter().map(|lora| trim(dense(lora, site), 0.25)).collect();
        let quarter = (0.25 * found.len() as f64).round() as usize;
        for (delta, lora) in trimmed.iter().zip(&loras) {
            let whole = dense(lora, site);
            let smallest = delta.iter().filter(|v| **v != 0.0).fold(f32::MAX, |least, v| least.min(v.abs()));
            assert_eq!(delta.iter().filter(|value| **value != 0.0).count(), quarter);
            assert!(whole.iter().zip(delta).all(|(whole, kept)| *kept != 0.0 || whole.abs() <= smallest));
        }
        for (at, &found) in found.iter().enumerate() {
            let values: Vec<(f64, f64)> =
                weights.iter().zip(&trimmed).map(|(w, delta)| (*w, f64::from(delta[at]))).collect();
            let sum: f64 = values.iter().map(|(w, v)| w * v).sum();
            let agreeing: Vec<_> = values.into_iter().filter(|(_, v)| v * sum > 0.0).collect();
            let expected = match agreeing.is_empty() {
                true => 0.0,
                false => {
                    agreeing.iter().map(|(w, v)| w * v).sum::<f64>() / agreeing.iter().map(|(w, _)| w).sum::<f64>()
                }
            };
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }
}

#[test]
fn of_elements_of_equal_magnitude_the_first_are_kept() {
    assert_eq!(trim(vec![1.0, -2.0, 2.0, 2.0, 0.5], 0.4), [0.0, -2.0, 2.0, 0.0, 0.0]);
    assert_eq!(trim(vec![0.0; 4], 0.5), [0.0; 4]);
    assert_eq!(trim(vec![1.0, 2.0], 1.0), [1.0, 2.0]);
}

#[test]
fn dare_drops_its_share_keeps_the_mean_and_draws_by_the_seed_alone() {
    let spec = Spec::tiny();
    let lora = uniform(&spec);
    let rows = parts(&[(&lora, 1.0)]);
    let site = &lora.layout.sites()[0];
    let whole = dense(&lora, site);
    let dropped = |seed: u64| {
        let settings = MergeSettings { merge: Merge::Dare { density: 0.3 }, seed, ..LINEAR };
        let place = Place { parts: &rows, shares: &[1.0], settings: &settings, site };
        place.averaged(|part, delta| place.drop(part, delta, 0.3))
    };
    assert_eq!(dropped(1), dropped(1));
    let runs: Vec<Vec<f64>> = (0..400).map(dropped).collect();
    let kept = runs.iter().flatten().filter(|value| **value != 0.0).count() as f64 / (400 * whole.len()) as f64;
    assert!((kept - 0.3).abs() < 0.01, "{kept}");
    // Of 400 draws an element's mean has a standard error of |v|·√(0.7 / 0.3 / 400) = 0.08 |v|.
    for (at, &value) in whole.iter().enumerate().step_by(37) {
        let mean = runs.iter().map(|run| run[at]).sum::<f64>() / 400.0;
        assert!((mean / f64::from(value) - 1.0).abs() < 0.4, "{mean} {value}");
    }
}

#[test]
fn the_same_settings_give_the_same_bytes_whatever_the_thread_count() {
    let spec = Spec::tiny();
    let (a, b) = (uniform(&spec), mixed(&spec));
    for merge in [Merge::Linear, Merge::Ties { density: 0.2 }, Merge::Dare { density: 0.5 }] {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let settings = MergeSettings { merge, ..LINEAR };
            pool.install(|| super::merge(&parts(&[(&a, 1.0), (&b, 1.0)]), &settings, &spec).unwrap().lora.theta)
        };
        let theta = run(1);
        assert!(theta.iter().all(|value| value.is_finite()));
        assert_eq!(theta, run(3));
    }
}

#[test]
fn untrained_adapters_merge_to_one_that_changes_nothing() {
    let spec = Spec::tiny();
    let config = LoraConfig::uniform(4, 8.0, &Projection::ALL);
    let theta = crate::lora::init(&config.layout(&spec).unwrap(), Seed::new(1));
    let lora = LoraWeights::new(config, &spec, theta).unwrap();
    for merge in [Merge::Linear, Merge::Ties { density: 0.2 }] {
        let settings = MergeSettings { merge, ..LINEAR };
        let merged = super::merge(&parts(&[(&lora, 1.0), (&lora, 1.0)]), &settings, &spec).unwrap();
        assert!(merged.lora.theta.iter().all(|&value| value == 0.0) && merged.kept == 1.0);
    }
}

#[test]
fn a_setting_out_of_range_is_named() {
    let spec = Spec::tiny();
    let lora = uniform(&spec);
    let one = [(&lora, 1.0)];
    let rows: [(&str, &[(&LoraWeights, f64)], MergeSettings); 9] = [
        ("parts", &[], LINEAR),
        ("weight", &[(&lora, 0.0), (&lora, 0.0)], LINEAR),
        ("weight", &[(&lora, -1.0), (&lora, 2.0)], LINEAR),
        ("weight", &[(&lora, f64::NAN)], LINEAR),
        ("density", &one, MergeSettings { merge: Merge::Ties { density: 0.0 }, ..LINEAR }),
        ("density", &one, MergeSettings { merge: Merge::Dare { density: 1.5 }, ..LINEAR }),
        ("scale", &one, MergeSettings { scale: f64::INFINITY, ..LINEAR }),
        ("scale", &one, MergeSettings { scale: 0.0, ..LINEAR }),
        ("rank", &one, MergeSettings { rank: 0, ..LINEAR }),
    ];
    for (key, rows, settings) in rows {
        match merge(&parts(rows), &settings, &spec) {
            Err(LoraError::Config { key: found, .. }) => assert_eq!(found, key),
            other => panic!("{key}: {other:?}"),
        }
    }
}
