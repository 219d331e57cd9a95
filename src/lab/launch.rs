//! A cell in a process of its own: this program again, told the run's folder and the cell's key, answering in JSON lines.

use super::{Cell, LabError, Told, schedule::LOOK_EVERY};
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
};

/// How a cell is measured: given the run's folder and the cell, says what the cell tells until it is through.
pub trait Launch: Sync {
    /// Measures `cell`, passing on what it tells; `wanted` says whether anybody still waits.
    ///
    /// # Errors
    /// [`LabError::Cancelled`] if nobody does; otherwise whatever kept the cell from telling how it ended.
    fn launch(
        &self,
        folder: &Path,
        cell: &Cell,
        tell: &mut dyn FnMut(Told) -> Result<(), LabError>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), LabError>;
}

/// Fresh processes of a program whose `lab cell FOLDER KEY` is [`super::measure_cell`].
pub struct Processes {
    /// The program.
    pub program: PathBuf,
    /// CPU threads of each.
    pub threads: usize,
}

/// Ends the process if its parent leaves early, so that none is left running.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Launch for Processes {
    fn launch(
        &self,
        folder: &Path,
        cell: &Cell,
        tell: &mut dyn FnMut(Told) -> Result<(), LabError>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(), LabError> {
        let failed = |what: String| LabError::Process(what);
        let child = Command::new(&self.program)
            .args(["lab", "cell"])
            .arg(folder)
            .arg(cell.key())
            .args(["--threads", &self.threads.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{}: {error}", self.program.display())))?;
        let mut child = Kept(child);
        let stdout = child.0.stdout.take().expect("stdout is piped");
        let (sender, lines) = mpsc::channel();
        let reader = thread::spawn(move || {
            // A reader that nobody listens to any more has nothing left to do.
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut ended = false;
        loop {
            match lines.recv_timeout(LOOK_EVERY) {
                Ok(line) => {
                    let told = serde_json::from_str(&line).map_err(|_| failed(format!("it said {line:?}")))?;
                    ended |= matches!(told, Told::Finished { .. } | Told::Failed(_));
                    tell(told)?;
                }
                Err(RecvTimeoutError::Timeout) if wanted() => {}
                Err(RecvTimeoutError::Timeout) => return Err(LabError::Cancelled),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = child.0.wait().map_err(|error| failed(error.to_string()))?;
        drop(reader.join());
        if ended {
            Ok(())
        } else if wanted() {
            Err(failed(status.to_string()))
        } else {
            Err(LabError::Cancelled)
        }
    }
}
