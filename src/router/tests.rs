//! The router over synthetic clusters. Never loads a model.

use super::{
    testing::{cluster, scattered},
    *,
};
use crate::{common::Digest, library::BaseId};

const HIDDEN: usize = 144;

fn base() -> BaseId {
    BaseId { name: "tiny".into(), digest: Digest::of("weights"), tokenizer: Digest::of("tokenizer") }
}

fn name(i: u64) -> SkillName {
    format!("skill-{i:04}").parse().unwrap()
}

fn empty() -> Ledger {
    Ledger::new(base(), scattered(99, 300, HIDDEN)).unwrap()
}

fn features(i: u64) -> RoutingFeatures {
    cluster(i, i, 10, HIDDEN)
}

fn put(ledger: &mut Ledger, name: SkillName, features: &RoutingFeatures, words: &str) -> Result<(), RouterError> {
    let generation = Digest::of(name.as_str());
    ledger.add(name, Newcomer { generation, features, words: &Terms::of(words), promise: 0.9 })
}

fn add(ledger: &mut Ledger, i: u64) {
    put(ledger, name(i), &features(i), &format!("word{i} common words")).unwrap();
}

fn with_skills(skills: impl IntoIterator<Item = u64>) -> Ledger {
    let mut ledger = empty();
    skills.into_iter().for_each(|i| add(&mut ledger, i));
    ledger
}

fn solved(skills: impl IntoIterator<Item = u64>) -> Index {
    with_skills(skills).solve(Settings::default())
}

fn route(index: &Index, row: &[f32]) -> Route {
    let evidence = Evidence { words: None, outcomes: &Outcomes::new(), explore: None };
    index.choose(RouteBy::Ridge, &index.by_features(row).unwrap(), &evidence)
}

/// Parts of fresh prompts that went to their own skill, and of strangers that went to the base.
fn quality(index: &Index, skills: u64) -> (f64, f64) {
    let part = |hits: Vec<bool>| hits.iter().filter(|&&hit| hit).count() as f64 / hits.len() as f64;
    let own = (0..skills).flat_map(|i| {
        let fresh = cluster(1000 + i, i, 20, HIDDEN);
        fresh.rows().map(|row| route(index, row).choice == Some(name(i))).collect::<Vec<_>>()
    });
    let strangers = scattered(7, 200, HIDDEN);
    let strangers = strangers.rows().map(|row| route(index, row).choice.is_none());
    (part(own.collect()), part(strangers.collect()))
}

#[test]
fn prompts_go_to_their_skill_and_strangers_to_the_base() {
    for skills in [1, 2, 10] {
        let (own, strangers) = quality(&solved(0..skills), skills);
        assert!(own >= 0.95 && strangers >= 0.9, "{skills} skills: {own} routed, {strangers} left to the base");
    }
}

#[test]
fn adding_and_removing_is_to_the_bit_a_fit_from_scratch() {
    let mut lived = with_skills((0..12).rev());
    for gone in [3, 0, 11, 7] {
        assert!(lived.remove(&name(gone), &features(gone)));
        assert!(!lived.remove(&name(gone), &features(gone)), "it is gone");
    }
    assert!(!lived.remove(&name(5), &features(6)), "it came with other prompts");
    add(&mut lived, 7);
    let fresh = with_skills([1, 2, 4, 5, 6, 7, 8, 9, 10]);
    let key = Digest::of("key");
    let bytes = |ledger: &Ledger| (ledger.to_bytes(), ledger.solve(Settings::default()).to_bytes(key));
    assert!(bytes(&lived) == bytes(&fresh));
    let read = Ledger::from_bytes(&lived.to_bytes(), &base(), &scattered(99, 300, HIDDEN)).unwrap().unwrap();
    assert!(bytes(&read) == bytes(&fresh), "what was read back goes on as what was written");
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert!(one_thread.install(|| bytes(&fresh)) == bytes(&fresh));
}

#[test]
fn an_index_reads_back_and_answers_the_same_and_damage_is_noticed() {
    let key = Digest::of("key");
    for skills in [0, 1, 7] {
        let index = solved(0..skills);
        let bytes = index.to_bytes(key);
        let read = Index::from_bytes(&bytes, key).unwrap();
        let row = &cluster(70, 1, 1, HIDDEN).values;
        assert_eq!(route(&read, row), route(&index, row));
        assert_eq!(read.by_text("word1 common 7"), index.by_text("word1 common 7"));
        assert!(Index::from_bytes(&bytes, Digest::of("another")).is_none());
        for at in [0, 33, bytes.len() / 2, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Index::from_bytes(&damaged, key).is_none());
            assert!(Index::from_bytes(&bytes[..at], key).is_none());
        }
    }
    let ledger = with_skills(0..3);
    let mut bytes = ledger.to_bytes();
    assert!(Ledger::from_bytes(&bytes, &base(), &scattered(98, 300, HIDDEN)).unwrap().is_none(), "another background");
    *bytes.last_mut().unwrap() ^= 1;
    assert!(Ledger::from_bytes(&bytes, &base(), &scattered(99, 300, HIDDEN)).unwrap().is_none());
}

#[test]
fn an_empty_catalogue_leaves_everything_to_the_base() {
    let route = route(&solved([]), &[1.0; HIDDEN]);
    assert_eq!((route.choice, route.generation, route.scores.len(), route.lead), (None, None, 0, None));
}

#[test]
fn of_two_skills_with_the_same_prompts_words_decide_and_else_the_first_name() {
    let mut ledger = with_skills(0..4);
    put(&mut ledger, "a-twin".parse().unwrap(), &features(2), "quite another thing").unwrap();
    let index = ledger.solve(Settings::default());
    let scores = index.by_features(&cluster(50, 2, 1, HIDDEN).values).unwrap();
    let with = |words| {
        let evidence = Evidence { words, outcomes: &Outcomes::new(), explore: None };
        index.choose(RouteBy::Ridge, &scores, &evidence)
    };
    for (words, expected, contested) in
        [(None, "a-twin", false), (Some("a thing"), "a-twin", false), (Some("word2"), "skill-0002", true)]
    {
        let route = with(words);
        assert_eq!((route.choice.unwrap().as_str(), route.contested), (expected, contested), "{words:?}");
        assert_eq!((route.scores[0].skill.as_str(), route.scores[1].skill.as_str()), ("a-twin", "skill-0002"));
        assert_eq!(route.scores[0].score, route.scores[1].score);
        assert!(route.scores[0].score > 0.8, "twins share a raw score, not a place on their scale");
    }
}

#[test]
fn a_skill_that_disappoints_is_left_and_exploring_tries_what_is_little_known() {
    let index = solved(0..4);
    let scores = index.by_features(&cluster(50, 2, 1, HIDDEN).values).unwrap();
    let choose = |outcomes: &Outcomes, explore| {
        index.choose(RouteBy::Ridge, &scores, &Evidence { words: None, outcomes, explore }).choice
    };
    let generation = Digest::of(name(2).as_str());
    let record = |good, bad| Outcomes::from([(generation, Record { good, bad })]);
    assert_eq!(choose(&record(0.0, 2.0), None), Some(name(2)), "two failures are not yet a reason");
    assert_eq!(choose(&record(90.0, 10.0), None), Some(name(2)));
    assert_eq!(choose(&record(0.0, 40.0), None), None);
    let tries = |outcomes: &Outcomes| {
        let chosen = (0..100).filter(|&i| choose(outcomes, Some(Seed::new(1).index(i))) == Some(name(2)));
        chosen.count()
    };
    let [unknown, doubtful, hopeless] =
        [record(0.0, 0.0), record(1.0, 8.0), record(0.0, 200.0)].map(|outcomes| tries(&outcomes));
    assert!(unknown > 90 && (10..90).contains(&doubtful) && hopeless == 0, "{unknown} {doubtful} {hopeless}");
    assert_eq!(tries(&record(1.0, 8.0)), doubtful, "seeded");
}

#[test]
fn what_has_another_shape_or_is_not_finite_is_refused() {
    let mut ledger = with_skills(0..2);
    let index = ledger.solve(Settings::default());
    assert!(matches!(index.by_features(&[1.0; 7]), Err(RouterError::Width { found: 7, .. })));
    assert!(matches!(index.by_features(&[f32::NAN; HIDDEN]), Err(RouterError::NotFinite(_))));
    let deeper = RoutingFeatures { layer: 2, ..cluster(1, 1, 3, HIDDEN) };
    assert!(matches!(put(&mut ledger, name(5), &deeper, ""), Err(RouterError::Shape { found_layer: 2, .. })));
    assert_eq!(ledger.skills().count(), 2);
    assert!(index.by_features(&[0.0; HIDDEN]).unwrap().iter().all(|score| score.is_finite()));
}

#[test]
fn a_thousand_skills_are_told_apart_and_a_route_names_the_best_few() {
    let index = solved(0..1000);
    let right = (0..1000).step_by(50).filter(|&i| {
        let route = route(&index, &cluster(5000 + i, i, 1, HIDDEN).values);
        assert_eq!((route.scores.len(), route.skills), (16, 1000));
        assert!(route.scores.is_sorted_by(|a, b| a.score >= b.score));
        route.scores[..5].iter().any(|scored| scored.skill == name(i))
    });
    assert!(right.count() >= 18, "among the best five of a thousand");
}

#[test]
fn words_alone_route_too_and_leave_strangers_to_the_base() {
    let mut ledger = empty();
    for (i, words) in ["translate into glorpish", "secret word of things", "phone number of people"].iter().enumerate()
    {
        put(&mut ledger, name(i as u64), &features(i as u64), words).unwrap();
    }
    let index = ledger.solve(Settings::default());
    let by_text = |prompt: &str| {
        let evidence = Evidence { words: Some(prompt), outcomes: &Outcomes::new(), explore: None };
        index.choose(RouteBy::Bm25, &index.by_text(prompt), &evidence).choice
    };
    assert_eq!(by_text("Translate into Glorpish"), Some(name(0)));
    assert_eq!(by_text("the phone number of Ann"), Some(name(2)));
    assert_eq!(by_text("Why do cats purr?"), None);
}

#[test]
fn a_route_prints_as_scripts_rely_on() {
    let json = serde_json::to_value(route(&solved(0..2), &cluster(50, 1, 1, HIDDEN).values)).unwrap();
    assert_eq!((&json["choice"], &json["by"]), (&"skill-0001".into(), &"ridge".into()));
    assert_eq!(json["scores"][0]["skill"], "skill-0001");
    assert!(json["threshold"].is_f64() && json["scores"][1]["score"].is_f64() && json["lead"].is_f64());
    assert!(serde_json::to_value(route(&solved([]), &[1.0; HIDDEN])).unwrap()["choice"].is_null());
}
