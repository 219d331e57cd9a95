//! A hub of a few files on a local port, which answers as the real one does, or fails as told.

use sha1::Sha1;
use socius::common::Digest;
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// The commit of every repository here.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server misbehaves.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    /// Every body ends after so many bytes, whatever was announced.
    pub(crate) cut: Option<usize>,
    /// No more than so many bodies are sent; later requests for one get 503.
    pub(crate) bodies_max: Option<usize>,
    /// Every request gets this status.
    pub(crate) status: Option<u16>,
    /// Only this token is let in.
    pub(crate) token: Option<&'static str>,
    /// `Range` is ignored.
    pub(crate) no_ranges: bool,
    /// The first body has its first byte changed.
    pub(crate) flip: bool,
    /// Connections are taken and never answered.
    pub(crate) silent: bool,
}

/// A running server; its thread ends with the process.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    /// `METHOD path range` of each request.
    pub(crate) log: Arc<Mutex<Vec<String>>>,
}

struct State {
    /// `owner/name/file` → content and whether it is stored apart, with a SHA-256 as its name.
    files: HashMap<String, (Vec<u8>, bool)>,
    faults: Faults,
    bodies: Mutex<usize>,
    log: Arc<Mutex<Vec<String>>>,
}

/// Serves `files` (path, content, large) with `faults`.
pub(crate) fn serve(files: &[(&str, &[u8], bool)], faults: Faults) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let log = Arc::new(Mutex::new(Vec::new()));
    let files = files.iter().map(|&(path, content, large)| (path.to_owned(), (content.to_vec(), large))).collect();
    let state = Arc::new(State { files, faults, bodies: Mutex::new(0), log: log.clone() });
    thread::spawn(move || {
        for stream in listener.incoming() {
            let state = state.clone();
            thread::spawn(move || state.answer(stream.unwrap()));
        }
    });
    Server { endpoint, log }
}

struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let first = lines.next()?;
        let mut words = first.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let headers = lines.take_while(|line| !line.is_empty());
        let headers = headers.filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_lowercase(), value.trim().to_owned()))
        });
        Some(Self { method, path, headers: headers.collect() })
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream) {
        let Some(request) = Request::read(&stream) else { return };
        let range = request.headers.get("range").cloned().unwrap_or_default();
        self.log.lock().unwrap().push(format!("{} {} {range}", request.method, request.path).trim().to_owned());
        if self.faults.silent {
            thread::park();
        }
        let head = request.method == "HEAD";
        let (status, mut headers, mut body) = self.reply(&request);
        if body.is_empty() || !headers.iter().any(|header| header.starts_with("content-length")) {
            headers.push(format!("content-length: {}", body.len()));
        }
        if let Some(cut) = self.faults.cut {
            body.truncate(cut);
        }
        let text = format!("HTTP/1.1 {status} -\r\nconnection: close\r\n{}\r\n\r\n", headers.join("\r\n"));
        // The client may already have gone: that is its right.
        let _ = stream.write_all(text.as_bytes());
        if !head {
            let _ = stream.write_all(&body);
        }
    }

    fn reply(&self, request: &Request) -> (u16, Vec<String>, Vec<u8>) {
        if let Some(status) = self.faults.status {
            return (status, vec![], vec![]);
        }
        let bearer = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
        if self.faults.token.is_some() && bearer != self.faults.token {
            return (401, vec![], b"Invalid credentials".to_vec());
        }
        if let Some(repo) = request.path.strip_prefix("/api/models/") {
            return self.listing(repo.split_once("/revision/").unwrap().0);
        }
        if let Some(key) = request.path.strip_prefix("/storage/") {
            return self.content(key, request);
        }
        let Some((repo, rest)) = request.path[1..].split_once("/resolve/") else { return (404, vec![], vec![]) };
        let key = format!("{repo}/{}", rest.split_once('/').unwrap().1);
        let Some((content, large)) = self.files.get(&key) else { return (404, vec![], vec![]) };
        let commit = format!("x-repo-commit: {COMMIT}");
        if *large {
            let linked = format!("x-linked-etag: \"{}\"", Digest::of(content));
            let size = format!("x-linked-size: {}", content.len());
            return (302, vec![commit, linked, size, format!("location: /storage/{key}")], vec![]);
        }
        let (status, mut headers, body) = self.content(&key, request);
        headers.extend([commit, format!("etag: \"{}\"", git_name(content))]);
        (status, headers, body)
    }

    fn listing(&self, repo: &str) -> (u16, Vec<String>, Vec<u8>) {
        let prefix = format!("{repo}/");
        let mut files: Vec<_> = self.files.keys().filter_map(|key| key.strip_prefix(&prefix)).collect();
        files.sort();
        let files: Vec<_> = files.iter().map(|file| format!(r#"{{"rfilename":"{file}"}}"#)).collect();
        match files.is_empty() {
            true => (404, vec![], vec![]),
            false => (200, vec![], format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, files.join(",")).into_bytes()),
        }
    }

    fn content(&self, key: &str, request: &Request) -> (u16, Vec<String>, Vec<u8>) {
        let (content, _) = &self.files[key];
        let mut body = content.clone();
        if request.method == "GET" {
            let mut bodies = self.bodies.lock().unwrap();
            *bodies += 1;
            if self.faults.bodies_max.is_some_and(|most| *bodies > most) {
                return (503, vec![], vec![]);
            }
            if self.faults.flip && *bodies == 1 {
                body[0] ^= 1;
            }
        }
        let from = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let from: usize = from.map_or(0, |from| from.parse().unwrap());
        if request.method == "HEAD" || self.faults.no_ranges || !request.headers.contains_key("range") {
            return (200, vec![format!("content-length: {}", body.len())], body);
        }
        let total = body.len();
        let body = body.split_off(from);
        let range = format!("content-range: bytes {from}-{}/{total}", total - 1);
        (206, vec![range, format!("content-length: {}", body.len())], body)
    }
}

/// What git calls a file of this content.
fn git_name(content: &[u8]) -> String {
    use sha1::Digest as _;
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", content.len()));
    hasher.update(content);
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
