//! Finds out whether an agent runs in the work directory, and asks how it is.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use super::Verdict;
use crate::clock;
use crate::config::Layout;
use crate::identity::NEXT;
use crate::status;
use crate::workdir;

/// The agent that runs in a work directory.
#[derive(Debug)]
pub(super) enum Running {
    No,
    /// It runs and answers with its state; see docs/operations.md.
    Says(Value),
    /// It runs and does not answer, for this reason.
    Silent(String),
}

impl Running {
    /// Asks over the agent's socket.
    pub(super) fn find(layout: &Layout) -> Self {
        match status::ask_itself(&layout.socket) {
            Ok(said) => Self::Says(said),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if !workdir::is_taken(&layout.workdir) => {
                    Self::No
                }
                _ => Self::Silent(error.to_string()),
            },
        }
    }

    pub(super) fn is_there(&self) -> bool {
        !matches!(self, Self::No)
    }

    /// The server of its stream, if it has one.
    pub(super) fn connected_to(&self) -> Option<&str> {
        let Self::Says(said) = self else { return None };
        let connection = &said["connection"];
        if connection["connected"] == true { connection["address"].as_str() } else { None }
    }

    /// Describes it. That a server refuses it is a failure, unless it was with other certificates than those in the directory `certs`. That
    /// it is between two attempts for any other reason is none yet.
    pub(super) fn describe(&self, certs: &Path) -> (String, Verdict) {
        let said = match self {
            Self::No => return ("it does not run: its id is tried".to_owned(), Verdict::Ok),
            Self::Silent(why) => return (format!("it runs and cannot be asked: {why}"), Verdict::Warning),
            Self::Says(said) => said,
        };
        let connection = &said["connection"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let process = format!("it runs as process {}", said["agent"]["pid"]);
        let limits = text(&said["agent"]["limits"]);
        if let Some(address) = self.connected_to() {
            let seconds = &connection["for_seconds"];
            let detail = format!("{process}, connected to {address} for {seconds} s; its own threads: {limits}");
            return (detail, Verdict::Ok);
        }
        let last = &connection["last_error"];
        let seconds = |value: &Value| value.as_i64().unwrap_or_default();
        let ago = seconds(&last["seconds_ago"]);
        // An error from before the last stream says nothing about why there is none now. Nor does one from before there was this
        // certificate; either age has whole seconds.
        let is_refused = last["refused"] == true
            && ago <= seconds(&connection["for_seconds"])
            && age_of_certificate(certs).is_none_or(|age| age > ago + 1);
        let error = match text(&last["text"]) {
            error if error.is_empty() => String::new(),
            error => format!("; its last error: {error}"),
        };
        (
            format!(
                "{process} and is not connected ({}){error}; its own threads: {limits}",
                text(&connection["state"])
            ),
            if is_refused { Verdict::Failed } else { Verdict::Warning },
        )
    }

    /// The names of the plugins that it has.
    pub(super) fn plugins(&self) -> Option<Vec<String>> {
        let Self::Says(said) = self else { return None };
        let plugins = said["plugins"].as_array()?;
        Some(plugins.iter().filter_map(|plugin| plugin["name"].as_str().map(str::to_owned)).collect())
    }
}

/// How old the certificate in this directory is, in seconds, or the one that is not in its place yet.
fn age_of_certificate(certs: &Path) -> Option<i64> {
    let written = |name: &str| certs.join(name).metadata().ok().map(|found| found.mtime());
    ["client.crt", NEXT].into_iter().filter_map(written).max().map(|moment| clock::unix_seconds() - moment)
}
