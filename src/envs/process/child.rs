//! A child process that answers lines with lines, within limits. Never knows what the lines mean.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// What a child may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From a request to its reply.
    pub reply: Duration,
    /// Of one line.
    pub line_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reply: Duration::from_secs(30), line_bytes_max: 1 << 20 }
    }
}

/// How much of its last words on stderr is kept.
const STDERR_BYTES_MAX: usize = 2048;
/// Lines that may wait to be read; more of them block the child.
const LINES_WAITING_MAX: usize = 4;
/// For a child whose input has ended to end too, before it is killed.
const FAREWELL: Duration = Duration::from_millis(500);

/// What came instead of a line.
#[derive(Debug)]
pub(super) enum NoLine {
    /// Nothing in time.
    Silent,
    /// More than a line may hold; its beginning.
    Oversize(Vec<u8>),
    /// The end, after this unfinished line.
    Ended { partial: Vec<u8>, status: Option<ExitStatus>, stderr: String },
}

enum Received {
    Line(Vec<u8>),
    Oversize(Vec<u8>),
    End(Vec<u8>),
}

/// A running child. Dropping it ends it, and everything that it started.
pub(super) struct LineChild {
    process: Child,
    requests: Option<Sender<String>>,
    replies: Receiver<Received>,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_reader: JoinHandle<()>,
    limits: Limits,
}

impl LineChild {
    /// Starts a shell command.
    pub(super) fn spawn(command: &str, limits: Limits) -> io::Result<Self> {
        let mut process = shell(command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (process.stdin.take(), process.stdout.take(), process.stderr.take())
        else {
            unreachable!("all three were asked for")
        };
        // Threads, so that a child that neither reads nor writes cannot make us wait beyond the limit.
        let (requests, outgoing) = mpsc::channel();
        let (incoming, replies) = mpsc::sync_channel(LINES_WAITING_MAX);
        let last_words = Arc::new(Mutex::new(Vec::new()));
        thread::spawn(move || write_lines(stdin, &outgoing));
        thread::spawn(move || read_lines(stdout, limits.line_bytes_max, &incoming));
        let stderr_reader = thread::spawn({
            let last_words = Arc::clone(&last_words);
            move || read_stderr(stderr, &last_words)
        });
        Ok(Self { process, requests: Some(requests), replies, stderr: last_words, stderr_reader, limits })
    }

    /// Sends a line (with its end) and waits for one.
    pub(super) fn ask(&mut self, line: String) -> Result<Vec<u8>, NoLine> {
        if let Some(requests) = &self.requests {
            // If the writer has stopped, the child has closed its input, and its end or its silence will be the error.
            let _ = requests.send(line);
        }
        match self.replies.recv_timeout(self.limits.reply) {
            Ok(Received::Line(line)) => Ok(line),
            Ok(Received::Oversize(start)) => Err(NoLine::Oversize(start)),
            Ok(Received::End(partial)) => Err(self.ended(partial)),
            Err(RecvTimeoutError::Disconnected) => Err(self.ended(Vec::new())),
            Err(RecvTimeoutError::Timeout) => Err(NoLine::Silent),
        }
    }

    fn ended(&mut self, partial: Vec<u8>) -> NoLine {
        let status = self.wait(FAREWELL);
        // A grandchild may hold stderr open, so its reader is waited for, but not for long.
        let patience = Instant::now() + FAREWELL;
        while !self.stderr_reader.is_finished() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(2));
        }
        let stderr = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        NoLine::Ended { partial, status, stderr: String::from_utf8_lossy(&stderr).trim().to_owned() }
    }

    fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + patience;
        loop {
            match self.process.try_wait() {
                Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(2)),
                Ok(status) => return status,
                Err(_) => return None,
            }
        }
    }

    /// Ends it, and all that it started, now.
    pub(super) fn kill(&mut self) {
        kill_group(self.process.id());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for LineChild {
    /// Closes its input, which is how a well-behaved child learns that it is over; then kills what is left.
    fn drop(&mut self) {
        self.requests = None;
        self.wait(FAREWELL);
        self.kill();
    }
}

#[cfg(unix)]
fn shell(command: &str) -> Command {
    use std::os::unix::process::CommandExt;
    let mut shell = Command::new("sh");
    // A group of its own, so that what the shell starts can be ended with it.
    shell.args(["-c", command]).process_group(0);
    shell
}

#[cfg(not(unix))]
fn shell(command: &str) -> Command {
    let mut shell = Command::new("cmd");
    shell.args(["/C", command]);
    shell
}

/// The standard library kills one process only; the shell's own `kill` takes a group.
fn kill_group(leader: u32) {
    if cfg!(unix) {
        let kill = format!("kill -s KILL -- -{leader}");
        let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
    }
}

fn write_lines(mut stdin: ChildStdin, lines: &Receiver<String>) {
    for line in lines {
        if stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

fn read_lines(stdout: ChildStdout, line_bytes_max: usize, lines: &SyncSender<Received>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = stdout.by_ref().take(line_bytes_max as u64 + 1).read_until(b'\n', &mut line);
        let received = match read {
            Ok(_) if line.ends_with(b"\n") => Received::Line(line),
            Ok(_) if line.len() > line_bytes_max => Received::Oversize(line),
            _ => Received::End(line),
        };
        let last = !matches!(received, Received::Line(_));
        if lines.send(received).is_err() || last {
            return;
        }
    }
}

fn read_stderr(mut stderr: ChildStderr, last_words: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        let mut kept = last_words.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(STDERR_BYTES_MAX);
        kept.drain(..surplus);
    }
}
