//! Functions that a model may call: told to it in the system message, read back from its answer, as Hermes and Qwen models write
//! them. One way for every chat template. Never calls anything.

use super::error::ApiError;
use crate::{
    common::{Message, Role},
    text::Grammar,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";
const TOOLS_MAX: usize = 128;

/// A function as a client declares it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tool {
    /// `function`.
    r#type: FunctionType,
    function: FunctionDeclaration,
}

/// The one kind of tool.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum FunctionType {
    /// A function.
    Function,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FunctionDeclaration {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// JSON schema of the arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parameters: Option<serde_json::Map<String, Value>>,
    /// Calls fit the schema whenever they are asked for (`required`, or by name), whether this is set or not.
    #[serde(default, skip_serializing)]
    #[allow(dead_code, reason = "a promise that is kept anyway")]
    strict: Option<bool>,
}

/// Whether functions may, must or must not be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ToolChoice {
    /// `auto`, `none` or `required`.
    Mode(ToolMode),
    /// This one must be called.
    Named(NamedTool),
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ToolMode {
    /// As the model sees fit.
    Auto,
    /// Never.
    None,
    /// One of them, whichever.
    Required,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NamedTool {
    #[allow(dead_code, reason = "there is only one kind")]
    r#type: FunctionType,
    function: FunctionName,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FunctionName {
    name: String,
}

/// A call, as it stands in answers and in the conversations that follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolCall {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<usize>,
    pub(super) id: String,
    pub(super) r#type: FunctionType,
    pub(super) function: FunctionCall,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FunctionCall {
    pub(super) name: String,
    /// JSON, as text.
    pub(super) arguments: String,
}

/// The tools of a request, checked against its choice.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    tools: Vec<Tool>,
    forced: bool,
    /// Whether an answer may hold several calls.
    parallel: bool,
}

impl Tools {
    /// None if no function may be called.
    pub(super) fn new(tools: Vec<Tool>, choice: Option<ToolChoice>, parallel: bool) -> Result<Option<Self>, ApiError> {
        if tools.len() > TOOLS_MAX {
            return Err(ApiError::field("tools", format!("at most {TOOLS_MAX} tools are taken")));
        }
        let any = !tools.is_empty();
        let all = |forced| Self { tools: tools.clone(), forced, parallel };
        match choice {
            None | Some(ToolChoice::Mode(ToolMode::Auto)) => Ok(any.then(|| all(false))),
            Some(ToolChoice::Mode(ToolMode::None)) => Ok(None),
            Some(ToolChoice::Mode(ToolMode::Required)) if any => Ok(Some(all(true))),
            Some(ToolChoice::Named(NamedTool { function, .. })) => {
                let named = tools.iter().find(|tool| tool.function.name == function.name).cloned();
                let missing = || ApiError::field("tool_choice", format!("tools has no function {:?}", function.name));
                Ok(Some(Self { tools: vec![named.ok_or_else(missing)?], forced: true, parallel }))
            }
            Some(_) => Err(ApiError::field("tool_choice", "tool_choice needs tools")),
        }
    }

    /// Whether the whole answer is a call.
    pub(super) fn forced(&self) -> bool {
        self.forced
    }

    /// What a forced call must be.
    pub(super) fn grammar(&self) -> Option<Grammar> {
        let alone = self.tools.len() == 1;
        let call = |(index, Tool { function, .. }): (usize, &Tool)| {
            let mut arguments = function.parameters.clone().map_or_else(|| json!({ "type": "object" }), Value::Object);
            let place = if alone { String::new() } else { format!("/anyOf/{index}") };
            move_references(&mut arguments, &format!("#{place}/properties/arguments"));
            json!({
                "type": "object",
                "properties": { "name": { "const": function.name }, "arguments": arguments },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        let calls: Vec<Value> = self.tools.iter().enumerate().map(call).collect();
        self.forced.then(|| Grammar::Schema(if alone { calls[0].clone() } else { json!({ "anyOf": calls }) }))
    }

    /// Tells the model of its tools, in its system message.
    pub(super) fn tell(&self, messages: &mut Vec<Message>) {
        let tools: Vec<String> = self.tools.iter().map(|tool| json!(tool).to_string()).collect();
        let text = format!(
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function \
             signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\nFor each function call, return a json object with \
             function name and arguments within {BEGIN}{END} XML tags:\n{BEGIN}\n{{\"name\": <function-name>, \"arguments\": \
             <args-json-object>}}\n{END}",
            tools.join("\n")
        );
        match messages.first_mut() {
            Some(first) if first.role == Role::System => first.content = format!("{}\n\n{text}", first.content),
            _ => messages.insert(0, Message::system(text)),
        }
    }
}

/// Makes references into a schema's own document (`#/$defs/…`) lead to where the schema stands in a larger one, `root`.
fn move_references(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(to) if key == "$ref" && (to == "#" || to.starts_with("#/")) => {
                        *to = format!("{root}{}", to[1..].trim_end_matches('/'));
                    }
                    // What is data, not a schema.
                    _ if matches!(key.as_str(), "const" | "enum" | "default" | "examples") => {}
                    value => move_references(value, root),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| move_references(value, root)),
        _ => {}
    }
}

/// A call that was made, as the model wrote it.
pub(super) fn written(calls: &[ToolCall]) -> String {
    let one = |call: &ToolCall| {
        let FunctionCall { name, arguments } = &call.function;
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!(arguments));
        format!("{BEGIN}\n{}\n{END}", json!({ "name": name, "arguments": arguments }))
    };
    calls.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// What a function gave, as the model reads it.
pub(super) fn response(text: &str) -> String {
    format!("<tool_response>\n{text}\n</tool_response>")
}

/// An answer that may hold calls: what stands before the first is its text.
#[derive(Debug, Default)]
pub(super) struct Reader {
    text: String,
    sent: usize,
    forced: bool,
    calling: bool,
}

impl Reader {
    pub(super) fn new(tools: &Tools) -> Self {
        Self { forced: tools.forced, calling: tools.forced, ..Self::default() }
    }

    /// Adds `piece` and gives what is certainly text.
    pub(super) fn push(&mut self, piece: &str) -> String {
        self.text.push_str(piece);
        if self.calling {
            return String::new();
        }
        let end = match self.text[self.sent..].find(BEGIN) {
            Some(at) => {
                self.calling = true;
                self.sent + at
            }
            None => {
                let pending = (1..BEGIN.len()).rev().find(|&n| self.text.ends_with(&BEGIN[..n])).unwrap_or(0);
                (self.text.len() - pending).max(self.sent)
            }
        };
        let from = std::mem::replace(&mut self.sent, end);
        self.text[from..end].to_owned()
    }

    /// The rest: calls, and what is none after all. `id` names each call.
    pub(super) fn finish(self, tools: &Tools, mut id: impl FnMut() -> String) -> (String, Vec<ToolCall>) {
        let rest = &self.text[self.sent..];
        let mut calls: Vec<ToolCall> = match self.forced {
            true => read(rest, tools, &mut id).into_iter().collect(),
            false => {
                rest.split(BEGIN).skip(1).filter_map(|part| read(part.split(END).next()?, tools, &mut id)).collect()
            }
        };
        if !tools.parallel {
            calls.truncate(1);
        }
        calls.iter_mut().enumerate().for_each(|(index, call)| call.index = Some(index));
        (if calls.is_empty() { rest.to_owned() } else { String::new() }, calls)
    }
}

/// `{"name": …, "arguments": …}`, if it is a call of one of `tools`.
fn read(text: &str, tools: &Tools, id: &mut impl FnMut() -> String) -> Option<ToolCall> {
    let call: Value = serde_json::from_str(text.trim()).ok()?;
    let name = call["name"].as_str()?;
    tools.tools.iter().find(|tool| tool.function.name == name)?;
    let arguments = match &call["arguments"] {
        Value::Null => json!({}).to_string(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let function = FunctionCall { name: name.to_owned(), arguments };
    Some(ToolCall { index: None, id: id(), r#type: FunctionType::Function, function })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: &str) -> Result<Option<Tools>, ApiError> {
        let tool =
            |name: &str| serde_json::from_value(json!({ "type": "function", "function": { "name": name } })).unwrap();
        Tools::new(vec![tool("f"), tool("g")], Some(serde_json::from_str(choice).unwrap()), true)
    }

    fn read_all(tools: &Tools, pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let mut reader = Reader::new(tools);
        let mut text: String = pieces.iter().map(|piece| reader.push(piece)).collect();
        let (rest, calls) = reader.finish(tools, || "id".into());
        text += &rest;
        (text, calls.into_iter().map(|call| (call.function.name, call.function.arguments)).collect())
    }

    #[test]
    fn an_answer_is_split_into_text_and_calls() {
        let auto = tools(r#""auto""#).unwrap().unwrap();
        let call = |name: &str, arguments: &str| (name.to_owned(), arguments.to_owned());
        let rows: [(&[&str], &str, Vec<(String, String)>); 6] = [
            (&["a <b", " c"], "a <b c", vec![]),
            (
                &["Hm. <tool", "_call>\n{\"name\": \"f\", \"arguments\"", ": {\"x\": 1}}\n</tool_call>"],
                "Hm. ",
                vec![call("f", "{\"x\":1}")],
            ),
            (
                &["<tool_call>{\"name\":\"f\"}</tool_call><tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>"],
                "",
                vec![call("f", "{}"), call("g", "{}")],
            ),
            (&["<tool_call>{\"name\":\"h\"}</tool_call>"], "<tool_call>{\"name\":\"h\"}</tool_call>", vec![]),
            (&["<tool_call>{\"name\":"], "<tool_call>{\"name\":", vec![]),
            (&["<tool_"], "<tool_", vec![]),
        ];
        for (pieces, text, calls) in rows {
            assert_eq!(read_all(&auto, pieces), (text.to_owned(), calls), "{pieces:?}");
        }
    }

    #[test]
    fn a_forced_answer_is_one_call_and_a_choice_needs_its_tool() {
        let named = tools(r#"{"type": "function", "function": {"name": "g"}}"#).unwrap().unwrap();
        let found = read_all(&named, &["{\"name\": \"g\", ", "\"arguments\": {\"a\": [1]}}"]);
        assert_eq!(found, (String::new(), vec![("g".to_owned(), "{\"a\":[1]}".to_owned())]));
        assert!(
            matches!(named.grammar(), Some(Grammar::Schema(schema)) if schema["properties"]["name"]["const"] == "g")
        );
        assert!(tools(r#"{"type": "function", "function": {"name": "h"}}"#).is_err());
        assert!(tools(r#""none""#).unwrap().is_none());
        assert!(Tools::new(vec![], Some(ToolChoice::Mode(ToolMode::Required)), true).is_err());
    }

    #[test]
    fn the_model_is_told_in_its_system_message() {
        let auto = tools(r#""auto""#).unwrap().unwrap();
        for mut messages in [vec![Message::user("hi")], vec![Message::system("Be brief."), Message::user("hi")]] {
            let system = messages.len() == 2;
            auto.tell(&mut messages);
            assert_eq!((messages.len(), messages[0].role), (2, Role::System));
            assert_eq!(messages[0].content.starts_with("Be brief.\n\n# Tools"), system);
            assert!(messages[0].content.contains(r#"{"type":"function","function":{"name":"g"}}"#));
        }
    }
}
