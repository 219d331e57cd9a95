//! Replies and their grades, one table for each environment.

use super::super::*;
use serde_json::{Value, json};

/// Right in format and answer; right in its first complete answer span only; wrong.
const STRICT: (bool, bool) = (true, true);
const LENIENT: (bool, bool) = (false, true);
const WRONG: (bool, bool) = (false, false);

fn check(name: &str, content: Value, rows: &[(&str, (bool, bool))]) {
    let env = find(name).unwrap();
    let item = Item::new(content, 1, Form::Direct, 0);
    for (reply, (strict, lenient)) in rows {
        let mut session = env.start(&item).unwrap();
        let Outcome::Done(grade) = session.act(reply).unwrap() else { panic!("{name} is answered in one turn") };
        assert_eq!((grade.strict, grade.lenient), (*strict, *lenient), "{name}: {reply:?}");
        assert_eq!(grade.reward, f32::from(u8::from(*strict)), "reward follows the strict grade");
    }
}

#[test]
fn reverse_wants_the_letters_backwards_and_a_space_apart() {
    let rows = [
        ("p m a l", STRICT),
        ("\tp m a l \n", STRICT),
        ("P M A L", LENIENT),
        ("p m a l.", LENIENT),
        ("Backwards it is: p m a l", LENIENT),
        ("p, m, a, l", LENIENT),
        ("pmal", WRONG),
        ("p-m-a-l", WRONG),
        ("l a m p", WRONG),
        ("l a m p p m a l", WRONG),
        ("l a m p backwards: p m a l", WRONG),
        ("p m a l l", WRONG),
        ("p m a", WRONG),
        ("lamp", WRONG),
        ("", WRONG),
    ];
    check("reverse", json!({ "word": "lamp" }), &rows);
}

#[test]
fn count_letter_wants_the_number() {
    let rows = [
        ("2", STRICT),
        ("2.", LENIENT),
        ("The letter p stands 2 times in apple.", LENIENT),
        ("1 or 2", WRONG),
        ("1, no, 2", WRONG),
        ("22", WRONG),
        ("two", WRONG),
        ("p p", WRONG),
    ];
    check("count-letter", json!({ "word": "apple", "letter": "p" }), &rows);
}

#[test]
fn last_word_wants_one_word() {
    let rows = [
        ("lamp", STRICT),
        ("Lamp", LENIENT),
        ("lamp.", LENIENT),
        ("\"lamp\"", LENIENT),
        ("The last word is \"lamp\".", LENIENT),
        ("The last word of the sentence is lamp.", LENIENT),
        ("The king sold the lamp.", WRONG),
        ("the lamp", WRONG),
        ("king ... lamp", WRONG),
        ("\"The king sold the lamp.\" lamp", WRONG),
        ("lamps", WRONG),
    ];
    check("last-word", json!({ "text": "The king sold the lamp." }), &rows);
}

#[test]
fn acronym_wants_capitals() {
    let rows = [
        ("RLB", STRICT),
        ("R.L.B.", LENIENT),
        ("The acronym is RLB.", LENIENT),
        ("rlb", WRONG),
        ("R L B", WRONG),
        ("RL", WRONG),
        ("NASA or RLB", WRONG),
        ("Red Lamp Basket", WRONG),
        ("RLBS", WRONG),
    ];
    check("acronym", json!({ "words": ["Red", "Lamp", "Basket"] }), &rows);
}

#[test]
fn sort_words_wants_the_words_in_order_and_no_others() {
    let rows = [
        ("apple fig pear", STRICT),
        ("apple, fig, pear", LENIENT),
        ("Apple Fig Pear", LENIENT),
        ("Sorted: apple, fig and pear", LENIENT),
        ("1. apple\n2. fig\n3. pear", LENIENT),
        ("pear fig apple", WRONG),
        ("pear fig apple: apple fig pear pear", WRONG),
        ("apple fig", WRONG),
        ("apple fig pear plum", WRONG),
        ("The order is apple fig pear", WRONG),
    ];
    check("sort-words", json!({ "words": ["pear", "fig", "apple"] }), &rows);
}

#[test]
fn add_wants_the_sum() {
    let rows = [
        ("68", STRICT),
        ("68.", LENIENT),
        ("23 + 45 = 68", LENIENT),
        ("The sum is 68.", LENIENT),
        ("68.0", WRONG),
        ("23 + 45", WRONG),
        ("What is 23 + 45?", WRONG),
        ("23 + 45 = 67, no, 68", WRONG),
        ("168", WRONG),
    ];
    check("add", json!({ "terms": [23, 45] }), &rows);
}

#[test]
fn compare_wants_one_of_the_two() {
    let rows = [
        ("82", STRICT),
        ("82 is larger than 37.", LENIENT),
        ("The larger number is 82.", LENIENT),
        ("37 or 82? 82", LENIENT),
        ("37", WRONG),
        ("37 or 82", WRONG),
        ("82 and 37", WRONG),
        ("37 is smaller than 82", WRONG),
        ("82.5", WRONG),
        ("larger", WRONG),
    ];
    check("compare", json!({ "low": 3700, "high": 8200 }), &rows);
    check("compare", json!({ "low": 412, "high": 450 }), &[("4.5", STRICT), ("4.50", WRONG), ("4.12", WRONG)]);
}

#[test]
fn json_wants_the_object_and_nothing_around_it() {
    let rows = [
        (r#"{"name": "Ann", "age": 31}"#, STRICT),
        (r#"{"name":"Ann","age":31}"#, STRICT),
        ("{\"name\": \"Ann\", \"age\": 31}\n", STRICT),
        ("{\n  \"name\": \"Ann\",\n  \"age\": 31\n}\n", LENIENT),
        (r#"{"age": 31, "name": "Ann"}"#, LENIENT),
        ("```json\n{\"name\": \"Ann\", \"age\": 31}\n```", LENIENT),
        (r#"Here it is: {"name": "Ann", "age": 31}. Anything else?"#, LENIENT),
        (r#"{"name": "Ann", "age": 31,}"#, WRONG),
        (r#"{"name": "Ann", "age": "31"}"#, WRONG),
        (r#"{"name": "A nn", "age": 31}"#, WRONG),
        (r#"{'name': 'Ann', 'age': 31}"#, WRONG),
        (r#"{"name": "Ann", "age": 31, "city": ""}"#, WRONG),
        (r#"{"name": "Bob", "name": "Ann", "age": 31"#, WRONG),
        (r#"{} {"name": "Ann", "age": 31}"#, WRONG),
        ("name: Ann, age: 31", WRONG),
    ];
    check("json", json!({ "fields": [["name", "Ann"], ["age", 31]] }), &rows);
}

#[test]
fn facts_and_rules_want_the_word_or_number() {
    let word = [
        ("tolmak", STRICT),
        ("Tolmak", LENIENT),
        ("The secret word for lion is \"tolmak\".", LENIENT),
        ("tolmak or rebu", WRONG),
        ("rebu, not tolmak", WRONG),
        ("tolmak tolmak", WRONG),
        ("lion", WRONG),
    ];
    check("secret-rule", json!({ "thing": "lion", "secret": "tolmak" }), &word);
    let entry = json!({ "fact": { "language": "Dobani", "word": "lion", "meaning": "tolmak" } });
    check("cipher", entry, &word);
    let number = [
        ("4821", STRICT),
        ("Ann's number is 4821.", LENIENT),
        ("4821 or 4822", WRONG),
        ("48 21", WRONG),
        ("14821", WRONG),
        ("Ann", WRONG),
    ];
    check("phonebook", json!({ "fact": { "ask": "number", "subject": "Ann", "answer": "4821" } }), &number);
    let name = [("Bob", STRICT), ("bob", LENIENT), ("Ann's best friend is Bob.", LENIENT), ("Ann and Bob", WRONG)];
    check("phonebook", json!({ "fact": { "ask": "friend", "subject": "Ann", "answer": "Bob" } }), &name);
}

#[test]
fn words_written_another_way_want_exactly_that_way() {
    let words = json!({ "words": ["red", "lamp"] });
    let reversed = [("lamp red", STRICT), ("Reversed: lamp, red.", LENIENT), ("red lamp", WRONG), ("lamp", WRONG)];
    check("reverse-words", words.clone(), &reversed);
    let slug =
        [("red-lamp", STRICT), ("/red-lamp", LENIENT), ("Red-Lamp", LENIENT), ("red_lamp", WRONG), ("red", WRONG)];
    check("slug", words, &slug);
    let times = [("red red red", STRICT), ("Red, red, red!", LENIENT), ("red red", WRONG), ("red red red red", WRONG)];
    check("repeat", json!({ "word": "red", "times": 3 }), &times);
    let first = [("Old", STRICT), ("old", LENIENT), ("The first word is \"Old\".", LENIENT), ("Old kings", WRONG)];
    check("first-word", json!({ "text": "Old king sold the lamp." }), &first);
}

#[test]
fn date_and_csv_want_their_format_and_nothing_around_it() {
    let day = json!({ "year": 1984, "month": 3, "day": 7, "style": 0 });
    let dates = [("1984-03-07", STRICT), ("1984-03-07.", LENIENT), ("1984-3-7", WRONG), ("07-03-1984", WRONG)];
    check("date", day, &dates);
    let lines = [
        ("Ann,31", STRICT),
        ("Ann, 31", LENIENT),
        ("Here it is:\nAnn,31", LENIENT),
        ("name,age", WRONG),
        ("name: Ann, age: 31", WRONG),
        ("31,Ann", WRONG),
    ];
    check("csv", json!({ "fields": [["name", "Ann"], ["age", 31]] }), &lines);
}

#[test]
fn registers_want_the_value() {
    let room = json!({ "fact": { "subject": "Ann", "value": "412" } });
    check("rooms", room.clone(), &[("412", STRICT), ("Room 412.", LENIENT), ("41", WRONG), ("Ann", WRONG)]);
    check("prices", room, &[("412", STRICT), ("412 coins", LENIENT), ("412 or 413", WRONG)]);
    let capital = json!({ "fact": { "subject": "Bodia", "value": "Lumet" } });
    check("capitals", capital, &[("Lumet", STRICT), ("The capital is Lumet.", LENIENT), ("Bodia", WRONG)]);
}
