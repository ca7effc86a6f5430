//! HTTP/1.0, one request a connection: enough to ask the center something. No server may answer in chunks then.

use elklet_tests::harness::DEADLINE;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Mutex;

/// The keys of the centers' own commands, by address.
static KEYS: Mutex<BTreeMap<SocketAddr, String>> = Mutex::new(BTreeMap::new());

/// Asks a center with the key that it has written into the directory of its data, if it has, as commands on its host do.
#[allow(dead_code, reason = "only the program writes a key")]
pub(crate) fn know(address: SocketAddr, data: &Path) {
    if let Ok(key) = fs::read_to_string(data.join("local-token")) {
        KEYS.lock().expect("nobody panics").insert(address, key.trim().to_owned());
    }
}

/// The status and the body of an answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, "GET", path, &[], "")
}

pub(crate) fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    request(address, "POST", path, &[], body)
}

pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> Answer {
    try_request(address, method, path, headers, body.as_ref()).expect("the HTTP port answers")
}

fn try_request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(DEADLINE))?;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let key = KEYS.lock().expect("nobody panics").get(&address).cloned();
    let key = key.map_or_else(String::new, |key| format!("authorization: Bearer {key}\r\n"));
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nhost: center\r\nconnection: close\r\ncontent-length: {length}\r\n{key}{headers}\r\n"
    );
    tcp.write_all(head.as_bytes())?;
    tcp.write_all(body)?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    super::described::check(method, path, status, head, body);
    Ok(Answer { status, body: body.to_owned() })
}
