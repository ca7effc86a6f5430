//! gRPC's message framing and status, without the HTTP/2 below.
//!
//! Source: the gRPC over HTTP/2 protocol description. A message is a flag byte (1: compressed), a 32-bit big-endian
//! length, and that many bytes. DATA frames may cut the sequence of messages anywhere.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use crate::limits::MAX_STATUS_MESSAGE_BYTES;

/// Bytes in front of every message.
pub const PREFIX: usize = 5;

/// The prefix of a message of `length` bytes.
///
/// # Panics
/// When `length` does not fit 32 bits. Batches and commands are bounded far below that.
#[must_use]
pub fn prefix(compressed: bool, length: usize) -> [u8; PREFIX] {
    let [a, b, c, d] = u32::try_from(length).expect("messages are bounded far below 4 GiB").to_be_bytes();
    [u8::from(compressed), a, b, c, d]
}

/// A message as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcMessage {
    /// True if `bytes` are compressed, as the stream's `grpc-encoding` says.
    pub compressed: bool,
    /// The message.
    pub bytes: Vec<u8>,
}

/// Splits a stream of DATA into messages.
///
/// After an error the stream cannot be parsed any further. The caller ends it, or reads past a message that is too long
/// with [`MessageReader::skip`].
#[derive(Debug)]
pub struct MessageReader {
    head: [u8; PREFIX],
    head_len: usize,
    body: Vec<u8>,
    limit: usize,
    /// Bytes of a too long message that were skipped.
    skipped: usize,
}

impl MessageReader {
    /// A reader at the start of a stream. It refuses messages of more than `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { head: [0; PREFIX], head_len: 0, body: Vec::new(), limit, skipped: 0 }
    }

    /// Returns the next whole message and moves `input` past what was read. `None` means that `input` is used up.
    ///
    /// # Errors
    /// When the bytes are no message, or one that is too long.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<GrpcMessage>, BadMessage> {
        let missing = (PREFIX - self.head_len).min(input.len());
        let (head, rest) = input.split_at(missing);
        self.head[self.head_len..self.head_len + missing].copy_from_slice(head);
        self.head_len += missing;
        *input = rest;
        if self.head_len < PREFIX {
            return Ok(None);
        }

        let [flag, length @ ..] = self.head;
        let length = u32::from_be_bytes(length) as usize;
        if flag > 1 {
            return Err(BadMessage::Flag(flag));
        }
        if length > self.limit {
            return Err(BadMessage::TooLong { length, limit: self.limit });
        }
        let (more, rest) = input.split_at((length - self.body.len()).min(input.len()));
        self.body.extend_from_slice(more);
        *input = rest;
        if self.body.len() < length {
            return Ok(None);
        }
        self.head_len = 0;
        Ok(Some(GrpcMessage { compressed: flag == 1, bytes: mem::take(&mut self.body) }))
    }

    /// After [`BadMessage::TooLong`], returns the next bytes of that message and true if they are its last. Moves
    /// `input` past them.
    #[must_use]
    pub fn skip<'a>(&mut self, input: &mut &'a [u8]) -> (&'a [u8], bool) {
        let [_, length @ ..] = self.head;
        let left = u32::from_be_bytes(length) as usize - self.skipped;
        let (piece, rest) = input.split_at(left.min(input.len()));
        *input = rest;
        let is_last = piece.len() == left;
        if is_last {
            self.head_len = 0;
            self.skipped = 0;
        } else {
            self.skipped += piece.len();
        }
        (piece, is_last)
    }

    /// Returns true when the too long message is compressed.
    #[must_use]
    pub fn skips_compressed(&self) -> bool {
        self.head[0] == 1
    }

    /// Returns true when no part of a further message has arrived, so that the stream may end here.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        self.head_len == 0
    }
}

/// What a misbehaving server sent instead of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadMessage {
    /// A flag byte that is neither 0 nor 1.
    Flag(u8),
    /// A message longer than the limit.
    TooLong {
        /// Bytes that the prefix announces.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

impl core::fmt::Display for BadMessage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "a message with the flag byte {flag:#04x}, which is neither 0 nor 1"),
            Self::TooLong { length, limit } => write!(f, "a message of {length} bytes, the limit is {limit}"),
        }
    }
}

impl core::error::Error for BadMessage {}

/// How a call ended, from `grpc-status` and `grpc-message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// 0 is OK. AgentCenter refuses with 2 (unknown).
    pub code: u32,
    /// The server's text. It is bounded and has control characters replaced, because it goes into a log.
    pub message: String,
}

impl Status {
    /// Parses the two headers as they came.
    ///
    /// A missing or unreadable `grpc-status` counts as code 2, as the gRPC specification demands for broken servers.
    #[must_use]
    pub fn parse(code: Option<&[u8]>, message: Option<&[u8]>) -> Self {
        let code = code.and_then(|digits| str::from_utf8(digits).ok()).and_then(|digits| digits.parse().ok());
        Self { code: code.unwrap_or(2), message: percent_decoded(message.unwrap_or_default()) }
    }

    /// Returns true when a server refuses this agent altogether. AgentCenter does when its id is taken, or there are too many agents, and
    /// Elklet's center when it may not have its id (PERMISSION_DENIED, 7) or its certificate is revoked (UNAUTHENTICATED, 16).
    #[must_use]
    pub fn is_about_the_agent(&self) -> bool {
        matches!(self.code, 7 | 16)
            || self.code == 2 && ["agentID conflict", "out of max connection limit"].contains(&&*self.message)
    }

    /// Returns true when the server says that a message was too large for it. grpc-go sends RESOURCE_EXHAUSTED (8) with
    /// "received message larger than max" or, about the content, "received message after decompression larger than max".
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.code == 8 && self.message.contains("larger than max")
    }
}

impl core::fmt::Display for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "gRPC status {}", self.code)?;
        if !self.message.is_empty() {
            write!(f, " ({})", self.message)?;
        }
        Ok(())
    }
}

fn percent_decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len().min(MAX_STATUS_MESSAGE_BYTES));
    let mut rest = text;
    while let [first, tail @ ..] = rest
        && bytes.len() < MAX_STATUS_MESSAGE_BYTES
    {
        let byte;
        (byte, rest) = match rest {
            [b'%', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                (hex_digit(*high) << 4 | hex_digit(*low), tail)
            }
            _ => (*first, tail),
        };
        bytes.push(byte);
    }
    String::from_utf8_lossy(&bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_split_gives_the_messages_back(
            messages in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..200)), 0..8),
            splits in prop::collection::vec(1..50usize, 1..20),
        ) {
            let stream: Vec<u8> =
                messages.iter().flat_map(|(c, bytes)| [&prefix(*c, bytes.len())[..], bytes].concat()).collect();
            let mut reader = MessageReader::new(200);
            let (mut read, mut rest, mut splits) = (Vec::new(), &stream[..], splits.iter().cycle());
            while !rest.is_empty() {
                let (mut piece, tail) = rest.split_at((*splits.next().expect("a cycle")).min(rest.len()));
                rest = tail;
                while let Some(message) = reader.next(&mut piece).expect("valid messages") {
                    read.push((message.compressed, message.bytes));
                }
                prop_assert!(piece.is_empty());
            }
            prop_assert!(reader.is_between_messages());
            prop_assert_eq!(read, messages);
        }
    }

    #[test]
    fn long_and_strange_messages_are_refused_at_their_prefix() {
        let mut reader = MessageReader::new(1000);
        assert_eq!(
            reader.next(&mut &[0, 0xff, 0xff, 0xff, 0xff][..]),
            Err(BadMessage::TooLong { length: 0xffff_ffff, limit: 1000 })
        );
        assert_eq!(reader.body.capacity(), 0);
        assert_eq!(
            MessageReader::new(1000).next(&mut &[b'H', b'T', b'T', b'P', b'/'][..]),
            Err(BadMessage::Flag(b'H'))
        );
    }

    #[test]
    fn a_message_that_is_too_long_can_be_read_past() {
        let long = [7; 50];
        let stream = [&prefix(true, 50)[..], &long, &prefix(false, 2), b"ok"].concat();
        for pieces in 1..60 {
            let mut reader = MessageReader::new(10);
            let (mut skipped, mut read) = (Vec::new(), Vec::new());
            for mut piece in stream.chunks(pieces) {
                loop {
                    match reader.next(&mut piece) {
                        Ok(Some(message)) => read.push(message.bytes),
                        Ok(None) => break,
                        Err(_) => {
                            assert!(reader.skips_compressed());
                            skipped.extend_from_slice(reader.skip(&mut piece).0);
                            if piece.is_empty() {
                                break;
                            }
                        }
                    }
                }
            }
            assert_eq!(
                (skipped, read, reader.is_between_messages()),
                (long.to_vec(), alloc::vec![b"ok".to_vec()], true)
            );
        }
    }

    #[test]
    fn a_status_is_decoded_and_made_fit_for_a_log() {
        let status = Status::parse(Some(b"2"), Some(b"agentID%20conflict%0A%zz%C3%A9"));
        assert_eq!(status, Status { code: 2, message: String::from("agentID conflict %zz\u{e9}") });
        assert_eq!(Status::parse(None, None).code, 2);
        assert!(Status::parse(Some(b"0"), Some(&[b'x'; 100_000])).message.len() <= MAX_STATUS_MESSAGE_BYTES);
    }

    #[test]
    fn a_message_at_the_limit_is_taken() {
        let mut reader = MessageReader::new(3);
        let stream = [&prefix(true, 3)[..], b"abc", &prefix(false, 4)].concat();
        let mut input = &stream[..];
        let message = GrpcMessage { compressed: true, bytes: b"abc".to_vec() };
        assert_eq!(reader.next(&mut input), Ok(Some(message)));
        assert_eq!(reader.next(&mut input), Err(BadMessage::TooLong { length: 4, limit: 3 }));
        assert!(!reader.skips_compressed());
    }

    #[test]
    fn a_stream_may_end_between_messages_only() {
        let stream = [&prefix(false, 2)[..], b"ok"].concat();
        for arrived in 0..=stream.len() {
            let mut reader = MessageReader::new(10);
            reader.next(&mut &stream[..arrived]).expect("a good message");
            assert_eq!(reader.is_between_messages(), arrived == 0 || arrived == stream.len(), "{arrived}");
        }
    }

    #[test]
    fn a_strange_message_is_described_with_its_numbers() {
        assert_eq!(BadMessage::Flag(0x48).to_string(), "a message with the flag byte 0x48, which is neither 0 nor 1");
        let long = BadMessage::TooLong { length: 70, limit: 60 };
        assert_eq!(long.to_string(), "a message of 70 bytes, the limit is 60");
    }

    fn status(code: u32, message: &str) -> Status {
        Status { code, message: message.into() }
    }

    #[test]
    fn a_status_is_shown_with_the_servers_words_if_it_has_any() {
        assert_eq!(status(2, "agentID conflict").to_string(), "gRPC status 2 (agentID conflict)");
        assert_eq!(status(0, "").to_string(), "gRPC status 0");
    }

    #[test]
    fn what_agentcenter_refuses_an_agent_with_is_recognised() {
        for words in ["agentID conflict", "out of max connection limit"] {
            assert!(status(2, words).is_about_the_agent());
            assert!(!status(14, words).is_about_the_agent());
        }
        assert!(!status(2, "something else").is_about_the_agent());
        assert!(status(7, "").is_about_the_agent() && status(16, "revoked").is_about_the_agent());
    }

    #[test]
    fn a_server_that_finds_a_message_too_large_is_recognised() {
        let words = "grpc: received message larger than max (5000000 vs. 4194304)";
        assert!(status(8, words).is_too_large());
        assert!(status(8, "grpc: received message after decompression larger than max 4194304").is_too_large());
        assert!(!status(13, words).is_too_large());
        assert!(!status(8, "out of memory").is_too_large());
    }

    #[test]
    fn escaped_bytes_are_read_in_either_case_and_halves_are_left_as_they_are() {
        for (escaped, plain) in [
            ("%4A%4a%7E%c3%A9", "JJ~\u{e9}"),
            ("%0a%7f", "  "),
            ("%", "%"),
            ("%4", "%4"),
            ("%g1%1g", "%g1%1g"),
            ("%%41", "%A"),
            ("100%", "100%"),
        ] {
            assert_eq!(percent_decoded(escaped.as_bytes()), plain, "{escaped}");
        }
        let long = "%41".repeat(MAX_STATUS_MESSAGE_BYTES + 1);
        assert_eq!(percent_decoded(long.as_bytes()), "A".repeat(MAX_STATUS_MESSAGE_BYTES));
    }
}
