//! Environments in other processes: the example in Python, and children that misbehave.
#![cfg(unix)]

use socius::{
    common::Seed,
    envs::{
        EnvError, Environment, Limits, Outcome, Phrasing, ProcessEnvironment, ProcessError, Query, Split, answer, items,
    },
};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

const HELLO: &str = r#"{"id": 1, "socius": 1, "name": "toy", "version": "1", "description": "A toy.", "levels": [{"description": "one", "reply_tokens_max": 4, "turns_max": 2}]}"#;

fn vowels() -> ProcessEnvironment {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/envs/vowels.py");
    ProcessEnvironment::spawn(&format!("python3 '{}'", script.display())).unwrap()
}

/// Time enough for a child on a busy machine, and not for one that sleeps for a minute.
fn limits() -> Limits {
    Limits { reply: Duration::from_secs(20), line_bytes_max: 10_000 }
}

/// What `command` is refused with, as a process error and its text.
fn refused(command: &str, limits: Limits) -> (ProcessError, String) {
    match ProcessEnvironment::spawn_within(command, limits) {
        Err(EnvError::Process(error)) => {
            let text = error.to_string();
            (*error, text)
        }
        Err(other) => panic!("{command}: {other}"),
        Ok(_) => panic!("{command} was taken for an environment"),
    }
}

/// A child that says a good hello and then does as told.
fn toy(then: &str) -> String {
    format!("read line; echo '{HELLO}'; {then}")
}

fn is_alive(pid: &str) -> bool {
    Command::new("sh").args(["-c", &format!("kill -0 {pid} 2>/dev/null")]).status().unwrap().success()
}

#[test]
fn the_example_is_an_environment_of_thirty_lines() {
    let source =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/envs/vowels.py")).unwrap();
    assert!(source.lines().count() <= 30);
    let env = vowels();
    assert_eq!((env.info().name.as_str(), env.info().levels.len()), ("vowels", 3));
    let mut seen = std::collections::HashMap::new();
    for split in Split::ALL {
        let query = Query::new(split, 1);
        let found = items(&env, &query, Seed::new(1), 100).unwrap();
        assert_eq!(found, items(&env, &query, Seed::new(1), 100).unwrap());
        for item in &found {
            assert_eq!(*seen.entry(item.id).or_insert(split), split, "splits are disjoint");
            let right = answer(&env, item).unwrap().unwrap();
            let rows = [(right.clone(), 1.0, true, true), (format!("It has {right}."), 0.0, false, true)];
            for (reply, reward, strict, lenient) in rows {
                let mut session = env.start(item).unwrap();
                assert_eq!(session.observe().len(), 1);
                let Outcome::Done(grade) = session.act(&reply).unwrap() else { panic!("one turn") };
                assert_eq!((grade.reward, grade.strict, grade.lenient), (reward, strict, lenient), "{reply}");
                assert_eq!((session.observe().len(), session.teacher()), (2, None));
            }
        }
    }
    let held_out = Query { phrasing: Phrasing::HeldOut, ..Query::new(Split::Test, 1) };
    let item = &items(&env, &held_out, Seed::new(2), 1).unwrap()[0];
    assert!(env.start(item).unwrap().observe()[0].content.ends_with("has how many vowels?"));
}

#[test]
fn a_child_that_misbehaves_is_named_with_what_came_and_what_was_expected() {
    let version = HELLO.replace("\"socius\": 1", "\"socius\": 9");
    let stale = HELLO.replace("\"id\": 1", "\"id\": 0");
    let rows = [
        ("echo Hello there; sleep 60".to_owned(), "answered \"hello\" with \"Hello there\": it is not JSON"),
        ("echo '[1, 2]'; sleep 60".into(), "it is not a JSON object; expected: {\"id\": …, \"socius\": 1"),
        (format!("echo '{stale}'; sleep 60"), "its \"id\" is 0, the request's is 1"),
        (format!("echo '{version}'; sleep 60"), "speaks version 9 of the protocol; expected \"socius\": 1"),
        ("printf '\\377\\376\\n'; sleep 60".into(), "it is not JSON"),
        ("echo no model >&2; exit 3".into(), "ended (exit status: 3) instead of answering \"hello\""),
        ("echo no model >&2; exit 3".into(), "on stderr it said:\nno model"),
        ("kill -9 $$".into(), "signal: 9"),
        ("no-such-program-anywhere".into(), "exit status: 127"),
        ("printf '{\"id\": 1'".into(), "after the unfinished line \"{\\\"id\\\": 1\""),
        ("exec >&-; sleep 60".into(), "ended (its output closed)"),
        ("head -c 1000000 /dev/zero | tr '\\0' x; sleep 60".into(), "a line of more than 10000 bytes: \"xxx"),
        ("while :; do echo spam; done".into(), "\"spam\""),
        ("read line; echo '{\"id\": 1, \"error\": \"no licence\"}'; sleep 60".into(), "refused \"hello\": no licence"),
    ];
    let rows = rows.map(|(command, message)| (command, message, limits()));
    let silent = "did not answer \"hello\" within 0.4 s; expected one line: {";
    let impatient = Limits { reply: Duration::from_millis(400), ..limits() };
    for (command, message, limits) in rows.into_iter().chain([("sleep 60".into(), silent, impatient)]) {
        let start = Instant::now();
        let (_, text) = refused(&command, limits);
        assert!(text.contains(message), "{command}: {text}");
        assert!(text.len() < 1200 && start.elapsed() < Duration::from_secs(50), "{command}: {text}");
    }
}

#[test]
fn a_child_and_what_it_started_do_not_outlive_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let record = format!("sleep 300 & echo $! $$ > '{}'", pids.display());
    let read = || std::fs::read_to_string(&pids).unwrap();
    let gone = |pids: &str| {
        let until = Instant::now() + Duration::from_secs(5);
        pids.split_whitespace().all(|pid| {
            while is_alive(pid) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
            !is_alive(pid)
        })
    };
    refused(&format!("{record}; sleep 300"), Limits { reply: Duration::from_secs(2), ..limits() });
    assert!(gone(&read()), "after silence");
    let env = ProcessEnvironment::spawn_within(&format!("{record}; {}", toy("sleep 300")), limits()).unwrap();
    let running = read();
    assert!(running.split_whitespace().all(is_alive));
    drop(env);
    assert!(gone(&running), "after the environment was dropped");
}

#[test]
fn after_a_failure_every_request_repeats_its_reason_and_a_refusal_is_no_failure() {
    let query = Query::new(Split::Train, 1);
    let env = ProcessEnvironment::spawn_within(&toy("read line; echo oops; sleep 60"), limits()).unwrap();
    let first = items(&env, &query, Seed::new(1), 1).unwrap_err().to_string();
    assert!(first.contains("answered \"item\" with \"oops\""), "{first}");
    let second = items(&env, &query, Seed::new(1), 1).unwrap_err();
    assert!(second.to_string().contains(&first), "{second}");
    assert!(matches!(second, EnvError::Process(error) if matches!(*error, ProcessError::Gone { .. })));

    let content = r#"{"id": 3, "content": {"x": 1}}"#;
    let script =
        format!("read line; echo '{{\"id\": 2, \"error\": \"not yet\"}}'; read line; echo '{content}'; sleep 60");
    let env = ProcessEnvironment::spawn_within(&toy(&script), limits()).unwrap();
    let draw = socius::envs::Draw { seed: Seed::new(1), attempt: 0 };
    let refusal = env.candidate(1, draw).unwrap_err();
    assert!(matches!(refusal, EnvError::Process(error) if matches!(*error, ProcessError::Refused { .. })));
    assert_eq!(env.candidate(1, draw).unwrap(), serde_json::json!({ "x": 1 }));
}

#[test]
fn an_episode_is_held_to_its_turns_and_an_environment_to_its_splits() {
    let python = |play: &str| {
        let script = format!(
            r#"
import json, sys
for line in sys.stdin:
    ask = json.loads(line)
    replies = ask.get("replies")
    say = {{"messages": [{{"role": "user", "content": str(replies)}}], "teacher": "go", "choices": ["a", "b"]}}
    done = {{"reward": 0.5, "strict": False, "lenient": True}}
    reply = {hello} if ask["type"] == "hello" else {{"content": {{"x": 1}}}} if ask["type"] == "item" else {play}
    print(json.dumps({{**reply, "id": ask["id"]}}), flush=True)
"#,
            hello = HELLO
        );
        ProcessEnvironment::spawn(&format!("exec python3 -c '{script}'")).unwrap()
    };
    let env = python("done if len(replies) == 2 else say");
    let mut offered = 0;
    for split in Split::ALL {
        match items(&env, &Query::new(split, 1), Seed::new(1), 5) {
            Ok(found) => {
                assert_eq!(found.len(), 1, "one content is one item");
                offered += 1;
                assert_eq!(env.choices(&found[0]).unwrap(), ["a", "b"]);
                let mut session = env.start(&found[0]).unwrap();
                assert_eq!(session.teacher().as_deref(), Some("go"));
                assert_eq!(session.act("é\"\n").unwrap(), Outcome::Next);
                assert_eq!(session.observe().last().unwrap().content, "['é\"\\n']");
                let Outcome::Done(grade) = session.act("b").unwrap() else { panic!("the second turn is the last") };
                assert_eq!((grade.reward, grade.lenient, grade.feedback), (0.5, true, None));
            }
            Err(error) => assert!(matches!(error, EnvError::Exhausted { attempts: 300, .. }), "{error}"),
        }
    }
    assert_eq!(offered, 1);

    let item = socius::envs::Item::new(serde_json::json!({ "x": 1 }), 1, Default::default(), 0);
    let endless = python("say");
    let mut session = endless.start(&item).unwrap();
    session.act("a").unwrap();
    let error = session.act("b").unwrap_err().to_string();
    assert!(error.contains("\"turns_max\""), "{error}");

    let hasty = python("done").start(&item).err().unwrap().to_string();
    assert!(hasty.contains("no reply yet to grade"), "{hasty}");
}

#[test]
fn the_documented_conversation_is_the_one_that_the_example_has() {
    use std::io::Write;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/environments.md")).unwrap();
    let lines = page.lines().map(str::trim);
    let requests: Vec<_> = lines.clone().filter_map(|line| line.strip_prefix("→ ")).collect();
    assert_eq!(requests.len(), 4);
    let mut child = Command::new("python3")
        .arg(root.join("examples/envs/vowels.py"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all((requests.join("\n") + "\n").as_bytes()).unwrap();
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let said: Vec<_> = output.lines().map(read).collect();
    let documented: Vec<_> = lines.filter_map(|line| line.strip_prefix("← ")).collect();
    // The hello is broken in two lines and shows one level of three; the last is an error that the example never gives.
    assert_eq!(documented.len(), 5);
    for (documented, said) in documented[1..4].iter().zip(&said[1..]) {
        assert_eq!(read(documented), *said);
    }
    assert_eq!(said[0]["levels"][0], serde_json::json!({ "description": "4 letters", "reply_tokens_max": 6 }));
}
