//! Receivers of what the center passes on, which do as a test says.

use flate2::read::GzDecoder;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What an HTTP server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Mood {
    /// Takes the body and answers with this status, which is 200 with nothing to say unless a test wants something else.
    Answers(u16, String),
    /// Does not take the body, answers with this status, and has it come again after a second.
    Refuses(u16),
    /// Reads half of the body and closes.
    BreaksHalfWay,
    /// Takes the body and closes without an answer.
    TakesAndBreaks,
    /// Takes the body and never answers.
    Hangs,
}

/// A request as it came, with its body decompressed.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) head: String,
    pub(crate) body: String,
}

#[derive(Default)]
struct Seen {
    moods: VecDeque<Mood>,
    /// Requests whose body was taken.
    taken: Vec<Asked>,
    requests: usize,
}

/// An HTTP server.
pub(crate) struct Http {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Http {
    /// Starts one that answers 200 once it has been through these moods.
    pub(crate) fn start(moods: impl IntoIterator<Item = Mood>) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), moods)
    }

    pub(crate) fn start_on(listener: TcpListener, moods: impl IntoIterator<Item = Mood>) -> Self {
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen { moods: moods.into_iter().collect(), ..Seen::default() }));
        let shared = Arc::clone(&seen);
        // It ends with the process.
        thread::spawn(move || {
            for tcp in listener.incoming() {
                let seen = Arc::clone(&shared);
                // The center may close whenever it likes.
                thread::spawn(move || tcp.and_then(|tcp| serve(tcp, &seen)).ok());
            }
        });
        Self { address, seen }
    }

    pub(crate) fn taken(&self) -> Vec<Asked> {
        self.seen.lock().unwrap().taken.clone()
    }

    /// Requests that came, whatever became of them.
    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().unwrap().requests
    }

    /// The values of the field `n` of all records that arrived as NDJSON, in their order.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.taken().iter().flat_map(|asked| numbers(&asked.body)).collect()
    }
}

/// The values of the field `n` in lines of JSON.
pub(crate) fn numbers(lines: &str) -> Vec<u64> {
    lines
        .lines()
        .map(|line| number(&serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))))
        .collect()
}

pub(crate) fn number(record: &Value) -> u64 {
    record["fields"]["n"].as_str().unwrap_or_else(|| panic!("{record}")).parse().unwrap()
}

fn serve(mut tcp: TcpStream, seen: &Mutex<Seen>) -> io::Result<()> {
    let mut reader = BufReader::new(tcp.try_clone()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|line| line.0.eq_ignore_ascii_case(name)).map(|line| line.1.to_owned())
        };
        let length: usize = header("content-length").unwrap().parse().unwrap();
        let mood = {
            let mut seen = seen.lock().unwrap();
            seen.requests += 1;
            seen.moods.pop_front().unwrap_or(Mood::Answers(200, String::new()))
        };
        if matches!(mood, Mood::BreaksHalfWay) {
            reader.read_exact(&mut vec![0; length / 2])?;
            return Ok(());
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = match header("content-encoding").as_deref() {
            Some("gzip") => io::read_to_string(GzDecoder::new(&body[..]))?,
            _ => String::from_utf8(body).unwrap(),
        };
        if !matches!(mood, Mood::Refuses(_)) {
            seen.lock().unwrap().taken.push(Asked { head: head.clone(), body });
        }
        match mood {
            Mood::Answers(status, answer) => {
                write!(tcp, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{answer}", answer.len())?;
            }
            Mood::Refuses(status) => {
                write!(tcp, "HTTP/1.1 {status} X\r\ncontent-length: 2\r\nretry-after: 1\r\n\r\nno")?;
            }
            Mood::BreaksHalfWay | Mood::TakesAndBreaks => return Ok(()),
            Mood::Hangs => _ = reader.read_line(&mut String::new())?,
        }
    }
}

/// A receiver of syslog over TLS, with messages behind their lengths.
pub(crate) struct Syslog {
    pub(crate) port: u16,
    messages: Arc<Mutex<Vec<String>>>,
}

impl Syslog {
    /// Starts one whose first connection breaks in the middle of a message, after so many.
    pub(crate) fn start(tls: Arc<ServerConfig>, breaks_after: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let messages = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&messages);
        // It ends with the process.
        thread::spawn(move || {
            for (number, tcp) in listener.incoming().enumerate() {
                let (tls, messages) = (Arc::clone(&tls), Arc::clone(&shared));
                let most = if number == 0 { breaks_after } else { usize::MAX };
                // Whoever does not trust this receiver closes at once.
                thread::spawn(move || tcp.and_then(|tcp| listen(tcp, tls, most, &messages)).ok());
            }
        });
        Self { port, messages }
    }

    pub(crate) fn messages(&self) -> Vec<String> {
        self.messages.lock().unwrap().clone()
    }
}

fn listen(tcp: TcpStream, tls: Arc<ServerConfig>, most: usize, messages: &Mutex<Vec<String>>) -> io::Result<()> {
    let connection = ServerConnection::new(tls).map_err(io::Error::other)?;
    let mut reader = BufReader::new(StreamOwned::new(connection, tcp));
    for _ in 0..most {
        let mut length = Vec::new();
        if reader.read_until(b' ', &mut length)? == 0 {
            return Ok(());
        }
        let length: usize = String::from_utf8(length).unwrap().trim_end().parse().unwrap();
        let mut message = vec![0; length];
        reader.read_exact(&mut message)?;
        messages.lock().unwrap().push(String::from_utf8(message).unwrap());
    }
    Ok(())
}
