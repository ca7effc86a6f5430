//! The handshake that makes a proxy a way to the target: HTTP CONNECT (RFC 9110, section 9.3.6) or SOCKS5 (RFC 1928,
//! with the user and password of RFC 1929). The proxy resolves names.
//!
//! The caller writes what [`Handshake::poll_transmit`] returns, and passes what it reads to [`Handshake::handle_input`]
//! until that returns true. Both kinds of targets, TLS and HTTP servers, wait for the client to speak first. A proxy
//! therefore has nothing to send after its answer.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::limits::{MAX_PROXY_ANSWER_BYTES, MAX_STATUS_MESSAGE_BYTES};

/// A proxy's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `CONNECT` of HTTP/1.1.
    Http,
    /// SOCKS version 5.
    Socks5,
}

/// The user and password that a proxy knows.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: String,
    password: String,
}

impl Credentials {
    /// Makes credentials that proxies of both kinds can be given.
    ///
    /// # Errors
    /// When one is longer than the 255 bytes that SOCKS5 can carry, or the user has a colon, which HTTP cannot carry.
    pub fn new(user: String, password: String) -> Result<Self, &'static str> {
        if user.len() > 255 || password.len() > 255 {
            Err("user or password is longer than 255 bytes")
        } else if user.contains(':') {
            Err("the user has a colon")
        } else {
            Ok(Self { user, password })
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:***", self.user)
    }
}

/// Why a proxy is no way to the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It refuses, with this reason.
    Refused(String),
    /// It demands a user and a password, and none are configured.
    WantsCredentials,
    /// It does not accept the user and password.
    WrongCredentials,
    /// It does not speak the protocol. This is the beginning of its answer, made printable.
    Nonsense(String),
    /// Its answer is longer than [`MAX_PROXY_ANSWER_BYTES`].
    TooLong,
    /// It sends more than its answer.
    Surplus,
    /// The target's name is longer than the 255 bytes that SOCKS5 can carry.
    NameTooLong,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::WantsCredentials => f.write_str("refused: it wants a user and a password, and none are configured"),
            Self::WrongCredentials => f.write_str("refused: it does not accept the user and the password"),
            Self::Nonsense(words) => write!(f, "answered {words:?}, expected the answer of a proxy of its kind"),
            Self::TooLong => write!(f, "answered with more than {MAX_PROXY_ANSWER_BYTES} bytes"),
            Self::Surplus => f.write_str("sent more than its answer"),
            Self::NameTooLong => f.write_str("cannot be told a host name of more than 255 bytes"),
        }
    }
}

/// A conversation with a proxy.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    /// Bytes to send now.
    output: Vec<u8>,
    /// Bytes that were read and do not make a whole answer yet.
    input: Vec<u8>,
    /// SOCKS5's later messages.
    login: Option<Vec<u8>>,
    request: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    HttpAnswer,
    SocksMethod,
    SocksLogin,
    SocksAnswer,
    Done,
}

impl Handshake {
    /// Begins to ask a proxy for a connection to `host` (a name or an address, IPv6 without brackets) and `port`.
    ///
    /// # Errors
    /// When the target's name is too long for the protocol.
    pub fn new(kind: Kind, host: &str, port: u16, credentials: Option<&Credentials>) -> Result<Self, Refusal> {
        let (state, output, login, request) = match kind {
            Kind::Http => (State::HttpAnswer, connect(host, port, credentials), None, Vec::new()),
            Kind::Socks5 => {
                let methods: &[u8] = if credentials.is_some() { &[5, 2, 0, 2] } else { &[5, 1, 0] };
                (State::SocksMethod, methods.to_owned(), credentials.map(login), request(host, port)?)
            }
        };
        Ok(Self { state, output, input: Vec::new(), login, request })
    }

    /// Returns the bytes to send now, if there are any.
    #[must_use]
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        Some(core::mem::take(&mut self.output)).filter(|bytes| !bytes.is_empty())
    }

    /// Takes what the proxy has sent. Returns true once the way to the target is open.
    ///
    /// # Errors
    /// When the proxy will not open it.
    pub fn handle_input(&mut self, bytes: &[u8]) -> Result<bool, Refusal> {
        if self.input.len() + bytes.len() > MAX_PROXY_ANSWER_BYTES {
            return Err(Refusal::TooLong);
        }
        self.input.extend_from_slice(bytes);
        let taken = self.step()?;
        self.input.drain(..taken);
        // The agent speaks next after each answer, so nothing may follow it.
        if taken == 0 || self.input.is_empty() { Ok(self.state == State::Done) } else { Err(Refusal::Surplus) }
    }

    /// Advances by what has arrived. Returns how many bytes that took, or 0 if it needs more.
    fn step(&mut self) -> Result<usize, Refusal> {
        match (self.state, &self.input[..]) {
            (State::HttpAnswer, input) => {
                // The first bytes give away a peer that is not an HTTP server. Such a peer may never end a line.
                let begins = input.len().min(HTTP.len());
                if input[..begins] != HTTP[..begins] {
                    return Err(Refusal::Nonsense(shown(input)));
                }
                let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(0) };
                http_answer(&input[..end])?;
                self.state = State::Done;
                Ok(end + 4)
            }
            (State::Done, _) | (_, [] | [_]) => Ok(0),
            (State::SocksMethod, [5, 0, ..]) => {
                self.ask();
                Ok(2)
            }
            (State::SocksMethod, [5, 2, ..]) => {
                self.output = self.login.take().ok_or(Refusal::WantsCredentials)?;
                self.state = State::SocksLogin;
                Ok(2)
            }
            (State::SocksMethod, [5, 0xff, ..]) if self.login.is_none() => Err(Refusal::WantsCredentials),
            (State::SocksMethod, [5, method, ..]) => {
                Err(Refusal::Refused(format!("no way to log in is left (it answered {method})")))
            }
            (State::SocksLogin, [1, 0, ..]) => {
                self.ask();
                Ok(2)
            }
            (State::SocksLogin, [1, _, ..]) => Err(Refusal::WrongCredentials),
            (State::SocksAnswer, [5, 0, rest @ ..]) => {
                // A reserved byte follows, and the address that the proxy dials from, which does not matter here.
                let address = match rest {
                    [_, 1, ..] => 4,
                    [_, 4, ..] => 16,
                    [_, 3, length, ..] => 1 + usize::from(*length),
                    [_, 3] | [] | [_] => return Ok(0),
                    _ => return Err(Refusal::Nonsense(shown(&self.input))),
                };
                let length = 4 + address + 2;
                if self.input.len() < length {
                    return Ok(0);
                }
                self.state = State::Done;
                Ok(length)
            }
            (State::SocksAnswer, [5, code, ..]) => Err(Refusal::Refused(socks_reason(*code))),
            (State::SocksMethod | State::SocksLogin | State::SocksAnswer, input) => {
                Err(Refusal::Nonsense(shown(input)))
            }
        }
    }

    fn ask(&mut self) {
        self.output = core::mem::take(&mut self.request);
        self.state = State::SocksAnswer;
    }
}

const HTTP: &[u8] = b"HTTP/1.";

fn connect(host: &str, port: u16, credentials: Option<&Credentials>) -> Vec<u8> {
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(Credentials { user, password }) = credentials {
        request += "Proxy-Authorization: Basic ";
        BASE64.encode_string(format!("{user}:{password}"), &mut request);
        request += "\r\n";
    }
    request += "\r\n";
    request.into_bytes()
}

fn http_answer(head: &[u8]) -> Result<(), Refusal> {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or(head);
    let mut words = line.splitn(2, |&byte| byte == b' ');
    let status = words.nth(1).unwrap_or_default();
    match status {
        [b'2', a, b, ..] if a.is_ascii_digit() && b.is_ascii_digit() => Ok(()),
        [a, b, c, ..] if [a, b, c].into_iter().all(u8::is_ascii_digit) => Err(Refusal::Refused(shown(status))),
        _ => Err(Refusal::Nonsense(shown(line))),
    }
}

fn login(Credentials { user, password }: &Credentials) -> Vec<u8> {
    let mut message = [1].to_vec();
    for part in [user, password] {
        message.push(short_length(part).expect("credentials are that short"));
        message.extend_from_slice(part.as_bytes());
    }
    message
}

fn request(host: &str, port: u16) -> Result<Vec<u8>, Refusal> {
    // Version 5, connect, and a reserved byte.
    let mut message = [5, 1, 0].to_vec();
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            message.push(1);
            message.extend_from_slice(&address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            message.push(4);
            message.extend_from_slice(&address.octets());
        }
        Err(_) => {
            message.extend_from_slice(&[3, short_length(host).ok_or(Refusal::NameTooLong)?]);
            message.extend_from_slice(host.as_bytes());
        }
    }
    message.extend_from_slice(&port.to_be_bytes());
    Ok(message)
}

fn short_length(text: &str) -> Option<u8> {
    u8::try_from(text.len()).ok()
}

/// RFC 1928, section 6.
fn socks_reason(code: u8) -> String {
    let reason = match code {
        1 => "general failure",
        2 => "not allowed by its rules",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused by the target",
        6 => "no answer from the target in time",
        7 => "it does not connect to targets",
        8 => "it does not know this kind of address",
        _ => "unknown reason",
    };
    format!("{reason} (code {code})")
}

/// The beginning of a peer's answer, for people.
fn shown(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(MAX_STATUS_MESSAGE_BYTES)];
    String::from_utf8_lossy(bytes).trim().chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    fn credentials() -> Credentials {
        Credentials::new("joe".into(), "secret".into()).expect("they are short")
    }

    /// Feeds these answers to a handshake in pieces of every size, and returns all that it has sent.
    fn converse(
        kind: Kind,
        host: &str,
        credentials: Option<&Credentials>,
        answers: &[&[u8]],
    ) -> (Vec<u8>, Result<bool, Refusal>) {
        let in_pieces_of = |size: usize| {
            let mut handshake = Handshake::new(kind, host, 443, credentials).expect("a short name");
            let mut sent = handshake.poll_transmit().expect("it speaks first");
            for answer in answers {
                for piece in answer.chunks(size) {
                    match handshake.handle_input(piece) {
                        Ok(false) => {}
                        end => return (sent, end),
                    }
                }
                sent.extend(handshake.poll_transmit().unwrap_or_default());
            }
            (sent, Ok(false))
        };
        let whole = in_pieces_of(usize::MAX);
        for size in 1..80 {
            let (sent, result) = in_pieces_of(size);
            // Nonsense is reported as early as it shows.
            assert_eq!((&sent, result.is_ok()), (&whole.0, whole.1.is_ok()), "in pieces of {size}");
        }
        whole
    }

    #[test]
    fn an_http_proxy_is_asked_to_connect() {
        let (sent, result) = converse(Kind::Http, "a.example", None, &[b"HTTP/1.1 200 OK\r\n\r\n"]);
        assert_eq!(sent, b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n");
        assert_eq!(result, Ok(true));
        let (sent, result) =
            converse(Kind::Http, "fd00::1", Some(&credentials()), &[b"HTTP/1.0 200 Fine\r\nVia: x\r\n\r\n"]);
        let expected = "CONNECT [fd00::1]:443 HTTP/1.1\r\nHost: [fd00::1]:443\r\nProxy-Authorization: Basic am9lOnNlY3JldA==\r\n\r\n";
        assert_eq!(core::str::from_utf8(&sent), Ok(expected));
        assert_eq!(result, Ok(true));
    }

    #[test]
    fn what_an_http_proxy_refuses_is_told() {
        for (answer, says) in [
            (
                &b"HTTP/1.1 407 Proxy Authentication Required\r\nA: b\r\n\r\n"[..],
                "refused: 407 Proxy Authentication Required",
            ),
            (b"HTTP/1.1 502\r\n\r\n", "refused: 502"),
            (b"HTTP/1.1 nonsense\r\n\r\n", "answered \"HTTP/1.1 nonsense\", expected the answer"),
            (b"HTTP/1.1\r\n\r\n", "answered \"HTTP/1.1\", expected"),
            (b"SSH-2.0-OpenSSH\r\n", "answered \"S"),
        ] {
            let error = converse(Kind::Http, "a", None, &[answer]).1.expect_err("refused").to_string();
            assert!(error.starts_with(says), "{error}");
        }
        let mut handshake = Handshake::new(Kind::Http, "a", 1, None).expect("short");
        assert_eq!(handshake.handle_input(b"HTTP/1.1 200 OK\r\n"), Ok(false));
        assert_eq!(handshake.handle_input(&[b'a'; MAX_PROXY_ANSWER_BYTES]), Err(Refusal::TooLong));
    }

    #[test]
    fn a_socks_proxy_is_asked_in_its_way() {
        let granted = [5, 0, 0, 1, 10, 0, 0, 1, 0, 80];
        let (sent, result) = converse(Kind::Socks5, "a.b", None, &[&[5, 0], &granted]);
        assert_eq!(sent, b"\x05\x01\x00\x05\x01\x00\x03\x03a.b\x01\xbb");
        assert_eq!(result, Ok(true));
        let (sent, result) = converse(Kind::Socks5, "10.0.0.2", Some(&credentials()), &[&[5, 2], &[1, 0], &granted]);
        assert_eq!(sent, b"\x05\x02\x00\x02\x01\x03joe\x06secret\x05\x01\x00\x01\x0a\x00\x00\x02\x01\xbb");
        assert_eq!(result, Ok(true));
        let by_name = [5, 0, 0, 3, 2, b'p', b'x', 0, 80];
        let (sent, result) = converse(Kind::Socks5, "::1", Some(&credentials()), &[&[5, 0], &by_name]);
        assert_eq!(sent[4..8], [5, 1, 0, 4]);
        assert_eq!(result, Ok(true));
    }

    #[test]
    fn what_a_socks_proxy_refuses_is_told() {
        let joe = credentials();
        type Case<'a> = (Option<&'a Credentials>, &'a [&'a [u8]], &'a str);
        let cases: [Case<'_>; 8] = [
            (None, &[&[5, 2]], "refused: it wants a user and a password, and none are configured"),
            (None, &[&[5, 0xff]], "refused: it wants a user and a password"),
            (Some(&joe), &[&[5, 0xff]], "refused: no way to log in is left (it answered 255)"),
            (Some(&joe), &[&[5, 2], &[1, 1]], "refused: it does not accept the user and the password"),
            (None, &[&[5, 0], &[5, 5]], "refused: connection refused by the target (code 5)"),
            (None, &[&[5, 0], &[5, 77]], "refused: unknown reason (code 77)"),
            (None, &[b"HTTP/1.1 400"], "answered \"H"),
            (None, &[&[5, 0], &[5, 0, 0, 9]], "answered "),
        ];
        for (credentials, answers, says) in cases {
            let error = converse(Kind::Socks5, "a", credentials, answers).1.expect_err("refused").to_string();
            assert!(error.starts_with(says), "{error}");
        }
        let name = "x".repeat(256);
        assert_eq!(Handshake::new(Kind::Socks5, &name, 1, None).err(), Some(Refusal::NameTooLong));
    }

    #[test]
    fn nobody_speaks_out_of_turn() {
        for (kind, answer) in [(Kind::Http, &b"HTTP/1.1 200 OK\r\n\r\nx"[..]), (Kind::Socks5, &[5, 0, 5, 0])] {
            let mut handshake = Handshake::new(kind, "a", 1, None).expect("short");
            assert_eq!(handshake.handle_input(answer), Err(Refusal::Surplus));
        }
    }

    #[test]
    fn credentials_are_bounded_and_kept_to_themselves() {
        assert!(Credentials::new("x".repeat(256), String::new()).is_err());
        assert!(Credentials::new("a:b".into(), String::new()).is_err());
        assert_eq!(format!("{:?}", credentials()), "joe:***");
    }

    /// Beginnings of valid answers.
    const HEADS: &[&[u8]] = &[b"", b"HTTP/1.1 ", &[5, 0], &[5, 2, 1, 0], &[5, 0, 5, 0, 0, 3]];

    proptest! {
        #[test]
        fn no_answer_is_too_odd(
            http: bool,
            known: bool,
            head in prop::sample::select(HEADS),
            tail: Vec<u8>,
            size in 1..20usize,
        ) {
            let kind = if http { Kind::Http } else { Kind::Socks5 };
            let credentials = known.then(credentials);
            let mut handshake = Handshake::new(kind, "a.example", 1, credentials.as_ref()).expect("short");
            for piece in [head, &tail].concat().chunks(size) {
                let result = handshake.handle_input(piece);
                let _ = handshake.poll_transmit();
                if result != Ok(false) {
                    break;
                }
            }
        }
    }

    #[test]
    fn credentials_may_be_as_long_as_socks_can_carry() {
        let longest = || "x".repeat(255);
        let longest = Credentials::new(longest(), longest()).expect("they are not longer");
        let message = login(&longest);
        assert_eq!((message.len(), message[1], message[257]), (513, 255, 255));
        assert!(Credentials::new("x".into(), "y".repeat(256)).is_err(), "too long a password");
        let name = "x".repeat(255);
        assert!(Handshake::new(Kind::Socks5, &name, 1, None).is_ok());
    }

    #[test]
    fn an_answer_may_be_as_long_as_the_limit_and_no_longer() {
        let mut handshake = Handshake::new(Kind::Http, "a", 1, None).expect("short");
        let status = b"HTTP/1.1 200 OK\r\n";
        assert_eq!(handshake.handle_input(status), Ok(false));
        let rest = "a".repeat(MAX_PROXY_ANSWER_BYTES - status.len());
        assert_eq!(handshake.handle_input(rest.as_bytes()), Ok(false));
        assert_eq!(handshake.handle_input(b"a"), Err(Refusal::TooLong));
    }

    #[test]
    fn socks_answers_with_any_kind_of_address_are_read_to_their_end() {
        let of_kind = |kind: u8, address: &[u8]| [&[5, 0, 0, kind], address, &[0, 80]].concat();
        for answer in [of_kind(1, &[9; 4]), of_kind(4, &[9; 16]), of_kind(3, &[0]), of_kind(3, b"\x05proxy")] {
            let mut handshake = Handshake::new(Kind::Socks5, "a", 1, None).expect("short");
            assert_eq!(handshake.handle_input(&[5, 0]), Ok(false));
            let (last, others) = answer.split_last().expect("it is not empty");
            assert_eq!(handshake.handle_input(others), Ok(false), "{answer:?}");
            assert_eq!(handshake.handle_input(&[*last]), Ok(true), "{answer:?}");
        }
    }

    #[test]
    fn every_reason_of_a_socks_proxy_has_words() {
        let words = [
            "general failure",
            "not allowed by its rules",
            "network unreachable",
            "host unreachable",
            "connection refused by the target",
            "no answer from the target in time",
            "it does not connect to targets",
            "it does not know this kind of address",
            "unknown reason",
        ];
        for (code, words) in (1..).zip(words) {
            assert_eq!(socks_reason(code), format!("{words} (code {code})"));
        }
    }

    #[test]
    fn only_a_status_of_three_digits_that_begin_with_two_opens_the_way() {
        for (line, opens) in [
            ("HTTP/1.1 200 OK", true),
            ("HTTP/1.1 299", true),
            ("HTTP/1.1 2x0 OK", false),
            ("HTTP/1.1 20x OK", false),
            ("HTTP/1.1 20", false),
            ("HTTP/1.1 302 Found", false),
        ] {
            assert_eq!(http_answer(line.as_bytes()).is_ok(), opens, "{line}");
        }
        assert_eq!(http_answer(b"HTTP/1.1 403 No"), Err(Refusal::Refused("403 No".into())));
        assert!(matches!(http_answer(b"HTTP/1.1 4x3 No"), Err(Refusal::Nonsense(_))));
    }

    #[test]
    fn a_proxys_words_are_shown_in_part_and_without_control_characters() {
        assert_eq!(shown(b" a\x1bb\r\n"), "a b");
        assert_eq!(shown("\u{e9}".repeat(100).as_bytes()), "\u{e9}".repeat(80));
        assert_eq!(shown(&[b" ".repeat(MAX_STATUS_MESSAGE_BYTES), b"late".to_vec()].concat()), "");
    }

    #[test]
    fn what_is_wrong_with_a_proxy_is_said_in_words() {
        for (refusal, words) in [
            (Refusal::TooLong, "answered with more than 8192 bytes"),
            (Refusal::Surplus, "sent more than its answer"),
            (Refusal::NameTooLong, "cannot be told a host name of more than 255 bytes"),
        ] {
            assert_eq!(refusal.to_string(), words);
        }
    }
}
