//! A name server that answers, or fails to answer, as it is told.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Namespace;

/// A type of question (RFC 1035, section 3.2.2; RFC 3596, section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Question {
    /// For IPv4 addresses.
    A,
    /// For IPv6 addresses.
    Aaaa,
}

/// The answer to every question, whatever name it asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// This address.
    Address(IpAddr),
    /// No error and no address.
    Empty,
    /// "There is no such name."
    NxDomain,
    /// "Server failure."
    ServFail,
    /// "I do not answer such questions."
    Refused,
    /// Bytes that are no answer.
    Malformed,
    /// Nothing at all.
    Silence,
}

/// Seconds that a resolver waits for an answer. It is the longest that resolv.conf allows, so that a test can tell an
/// agent that waits for the resolver from a busy machine.
pub const PATIENCE_S: u64 = 30;

/// A running name server in a namespace. Dropping it ends it.
#[derive(Debug)]
pub struct NameServer {
    replies: Arc<Mutex<HashMap<Question, Reply>>>,
    is_done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    resolv_conf: PathBuf,
}

impl NameServer {
    /// Starts one on the namespace's loopback interface. It writes a `resolv.conf` that names it into `dir`.
    ///
    /// # Panics
    /// When the port is taken or the directory cannot be written to.
    #[must_use]
    pub fn start(namespace: &Namespace, dir: &Path) -> Self {
        let resolv_conf = dir.join("resolv.conf");
        let text = format!("nameserver 127.0.0.1\noptions timeout:{PATIENCE_S} attempts:1\n");
        fs::write(&resolv_conf, text).expect("it is writable");
        let socket = namespace.inside(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 53))).expect("the port is free");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("it is no zero");
        let replies = Arc::<Mutex<HashMap<_, _>>>::default();
        let is_done = Arc::<AtomicBool>::default();
        let shared = (Arc::clone(&replies), Arc::clone(&is_done));
        let thread = thread::spawn(move || serve(&socket, &shared.0, &shared.1));
        Self { replies, is_done, thread: Some(thread), resolv_conf }
    }

    /// Sets the answer to questions from now on.
    pub fn set(&self, a: Reply, aaaa: Reply) {
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        *replies = HashMap::from([(Question::A, a), (Question::Aaaa, aaaa)]);
    }

    /// Returns the words to put before a command, so that it asks this server.
    #[must_use]
    pub fn prefix(&self) -> [String; 6] {
        let script = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;
        let words = ["unshare", "--mount", "sh", "-c", script];
        let [unshare, mount, sh, c, script] = words.map(str::to_owned);
        [unshare, mount, sh, c, script, self.resolv_conf.display().to_string()]
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, replies: &Mutex<HashMap<Question, Reply>>, is_done: &AtomicBool) {
    let mut question = [0; 512];
    while !is_done.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
        let asked = asked(&question[..length]);
        let reply = asked.and_then(|asked| replies.lock().unwrap_or_else(PoisonError::into_inner).get(&asked).copied());
        // UDP may lose an answer, so a failure to send is one more lost packet.
        _ = answer(socket, from, &question[..length], reply.unwrap_or(Reply::Refused));
    }
}

/// Returns the type of a message's only question.
fn asked(message: &[u8]) -> Option<Question> {
    match message.get(name_end(message)?..)?.first_chunk()? {
        [0, 1] => Some(Question::A),
        [0, 28] => Some(Question::Aaaa),
        _ => None,
    }
}

/// Returns the offset at which the name of the first question ends (RFC 1035, section 4.1.2).
fn name_end(message: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match message.get(at)? {
            0 => return Some(at + 1),
            label => at += 1 + usize::from(*label),
        }
    }
}

fn answer(socket: &UdpSocket, to: SocketAddr, question: &[u8], reply: Reply) -> io::Result<()> {
    let (code, address) = match reply {
        Reply::Silence => return Ok(()),
        Reply::Malformed => return socket.send_to(&question[..question.len().min(7)], to).map(drop),
        Reply::Address(address) => (0, Some(address)),
        Reply::Empty => (0, None),
        Reply::ServFail => (2, None),
        Reply::NxDomain => (3, None),
        Reply::Refused => (5, None),
    };
    let end = name_end(question).map_or(question.len(), |end| question.len().min(end + 4));
    let mut message = question[..end].to_vec();
    // Header: an answer, recursion was wanted and is available, one question, no additional records.
    message[2] = 0x81;
    message[3] = 0x80 | code;
    message[6..12].copy_from_slice(&[0, u8::from(address.is_some()), 0, 0, 0, 0]);
    let (kind, bytes) = match address {
        Some(IpAddr::V4(address)) => (1, address.octets().to_vec()),
        Some(IpAddr::V6(address)) => (28, address.octets().to_vec()),
        None => return socket.send_to(&message, to).map(drop),
    };
    // Answer: the question's name, class IN, one minute to live.
    message.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0]);
    message.push(u8::try_from(bytes.len()).expect("an address is short"));
    message.extend(bytes);
    socket.send_to(&message, to).map(drop)
}
