//! Answer spans: where in a reply its first complete answer stands. Never knows which answer is right, so nothing is found by
//! containment.
//!
//! A span is chosen by the reply's shape alone and then compared as a whole. Echoing the question must choose no right span:
//! an enumeration of choices ("37 or 82", "3 to 9") is not an answer, a phrase is not a word.

use serde_json::Value;

/// Quotes that open and close an answer.
const QUOTES: [(&str, &str); 6] = [("**", "**"), ("\"", "\""), ("“", "”"), ("‘", "’"), ("`", "`"), ("'", "'")];
/// What stands between a sentence's subject and its answer.
const MARKERS: [&str; 5] = [":", "=", " is ", " means ", " are "];
/// What joins the choices of an enumeration.
const JOINTS: [&str; 9] = [",", "or", "and", "vs", "vs.", "to", "-", "–", ", or"];

/// The answer of one word, in lower case. The first line that is not empty decides: its first quotation; else what follows its
/// first `:`, `=`, "is", "means" or "are" (or, if nothing does, the next line); else all of it. It must be a single word, apart
/// from punctuation around it.
pub(super) fn word(reply: &str) -> Option<String> {
    let mut lines = lines(reply);
    let first = lines.next()?;
    let span = match (quotation(first), after_marker(first)) {
        (Some(quoted), _) => quoted,
        (None, Some("")) => lines.next()?,
        (None, Some(rest)) => rest,
        (None, None) => first,
    };
    let bare = span.trim_matches(|c: char| !c.is_alphanumeric());
    (!bare.is_empty() && !bare.contains(char::is_whitespace)).then(|| bare.to_lowercase())
}

/// The first run of two or more single letters in one line, each a space apart, in lower case: `p m a l`.
pub(super) fn letters(reply: &str) -> Option<String> {
    lines(reply).find_map(|line| {
        let letters = line.split_whitespace().map(single_letter).collect::<Vec<_>>();
        let run = letters.split(Option::is_none).find(|run| run.len() > 1)?;
        Some(run.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" "))
    })
}

fn single_letter(token: &str) -> Option<String> {
    let mut chars = token.trim_matches(|c: char| !c.is_alphanumeric()).chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) if c.is_alphabetic() => Some(c.to_lowercase().to_string()),
        _ => None,
    }
}

/// The first word of two or more letters that are all capitals, dots removed: `NASA`, `N.A.S.A.`
pub(super) fn capitals(reply: &str) -> Option<String> {
    let words = reply.split(|c: char| !c.is_alphanumeric() && c != '.');
    let mut bare = words.map(|word| word.replace('.', ""));
    bare.find(|word| word.chars().count() > 1 && word.chars().all(char::is_uppercase))
}

/// The first number that is no part of an enumeration ("37 or 82", "3 to 9", "4, 5").
pub(super) fn number(reply: &str) -> Option<String> {
    let numbers = numbers(reply);
    let joined = |i: usize| {
        let (left, right): (&Span, &Span) = (&numbers[i], &numbers[i + 1]);
        JOINTS.contains(&reply[left.end..right.start].trim().to_lowercase().as_str())
    };
    let listed = |i: usize| (i > 0 && joined(i - 1)) || (i + 1 < numbers.len() && joined(i));
    (0..numbers.len()).find(|&i| !listed(i)).map(|i| numbers[i].text.clone())
}

/// The result of a calculation: the first number after the first `=`; without one, the first number of all.
pub(super) fn result(reply: &str) -> Option<String> {
    let rest = reply.split_once('=').map_or(reply, |(_, rest)| rest);
    numbers(rest).first().map(|span| span.text.clone())
}

/// A list of words, in lower case and a space apart. What follows the first line's colon, or the first line, or, where each
/// line holds one word, all such lines; commas, bullets, ordinals and "and" do not count.
pub(super) fn words(reply: &str) -> Option<String> {
    let first = lines(reply).next()?;
    let body = if first.contains(':') { reply.split_once(':')?.1 } else { reply };
    let read = |line: &str| -> Vec<String> {
        let tokens = line.split(|c: char| !c.is_alphabetic()).filter(|token| !token.is_empty());
        tokens.map(str::to_lowercase).filter(|token| token != "and").collect()
    };
    let mut rows = lines(body).map(read);
    let mut list = rows.next()?;
    if list.len() == 1 {
        list.extend(rows.take_while(|row| row.len() == 1).flatten());
    }
    (!list.is_empty()).then(|| list.join(" "))
}

/// The first word with a dash inside it, in lower case, without punctuation around it: `red-lamp`, `1984-03-07`.
pub(super) fn dashed(reply: &str) -> Option<String> {
    let mut bare = reply.split_whitespace().map(|token| token.trim_matches(|c: char| !c.is_alphanumeric()));
    bare.find(|token| token.contains('-')).map(str::to_lowercase)
}

/// The first line of values with commas between them, without spaces around those. A line that names its values (`age: 31`) is not
/// one.
pub(super) fn commas(reply: &str) -> Option<String> {
    let line = lines(reply).find(|line| line.contains(',') && !line.contains(':'))?;
    Some(line.split(',').map(str::trim).collect::<Vec<_>>().join(","))
}

/// The first balanced `{…}` of a reply, if it is JSON.
pub(super) fn object(reply: &str) -> Option<Value> {
    let start = reply.find('{')?;
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for (i, c) in reply[start..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '{' if !quoted => depth += 1,
            '}' if !quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return serde_json::from_str(&reply[start..=start + i]).ok();
        }
    }
    None
}

/// JSON text without the white space between its tokens.
pub(super) fn compact(json: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let keep = |c: &char| {
        let inside = quoted;
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        inside || !matches!(c, ' ' | '\t' | '\n' | '\r')
    };
    json.chars().filter(keep).collect()
}

struct Span {
    start: usize,
    end: usize,
    text: String,
}

/// Numbers with at most one decimal point, signs left out, in order.
fn numbers(text: &str) -> Vec<Span> {
    let mut found: Vec<Span> = Vec::new();
    let mut rest = 0;
    while let Some(offset) = text[rest..].find(|c: char| c.is_ascii_digit()) {
        let start = rest + offset;
        let mut end = digits_end(text, start);
        if text[end..].starts_with('.') && text[end + 1..].starts_with(|c: char| c.is_ascii_digit()) {
            end = digits_end(text, end + 1);
        }
        found.push(Span { start, end, text: text[start..end].to_owned() });
        rest = end;
    }
    found
}

fn digits_end(text: &str, start: usize) -> usize {
    text[start..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |length| start + length)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

/// The first quotation of a line: the earliest opening mark that is not inside a word (an apostrophe is not a quote).
fn quotation(line: &str) -> Option<&str> {
    let opens = |at: usize| !line[..at].ends_with(char::is_alphanumeric);
    let closes = |at: usize| !line[at..].starts_with(char::is_alphanumeric);
    let spans = QUOTES.iter().filter_map(|(open, close)| {
        let start = line.match_indices(open).map(|(at, _)| at).find(|&at| opens(at))?;
        let inner = start + open.len();
        let mut ends = line[inner..].match_indices(close).map(|(at, _)| inner + at);
        let end = ends.find(|&end| closes(end + close.len()))?;
        Some((start, &line[inner..end]))
    });
    spans.min_by_key(|(start, _)| *start).map(|(_, inner)| inner)
}

fn after_marker(line: &str) -> Option<&str> {
    let ends = MARKERS.iter().filter_map(|marker| line.find(marker).map(|at| (at, at + marker.len())));
    ends.min().map(|(_, end)| line[end..].trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_span_is_the_first_complete_answer_and_never_containment() {
        let rows: [(fn(&str) -> Option<String>, &str, Option<&str>); 49] = [
            (word, "lamp", Some("lamp")),
            (word, " Lamp.\n", Some("lamp")),
            (word, "The last word is lamp.", Some("lamp")),
            (word, "The answer is: lamp", Some("lamp")),
            (word, "Answer:\nlamp\nriver", Some("lamp")),
            (word, "It's \"lamp\", of course", Some("lamp")),
            (word, "**lamp** it is", Some("lamp")),
            (word, "the red lamp", None),
            (word, "Sentence: the red lamp", None),
            (word, "'the red lamp' ends in 'lamp'", None),
            (word, "river, then lamp", None),
            (word, "", None),
            (word, "\"", None),
            (word, "…", None),
            (letters, "p m a l", Some("p m a l")),
            (letters, "P M A L.", Some("p m a l")),
            (letters, "The letters: p m a l and so on a b\ni j", Some("p m a l")),
            (letters, "p m a l\nI hope so", Some("p m a l")),
            (letters, "pmal", None),
            (letters, "a lamp", None),
            (capitals, "RLR", Some("RLR")),
            (capitals, "The acronym is R.L.R. for Red Lamp River", Some("RLR")),
            (capitals, "Red Lamp River", None),
            (capitals, "A B C", None),
            (number, "82", Some("82")),
            (number, "82 is larger than 37.", Some("82")),
            (number, "Which is larger, 37 or 82?", None),
            (number, "Which is larger, 37 or 82? 82", Some("82")),
            (number, "from 3 to 9", None),
            (number, "4.12", Some("4.12")),
            (number, "4.5 or 4.12", None),
            (number, "none", None),
            (result, "68", Some("68")),
            (result, "23 + 45 = 68", Some("68")),
            (result, "What is 23 + 45?", Some("23")),
            (words, "apple fig pear", Some("apple fig pear")),
            (words, "Sorted: apple, fig and pear.", Some("apple fig pear")),
            (words, "1. apple\n2. fig\n3. pear", Some("apple fig pear")),
            (words, "Here you are:\n\n- apple\n- fig\n\npear", Some("apple fig pear")),
            (words, "apple fig pear\nis right", Some("apple fig pear")),
            (words, ":", None),
            (dashed, "red-lamp", Some("red-lamp")),
            (dashed, "It is 1984-03-07.", Some("1984-03-07")),
            (dashed, "- Red Lamp", None),
            (dashed, "Red-Lamp or red-lamp", Some("red-lamp")),
            (commas, "Ann,31", Some("Ann,31")),
            (commas, "name: Ann, age: 31\nAnn, 31", Some("Ann,31")),
            (commas, "Ann 31", None),
            (commas, "", None),
        ];
        for (span, reply, wanted) in rows {
            assert_eq!(span(reply).as_deref(), wanted, "{reply:?}");
        }
    }

    #[test]
    fn an_object_is_the_first_balanced_braces() {
        let ann = serde_json::json!({ "name": "A}n", "age": 31 });
        for reply in ["{\"name\": \"A}n\", \"age\": 31}", "Here: {\"age\":31,\"name\":\"A}n\"} {\"x\":1}"] {
            assert_eq!(object(reply), Some(ann.clone()), "{reply}");
        }
        for reply in ["", "{", "{\"a\": 1", "{a} {\"name\": \"A}n\"}", "name A}n"] {
            assert_eq!(object(reply), None, "{reply}");
        }
        assert_eq!(compact("{ \"a b\" :\n \"c \\\" d\" }"), "{\"a b\":\"c \\\" d\"}");
    }

    proptest! {
        #[test]
        fn no_reply_makes_a_span_panic(reply in "\\PC*|[a-z0-9.:=\"'{}\\\\,é“” \n-]*") {
            for span in [word, letters, capitals, number, result, words, dashed, commas] {
                let _ = span(&reply);
            }
            let _ = (object(&reply), compact(&reply));
        }
    }
}
