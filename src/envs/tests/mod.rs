//! What holds for every environment.

mod grades;

use super::*;
use crate::common::Seed;
use std::collections::{HashMap, HashSet};

/// Every environment, level and form.
fn everything() -> impl Iterator<Item = (Box<dyn Environment>, u32, Form)> {
    NAMES.iter().flat_map(|name| {
        let info = find(name).unwrap().info().clone();
        let levels = 1..=info.levels.len() as u32;
        levels.flat_map(move |level| info.forms.clone().into_iter().map(move |form| (find(name).unwrap(), level, form)))
    })
}

fn splits_of(form: Form) -> &'static [Split] {
    if form == Form::Direct { &Split::ALL } else { &[Split::Test] }
}

/// Plays an episode by a policy: the session so far to a reply.
fn play(env: &dyn Environment, item: &Item, mut policy: impl FnMut(&dyn Session) -> String) -> Grade {
    let mut session = env.start(item).unwrap();
    let turns = env.info().level(item.level).unwrap().turns_max;
    for turn in 1.. {
        assert!(turn <= turns, "{}: more turns than it declares", env.info().name);
        let reply = policy(&*session);
        if let Outcome::Done(grade) = session.act(&reply).unwrap() {
            return grade;
        }
    }
    unreachable!("an episode ends")
}

#[test]
fn the_splits_of_every_environment_are_disjoint_and_the_seed_decides_nothing_but_the_order() {
    for (env, level, form) in everything() {
        let mut split_of: HashMap<_, Split> = HashMap::new();
        for &split in splits_of(form) {
            let query = Query { form, ..Query::new(split, level) };
            for (seed, index) in (0..500).map(|i| (i % 5, i / 5)) {
                let item = item(&*env, &query, Seed::new(seed), index).unwrap();
                assert_eq!(*split_of.entry(item.id).or_insert(split), split, "{} {item:?}", env.info().name);
                assert_eq!(env.split(&item), split);
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_items_and_another_seed_other_ones() {
    for (env, level, form) in everything() {
        let query = Query { form, ..Query::new(Split::Test, level) };
        let draw = |seed| items(&*env, &query, Seed::new(seed), 50).unwrap();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}

#[test]
fn every_split_has_enough_different_questions() {
    for (env, level, form) in everything() {
        let info = env.info();
        for &split in splits_of(form) {
            let query = Query { form, ..Query::new(split, level) };
            let found = items(&*env, &query, Seed::new(3), 512).unwrap();
            let questions: HashSet<_> = found.iter().map(|item| (item.id, item.wording)).collect();
            assert_eq!(questions.len(), found.len(), "{} repeats a question", info.name);
            let finite = info.held_out == HeldOut::Wordings || info.name == "secret-rule";
            let least = if finite { 10 } else { 512 };
            assert!(found.len() >= least, "{} level {level} {split}: {}", info.name, found.len());
        }
    }
}

#[test]
fn held_out_wordings_appear_in_the_test_split_and_nowhere_else() {
    for (env, level, form) in everything() {
        let info = env.info();
        assert!(info.wordings.count() >= 5 && info.wordings.train.len() >= 4, "{}", info.name);
        for &split in splits_of(form) {
            let query = Query { form, ..Query::new(split, level) };
            let drawn = (0..200).map(|index| item(&*env, &query, Seed::new(4), index).unwrap());
            let held_out = drawn.filter(|item| info.wordings.is_held_out(item.wording)).count();
            assert_eq!(held_out > 0, split == Split::Test, "{} {split}", info.name);
            let only = Query { phrasing: Phrasing::HeldOut, ..query };
            match split {
                Split::Test => {
                    assert!(info.wordings.is_held_out(item(&*env, &only, Seed::new(4), 0).unwrap().wording));
                }
                _ => assert!(matches!(item(&*env, &only, Seed::new(4), 0), Err(EnvError::Exhausted { .. }))),
            }
        }
    }
}

#[test]
fn wordings_give_different_prompts_that_are_short() {
    for (env, level, form) in everything() {
        let query = Query { form, ..Query::new(Split::Test, level) };
        let first = item(&*env, &query, Seed::new(5), 0).unwrap();
        let prompts: HashSet<_> = env
            .info()
            .wordings
            .test
            .clone()
            .map(|wording| env.start(&Item { wording, ..first.clone() }).unwrap().observe()[0].content.clone())
            .collect();
        assert_eq!(prompts.len(), env.info().wordings.test.len(), "{}: {prompts:?}", env.info().name);
        assert!(prompts.iter().all(|prompt| prompt.len() < 160), "{prompts:?}");
    }
}

#[test]
fn the_environments_own_answer_earns_everything() {
    for (env, level, form) in everything() {
        let info = env.info();
        let query = Query { form, ..Query::new(Split::Test, level) };
        for item in items(&*env, &query, Seed::new(6), 60).unwrap() {
            if info.level(level).unwrap().turns_max > 1 {
                continue;
            }
            let answer = answer(&*env, &item).unwrap().unwrap();
            assert!(answer.len() <= 4 * info.level(level).unwrap().reply_tokens_max, "{answer}");
            for reply in [answer.clone(), format!(" {answer}\n")] {
                let grade = play(&*env, &item, |_| reply.clone());
                assert_eq!(grade, Grade { reward: 1.0, strict: true, lenient: true, feedback: Some(answer.clone()) });
            }
            // Right and more is right in part: the format is wrong.
            let grade = play(&*env, &item, |_| format!("{answer}\n\nI hope that this helps!"));
            assert!(grade.reward < 1.0 && !grade.strict && grade.lenient, "{}: {answer}", info.name);
        }
    }
}

#[test]
fn an_echo_of_the_question_earns_nothing_in_any_wording() {
    for (env, level, form) in everything() {
        let query = Query { form, ..Query::new(Split::Test, level) };
        for item in items(&*env, &query, Seed::new(7), 100).unwrap() {
            for wording in env.info().wordings.test.clone() {
                let item = Item { wording, ..item.clone() };
                let prompt = env.start(&item).unwrap().observe()[0].content.clone();
                let tail = prompt.rsplit(['?', ':', '.']).find(|part| !part.trim().is_empty()).unwrap().to_owned();
                for echo in [prompt.clone(), tail.trim().to_owned(), prompt.to_uppercase(), format!("\"{prompt}\"")] {
                    let grade = play(&*env, &item, |_| echo.clone());
                    assert!(!grade.strict && !grade.lenient, "{}: {echo:?} {grade:?}", env.info().name);
                }
            }
        }
    }
}

#[test]
fn a_constant_answer_scores_the_declared_baseline() {
    let mut two_choice = 0;
    for (env, level, form) in everything() {
        let query = Query { form, ..Query::new(Split::Train, level) };
        let Some(declared) = env.info().level(level).unwrap().baseline else { continue };
        let draws = 1500;
        let mut right = vec![0; env.choices(&item(&*env, &query, Seed::new(8), 0).unwrap()).unwrap().len()];
        for index in 0..draws {
            let item = item(&*env, &query, Seed::new(8), index).unwrap();
            for (choice, count) in env.choices(&item).unwrap().iter().zip(&mut right) {
                *count += usize::from(play(&*env, &item, |_| choice.clone()).strict);
            }
        }
        let best = *right.iter().max().unwrap() as f64 / draws as f64;
        // Two-choice shares of 1500 draws have a standard error of 0.013, and the best of a few is taken.
        assert!((best - declared).abs() < 0.05, "{} level {level}: {best} against {declared}", env.info().name);
        two_choice += usize::from(declared == 0.5);
    }
    assert!(two_choice >= 4);
}

#[test]
fn a_level_or_form_that_does_not_exist_and_a_foreign_item_are_errors() {
    for env in all() {
        let beyond = env.info().levels.len() as u32 + 1;
        for level in [0, beyond] {
            assert!(matches!(
                item(&*env, &Query::new(Split::Train, level), Seed::new(1), 0),
                Err(EnvError::Level { .. })
            ));
        }
        let form = Query { form: Form::TwoHop, ..Query::new(Split::Train, 1) };
        assert!(matches!(item(&*env, &form, Seed::new(1), 0), Err(EnvError::Form { .. })));
        let foreign = Item::new(serde_json::json!({ "no": "such" }), 1, Form::Direct, 0);
        assert!(matches!(env.start(&foreign), Err(EnvError::Content { .. })));
        let own = item(&*env, &Query::new(Split::Train, 1), Seed::new(1), 0).unwrap();
        assert!(matches!(env.start(&Item { wording: 99, ..own }), Err(EnvError::Content { .. })));
    }
}

#[test]
fn contents_are_identified_whatever_the_order_of_their_keys() {
    let (a, b) = (serde_json::json!({ "x": [1, "é\""], "a": null }), serde_json::json!({ "a": null, "x": [1, "é\""] }));
    assert_eq!(canonical(&a), canonical(&b));
    assert_eq!(canonical(&a), r#"{"a":null,"x":[1,"é\""]}"#);
    assert_eq!(Item::new(a, 1, Form::Direct, 0).id, Item::new(b, 2, Form::Direct, 3).id);
}

#[test]
fn halving_always_finds_the_number_and_blind_guesses_seldom() {
    let env = find("guess-number").unwrap();
    for level in 1..=3 {
        let mut random = Seed::new(9).rng();
        let found = items(&*env, &Query::new(Split::Test, level), Seed::new(9), 200).unwrap();
        let mut blind = 0;
        for item in &found {
            let grade = play(&*env, item, |session| session.teacher().unwrap());
            assert!(grade.strict && grade.lenient && grade.reward == 1.0, "{item:?}");
            let (low, high) = (item.content["low"].as_u64().unwrap(), item.content["high"].as_u64().unwrap());
            let any = |_: &dyn Session| (low + random.below((high - low + 1) as usize) as u64).to_string();
            blind += usize::from(play(&*env, item, any).strict);
            // Found, but in a sentence: lenient alone.
            let talk = play(&*env, item, |session| format!("I guess {}.", session.teacher().unwrap()));
            assert!(!talk.strict && talk.lenient && talk.reward == 0.0);
        }
        // k guesses with replacement among n find with probability 1 − (1 − 1/n)ᵏ: at most 0.52, 0.35 and 0.15.
        assert!((blind as f64) < [0.62, 0.45, 0.23][level as usize - 1] * found.len() as f64, "level {level}: {blind}");
    }
}

#[test]
fn a_guess_is_answered_by_where_the_number_lies() {
    let env = find("guess-number").unwrap();
    let content = serde_json::json!({ "low": 1, "high": 8, "secret": 5 });
    let mut session = env.start(&Item::new(content, 1, Form::Direct, 0)).unwrap();
    let rows = [("4", "Higher."), ("99999999999999", "Guess one number from 1 to 8."), ("4294967295", "Lower.")];
    for (reply, said) in rows {
        assert_eq!(session.act(reply).unwrap(), Outcome::Next);
        assert_eq!(session.observe().last().unwrap().content, said);
    }
    assert_eq!(session.teacher().unwrap(), "6");
    let Outcome::Done(grade) = session.act("5").unwrap() else { panic!("the last guess ends the episode") };
    assert_eq!((grade.strict, grade.lenient, grade.feedback.as_deref()), (false, true, Some("5")));
}

#[test]
fn a_bandits_teacher_finds_the_best_arm_and_a_random_policy_does_not() {
    let env = find("bandit").unwrap();
    for level in 1..=3 {
        let mut random = Seed::new(10).rng();
        let found = items(&*env, &Query::new(Split::Test, level), Seed::new(10), 400).unwrap();
        let arms = level as f64 + 1.0;
        let (mut taught, mut blind, mut always) = ((0, 0.0), (0, 0.0), 0);
        let add = |sum: &mut (usize, f64), grade: Grade| {
            sum.0 += usize::from(grade.strict);
            sum.1 += f64::from(grade.reward);
        };
        for item in &found {
            add(&mut taught, play(&*env, item, |session| session.teacher().unwrap()));
            let choices = env.choices(item).unwrap();
            add(&mut blind, play(&*env, item, |_| random.pick(&choices).clone()));
            let best = &choices[item.content["best"].as_u64().unwrap() as usize];
            always += usize::from(play(&*env, item, |_| best.clone()).reward == 1.0);
        }
        let n = found.len() as f64;
        assert_eq!(always, found.len(), "knowing the best arm earns everything");
        let (taught_strict, blind_strict) = (taught.0 as f64 / n, blind.0 as f64 / n);
        assert!(taught_strict > [0.9, 0.75, 0.6][level as usize - 1], "level {level}: {taught_strict}");
        assert!((blind_strict - 1.0 / arms).abs() < 0.1, "level {level}: {blind_strict}");
        assert!(taught.1 > blind.1 + 0.15 * n, "level {level}: {taught:?} {blind:?}");
    }
}

#[test]
fn a_pull_is_an_arm_and_the_same_arm_in_the_same_turn_always_pays_the_same() {
    let env = find("bandit").unwrap();
    let item = item(&*env, &Query::new(Split::Train, 1), Seed::new(11), 0).unwrap();
    let arm = env.choices(&item).unwrap()[0].clone();
    let say = |reply: &str| {
        let mut session = env.start(&item).unwrap();
        session.act(reply).unwrap();
        session.observe().last().unwrap().content.clone()
    };
    assert!(say(&arm).starts_with(&format!("{arm} pays ")));
    assert_eq!(say(&arm), say(&arm));
    assert_eq!(say(&arm), say(&format!("I pull \"{arm}\"")));
    for other in ["", "both", "what?", &format!("{arm} {arm}")] {
        assert!(say(other).starts_with("Say "), "{other:?}");
    }
}

#[test]
fn worlds_differ_in_their_facts_and_not_in_their_questions() {
    for name in ["secret-rule", "cipher", "phonebook", "capitals", "rooms", "prices"] {
        let query = Query::new(Split::Train, 1);
        let answers = |name: &str| -> HashSet<String> {
            let env = find(name).unwrap();
            assert_eq!(env.info().name, name);
            let found = (0..60).map(|index| item(&*env, &query, Seed::new(12), index).unwrap());
            found.map(|item| answer(&*env, &item).unwrap().unwrap()).collect()
        };
        assert_eq!(answers(name), answers(name));
        assert_ne!(answers(name), answers(&format!("{name}@7")), "{name}");
    }
    for wrong in ["reverse@7", "cipher@", "cipher@x", "cipher@-1", "@1"] {
        assert!(matches!(find(wrong), Err(EnvError::Unknown { .. })), "{wrong}");
    }
}

#[test]
fn facts_come_in_passes_over_all_of_them() {
    let env = find("cipher").unwrap();
    let query = Query::new(Split::Train, 1);
    for pass in 0..3 {
        let drawn = (40 * pass..40 * (pass + 1)).map(|index| item(&*env, &query, Seed::new(13), index).unwrap());
        assert_eq!(drawn.map(|item| item.id).collect::<HashSet<_>>().len(), 40, "10 facts in 4 wordings");
    }
}

#[test]
fn a_content_that_cannot_be_played_is_an_error() {
    let arms = |best: u32, turns: u32, percent: [u32; 2]| serde_json::json!({ "arms": ["a", "b"], "best": best, "luck": 1, "percent": percent, "turns": turns });
    let rows = [
        ("guess-number", serde_json::json!({ "low": 3, "high": 2, "secret": 3 })),
        ("guess-number", serde_json::json!({ "low": 0, "high": u32::MAX, "secret": 3 })),
        ("guess-number", serde_json::json!({ "low": 1, "high": 8, "secret": 9 })),
        ("bandit", arms(2, 6, [90, 10])),
        ("bandit", arms(0, 0, [90, 10])),
        ("bandit", arms(0, 6, [0, 0])),
        ("bandit", arms(0, 6, [10, 90])),
        ("bandit", arms(0, u32::MAX, [u32::MAX, 0])),
    ];
    for (name, content) in rows {
        let item = Item::new(content, 1, Form::Direct, 0);
        assert!(matches!(find(name).unwrap().start(&item), Err(EnvError::Content { .. })), "{item:?}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn no_reply_makes_an_environment_panic_and_rewards_stay_in_bounds(
        replies in proptest::collection::vec("\\PC*|[0-9]{0,12}|[a-z \"{}:,.=\n]{0,40}", 12),
        seed in 0u64..100,
    ) {
        for env in all() {
            let item = item(&*env, &Query::new(Split::Train, 1), Seed::new(seed), 0).unwrap();
            let mut said = replies.iter();
            let grade = play(&*env, &item, |_| said.next().unwrap().clone());
            assert!((0.0..=1.0).contains(&grade.reward) && (grade.lenient || !grade.strict));
        }
    }
}
