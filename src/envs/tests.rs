//! What holds for every environment.

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
