//! gRPC over h2: the 5-byte prefix, the encodings, and the status at a call's end.
//!
//! Knows nothing of Elkeid. [`MessageReader`] and [`Outgoing`] are the two directions of one call; the calls themselves are
//! `transfer` and `upload`.

use super::held::Unstored;
use bytes::buf::Reader;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use snap::read::FrameDecoder;
use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// KiB of long messages that are being assembled at a time, on all connections together.
pub(crate) const ASSEMBLING_KIB: u32 = 64 << 10;

/// A message that has begun has to be whole within this, and a second more for so many bytes.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);
const SLOWEST: u64 = 16 << 10;

/// Bytes before each message: a flag, and the length as a 32-bit big-endian number.
pub(crate) const PREFIX_LEN: usize = 5;

/// How a call ends: a gRPC code, and a message for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// 0 is success, 2 unknown, 12 unimplemented, 14 unavailable, and so on (gRPC's `statuscodes.md`).
    pub code: u32,
    /// Any text; it is percent-encoded on the wire.
    pub message: String,
}

impl Status {
    pub(crate) const UNKNOWN: u32 = 2;
    pub(crate) const INVALID_ARGUMENT: u32 = 3;
    pub(crate) const DEADLINE_EXCEEDED: u32 = 4;
    pub(crate) const ALREADY_EXISTS: u32 = 6;
    pub(crate) const PERMISSION_DENIED: u32 = 7;
    pub(crate) const RESOURCE_EXHAUSTED: u32 = 8;
    pub(crate) const UNIMPLEMENTED: u32 = 12;
    pub(crate) const UNAVAILABLE: u32 = 14;
    pub(crate) const UNAUTHENTICATED: u32 = 16;

    /// Success.
    pub fn ok() -> Self {
        Self::new(0, "")
    }

    /// A code with its message.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn write_to(&self, headers: &mut HeaderMap) {
        headers.insert("grpc-status", HeaderValue::from(self.code));
        if !self.message.is_empty() {
            let message = HeaderValue::try_from(percent_encoded(&self.message)).expect("percent-encoding leaves ASCII");
            headers.insert("grpc-message", message);
        }
    }
}

/// Percent-encodes a message as gRPC's HTTP/2 mapping says: a percent sign, and all that is not printable ASCII,
/// becomes `%XX`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The compression of those messages of a call whose flag is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    /// Snappy's framing format.
    Snappy,
}

impl Encoding {
    /// Returns the encoding that a request's `grpc-encoding` names.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Status> {
        match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
            None | Some(b"identity") => Ok(Self::Identity),
            Some(b"snappy") => Ok(Self::Snappy),
            Some(other) => {
                let other = String::from_utf8_lossy(other);
                Err(Status::new(Status::UNIMPLEMENTED, format!("no decompressor for grpc-encoding {other}")))
            }
        }
    }

    /// Returns a whole message, with its prefix.
    pub(crate) fn message(self, body: &[u8]) -> Bytes {
        match self {
            Self::Identity => prefixed(0, body),
            Self::Snappy => {
                let mut encoder = snap::write::FrameEncoder::new(Vec::new());
                encoder.write_all(body).expect("writing to memory does not fail");
                prefixed(1, &encoder.into_inner().expect("writing to memory does not fail"))
            }
        }
    }
}

/// Returns `body` behind a prefix with this flag and the body's length.
pub(crate) fn prefixed(flag: u8, body: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(PREFIX_LEN + body.len());
    message.put_u8(flag);
    message.put_u32(u32::try_from(body.len()).expect("a message is shorter than 4 GiB"));
    message.put_slice(body);
    message.freeze()
}

/// A message as it arrived.
#[derive(Debug)]
pub(crate) struct Message {
    /// Bytes on the wire, the prefix among them.
    pub(crate) wire_len: usize,
    flag: u8,
    body: Bytes,
    encoding: Encoding,
    /// Its room among messages that are not decompressed yet, if it is a long one.
    _room: Option<OwnedSemaphorePermit>,
}

impl Message {
    /// Returns the body, decompressed to at most `limit` bytes.
    pub(crate) fn body(self, limit: usize) -> Result<Bytes, ReadError> {
        match (self.flag, self.encoding) {
            (0, _) => Ok(self.body),
            (1, Encoding::Identity) => Err(ReadError::NoEncoding),
            (1, Encoding::Snappy) => unsnappy(&self.body, limit),
            (flag, _) => Err(ReadError::Flag(flag)),
        }
    }
}

/// Why there is no next message.
#[derive(Debug)]
pub(crate) enum ReadError {
    Stream(h2::Error),
    TooLong { len: usize, limit: usize },
    DecodesTooLong { limit: usize },
    Truncated { have: usize, expected: usize },
    TooSlow { have: usize, within: Duration },
    Flag(u8),
    NoEncoding,
    Snappy(std::io::Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(error) => write!(f, "the stream broke: {error}"),
            Self::TooLong { len, limit } => write!(f, "a message of {len} bytes, the limit is {limit}"),
            Self::DecodesTooLong { limit } => write!(f, "a message that decodes to more than {limit} bytes"),
            Self::Truncated { have, expected } => {
                write!(f, "the stream ended {have} bytes into a message, expected {expected}")
            }
            Self::TooSlow { have: 0, within } => write!(f, "no message within {} s", within.as_secs()),
            Self::TooSlow { have, within } => {
                write!(f, "{have} bytes of a message within {} s, and not all of it", within.as_secs())
            }
            Self::Flag(flag) => write!(f, "a message with flag {flag}, expected 0 or 1"),
            Self::NoEncoding => write!(f, "a compressed message on a call without grpc-encoding"),
            Self::Snappy(error) => write!(f, "a message that is not snappy's framing format: {error}"),
        }
    }
}

/// The messages of a request, one after another.
///
/// The reader gives flow-control credit back for a message once somebody says that it is [stored](MessageReader::stored). Until then a
/// client can send what is left of the window, and must wait. Only of a message that is longer than half a window it gives the
/// beginning back sooner, because the end could not arrive otherwise. All such messages share a room, in which one may have to wait for its
/// turn; and no message may take its time, or it would keep its part of the room.
#[derive(Debug)]
pub(crate) struct MessageReader {
    body: RecvStream,
    encoding: Encoding,
    limit: usize,
    /// Bytes of half the stream's window.
    half: usize,
    /// Bytes that were taken out of chunks and not credited yet.
    withheld: usize,
    unstored: Option<Unstored>,
    /// A chunk that has arrived and was not credited yet.
    chunk: Bytes,
    /// The message that is being assembled, from its prefix on.
    buffer: BytesMut,
    /// KiB of long messages that are not whole yet, those of all readers together, and this one's part of them.
    assembling: Arc<Semaphore>,
    room: Option<OwnedSemaphorePermit>,
    /// The longest that a message may be waited for, if there is a bound.
    begins_within: Option<Duration>,
    /// Since when the message is waited for or, if it has begun, for its end.
    since: Option<Instant>,
}

impl MessageReader {
    /// `limit` bounds a message as it arrives, `window` is the stream's. `unstored` hears of the credit that is given back, and `assembling`
    /// has a permit for each KiB of the long messages of all readers.
    pub(crate) fn new(
        body: RecvStream,
        encoding: Encoding,
        limit: usize,
        window: u32,
        unstored: Option<Unstored>,
        assembling: Arc<Semaphore>,
    ) -> Self {
        Self {
            body,
            encoding,
            limit,
            half: window as usize / 2,
            withheld: 0,
            unstored,
            chunk: Bytes::new(),
            buffer: BytesMut::new(),
            assembling,
            room: None,
            begins_within: None,
            since: None,
        }
    }

    /// Has [`MessageReader::next`] wait so long for a message to begin, or for ever.
    pub(crate) fn set_begins_within(&mut self, within: Option<Duration>) {
        self.begins_within = within;
    }

    /// Gives the credit back for every message that [`MessageReader::next`] has returned.
    ///
    /// # Errors
    /// When the stream is gone.
    pub(crate) fn stored(&mut self) -> Result<(), ReadError> {
        let bytes = std::mem::take(&mut self.withheld);
        if let Some(unstored) = &self.unstored {
            unstored.stored(self.body.stream_id().as_u32(), bytes as u64);
        }
        self.body.flow_control().release_capacity(bytes).map_err(ReadError::Stream)
    }

    /// Returns the next message, or `None` at the stream's end. It is cancel-safe: the future may be dropped and `next`
    /// called again.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, ReadError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if self.withheld > self.half {
                self.make_room().await?;
            }
            match self.data().await? {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Err(ReadError::Stream(error)),
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    let expected = self.length()?.map_or(PREFIX_LEN, |len| PREFIX_LEN + len);
                    return Err(ReadError::Truncated { have: self.buffer.len(), expected });
                }
            }
        }
    }

    /// Waits until there is room for the whole of a long message, and gives back the credit of what has arrived of it.
    async fn make_room(&mut self) -> Result<(), ReadError> {
        if self.room.is_none() {
            let len = PREFIX_LEN + self.length()?.unwrap_or(0);
            // One that is longer than all of the room has to have it alone.
            let kib = u32::try_from(len.div_ceil(1024)).unwrap_or(u32::MAX).min(ASSEMBLING_KIB);
            let room = Arc::clone(&self.assembling).acquire_many_owned(kib).await;
            self.room = Some(room.expect("nobody closes it"));
            // It was not the client that was waited for.
            self.since = None;
        }
        self.stored()
    }

    /// Returns what arrives next, if that is in time.
    async fn data(&mut self) -> Result<Option<Result<Bytes, h2::Error>>, ReadError> {
        let within = match self.length()? {
            Some(len) => Some(WHOLE_WITHIN + Duration::from_secs(len as u64 / SLOWEST)),
            None if self.buffer.is_empty() => self.begins_within,
            None => Some(WHOLE_WITHIN),
        };
        let since = *self.since.get_or_insert_with(Instant::now);
        let Some(within) = within else { return Ok(self.body.data().await) };
        let data = timeout_at(since + within, self.body.data()).await;
        data.map_err(|_| ReadError::TooSlow { have: self.buffer.len(), within })
    }

    /// Moves what belongs to the current message out of the chunk. Returns the message if that completes it.
    fn take(&mut self) -> Result<Option<Message>, ReadError> {
        if !self.fill(PREFIX_LEN) {
            return Ok(None);
        }
        let len = self.length()?.expect("the prefix is there");
        if !self.fill(PREFIX_LEN + len) {
            return Ok(None);
        }
        // The buffer is given away whole, so that a stream that waits for its next message owns no memory.
        let mut body = std::mem::take(&mut self.buffer).freeze();
        let wire_len = body.len();
        let flag = body.get_u8();
        body.advance(PREFIX_LEN - 1);
        self.since = None;
        Ok(Some(Message { wire_len, flag, body, encoding: self.encoding, _room: self.room.take() }))
    }

    /// Returns true once the message has so many bytes.
    fn fill(&mut self, len: usize) -> bool {
        let n = len.saturating_sub(self.buffer.len()).min(self.chunk.len());
        if n > 0 {
            if self.buffer.is_empty() {
                self.since = None;
            }
            self.buffer.extend_from_slice(&self.chunk.split_to(n));
            self.withheld += n;
        }
        if self.chunk.is_empty() {
            // An empty chunk may still hold the memory of the read that it came with.
            self.chunk = Bytes::new();
        }
        self.buffer.len() >= len
    }

    /// Returns the length in the prefix, once the prefix has arrived.
    fn length(&self) -> Result<Option<usize>, ReadError> {
        let Some(&[_, a, b, c, d]) = self.buffer.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if len > self.limit {
            return Err(ReadError::TooLong { len, limit: self.limit });
        }
        Ok(Some(len))
    }
}

thread_local! {
    /// The decoder of the thread's last message. A new one has 140 KiB, which would be freed after each message, and taken by whatever
    /// lives for long.
    static DECODER: Cell<Option<FrameDecoder<Reader<Bytes>>>> = const { Cell::new(None) };
}

/// How a stream of snappy's framing format begins. A decoder that has seen it once does not insist on it again.
const SNAPPY_BEGIN: &[u8] = b"\xff\x06\0\0";

fn unsnappy(body: &Bytes, limit: usize) -> Result<Bytes, ReadError> {
    let mut decoded = Vec::with_capacity(body.len().saturating_mul(4).min(limit));
    let one_too_many = limit as u64 + 1;
    let mut decoder = match DECODER.take().filter(|_| body.starts_with(SNAPPY_BEGIN)) {
        Some(mut decoder) => {
            *decoder.get_mut() = body.clone().reader();
            decoder
        }
        None => FrameDecoder::new(body.clone().reader()),
    };
    // After an error, or a message that was not read to its end, the decoder holds what belongs to nobody.
    decoder.by_ref().take(one_too_many).read_to_end(&mut decoded).map_err(ReadError::Snappy)?;
    if decoded.len() > limit {
        return Err(ReadError::DecodesTooLong { limit });
    }
    *decoder.get_mut() = Bytes::new().reader();
    DECODER.set(Some(decoder));
    Ok(decoded.into())
}

/// The answer to a call.
///
/// As in grpc-go, its headers go out with the first message. A call that ends without a message is answered by trailers
/// alone.
#[derive(Debug)]
pub(crate) struct Outgoing {
    respond: SendResponse<Bytes>,
    stream: Option<SendStream<Bytes>>,
    encoding: Encoding,
}

impl Outgoing {
    pub(crate) fn new(respond: SendResponse<Bytes>, encoding: Encoding) -> Self {
        Self { respond, stream: None, encoding }
    }

    pub(crate) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Sends `bytes`, which need not be a valid message, in DATA frames of at most `frame_len` bytes. It returns once
    /// the flow-control window has taken the last of them.
    pub(crate) async fn send(&mut self, mut bytes: Bytes, frame_len: usize) -> Result<(), h2::Error> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(self.respond.send_response(headers(self.encoding), false)?),
        };
        while bytes.has_remaining() {
            let want = bytes.len().min(frame_len);
            stream.reserve_capacity(want);
            // `poll_capacity` reports growth only, so what was granted before has to be used first.
            if stream.capacity() == 0 {
                match poll_fn(|cx| stream.poll_capacity(cx)).await {
                    Some(granted) => _ = granted?,
                    None => return Err(Reason::STREAM_CLOSED.into()),
                }
            }
            let granted = stream.capacity().min(want);
            if granted > 0 {
                stream.send_data(bytes.split_to(granted), false)?;
            }
        }
        Ok(())
    }

    /// Waits until the client resets the call, or its connection is gone. Nothing may have been sent yet.
    pub(crate) async fn given_up(&mut self) {
        _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// Ends the call with a status.
    pub(crate) fn finish(mut self, status: &Status) -> Result<(), h2::Error> {
        match self.stream {
            Some(mut stream) => {
                let mut trailers = HeaderMap::new();
                status.write_to(&mut trailers);
                stream.send_trailers(trailers)
            }
            None => {
                let mut response = headers(Encoding::Identity);
                status.write_to(response.headers_mut());
                self.respond.send_response(response, true).map(drop)
            }
        }
    }

    /// Ends the call with an HTTP status and no gRPC, as a proxy in between would. If the call has been answered
    /// already, it resets it.
    pub(crate) fn finish_as_proxy(mut self, status: StatusCode) -> Result<(), h2::Error> {
        if self.stream.is_some() {
            self.reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        self.respond.send_response(response, true).map(drop)
    }

    /// Resets the call with RST_STREAM.
    pub(crate) fn reset(mut self, reason: Reason) {
        match &mut self.stream {
            Some(stream) => stream.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}

fn headers(encoding: Encoding) -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    if encoding == Encoding::Snappy {
        response.headers_mut().insert("grpc-encoding", HeaderValue::from_static("snappy"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_message_is_percent_encoded() {
        assert_eq!(percent_encoded("agentID conflict"), "agentID conflict");
        assert_eq!(percent_encoded("100 %\nü"), "100 %25%0A%C3%BC");
    }

    #[test]
    fn snappy_bomb_stops_at_the_limit() {
        let message = Encoding::Snappy.message(&vec![0; 100_000]).slice(PREFIX_LEN..);
        // The second time with the decoder of the first, and then with one that others have left.
        for _ in 0..2 {
            assert_eq!(unsnappy(&message, 100_000).unwrap().len(), 100_000);
        }
        assert!(matches!(unsnappy(&message, 99_999), Err(ReadError::DecodesTooLong { limit: 99_999 })));
        assert_eq!(unsnappy(&message, 100_000).unwrap().len(), 100_000);
        let broken = [Bytes::from_static(b"not snappy"), message.slice(10..), message.slice(..message.len() - 1)];
        for body in broken {
            assert!(matches!(unsnappy(&body, 100_000), Err(ReadError::Snappy(_))));
            assert_eq!(unsnappy(&message, 100_000).unwrap(), vec![0; 100_000]);
        }
    }
}
