//! The process protocol's messages, version 1: one JSON object a line, one reply a request. Never knows how lines travel.
//! `docs/environments.md` describes it for those who write the other side.

use super::super::{Grade, HeldOut, Info, Level, Wordings};
use crate::common::Message;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// The version of the protocol.
pub(super) const VERSION: u64 = 1;
/// How much of a bad line an error shows.
const EXCERPT_CHARS: usize = 120;

/// What is asked.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Request<'a> {
    /// Who are you?
    Hello {
        /// The protocol's version.
        socius: u64,
    },
    /// A candidate item.
    Item {
        level: u32,
        /// Below 2⁵³, so that every JSON reader holds it.
        seed: u64,
    },
    /// What follows the replies so far.
    Play { content: &'a Value, level: u32, wording: usize, replies: &'a [String] },
}

#[derive(Serialize)]
struct Numbered<'a> {
    id: u64,
    #[serde(flatten)]
    request: &'a Request<'a>,
}

impl Request<'_> {
    /// The request's line, its end included.
    pub(super) fn line(&self, id: u64) -> String {
        let line = serde_json::to_string(&Numbered { id, request: self }).expect("requests are plain data");
        line + "\n"
    }

    /// Its type.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Request::Hello { .. } => "hello",
            Request::Item { .. } => "item",
            Request::Play { .. } => "play",
        }
    }

    /// An example of what it is answered with.
    pub(super) fn expected(&self) -> &'static str {
        match self {
            Request::Hello { .. } => {
                r#"{"id": …, "socius": 1, "name": "…", "version": "…", "description": "…", "levels": [{"description": "…", "reply_tokens_max": 24}]}"#
            }
            Request::Item { .. } => r#"{"id": …, "content": {…}}"#,
            Request::Play { .. } => {
                r#"{"id": …, "messages": [{"role": "user", "content": "…"}]} or {"id": …, "reward": 1.0, "strict": true, "lenient": true}"#
            }
        }
    }
}

/// Why a line is no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not what was asked for.
    Unreadable(String),
    /// The process says that it cannot.
    Refused(String),
    /// The process speaks another version.
    Version(String),
}

/// The fields of a reply to the request numbered `id`.
pub(super) fn fields(line: &[u8], id: u64) -> Result<Map<String, Value>, Fault> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| Fault::Unreadable(format!("it is not JSON ({error})")))?;
    let Value::Object(fields) = value else { return Err(Fault::Unreadable("it is not a JSON object".into())) };
    match fields.get("id") {
        Some(found) if *found == id => {}
        Some(found) => return Err(Fault::Unreadable(format!("its \"id\" is {found}, the request's is {id}"))),
        None => return Err(Fault::Unreadable(format!("it lacks \"id\": {id}"))),
    }
    match fields.get("error") {
        Some(error) => Err(Fault::Refused(error.as_str().map_or_else(|| error.to_string(), str::to_owned))),
        None => Ok(fields),
    }
}

/// What a process says of itself.
#[derive(Debug, Deserialize)]
struct Hello {
    name: String,
    version: String,
    description: String,
    levels: Vec<HelloLevel>,
    #[serde(default = "one")]
    wordings: usize,
    #[serde(default)]
    held_out_wordings: usize,
}

#[derive(Debug, Deserialize)]
struct HelloLevel {
    description: String,
    reply_tokens_max: usize,
    #[serde(default = "one")]
    turns_max: usize,
    baseline: Option<f64>,
}

fn one() -> usize {
    1
}

/// The reply to `hello`.
pub(super) fn hello(fields: Map<String, Value>) -> Result<Info, Fault> {
    match fields.get("socius") {
        Some(version) if *version == VERSION => {}
        Some(version) => return Err(Fault::Version(version.to_string())),
        None => return Err(Fault::Version("none".into())),
    }
    let hello: Hello = read(fields)?;
    let named = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let level = |level: HelloLevel| Level {
        description: level.description,
        reply_tokens_max: level.reply_tokens_max,
        turns_max: level.turns_max,
        baseline: level.baseline,
    };
    let whole = |level: &HelloLevel| {
        level.reply_tokens_max > 0 && level.turns_max > 0 && level.baseline.is_none_or(|b| (0.0..=1.0).contains(&b))
    };
    // Bounds on what a stranger may say; each is far above what makes sense.
    let rows = [
        (
            hello.name.is_empty() || hello.name.len() > 64 || !hello.name.chars().all(named),
            "\"name\" is 1 to 64 letters, digits, '-', '_', '.'",
        ),
        (hello.levels.is_empty() || hello.levels.len() > 1000, "\"levels\" has 1 to 1000 levels"),
        (
            !hello.levels.iter().all(whole),
            "a level's \"reply_tokens_max\" and \"turns_max\" are at least 1, its \"baseline\" is in 0 to 1",
        ),
        (
            hello.wordings == 0 || hello.wordings.max(hello.held_out_wordings) > 1000,
            "\"wordings\" is 1 to 1000, \"held_out_wordings\" 0 to 1000",
        ),
    ];
    if let Some((_, rule)) = rows.into_iter().find(|(broken, _)| *broken) {
        return Err(Fault::Unreadable(rule.into()));
    }
    Ok(Info {
        name: hello.name,
        version: hello.version,
        description: hello.description,
        levels: hello.levels.into_iter().map(level).collect(),
        wordings: Wordings::shared(hello.wordings, hello.held_out_wordings),
        held_out: HeldOut::Items,
        forms: vec![super::super::Form::Direct],
    })
}

/// The reply to `item`.
pub(super) fn content(mut fields: Map<String, Value>) -> Result<Value, Fault> {
    match fields.remove("content") {
        Some(content @ Value::Object(_)) => Ok(content),
        Some(other) => Err(Fault::Unreadable(format!("\"content\" is an object, not {other}"))),
        None => Err(Fault::Unreadable("it lacks \"content\"".into())),
    }
}

/// What follows a reply.
#[derive(Debug, PartialEq)]
pub(super) enum Played {
    /// Something to answer.
    Next(Observed),
    /// The end.
    Done(Grade),
}

/// Something to answer.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub(super) struct Observed {
    /// What is new since the last reply.
    pub(super) messages: Vec<Message>,
    /// The best reply now.
    pub(super) teacher: Option<String>,
    /// The replies that a constant policy can choose from.
    #[serde(default)]
    pub(super) choices: Vec<String>,
}

#[derive(Deserialize)]
struct Graded {
    reward: f32,
    strict: bool,
    lenient: bool,
    feedback: Option<String>,
}

/// The reply to `play`.
pub(super) fn played(fields: Map<String, Value>) -> Result<Played, Fault> {
    if !fields.contains_key("reward") {
        let observed: Observed = read(fields)?;
        return match observed.messages.is_empty() {
            true => Err(Fault::Unreadable("\"messages\" is empty".into())),
            false => Ok(Played::Next(observed)),
        };
    }
    let Graded { reward, strict, lenient, feedback } = read(fields)?;
    match (0.0..=1.0).contains(&reward) {
        true => Ok(Played::Done(Grade { reward, strict, lenient, feedback })),
        false => Err(Fault::Unreadable(format!("\"reward\" is in 0 to 1, not {reward}"))),
    }
}

fn read<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, Fault> {
    serde_json::from_value(Value::Object(fields)).map_err(|error| Fault::Unreadable(error.to_string()))
}

/// The beginning of a line, for people.
pub(super) fn excerpt(line: &[u8]) -> String {
    // A character is at most four bytes.
    let text = String::from_utf8_lossy(&line[..line.len().min(4 * EXCERPT_CHARS)]).trim_end().to_owned();
    match text.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], line.len()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_one_line_each_as_documented() {
        let content = serde_json::json!({ "word": "a\nb" });
        let replies = ["4".to_owned()];
        let rows = [
            (Request::Hello { socius: VERSION }, r#"{"id":7,"type":"hello","socius":1}"#),
            (Request::Item { level: 2, seed: 5 }, r#"{"id":7,"type":"item","level":2,"seed":5}"#),
            (
                Request::Play { content: &content, level: 1, wording: 3, replies: &replies },
                r#"{"id":7,"type":"play","content":{"word":"a\nb"},"level":1,"wording":3,"replies":["4"]}"#,
            ),
        ];
        for (request, line) in rows {
            assert_eq!(request.line(7), format!("{line}\n"));
        }
    }

    #[test]
    fn what_is_wrong_with_a_reply_is_named() {
        type Read = fn(Map<String, Value>) -> Result<(), Fault>;
        let [hello, content, played]: [Read; 3] =
            [|f| hello(f).map(drop), |f| content(f).map(drop), |f| played(f).map(drop)];
        let level = r#""levels":[{"description":"","reply_tokens_max":8}]"#;
        let rows = [
            (hello, "Hello!", "not JSON"),
            (hello, "[1]", "not a JSON object"),
            (hello, r#"{"socius":1}"#, "lacks \"id\": 7"),
            (hello, r#"{"id":8}"#, "\"id\" is 8, the request's is 7"),
            (hello, r#"{"id":7,"error":"no such level"}"#, "no such level"),
            (hello, r#"{"id":7}"#, "none"),
            (hello, r#"{"id":7,"socius":2}"#, "2"),
            (hello, r#"{"id":7,"socius":1,"name":"x"}"#, "missing field"),
            (
                hello,
                &format!(r#"{{"id":7,"socius":1,"name":"../x","version":"","description":"",{level}}}"#),
                "\"name\"",
            ),
            (hello, r#"{"id":7,"socius":1,"name":"x","version":"","description":"","levels":[]}"#, "\"levels\""),
            (
                hello,
                &format!(r#"{{"id":7,"socius":1,"name":"x","version":"","description":"","wordings":0,{level}}}"#),
                "\"wordings\"",
            ),
            (content, r#"{"id":7}"#, "lacks \"content\""),
            (content, r#"{"id":7,"content":3}"#, "not 3"),
            (played, r#"{"id":7}"#, "missing field `messages`"),
            (played, r#"{"id":7,"messages":[]}"#, "empty"),
            (played, r#"{"id":7,"messages":[{"role":"owl","content":""}]}"#, "unknown variant"),
            (played, r#"{"id":7,"reward":2,"strict":true,"lenient":true}"#, "0 to 1, not 2"),
            (played, r#"{"id":7,"reward":1}"#, "missing field `strict`"),
        ];
        for (read, line, reason) in rows {
            let (Fault::Unreadable(found) | Fault::Refused(found) | Fault::Version(found)) =
                fields(line.as_bytes(), 7).and_then(read).unwrap_err();
            assert!(found.contains(reason), "{line}: {found}");
        }
    }

    #[test]
    fn an_excerpt_is_short_and_says_how_much_there_was() {
        assert_eq!(excerpt(b"abc\n"), "\"abc\"");
        assert!(excerpt("é".repeat(5000).as_bytes()).ends_with("(10000 bytes)"));
        assert!(excerpt(&[0xff; 1000]).len() < 1000);
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (fields(&line, 1), excerpt(&line));
        }

        #[test]
        fn no_field_makes_the_readers_panic(key in "socius|name|levels|wordings|messages|reward|content|strict", value in "\\PC*|-?[0-9]{1,30}|\\[\\]|null|\\{\\}") {
            let value: Value = serde_json::from_str(&value).unwrap_or(Value::String(value));
            let whole = serde_json::json!({
                "socius": 1, "name": "x", "version": "1", "description": "", "levels": [{ "description": "", "reply_tokens_max": 8 }],
                "content": {}, "messages": [{ "role": "user", "content": "" }], "strict": true, "lenient": true,
            });
            let Value::Object(mut fields) = whole else { unreachable!("an object") };
            fields.insert(key, value);
            let _ = (hello(fields.clone()), content(fields.clone()), played(fields));
        }
    }
}
