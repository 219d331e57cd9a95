//! Documents as an environment: what their questions owe, and what files are refused.

use super::*;
use crate::{
    common::Seed,
    envs::{Query, Split, items},
};
use std::{collections::HashSet, fs, path::PathBuf};

/// Clauses that differ, with ends of sentences.
fn text(clauses: usize) -> String {
    let nouns = ["lender", "borrower", "witness", "notary", "tenant", "owner", "buyer", "seller", "carrier"];
    let clause = |i: usize| {
        let (a, b) = (nouns[i % 9], nouns[(i * 4 + 2) % 9]);
        format!(
            "Under clause {i} the {a} grants every {b} exactly {} days of notice, unless section {} applies. ",
            7 * i + 3,
            i * i
        )
    };
    (0..clauses).map(clause).collect()
}

fn env(clauses: usize) -> Documents {
    Documents::new(&[Document { title: "the deed".into(), text: text(clauses) }], 700).unwrap()
}

#[test]
fn no_question_that_is_judged_is_ever_trained_on() {
    let env = env(60);
    let trained = env.lessons();
    let asked = |items: &[Item]| {
        items.iter().map(|i| env.start(i).unwrap().observe()[0].content.clone()).collect::<HashSet<_>>()
    };
    let contents: HashSet<Digest> = trained.iter().map(|item| item.id).collect();
    let prompts: HashSet<String> = (0..3)
        .flat_map(|wording| asked(&trained.iter().map(|item| Item { wording, ..item.clone() }).collect::<Vec<_>>()))
        .collect();
    for split in [Split::Validation, Split::Test] {
        let judged = items(&env, &Query::new(split, 1), Seed::new(0), 500).unwrap();
        assert!(judged.len() > 30, "{split}: {}", judged.len());
        assert!(judged.iter().all(|item| !contents.contains(&item.id)));
        assert!(asked(&judged).is_disjoint(&prompts));
    }
}

#[test]
fn right_answers_are_right_and_stand_in_their_passage() {
    let env = env(30);
    for split in Split::ALL {
        for item in items(&env, &Query::new(split, 1), Seed::new(1), 64).unwrap() {
            let mut session = env.start(&item).unwrap();
            let answer = session.teacher().unwrap();
            let passage = &env.passages()[env.passage_of(&item).unwrap()];
            assert!(passage.text.contains(&answer) && !session.observe()[0].content.is_empty());
            let Outcome::Done(grade) = session.act(&answer).unwrap() else { panic!("one turn") };
            assert!(grade.strict && grade.lenient && grade.reward == 1.0, "{answer}");
        }
    }
}

#[test]
fn replies_are_graded_by_their_first_complete_answer() {
    let gap = Ask::Gap { title: "t".into(), before: "a ".into(), after: " b".into(), answer: "Licensor".into() };
    let next = Ask::Next { title: "t".into(), stem: "to the best of".into(), answer: "its own knowledge, if".into() };
    for (ask, reply, expected) in [
        (&gap, "Licensor", (true, true)),
        (&gap, "licensor.", (false, true)),
        (&gap, "The missing word is \"Licensor\".", (false, true)),
        (&gap, "a Licensor b", (false, false)),
        (&gap, "", (false, false)),
        (&next, "its own knowledge, if", (true, true)),
        (&next, "Its own knowledge if any", (false, true)),
        (&next, "“… the best of its own knowledge, if …”", (false, true)),
        (&next, "own knowledge, if", (false, false)),
        (&next, "", (false, false)),
    ] {
        assert_eq!(ask.grade(reply), expected, "{reply:?}");
    }
}

#[test]
fn passages_hold_all_words_and_no_more_than_fits() {
    let text = text(40) + &"x".repeat(500) + " 日本語の文章には空白がない。".repeat(20).as_str();
    for bytes in [80, 300, 1_800] {
        let passages = text::cut(&Document { title: "t".into(), text: text.clone() }, bytes);
        assert!(passages.iter().all(|passage| passage.text.len() <= bytes), "{bytes}");
        let whole: String = passages.iter().flat_map(|p| p.text.split(' ')).collect();
        assert_eq!(whole, text.split_whitespace().collect::<String>());
    }
}

#[test]
fn files_and_folders_are_read_and_what_is_no_text_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let (b, a) = (put("b.txt", b"second"), put("a.md", b"first"));
    let (bad, zero) = (put("bad.bin", b"abc\xff"), put("zero.bin", b"a\0b"));
    let (empty, hidden) = (put("empty.txt", b" \n"), put(".hidden", b"no"));
    let titles = |paths: &[PathBuf]| documents(paths).map(|d| d.into_iter().map(|d| d.title).collect::<Vec<_>>());
    assert_eq!(titles(&[b.clone(), a.clone()]).unwrap(), ["b", "a"], "files in the order in which they are named");
    assert_eq!(titles(&[folder.path().to_owned()]).unwrap(), ["a", "b"], "a folder's texts by name, and nothing else");
    for (path, what) in [(&bad, "byte 3"), (&zero, "not UTF-8 text"), (&empty, "no words")] {
        let error = titles(std::slice::from_ref(path)).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(&path.display().to_string()), "{error}");
    }
    assert!(titles(&[folder.path().join("nowhere")]).unwrap_err().to_string().contains("nowhere"));
    for path in [a, b, hidden] {
        fs::remove_file(path).unwrap();
    }
    assert!(titles(&[folder.path().to_owned()]).unwrap_err().to_string().contains("no file that is text"));
}

#[test]
fn too_little_text_is_refused_with_how_much_is_needed() {
    for text in ["one", "a few words are no document to ask about"] {
        let error =
            Documents::new(&[Document { title: "t".into(), text: text.into() }], 700).err().unwrap().to_string();
        assert!(error.contains("sixty words"), "{error}");
    }
}

#[test]
fn examples_are_of_the_training_split_and_of_the_passages_in_question() {
    let env = env(60);
    let kind = |item: &Item| item.content["kind"].as_str().unwrap().to_owned();
    for passages in [0..1, 2..4, 0..env.passages().len()] {
        let examples = env.examples(passages.clone(), 4);
        assert_eq!(examples.iter().map(kind).collect::<Vec<_>>(), ["gap", "next", "gap", "next"]);
        assert!(examples.iter().all(|item| env.split(item) == Split::Train));
        assert!(examples.iter().all(|item| passages.contains(&env.passage_of(item).unwrap())));
    }
}
