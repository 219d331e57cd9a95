//! The router over synthetic clusters. Never loads a model.

use super::{
    testing::{cluster, scattered},
    *,
};
use crate::library::CatalogueEntry;

const HIDDEN: usize = 144;

fn base() -> BaseId {
    BaseId { name: "tiny".into(), digest: Digest::of("weights"), tokenizer: Digest::of("tokenizer") }
}

fn name(i: u64) -> SkillName {
    format!("skill-{i:04}").parse().unwrap()
}

fn empty() -> Router {
    Router::new(base(), scattered(99, 300, HIDDEN), Settings::default()).unwrap()
}

fn add(router: &mut Router, i: u64) {
    router.add(name(i), Digest::of(i.to_string()), Arc::new(cluster(i, i, 10, HIDDEN))).unwrap();
}

fn with_skills(skills: impl IntoIterator<Item = u64>) -> Router {
    let mut router = empty();
    skills.into_iter().for_each(|i| add(&mut router, i));
    router
}

/// Parts of fresh prompts that went to their own skill, and of strangers that went to the base.
fn quality(router: &Router, skills: u64) -> (f64, f64) {
    let part = |hits: Vec<bool>| hits.iter().filter(|&&hit| hit).count() as f64 / hits.len() as f64;
    let own = (0..skills).flat_map(|i| {
        let fresh = cluster(1000 + i, i, 20, HIDDEN);
        fresh.rows().map(|row| router.route(row).unwrap().choice == Some(name(i))).collect::<Vec<_>>()
    });
    let strangers = scattered(7, 200, HIDDEN);
    let strangers = strangers.rows().map(|row| router.route(row).unwrap().choice.is_none());
    (part(own.collect()), part(strangers.collect()))
}

#[test]
fn prompts_go_to_their_skill_and_strangers_to_the_base() {
    for skills in [1, 2, 10] {
        let (own, strangers) = quality(&with_skills(0..skills), skills);
        assert!(own >= 0.95 && strangers >= 0.9, "{skills} skills: {own} routed, {strangers} left to the base");
    }
}

#[test]
fn adding_and_removing_equals_a_fit_from_scratch() {
    let mut lived = with_skills(0..12);
    for gone in [3, 0, 11, 7] {
        lived.remove(&name(gone));
        lived.remove(&name(gone));
    }
    add(&mut lived, 7);
    let fresh = with_skills([1, 2, 4, 5, 6, 7, 8, 9, 10]);
    for row in cluster(5, 2, 10, HIDDEN).rows().chain(scattered(8, 10, HIDDEN).rows()) {
        let (a, b) = (lived.route(row).unwrap(), fresh.route(row).unwrap());
        assert!((a.threshold - b.threshold).abs() < 1e-9);
        assert_eq!(a.choice, b.choice);
        for (a, b) in a.scores.iter().zip(&b.scores) {
            assert!(a.skill == b.skill && (a.score - b.score).abs() < 1e-9, "{a:?} {b:?}");
        }
    }
}

#[test]
fn the_same_catalogue_gives_the_same_bits() {
    let row = &cluster(5, 2, 1, HIDDEN).values;
    let first = with_skills(0..5).route(row).unwrap();
    assert_eq!(first, with_skills(0..5).route(row).unwrap());
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(first, one_thread.install(|| with_skills(0..5).route(row).unwrap()));
}

#[test]
fn an_empty_catalogue_leaves_everything_to_the_base() {
    let route = empty().route(&[1.0; HIDDEN]).unwrap();
    assert_eq!((route.choice, route.generation, route.scores.len()), (None, None, 0));
}

#[test]
fn of_two_skills_with_the_same_prompts_the_first_name_is_chosen() {
    let mut router = with_skills(0..4);
    let twin = Arc::new(cluster(2, 2, 10, HIDDEN));
    router.add("a-twin".parse().unwrap(), Digest::of("twin"), twin).unwrap();
    let route = router.route(&cluster(50, 2, 1, HIDDEN).values).unwrap();
    assert_eq!(route.scores[0].skill.as_str(), "a-twin");
    assert_eq!((&route.scores[1].skill, route.scores[1].score), (&name(2), route.scores[0].score));
    assert!(route.scores[0].score > 0.8, "twins share a raw score, not a place on their scale");
}

#[test]
fn what_has_another_shape_or_is_not_finite_is_refused() {
    let mut router = with_skills(0..2);
    assert!(matches!(router.route(&[1.0; 7]), Err(RouterError::Shape { found: 7, .. })));
    assert!(matches!(router.route(&[f32::NAN; HIDDEN]), Err(RouterError::NotFinite(_))));
    let deeper = Arc::new(RoutingFeatures { layer: 2, ..cluster(1, 1, 3, HIDDEN) });
    assert!(matches!(router.add(name(5), Digest::of(""), deeper), Err(RouterError::Shape { found_layer: 2, .. })));
    assert_eq!(router.skills().count(), 2);
    assert!(router.route(&[0.0; HIDDEN]).unwrap().scores.iter().all(|scored| scored.score.is_finite()));
}

#[test]
fn the_catalogue_is_followed_and_what_cannot_be_routed_is_named() {
    let entry = |i: u64, generation: &str, features: Option<RoutingFeatures>| CatalogueEntry {
        name: name(i),
        generation: Digest::of(generation),
        base: base(),
        description: String::new(),
        features: features.map(Arc::new),
    };
    let mut router = empty();
    let mut foreign = entry(2, "c", Some(cluster(2, 2, 10, HIDDEN)));
    foreign.base.digest = Digest::of("other");
    let first = vec![
        entry(0, "a", Some(cluster(0, 0, 10, HIDDEN))),
        entry(1, "b", Some(cluster(1, 1, 10, HIDDEN))),
        foreign,
        entry(3, "d", None),
        entry(4, "e", Some(cluster(4, 4, 10, 9))),
    ];
    let skipped = router.sync(&Catalogue { entries: first, damaged: vec![] });
    assert_eq!(skipped.iter().map(|skipped| skipped.name.clone()).collect::<Vec<_>>(), [name(2), name(3), name(4)]);
    let second =
        vec![entry(1, "new", Some(cluster(11, 1, 10, HIDDEN))), entry(5, "f", Some(cluster(5, 5, 10, HIDDEN)))];
    assert!(router.sync(&Catalogue { entries: second, damaged: vec![] }).is_empty());
    let known: Vec<_> = router.skills().map(|(name, generation)| (name.clone(), generation)).collect();
    assert_eq!(known, [(name(1), Digest::of("new")), (name(5), Digest::of("f"))]);
    let route = router.route(&cluster(60, 1, 1, HIDDEN).values).unwrap();
    assert_eq!((route.choice, route.generation), (Some(name(1)), Some(Digest::of("new"))));
}

#[test]
fn a_thousand_skills_are_told_apart() {
    let router = with_skills(0..1000);
    let right = (0..1000).step_by(50).filter(|&i| {
        let route = router.route(&cluster(5000 + i, i, 1, HIDDEN).values).unwrap();
        assert_eq!(route.scores.len(), 1000);
        route.scores[..5].iter().any(|scored| scored.skill == name(i))
    });
    assert!(right.count() >= 18, "among the best five of a thousand in 48 dimensions");
}

#[test]
fn a_route_prints_as_scripts_rely_on() {
    let route = with_skills(0..2).route(&cluster(50, 1, 1, HIDDEN).values).unwrap();
    let json = serde_json::to_value(&route).unwrap();
    assert_eq!(json["choice"], "skill-0001");
    assert_eq!(json["scores"][0]["skill"], "skill-0001");
    assert!(json["threshold"].is_f64() && json["scores"][1]["score"].is_f64());
    assert!(serde_json::to_value(empty().route(&[1.0; HIDDEN]).unwrap()).unwrap()["choice"].is_null());
}
