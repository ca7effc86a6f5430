//! `elklet status`: asks the agent that listens at a socket, and prints its answer.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use elklet_core::printable::PrintablePage;

use super::metrics;
use super::server::Page;
use super::socket::connect_to;

/// Time limit for the agent's answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer, in bytes. 64 plugins take about 100 KiB.
const MAX_ANSWER_BYTES: u64 = 4 << 20;

/// Asks the agent for a page. The second value is true when it is connected.
///
/// # Errors
/// When there is no answer. The error is what can be printed all the same, and why there is no answer.
pub(crate) fn ask(socket: &Path, page: Page) -> Result<(String, bool), (String, String)> {
    exchange(socket, page).map_err(|error| {
        let shown = socket.display();
        let why = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                format!("no agent listens at {shown} (--config and --workdir lead to others)")
            }
            io::ErrorKind::WouldBlock => {
                format!("the agent at {shown} does not answer within {} s", TIMEOUT.as_secs())
            }
            _ => format!("the agent at {shown} cannot be asked: {error}"),
        };
        (if page == Page::Metrics { metrics::down() } else { String::new() }, why)
    })
}

/// Asks the agent for its state as JSON.
///
/// # Errors
/// When there is no answer, or not an agent's.
pub(crate) fn ask_itself(socket: &Path) -> io::Result<serde_json::Value> {
    let (text, _) = exchange(socket, Page::Json)?;
    serde_json::from_str(&text).map_err(io::Error::from)
}

fn exchange(path: &Path, page: Page) -> io::Result<(String, bool)> {
    let mut socket = connect_to(path, TIMEOUT)?;
    socket.write_all(format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", page.path()).as_bytes())?;
    let mut answer = String::new();
    socket.take(MAX_ANSWER_BYTES).read_to_string(&mut answer)?;
    let parts = answer.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/1.1 200 "));
    let (head, body) = parts.ok_or_else(|| io::Error::other("the answer is none of an agent's"))?;
    // Something else than the agent may answer there.
    Ok((PrintablePage(body).to_string(), head.contains("\r\nElklet-Connected: yes\r\n")))
}
