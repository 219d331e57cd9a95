//! Chat templates: messages to the text that a model was trained on, as `apply_chat_template` of transformers renders it.
//! Knows no tokens.

use super::{TextError, python_json};
use crate::common::Message;
use minijinja::{Environment, Error, ErrorKind, Value, context, value::Kwargs};

/// Spellings that a template may use by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenNames {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    names: TokenNames,
}

const NAME: &str = "chat template";

/// Instructions that one rendering may take: a long conversation takes some hundred a message.
const FUEL: u64 = 10_000_000;

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn new(source: &str, names: TokenNames) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|error| TextError::BadTemplate(explained(&error)))?;
        Ok(Self { environment, source: source.to_owned(), names })
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the model's turn begins.
    ///
    /// # Errors
    /// What the template raises, such as roles that do not alternate.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        let render = || {
            let name = |token: &Option<String>| token.as_deref().map_or(Value::UNDEFINED, Value::from);
            self.environment.get_template(NAME)?.render(context! {
                messages, add_generation_prompt,
                tools => (),
                documents => (),
                bos_token => name(&self.names.bos),
                eos_token => name(&self.names.eos),
            })
        };
        render().map_err(|error| TextError::Render(explained(&error)))
    }
}

/// `{% generation %}` marks the model's own words for a training mask; a block that is always there renders the same.
fn without_generation_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let inside = start + "{%".len();
        let Some(end) = rest[inside..].find("%}").map(|end| inside + end) else { break };
        let tag = &rest[inside..end];
        let replaced = match tag.trim_matches(['-', '+']).trim() {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        };
        text.push_str(&rest[..inside]);
        text.push_str(&replaced);
        rest = &rest[end..];
    }
    text + rest
}

/// The whole chain of causes on one line.
fn explained(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
}

/// `json.dumps(value, ensure_ascii=False, indent=…)`, as transformers defines it.
fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _ = options.get::<Option<Value>>(ignored)?;
    }
    options.assert_all_used()?;
    let wrong = |error: serde_json::Error| Error::new(ErrorKind::InvalidOperation, "tojson").with_source(error);
    let json = serde_json::to_value(&value).map_err(wrong)?;
    Ok(Value::from_safe_string(python_json::dumps(&json, indent).map_err(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rendered(source: &str, messages: &[Message]) -> Result<String, TextError> {
        let names = TokenNames { bos: Some("<s>".into()), eos: None };
        ChatTemplate::new(source, names)?.render(messages, true)
    }

    #[test]
    fn templates_render_as_in_jinja() {
        let messages = [Message::system(" Be brief. "), Message::user("Hi \"you\" <b>é</b>\n")];
        let rows = [
            ("{{ bos_token }}{{ messages[0].content | trim }}", "<s>Be brief."),
            ("[{{ eos_token }}]", "[]"),
            ("{{ messages[0]['content'].strip() }}!", "Be brief.!"),
            (
                "{% for m in messages %}\n    {%- if loop.first %}{% continue %}{% endif %}\n{{ m.role }}\n{% endfor %}\nend\n",
                "user\nend",
            ),
            ("{% if add_generation_prompt %}go{% endif %}", "go"),
            ("{% if tools %}t{% endif %}{% if tools is none %}n{% endif %}", "n"),
            ("{{ messages[1] | tojson }}", r#"{"role": "user", "content": "Hi \"you\" <b>é</b>\n"}"#),
            ("{{ [1, [], {}] | tojson(indent=2) }}", "[\n  1,\n  [],\n  {}\n]"),
            ("{%- generation -%} x {%- endgeneration %} y", "x y"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "2",
            ),
            ("{{ messages[1].content.split('\\n')[0] }}", "Hi \"you\" <b>é</b>"),
            ("{{ 'a' if strftime_now('%Y') | length == 4 else 'b' }}", "a"),
            ("{{ date_string is defined }}", "False"),
            ("{{ none }}|{{ true }}", "None|True"),
        ];
        for (source, expected) in rows {
            assert_eq!(rendered(source, &messages).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn what_a_template_refuses_or_gets_wrong_is_said() {
        let rows = [
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("{% for m in messages %}", "malformed"),
            ("{%}}", "malformed"),
            ("{%}", "malformed"),
            ("{{ [] + 1 }}", "cannot write"),
            ("{{ nothing.at_all }}", "undefined"),
            ("{{ strftime_now('%') }}", "strftime_now"),
            ("{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}", "fuel"),
            ("{{ 'a' * 100000000000 }}", "too large"),
            ("{% include 'other' %}", "other"),
        ];
        for (source, part) in rows {
            let message = rendered(source, &[]).unwrap_err().to_string();
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }

    proptest! {
        #[test]
        fn random_templates_never_panic(
            parts in prop::collection::vec(prop_oneof![
                prop::sample::select(vec!["{{", "}}", "{%", "%}", "{%-", "-%}", "{#", "#}", " for m in messages ", " endfor ", " if ",
                    " endif ", "messages", "[0]", ".content", "['role']", " | trim", " | tojson", " set x = ", "x", " generation ",
                    "raise_exception", "(", ")", "'a'", "1", " * ", " ~ ", ".split", "strftime_now('%d')", "loop.index", "\n"]),
                Just("é"),
            ], 0..24),
            content in any::<String>(),
        ) {
            let _ = rendered(&parts.concat(), &[Message::user(content)]);
        }

        #[test]
        fn any_content_comes_out_as_it_went_in(content in any::<String>()) {
            let text = rendered("{% for m in messages %}<{{ m.content }}>{% endfor %}", &[Message::user(content.clone())]);
            prop_assert_eq!(text.unwrap(), format!("<{content}>"));
        }
    }
}
