//! What does not need a model that makes sense: learners, feedback, readers that leave, conversations by `socius chat`, and whatever
//! the OpenAPI document allows.

use super::*;
use socius::{
    agent::{BaseChoice, Session},
    common::Home,
};
use socius_models::{DeviceChoice, Dtype};
use std::io::Read;

/// A rule that a constant answer solves half of, which even random weights can be taught.
fn rule(more: Value) -> Value {
    let mut body = json!({ "env": "secret-rule", "name": "rule", "learner": "sft", "steps": 48, "lr": 0.02 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

impl Server {
    /// A job's states, as its events tell them until it is over.
    fn watch(&self, job: &Value) -> Vec<Value> {
        let events = self.get(&format!("/v1/learn/{}/events", job["id"].as_str().unwrap()));
        let mut data: Vec<&str> = events.as_str().unwrap().lines().filter_map(|l| l.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|state| serde_json::from_str(state).unwrap()).collect()
    }

    fn learn(&self, body: &Value) -> Value {
        let (status, job) = self.post("/v1/learn", body);
        assert_eq!(status, 202, "{job}");
        job
    }

    fn chat(&self, model: &str, said: &str, more: Value) -> Value {
        let mut body = json!({ "model": model, "messages": [{ "role": "user", "content": said }], "max_tokens": 8 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = self.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    }
}

fn over(states: &[Value], status: &str) -> Value {
    let last = states.last().unwrap();
    assert_eq!(last["status"], status, "{last}");
    last.clone()
}

#[test]
fn a_learner_is_started_watched_listed_and_cancelled_and_what_it_publishes_is_served() {
    let server = Server::tiny(&["--learners", "1"]);
    let first = server.learn(&rule(json!({})));
    let endless = server.learn(&json!({ "env": "add", "learner": "sft", "steps": 1_000_000 }));
    let waiting = server.learn(&json!({ "env": "json", "learner": "sft" }));
    assert_eq!((&endless["status"], &waiting["status"]), (&json!("waiting"), &json!("waiting")), "one runs at a time");
    let (status, error) = server.post("/v1/learn", &rule(json!({})));
    assert_eq!((status, &error["error"]["param"]), (409, &json!("name")), "{error}");
    let states = server.watch(&first);
    let learned = over(&states, "admitted");
    assert!(states.iter().any(|state| state["phase"] == "training" && state["total"] == 48), "{states:?}");
    assert!(learned["result"]["after"].as_f64() > learned["result"]["before"].as_f64(), "{learned}");

    let generation = &learned["result"]["generation"];
    let answer = server.chat("rule", "3 4 5", json!({}));
    assert_eq!((&answer["skill"], &answer["generation"]), (&json!("rule"), generation));

    let cancel = |job: &Value| server.ask("DELETE", &format!("/v1/learn/{}", job["id"].as_str().unwrap()), None);
    for job in [&endless, &waiting] {
        assert_eq!(cancel(job).0, 200);
        over(&server.watch(job), "cancelled");
    }
    let listed = server.get("/v1/learn");
    let statuses: Vec<_> = listed["jobs"].as_array().unwrap().iter().map(|job| job["status"].clone()).collect();
    assert_eq!(statuses, ["admitted", "cancelled", "cancelled"]);
    assert_eq!(server.ask("GET", "/v1/learn/nobody/events", None).0, 404);
    let wrong = [json!({ "lr": 2.0 }), json!({ "steps": 0 }), json!({ "learner": "none" }), json!({ "level": 99 })];
    for (field, body) in ["lr", "steps", "learner", "level"].iter().zip(wrong) {
        let (status, error) = server.post("/v1/learn", &rule(body));
        assert_eq!((status, &error["error"]["param"]), (400, &json!(field)), "{error}");
    }
}

#[test]
fn a_request_keeps_the_generation_that_it_began_with_and_the_next_has_the_new_one() {
    let server = Server::tiny(&[]);
    let load = |turn: u64| {
        let folder = server.home.path().join("adapters/guest");
        checkpoint::write_adapter(&folder, server.home.path().join("model").to_str().unwrap(), turn);
        server
            .post("/v1/load_lora_adapter", &json!({ "lora_name": "guest", "lora_path": "guest", "load_inplace": true }))
    };
    let long = json!({ "model": "guest", "messages": [{ "role": "user", "content": "a" }], "seed": 5, "stream": true,
        "ignore_eos": true, "max_tokens": 600 });
    let stream = || {
        let (status, events) = server.post("/v1/chat/completions", &long);
        assert_eq!(status, 200, "{events}");
        let chunks = events.as_str().unwrap().lines().filter_map(|line| line.strip_prefix("data: {"));
        let chunks: Vec<Value> = chunks.map(|rest| serde_json::from_str(&format!("{{{rest}")).unwrap()).collect();
        let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert!(chunks.iter().all(|chunk| chunk["generation"] == chunks[0]["generation"]));
        (chunks[0]["generation"].clone(), text)
    };
    assert_eq!(load(0).0, 200);
    let alone = stream();
    let (across, (status, _)) = thread::scope(|scope| {
        let running = scope.spawn(stream);
        assert!(server.comes_to(1), "the stream runs");
        let loaded = load(1);
        (running.join().unwrap(), loaded)
    });
    assert_eq!(status, 200);
    assert_eq!(across, alone, "what runs goes on under what it began with");
    let next = stream();
    assert!(next.0 != alone.0 && next.1 != alone.1, "the next one runs under the new generation");
    assert_eq!(server.get("/v1/models/guest")["root"], next.0);
}

#[test]
fn what_people_say_of_answers_is_learned_from_and_reaches_the_router() {
    let mut server = Server::tiny(&[]);
    let learned = over(&server.watch(&server.learn(&rule(json!({})))), "admitted");
    let (status, error) = server.post("/v1/learn", &json!({ "feedback": true, "name": "told" }));
    assert_eq!((status, &error["error"]["param"]), (400, &json!("feedback")), "nothing was said yet: {error}");
    for i in 0..4 {
        let answer = server.chat("rule", &format!("question {i}"), json!({}));
        let said = json!({ "id": answer["id"], "reward": f64::from(i % 2), "answer": "a" });
        assert_eq!(server.post("/v1/feedback", &said), (200, json!({ "stored": true })));
    }
    let of_base = server.chat("base", "hm", json!({}));
    assert_eq!(server.post("/v1/feedback", &json!({ "id": of_base["id"], "reward": 0.5 })).0, 200);
    let job = server.learn(&json!({ "feedback": true, "name": "told", "steps": 40, "lr": 0.02 }));
    over(&server.watch(&job), "admitted");
    assert_eq!(server.chat("told", "question 1", json!({ "temperature": 0 }))["choices"][0]["message"]["content"], "a");
    server.terminate();
    assert!(server.child.wait().unwrap().success());

    let model = server.home.path().join("model").display().to_string();
    let choice = BaseChoice { model, device: DeviceChoice::Cpu, dtype: Dtype::F32 };
    let session = Session::open(&choice, Home::at(server.home.path()), &mut Silent).unwrap();
    let generation = learned["result"]["generation"].as_str().unwrap().parse().unwrap();
    let record = session.outcomes().get(&generation).copied().unwrap();
    assert_eq!((record.good, record.bad), (2.0, 2.0));
}

/// A stream that would go on for long.
fn endless() -> Value {
    json!({ "prompt": "a", "model": "base", "max_tokens": 1000, "stream": true, "ignore_eos": true })
}

#[test]
fn whoever_hangs_up_ends_what_they_asked_for_whether_it_runs_or_waits() {
    let server = Server::start(&["--parallel", "1"]);
    let mut running = server.send("/v1/completions", &endless());
    let mut first = [0; 400];
    running.read_exact(&mut first).unwrap();
    assert!(String::from_utf8_lossy(&first).starts_with("HTTP/1.1 200"));
    let waiting = server.send("/v1/completions", &endless());
    let mut whole = endless();
    whole["stream"] = json!(false);
    let silent = server.send("/v1/completions", &whole);
    assert!(server.comes_to(3), "one runs, two wait");
    drop(waiting);
    assert!(server.comes_to(2), "a stream that has not begun");
    drop(silent);
    assert!(server.comes_to(1), "an answer that is not streamed");
    drop(running);
    assert!(server.comes_to(0), "a thousand tokens would take longer");
}

#[test]
fn a_conversation_with_a_server_streams_says_who_answers_and_keeps_what_it_was_worth() {
    let server = Server::tiny(&[]);
    over(&server.watch(&server.learn(&rule(json!({})))), "admitted");
    let talk = |lines: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_socius"))
            .args(["chat", "--url", &server.url, "--key", KEY, "--max-tokens", "6", "--json"])
            .env("SOCIUS_HOME", server.home.path().join("client"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}");
        (serde_json::from_str::<Value>(out.lines().last().unwrap()).unwrap(), err.into_owned())
    };
    let (ended, told) = talk("/good\n3 4 5\n/good\n/skill nobody\nhm\n/skill rule\nagain\n/teach right\n/exit\n");
    let roles: Vec<_> = ended["messages"].as_array().unwrap().iter().map(|m| m["role"].clone()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"], "the turn that failed is not part of it: {ended}");
    for part in ["no answer has come", "the router", "kept", "\"nobody\" does not exist"] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let kept = std::fs::read_to_string(server.home.path().join("experience.jsonl")).unwrap();
    let kept: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((kept.len(), &kept[0]["reward"], &kept[1]["answer"]), (2, &json!(1.0), &json!("right")));
    assert_eq!(kept[1]["messages"].as_array().unwrap().len(), 3, "history is sent: {}", kept[1]);
}

impl Server {
    /// What the base's answer to `more` must be, as JSON.
    fn json(&self, more: Value) -> Value {
        let answer = self.chat("base", "hm", more);
        let said = &answer["choices"][0]["message"];
        let call = &said["tool_calls"][0]["function"]["arguments"];
        let text = call.as_str().or(said["content"].as_str()).unwrap_or_default();
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    fn refuses(&self, path: &str, body: &Value, with: (u16, &str)) {
        let (status, error) = self.post(path, body);
        assert!(status == with.0 && error["error"].to_string().contains(with.1), "{status} {error}");
    }
}

#[test]
fn a_temperature_next_to_zero_is_zero() {
    let server = Server::tiny(&[]);
    let said = |more: Value| server.chat("base", "a", more)["choices"][0]["message"]["content"].clone();
    let greedy = said(json!({ "temperature": 0 }));
    for temperature in [1e-45, 1e-40, 2.9e-39, 3e-39, 1e-30] {
        assert_eq!(said(json!({ "temperature": temperature })), greedy, "{temperature}");
        assert_eq!(said(json!({ "temperature": temperature, "top_p": 0.9 })), greedy, "{temperature}");
    }
}

#[test]
fn prompts_and_schemas_of_any_size_are_answered_or_refused() {
    let server = Server::tiny(&[]);
    // Thirty bytes a reference, each of them some levels of recursion.
    let link = |i: usize| (format!("d{i}"), json!({ "$ref": format!("#/$defs/d{}", i + 1) }));
    let mut links: serde_json::Map<String, Value> = (0..7000).map(link).collect();
    links.insert("d7000".into(), json!({ "const": 1 }));
    let schema = json!({ "$ref": "#/$defs/d0", "$defs": links });
    let format = json!({ "type": "json_schema", "json_schema": { "schema": schema } });
    assert_eq!(server.json(json!({ "response_format": format })), 1);

    let long = "a ".repeat(200_000);
    server.refuses("/v1/route", &json!({ "prompt": long }), (400, "context_length_exceeded"));
    let many = json!({ "input": vec![vec![0; 1000]; 100] });
    server.refuses("/v1/embeddings", &many, (413, "100000 tokens"));
}

#[test]
fn a_format_is_kept_whole_or_refused() {
    let server = Server::tiny(&[]);
    let one = |key: &str| json!({ "type": "object", "properties": { key: { "const": 1 } }, "required": [key], "additionalProperties": false });
    let object = json!({ "type": "json_object", "schema": one("x") });
    assert_eq!(server.json(json!({ "response_format": object, "max_tokens": 64 })), json!({ "x": 1 }));
    let text = json!({ "type": "text", "schema": one("x") });
    let body = json!({ "messages": [{ "role": "user", "content": "a" }], "response_format": text });
    server.refuses("/v1/chat/completions", &body, (400, "schema"));

    // As pydantic writes a model within a model.
    let mut nested = json!({ "type": "object", "properties": { "inner": { "$ref": "#/$defs/Inner" } }, "required": ["inner"],
        "additionalProperties": false });
    nested["$defs"] = json!({ "Inner": one("x") });
    let tool = |name: &str| json!({ "type": "function", "function": { "name": name, "parameters": nested } });
    for tools in [json!([tool("f")]), json!([tool("f"), tool("g")])] {
        let forced = json!({ "tools": tools, "tool_choice": "required", "max_tokens": 128 });
        assert_eq!(server.json(forced), json!({ "inner": { "x": 1 } }));
    }
}

#[test]
fn the_base_answers_when_the_skill_that_stood_for_it_is_gone() {
    let server = Server::tiny(&[]);
    let folder = server.home.path().join("adapters/guest");
    checkpoint::write_adapter(&folder, server.home.path().join("model").to_str().unwrap(), 0);
    let stand = || {
        let load = json!({ "lora_name": "guest", "lora_path": "guest" });
        assert_eq!(server.post("/v1/load_lora_adapter", &load).0, 200);
        assert_eq!(server.chat("base", "a", json!({}))["skill"], Value::Null, "not unasked");
        assert_eq!(server.post("/lora-adapters", &json!([{ "id": 0, "scale": 1.0 }])).0, 200);
        assert_eq!(server.chat("base", "a", json!({}))["skill"], "guest");
    };
    stand();
    assert_eq!(server.post("/v1/unload_lora_adapter", &json!({ "lora_name": "guest" })).0, 200);
    stand();
    let mut elsewhere = Command::new(env!("CARGO_BIN_EXE_socius"));
    elsewhere.args(["skills", "remove", "guest"]).env("SOCIUS_HOME", server.home.path());
    assert!(elsewhere.output().unwrap().status.success());
    assert_eq!(server.chat("base", "a", json!({}))["skill"], Value::Null);
}

#[test]
fn learners_that_wait_are_not_without_number() {
    let server = Server::tiny(&["--learners", "1"]);
    let start = |i: usize| {
        let example = |k: usize| json!({ "prompt": format!("question {k}"), "completion": "a" });
        let examples: Vec<Value> = (0..16).map(example).collect();
        let body = json!({ "name": format!("n{i}"), "examples": examples, "steps": 1_000_000 });
        server.post("/v1/learn", &body)
    };
    let first = (0..300).map(start).find(|(status, _)| *status != 202);
    let (status, error) = first.expect("one of 300 is refused");
    assert_eq!((status, &error["error"]["code"]), (429, &json!("queue_full")), "{error}");
}
