//! A server's DATA, cut anywhere: the reader gives the same messages, and ends with the same error at the same byte, as a
//! model that has the whole stream in hand; an error stays, and no more is held than a message may have, twice. A status of any bytes becomes a bounded line fit for a log, and
//! one that a correct server wrote reads back.
#![no_main]

use arbitrary::Arbitrary;
use elklet_core::limits::MAX_STATUS_MESSAGE_BYTES;
use elklet_core::link::grpc::{BadMessage, GrpcMessage, MessageReader, PREFIX, Status, prefix};
use elklet_fuzz::{heap, stream::pieces};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 2_000;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    parts: Vec<Part<'a>>,
    lengths: &'a [u8],
    status: Option<&'a [u8]>,
    message: Option<&'a [u8]>,
    code: u32,
    text: &'a str,
}

#[derive(Arbitrary, Debug)]
enum Part<'a> {
    Message { compressed: bool, bytes: &'a [u8] },
    Zeros { length: u16 },
    Prefix { flag: u8, length: u32 },
    Raw(&'a [u8]),
}

/// What is seen of a stream: messages, whether it ended between two, or the error and how much was left unread.
#[derive(Debug, PartialEq)]
struct Seen {
    messages: Vec<GrpcMessage>,
    end: Result<bool, (BadMessage, usize)>,
}

fuzz_target!(|input: Input<'_>| {
    let mut stream = Vec::new();
    input.parts.iter().for_each(|part| write(part, &mut stream));
    stream.truncate(20 * LIMIT);

    let expected = model(&stream);
    assert_eq!(read([&stream[..]].into_iter()), expected, "fed the whole at once");
    assert_eq!(read(pieces(&stream, input.lengths)), expected, "fed in pieces");
    let (_, peak) = heap::peak(|| read_and_drop(pieces(&stream, input.lengths)));
    assert!(peak <= 2 * LIMIT, "{peak} bytes were held for messages of at most {LIMIT}");

    check_status(input.status, input.message);
    check_written_status(input.code, input.text);
});

fn write(part: &Part<'_>, stream: &mut Vec<u8>) {
    match *part {
        Part::Message { compressed, bytes } => {
            stream.extend_from_slice(&prefix(compressed, bytes.len()));
            stream.extend_from_slice(bytes);
        }
        Part::Zeros { length } => {
            let length = usize::from(length) % (LIMIT + 10);
            stream.extend_from_slice(&prefix(true, length));
            stream.resize(stream.len() + length, 0);
        }
        Part::Prefix { flag, length } => {
            stream.push(flag);
            stream.extend_from_slice(&length.to_be_bytes());
        }
        Part::Raw(bytes) => stream.extend_from_slice(bytes),
    }
}

fn model(mut stream: &[u8]) -> Seen {
    let mut messages = Vec::new();
    let end = loop {
        let Some((&[flag, ref length @ ..], rest)) = stream.split_first_chunk::<PREFIX>() else {
            break Ok(stream.is_empty());
        };
        let length = u32::from_be_bytes(*length) as usize;
        if flag > 1 {
            break Err((BadMessage::Flag(flag), rest.len()));
        }
        if length > LIMIT {
            break Err((BadMessage::TooLong { length, limit: LIMIT }, rest.len()));
        }
        let Some((bytes, rest)) = rest.split_at_checked(length) else { break Ok(false) };
        messages.push(GrpcMessage { compressed: flag == 1, bytes: bytes.to_vec() });
        stream = rest;
    };
    Seen { messages, end }
}

fn read<'s>(mut pieces: impl Iterator<Item = &'s [u8]>) -> Seen {
    let mut reader = MessageReader::new(LIMIT);
    let mut messages = Vec::new();
    while let Some(mut piece) = pieces.next() {
        loop {
            match reader.next(&mut piece) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => {
                    assert!(piece.is_empty(), "more is asked for only when everything is used up");
                    break;
                }
                Err(bad) => {
                    let left = piece.len() + pieces.map(<[u8]>::len).sum::<usize>();
                    assert_eq!(reader.next(&mut &[0; 8][..]), Err(bad), "after an error there is nothing to read");
                    return Seen { messages, end: Err((bad, left)) };
                }
            }
        }
    }
    Seen { messages, end: Ok(reader.is_between_messages()) }
}

/// Reads as the agent does, which keeps no message.
fn read_and_drop<'s>(pieces: impl Iterator<Item = &'s [u8]>) -> Result<(), BadMessage> {
    let mut reader = MessageReader::new(LIMIT);
    for mut piece in pieces {
        while reader.next(&mut piece)?.is_some() {}
    }
    Ok(())
}

fn check_status(code: Option<&[u8]>, message: Option<&[u8]>) {
    let status = Status::parse(code, message);
    // What is no UTF-8 is replaced by a character of three bytes.
    assert!(status.message.len() <= 3 * MAX_STATUS_MESSAGE_BYTES);
    assert!(!status.message.contains(char::is_control), "one line, and no escapes for a terminal");
    if let Some(digits) = code
        && (digits.is_empty() || digits.iter().any(|byte| !byte.is_ascii_digit() && *byte != b'+'))
    {
        assert_eq!(status.code, 2, "what is no number means that the status is unknown");
    }
}

/// Writes a status as the specification has it, every byte of the text escaped.
fn check_written_status(code: u32, text: &str) {
    let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let status = Status::parse(Some(code.to_string().as_bytes()), Some(escaped.as_bytes()));
    assert_eq!(status.code, code);
    if text.len() <= MAX_STATUS_MESSAGE_BYTES {
        let expected: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        assert_eq!(status.message, expected);
    }
}
