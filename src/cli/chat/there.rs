//! Talking with a server by OpenAI's protocol, and `socius serve`'s word on who answered. Never opens a model.

use super::{
    super::{flags, interrupt},
    Partner, SamplingFlags, Terminal,
};
use crate::{
    agent::SkillChoice,
    common::{Message, Report},
};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::{
    io::{self, BufRead, BufReader},
    sync::mpsc,
    thread,
    time::Duration,
};
use ureq::{Agent, Body, RequestBuilder, http::Response, typestate::WithBody};

/// How often Ctrl-C is looked for while the server says nothing.
const GLANCE: Duration = Duration::from_millis(50);

/// A server.
pub(super) struct Client {
    agent: Agent,
    url: String,
    key: Option<String>,
    sampling: Value,
    /// The id of the last answer that came to its end.
    last: Option<String>,
}

/// What a stream of events has told so far.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    id: String,
    text: String,
    skill: Option<String>,
    generation: Option<String>,
}

impl Client {
    pub(super) fn new(url: String, key: Option<String>, sampling: &SamplingFlags) -> Self {
        let agent = Agent::config_builder().http_status_as_error(false).build().new_agent();
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Self { agent, url, key, sampling: sampling.fields(), last: None }
    }

    fn post(&self, path: &str) -> RequestBuilder<WithBody> {
        let request = self.agent.post(format!("{}{path}", self.url)).content_type("application/json");
        match &self.key {
            Some(key) => request.header("Authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    /// Chunks as they come, from a thread that ends when nobody takes them any more: a socket that is silent cannot be asked to stop.
    fn chunks(&self, body: &Value) -> mpsc::Receiver<anyhow::Result<Value>> {
        let (sender, chunks) = mpsc::channel();
        let (request, body, url) = (self.post("/v1/chat/completions"), body.to_string(), self.url.clone());
        thread::spawn(move || {
            let read = || {
                let response = request.send(body).with_context(|| unreachable(&url))?;
                let lines = BufReader::new(accepted(response)?.into_body().into_reader()).lines();
                events(lines, |chunk| sender.send(Ok(chunk)).is_ok())
            };
            if let Err(error) = read() {
                // Whoever has left wants to know nothing.
                let _ = sender.send(Err(error));
            }
        });
        chunks
    }

    /// Hears an answer to its end, or until the user ends it; whether it came to its end.
    fn hear(&self, body: &Value, heard: &mut Heard, terminal: &mut Terminal) -> anyhow::Result<bool> {
        let chunks = self.chunks(body);
        while !interrupt::asked() {
            match chunks.recv_timeout(GLANCE) {
                Ok(chunk) => terminal.piece(&heard.take(&chunk?)?)?,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(true),
            }
        }
        Ok(false)
    }
}

impl Partner for Client {
    fn answer(&mut self, messages: &[Message], skill: &SkillChoice, terminal: &mut Terminal) -> anyhow::Result<String> {
        let model = if *skill == SkillChoice::None { "base".to_owned() } else { flags::skill_text(skill) };
        let mut body = self.sampling.clone();
        body["model"] = json!(model);
        body["messages"] = json!(messages);
        body["stream"] = json!(true);
        let mut heard = Heard::default();
        self.last = None;
        let ended = self.hear(&body, &mut heard, terminal);
        interrupt::forget();
        terminal.line("")?;
        let Heard { id, text, skill: by, generation } = heard;
        self.last = ended?.then_some(id);
        if *skill == SkillChoice::Auto {
            terminal.note(&match by {
                Some(by) => format!("[{by}@{:.12}, chosen by the router]", generation.unwrap_or_default()),
                None => "[the base: the router found no skill that fits]".to_owned(),
            });
        }
        Ok(text)
    }

    fn judge(&mut self, reward: f32, right: Option<String>) -> anyhow::Result<()> {
        let id = self.last.as_ref().context("no answer has come to its end yet")?;
        let mut body = json!({ "id": id, "reward": reward });
        if let Some(right) = right {
            body["answer"] = json!(right);
        }
        let response = self.post("/v1/feedback").send(body.to_string()).with_context(|| unreachable(&self.url))?;
        accepted(response).map(drop)
    }
}

fn unreachable(url: &str) -> String {
    format!("{url} cannot be reached: is `socius serve` running there?")
}

/// The response, or what its error says.
fn accepted(mut response: Response<Body>) -> anyhow::Result<Response<Body>> {
    if response.status().is_success() {
        return Ok(response);
    }
    let (status, text) = (response.status(), response.body_mut().read_to_string().unwrap_or_default());
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    bail!("{}", body["error"]["message"].as_str().map_or_else(|| format!("the server says {status}"), str::to_owned))
}

/// Gives `each` the JSON of each event until `[DONE]`, the end, or until it has had enough.
fn events(lines: impl Iterator<Item = io::Result<String>>, mut each: impl FnMut(Value) -> bool) -> anyhow::Result<()> {
    for line in lines {
        let line = line.context("the connection broke off")?;
        // Everything else is a comment that keeps the connection alive, or the line between two events.
        let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" || !each(serde_json::from_str(data).context("an event is not JSON")?) {
            return Ok(());
        }
    }
    bail!("the server ended before its answer did")
}

impl Heard {
    /// Enters a chunk; the text that is new.
    fn take(&mut self, chunk: &Value) -> anyhow::Result<String> {
        if let Some(message) = chunk["error"]["message"].as_str() {
            bail!("{message}");
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.id = text(&chunk["id"]).unwrap_or_default();
        self.skill = text(&chunk["skill"]);
        self.generation = text(&chunk["generation"]);
        let new = text(&chunk["choices"][0]["delta"]["content"]).unwrap_or_default();
        self.text += &new;
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(stream: &str) -> anyhow::Result<Heard> {
        let mut heard = Heard::default();
        let mut wrong = None;
        let lines = stream.lines().map(|line| Ok(line.to_owned()));
        events(lines, |chunk| heard.take(&chunk).map_err(|error| wrong = Some(error)).is_ok())?;
        wrong.map_or(Ok(heard), Err)
    }

    #[test]
    fn an_answer_is_what_its_events_say_and_an_error_among_them_is_one() {
        let chunk = |text: &str| {
            let choices = json!([{ "index": 0, "delta": { "content": text }, "finish_reason": null }]);
            json!({ "id": "chatcmpl-1", "skill": "reverse", "generation": "ab", "choices": choices })
        };
        let usage = json!({ "id": "chatcmpl-1", "skill": "reverse", "generation": "ab", "choices": [], "usage": {} });
        let stream = format!(": \n\ndata: {}\n\ndata:{}\n\ndata: {usage}\n\ndata: [DONE]\n", chunk("a "), chunk("b"));
        let expected = Heard {
            id: "chatcmpl-1".into(),
            text: "a b".into(),
            skill: Some("reverse".into()),
            generation: Some("ab".into()),
        };
        assert_eq!(hear(&stream).unwrap(), expected);
        for (stream, part) in [
            (format!("data: {}\n", chunk("a")), "ended before its answer did"),
            ("data: {\n".to_owned(), "not JSON"),
            ("data: {\"error\": {\"message\": \"too slow\"}}\n".to_owned(), "too slow"),
        ] {
            let error = hear(&stream).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
