//! Requests as a browser and as a command would send them, and the stream of events.

use crate::support::described;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long an answer or an event may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the center answered.
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(crate) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_else(|| panic!("{}", self.body)).to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).next()
    }

    pub(crate) fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Somebody who asks a center, with what goes into each of their requests.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) at: SocketAddr,
    pub(crate) headers: Vec<(String, String)>,
}

impl Asker {
    /// A command: it sends nothing but what it has to.
    pub(crate) fn command(at: SocketAddr) -> Self {
        Self { at, headers: Vec::new() }
    }

    /// A page of the center in a browser.
    pub(crate) fn page(at: SocketAddr) -> Self {
        Self::command(at).with("sec-fetch-site", "same-origin").with("origin", &format!("http://{at}"))
    }

    pub(crate) fn with(&self, name: &str, value: &str) -> Self {
        let mut other = self.clone();
        other.headers.retain(|(has, _)| has != name);
        other.headers.push((name.to_owned(), value.to_owned()));
        other
    }

    pub(crate) fn without(&self, name: &str) -> Self {
        let mut other = self.clone();
        other.headers.retain(|(has, _)| has != name);
        other
    }

    /// The same with the session that an answer began.
    pub(crate) fn signed_in(&self, reply: &Reply) -> Self {
        assert_eq!(reply.status, 200, "{}", reply.body);
        let cookie = reply.header("set-cookie").expect("a session has a cookie");
        let csrf = reply.json()["csrf"].as_str().expect("a session has a token").to_owned();
        self.with("cookie", cookie.split(';').next().unwrap()).with("x-csrf-token", &csrf)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, "")
    }

    /// Returns what is told as text.
    pub(crate) fn text(&self, path: &str) -> String {
        self.get(path).body
    }

    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> Reply {
        let mut answer = String::new();
        self.begin(method, path, body).read_to_string(&mut answer).expect("the center answers");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("{head}"));
        described::check(method, path, status, head, body);
        Reply { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// Opens a stream of events.
    pub(crate) fn events(&self, query: &str) -> Events {
        let mut events = Events(BufReader::new(self.begin("GET", &format!("/api/v1/stream{query}"), "")));
        let status = events.line().expect("the center answers");
        assert!(status.contains(" 200 "), "{status}");
        while events.line().expect("the head ends").len() > 2 {}
        events
    }

    /// Returns true if a request is answered with status 200. Nobody reads the rest.
    pub(crate) fn opens(&self, path: &str) -> bool {
        let mut status = String::new();
        BufReader::new(self.begin("GET", path, "")).read_line(&mut status).expect("the center answers");
        status.contains(" 200 ")
    }

    fn begin(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut tcp = TcpStream::connect(self.at).expect("the center listens");
        tcp.set_read_timeout(Some(DEADLINE)).unwrap();
        let host = (!self.headers.iter().any(|(name, _)| name == "host")).then(|| format!("host: {}\r\n", self.at));
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let (host, length) = (host.unwrap_or_default(), body.len());
        // A server answers HTTP/1.0 without chunks.
        let head = format!("{method} {path} HTTP/1.0\r\n{host}content-length: {length}\r\n{headers}\r\n{body}");
        tcp.write_all(head.as_bytes()).unwrap();
        tcp
    }
}

/// A stream of events.
pub(crate) struct Events(BufReader<TcpStream>);

impl Events {
    /// Returns the data of the next event of this name that is as wanted. Panics when the stream ends first.
    pub(crate) fn next(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let wanted_line = format!("event: {name}\n");
        loop {
            let line = self.line().unwrap_or_else(|| panic!("the stream ends before an event {name}"));
            if line != wanted_line {
                continue;
            }
            let data = self.line().expect("an event has data");
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
            if wanted(&data) {
                return data;
            }
        }
    }

    /// Reads to the end of the stream.
    pub(crate) fn end(mut self) {
        while self.line().is_some() {}
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let len = self.0.read_line(&mut line).expect("something comes in time");
        (len > 0).then_some(line)
    }
}
