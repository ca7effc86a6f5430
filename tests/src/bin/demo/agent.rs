//! The agent's process: starts and stops it, and reads its log.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Instant;
use tokio::process::{Child, Command};

use crate::stage::Stage;

#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    pub(crate) pid: u32,
    pub(crate) started: Instant,
    log: PathBuf,
    stderr: PathBuf,
}

impl Agent {
    /// Starts `elklet run` on the stage. Dropping this kills it.
    pub(crate) fn start(program: &Path, stage: &Stage) -> io::Result<Self> {
        let workdir = stage.workdir();
        let stderr = stage.path().join("agent.stderr");
        let started = Instant::now();
        let child = Command::new(program)
            .arg("run")
            .arg("--workdir")
            .arg(&workdir)
            .arg("--certs")
            .arg(stage.certs())
            .args(["--server", &stage.grpc().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&stderr)?)
            // A terminal sends Ctrl-C to a whole process group. The agent would get it as well, and a second signal
            // makes it end at once.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| io::Error::other(format!("{}: {error}", program.display())))?;
        let pid = child.id().expect("nobody has waited for it yet");
        Ok(Self { child, pid, started, log: workdir.join("log/elklet.log"), stderr })
    }

    /// Waits for its end. Later calls return the same status again.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks it to end in order, by SIGTERM.
    pub(crate) fn terminate(&self) {
        // Once the process was waited for, its pid may belong to another one.
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Kills it.
    pub(crate) async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }

    /// Returns the last lines of its log and of its output.
    pub(crate) fn last_lines(&self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for file in [&self.log, &self.stderr] {
            let text = fs::read(file).unwrap_or_default();
            lines.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
        }
        lines.split_off(lines.len().saturating_sub(count))
    }

    /// Returns what the agent logged about its own end, if it got that far: an error if that is a warning.
    pub(crate) fn closing_words(&self) -> Option<Result<String, String>> {
        closing_words(&fs::read_to_string(&self.log).ok()?)
    }
}

/// Finds the last line about the end. The agent logs it at the level of information if all is well, so this does not
/// depend on its words.
fn closing_words(log: &str) -> Option<Result<String, String>> {
    let (before, words) = log.lines().rev().find_map(|line| line.split_once(" the agent ends; "))?;
    let is_well = before.split_whitespace().nth(1) == Some("INFO");
    Some(if is_well { Ok(words.to_owned()) } else { Err(words.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_words_are_good_or_bad_by_their_level() {
        let words = |level| {
            let log =
                format!("T INFO  SIGTERM: the agent ends in order\nT {level} the agent ends; so be it\nT INFO  x\n");
            closing_words(&log)
        };
        assert_eq!(words("INFO "), Some(Ok("so be it".to_owned())));
        assert_eq!(words("WARN "), Some(Err("so be it".to_owned())));
        assert_eq!(closing_words("T INFO  SIGTERM: the agent ends in order\n"), None);
    }
}
