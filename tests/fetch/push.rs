//! A hub that takes what is pushed, in memory, by the protocol of the real one.

use socius::common::Digest;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// What was received.
#[derive(Default)]
pub(crate) struct Received {
    /// `METHOD path token` of each request.
    pub(crate) log: Vec<String>,
    /// Large files by digest.
    pub(crate) stored: BTreeMap<String, Vec<u8>>,
    /// Lines of the last commit.
    pub(crate) commit: Vec<serde_json::Value>,
}

/// A hub that lets in who has the token `right`.
pub(crate) fn serve() -> (String, Arc<Mutex<Received>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let received = Arc::new(Mutex::new(Received::default()));
    let (state, origin) = (received.clone(), endpoint.clone());
    thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), &state, &origin);
        }
    });
    (endpoint, received)
}

fn answer(mut stream: TcpStream, received: &Mutex<Received>, origin: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut words = first.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let (mut length, mut token) = (0, String::new());
    for line in reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => token = value.strip_prefix("Bearer ").unwrap().to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let mut state = received.lock().unwrap();
    state.log.push(format!("{method} {path} {token}").trim_end().to_owned());
    let (status, reply) = reply(&mut state, path, &token, &body, origin);
    let head = format!("HTTP/1.1 {status} -\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", reply.len());
    // The client may already have gone: that is its right.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(reply.as_bytes()));
}

fn reply(state: &mut Received, path: &str, token: &str, body: &[u8], origin: &str) -> (u16, String) {
    let json = || serde_json::from_slice::<serde_json::Value>(body).unwrap();
    if let Some(digest) = path.strip_prefix("/storage/") {
        assert_eq!(Digest::of(body).to_string(), digest);
        state.stored.insert(digest.to_owned(), body.to_vec());
        return (200, String::new());
    }
    if token != "right" {
        return (401, "no".into());
    }
    match path {
        "/api/repos/create" if json()["name"] == "there" => (409, "it exists".into()),
        "/api/repos/create" => (200, "{}".into()),
        _ if path.ends_with("/preupload/main") => {
            let mode = |file: &serde_json::Value| {
                let path = file["path"].as_str().unwrap();
                let large = path.ends_with(".safetensors") || path.ends_with(".socius");
                serde_json::json!({ "path": path, "uploadMode": if large { "lfs" } else { "regular" } })
            };
            let files: Vec<_> = json()["files"].as_array().unwrap().iter().map(mode).collect();
            (200, serde_json::json!({ "files": files }).to_string())
        }
        _ if path.ends_with("/info/lfs/objects/batch") => {
            let place = |object: &serde_json::Value| {
                let oid = object["oid"].as_str().unwrap();
                let upload =
                    serde_json::json!({ "href": format!("{origin}/storage/{oid}"), "header": { "x-key": "k" } });
                match state.stored.contains_key(oid) {
                    true => serde_json::json!({ "oid": oid }),
                    false => serde_json::json!({ "oid": oid, "actions": { "upload": upload } }),
                }
            };
            let objects: Vec<_> = json()["objects"].as_array().unwrap().iter().map(place).collect();
            (200, serde_json::json!({ "objects": objects }).to_string())
        }
        _ if path.ends_with("/commit/main") => {
            let lines = std::str::from_utf8(body).unwrap().lines();
            state.commit = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
            (200, "{}".into())
        }
        _ => (404, "nothing here".into()),
    }
}
