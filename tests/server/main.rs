//! `socius serve` as clients meet it: a real process over real HTTP, with the stock `openai` client among them.

#[path = "../cli/checkpoint.rs"]
mod checkpoint;
#[path = "../common/mod.rs"]
mod common;
mod tiny;

use serde_json::{Value, json};
use socius::{
    common::{Seed, Silent},
    lora::{Base, LoraConfig, LoraWeights, PeftFiles},
};
use socius_models::{Checkpoint, Projection};
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

const KEY: &str = "secret";

/// A server on a home of its own that shares the tests' model.
struct Server {
    child: Child,
    url: String,
    home: tempfile::TempDir,
}

impl Server {
    fn start(args: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        common::default_model();
        std::os::unix::fs::symlink(common::home().models(), home.path().join("models")).unwrap();
        Self::on(home, args)
    }

    /// The same over a random model of some kilobytes.
    fn tiny(args: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let model = home.path().join("model");
        checkpoint::write(&model);
        Self::on(home, &[&["--model", model.to_str().unwrap(), "--dtype", "f32"], args].concat())
    }

    fn on(home: tempfile::TempDir, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_socius"))
            .args(["serve", "--bind", "127.0.0.1:0", "--api-key", KEY])
            .args(args)
            .env("SOCIUS_HOME", home.path())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let told = lines.find_map(|line| line.unwrap().split_once("listening on ").map(|(_, url)| url.to_owned()));
        // Nobody else reads it, and a full pipe would stop the server.
        thread::spawn(move || lines.for_each(drop));
        Self { child, url: told.expect("the server says where it listens"), home }
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.ask("POST", path, Some(body))
    }

    fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask("GET", path, None);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// Status and body: JSON, or else its text.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        let request = request.header("Authorization", format!("Bearer {KEY}"));
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut response = agent.run(request.header("Content-Type", "application/json").body(body).unwrap()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// A connection on which a request has been sent, and nothing read.
    fn send(&self, path: &str, body: &Value) -> TcpStream {
        let mut socket = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).unwrap();
        let body = body.to_string();
        write!(
            socket,
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        socket
    }

    /// Requests that wait or run.
    fn in_flight(&self) -> u32 {
        let metrics = self.get("/metrics");
        let lines = metrics.as_str().unwrap().lines();
        lines.filter_map(|line| line.strip_prefix("socius_requests ")).next().unwrap().parse().unwrap()
    }

    /// Whether so many requests wait or run within ten seconds.
    fn comes_to(&self, requests: u32) -> bool {
        (0..200).any(|_| {
            thread::sleep(Duration::from_millis(50));
            self.in_flight() == requests
        })
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A PEFT directory with a random adapter over the default model.
fn adapter(dir: &Path) {
    let local = socius::fetch::ensure(socius::fetch::DEFAULT_MODEL, &common::home(), &mut Silent).unwrap();
    let spec = Checkpoint::open(&local.path).unwrap().spec;
    let config = LoraConfig::uniform(2, 4.0, &[Projection::Q, Projection::Down]);
    let mut rng = Seed::new(1).rng();
    let theta = (0..config.layout(&spec).unwrap().len()).map(|_| 0.05 * rng.normal() as f32).collect();
    let lora = LoraWeights::new(config, &spec, theta).unwrap();
    let name = local.card.and_then(|card| card.base_name()).unwrap();
    PeftFiles::new(&lora, Base { spec: &spec, name, aliases: &[] }).write(dir).unwrap();
}

/// Python with the stock client, made once.
fn python() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/clients");
    let python = folder.join("bin/python");
    let has =
        |python: &Path| Command::new(python).args(["-c", "import openai"]).output().is_ok_and(|o| o.status.success());
    if !has(&python) {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&folder).status().unwrap();
        assert!(made.success(), "python3 -m venv works");
        let requirements = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/requirements.txt");
        let installed =
            Command::new(&python).args(["-m", "pip", "install", "-q", "-r", requirements]).status().unwrap();
        assert!(installed.success(), "pip installs the stock client");
    }
    python
}

#[test]
fn the_stock_client_and_those_of_vllm_and_llama_server_find_what_they_rely_on() {
    let server = Server::start(&[]);
    adapter(&server.home.path().join("adapters/guest"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/openai_client.py");
    let output = Command::new(python()).arg(script).args([&server.url, "guest"]).output().unwrap();
    let (told, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{error}");
    assert!(told.ends_with("adapters ok\n"), "{told}");
}

#[test]
fn a_seeded_request_gives_the_same_answer_alone_and_among_31_others_on_one_thread_and_on_two() {
    let ask = |i: u64| {
        json!({
            "messages": [{ "role": "user", "content": format!("Count from {i} and tell a story.") }],
            "model": "base", "seed": i, "max_completion_tokens": 6 + i % 7,
        })
    };
    let text = |(status, answer): (u16, Value)| {
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let mut answers = Vec::new();
    for threads in ["1", "2"] {
        let server = Server::start(&["--threads", threads, "--timeout", "3000"]);
        let alone: Vec<String> = [0, 17, 31].map(|i| text(server.post("/v1/chat/completions", &ask(i)))).to_vec();
        let together: Vec<String> = thread::scope(|scope| {
            let (server, ask) = (&server, &ask);
            let asked: Vec<_> =
                (0..32).map(|i| scope.spawn(move || server.post("/v1/chat/completions", &ask(i)))).collect();
            asked.into_iter().map(|thread| text(thread.join().unwrap())).collect()
        });
        assert_eq!([&together[0], &together[17], &together[31]], [&alone[0], &alone[1], &alone[2]]);
        answers.push(together);
    }
    assert_eq!(answers[0], answers[1], "whatever the number of threads");
}

#[test]
fn limits_are_told_by_status_and_a_server_that_ends_lets_requests_end() {
    let mut server = Server::start(&["--queue", "1", "--body-max", "8", "--cache-tokens", "2048", "--drain", "900"]);
    let ask = |tokens: usize| json!({ "prompt": "Once upon a time", "model": "base", "max_tokens": tokens, "logit_bias": { "2": -100, "0": -100 } });
    let (status, answer) = server.post("/v1/completions", &json!({ "prompt": "x".repeat(9000) }));
    assert_eq!((status, &answer["error"]["code"]), (413, &json!("request_too_large")));
    let (status, answer) = server.post("/v1/completions", &ask(4000));
    assert_eq!(status, 413, "more than the cache holds: {answer}");

    let long = thread::scope(|scope| {
        let running = scope.spawn(|| server.post("/v1/completions", &ask(150)));
        let refused = (0..200).find_map(|_| {
            thread::sleep(Duration::from_millis(20));
            let (status, answer) = server.post("/v1/completions", &ask(1));
            (status != 200).then_some((status, answer))
        });
        let (status, answer) = refused.expect("the one place in line is taken");
        assert_eq!((status, &answer["error"]["code"]), (429, &json!("queue_full")));
        server.terminate();
        running.join().unwrap()
    });
    assert_eq!((long.0, &long.1["usage"]["completion_tokens"]), (200, &json!(150)), "{}", long.1);
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn an_address_that_others_reach_needs_a_key() {
    let home = tempfile::tempdir().unwrap();
    common::default_model();
    std::os::unix::fs::symlink(common::home().models(), home.path().join("models")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_socius"))
        .args(["serve", "--bind", "0.0.0.0:0"])
        .env("SOCIUS_HOME", home.path())
        .env_remove("SOCIUS_API_KEY")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--api-key"), "{output:?}");
}
