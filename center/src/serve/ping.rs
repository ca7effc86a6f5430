//! The rule that a client may not ping too often. It is enforced by watching the frames between TLS and h2.
//!
//! h2 answers pings by itself and shows them to nobody. [`PingWatch`] therefore reads the 9-byte frame headers (RFC
//! 9113, section 4.1) of both directions. A client that breaks the rule gets what grpc-go gives it: GOAWAY with
//! ENHANCE_YOUR_CALM and `too_many_pings`, and the end of the connection.

use super::held::Unstored;
use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A ping sooner than this after the last one is a strike (AgentCenter's keepalive enforcement).
pub(crate) const MIN_PING_INTERVAL: Duration = Duration::from_secs(5);

/// The strike after this many ends the connection (grpc-go's constant).
const MAX_STRIKES: u32 = 2;

/// How long a connection that is being closed stays open for reading. If it were closed at once, the kernel would
/// answer with a reset, which can overtake the GOAWAY.
const LINGER: Duration = Duration::from_secs(1);

/// GOAWAY's debug data, and the text of the error that ends the connection on this side.
pub(crate) const TOO_MANY_PINGS: &str = "too_many_pings";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// The count of strikes.
#[derive(Debug, Default)]
struct PingRule {
    last: Option<Instant>,
    strikes: u32,
    forgiven: bool,
}

impl PingRule {
    /// Counts a ping. Returns true if it is one too many.
    fn ping(&mut self, now: Instant) -> bool {
        let last = self.last.replace(now);
        if std::mem::take(&mut self.forgiven) {
            self.strikes = 0;
            return false;
        }
        if last.is_some_and(|last| now < last + MIN_PING_INTERVAL) {
            self.strikes += 1;
        }
        self.strikes > MAX_STRIKES
    }

    /// Notes that the server sent HEADERS or DATA. The client's next ping is free then, and strikes start anew.
    fn forgive(&mut self) {
        self.forgiven = true;
    }
}

/// Follows one direction of an HTTP/2 connection from frame to frame.
#[derive(Debug)]
struct FrameScanner {
    header: [u8; 9],
    have: usize,
    /// Bytes to skip before the next header.
    skip: usize,
}

impl FrameScanner {
    /// `preface` is the number of bytes before the first frame.
    fn new(preface: usize) -> Self {
        Self { header: [0; 9], have: 0, skip: preface }
    }

    /// Calls `on_frame` for each frame's header in `bytes`, until it breaks. Returns how many bytes were scanned.
    fn scan(&mut self, all: &[u8], mut on_frame: impl FnMut(Frame) -> ControlFlow<()>) -> usize {
        let mut bytes = all;
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = &bytes[n..];
                continue;
            }
            let n = (self.header.len() - self.have).min(bytes.len());
            self.header[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == self.header.len() {
                let [a, b, c, kind, flags, s @ ..] = self.header;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.have = 0;
                let stream = u32::from_be_bytes(s) & 0x7fff_ffff;
                if on_frame(Frame { kind, flags, stream, len: self.skip }).is_break() {
                    break;
                }
            }
        }
        all.len() - bytes.len()
    }

    /// Returns how many of the next bytes certainly belong to the frame that has begun: 0 between frames.
    fn owed(&self) -> usize {
        match self.have {
            0 => self.skip,
            have => self.header.len() - have,
        }
    }
}

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    len: usize,
}

/// The stages of closing a connection.
#[derive(Debug)]
enum Farewell {
    /// The rule holds, and the connection stays open.
    No,
    Write {
        frame: Vec<u8>,
        sent: usize,
    },
    Shutdown,
    Drain(Pin<Box<Sleep>>),
    Done,
}

/// Frames that a test slips in between those that h2 writes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Aside(Arc<Mutex<VecDeque<u8>>>);

impl Aside {
    /// Adds whole frames.
    pub(crate) fn push(&self, frames: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(frames);
    }

    /// Writes as much as the transport takes. It is ready when nothing is left.
    fn poll_write<T: AsyncWrite + Unpin>(&self, io: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !bytes.is_empty() {
            let written = ready!(Pin::new(&mut *io).poll_write(cx, bytes.make_contiguous()))?;
            bytes.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

/// A transport whose peer may not ping too often.
#[derive(Debug)]
pub(crate) struct PingWatch<T> {
    io: T,
    incoming: FrameScanner,
    outgoing: FrameScanner,
    rule: PingRule,
    last_stream: u32,
    farewell: Farewell,
    aside: Aside,
    unstored: Option<Unstored>,
    /// True while a PING waits. h2 has its frame's head, and the rest is the beginning of what is held.
    waits: bool,
    /// What arrived behind that head, and how much of it h2 has.
    held: Vec<u8>,
    handed_on: usize,
}

/// The most bytes that are read behind a PING that waits. They are read to notice the end of the connection.
const MAX_HELD: usize = 64 << 10;

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`
const CLIENT_PREFACE_LEN: usize = 24;

impl<T: AsyncRead + AsyncWrite + Unpin> PingWatch<T> {
    /// With `unstored`, h2 does not see a PING before everything that arrived before it is stored.
    pub(crate) fn new(io: T, aside: Aside, unstored: Option<Unstored>) -> Self {
        Self {
            io,
            incoming: FrameScanner::new(CLIENT_PREFACE_LEN),
            outgoing: FrameScanner::new(0),
            rule: PingRule::default(),
            last_stream: 0,
            farewell: Farewell::No,
            aside,
            unstored,
            waits: false,
            held: Vec::new(),
            handed_on: 0,
        }
    }

    /// Scans what is to be passed on to h2. Returns how much of it may be passed on now. The rest waits with a PING.
    fn scan(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> usize {
        let (mut struck_out, mut waits) = (false, false);
        let (rule, last_stream, unstored) = (&mut self.rule, &mut self.last_stream, &self.unstored);
        let scanned = self.incoming.scan(bytes, |frame| match frame.kind {
            PING if frame.flags & ACK == 0 => {
                struck_out |= rule.ping(Instant::now());
                match unstored {
                    Some(unstored) if !unstored.is_empty(cx) => {
                        waits = true;
                        ControlFlow::Break(())
                    }
                    _ => ControlFlow::Continue(()),
                }
            }
            HEADERS => {
                if frame.stream > *last_stream {
                    *last_stream = frame.stream;
                    if let Some(unstored) = unstored {
                        unstored.opened(frame.stream);
                    }
                }
                ControlFlow::Continue(())
            }
            DATA => {
                if let Some(unstored) = unstored {
                    unstored.received(frame.stream, frame.len as u64);
                }
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        });
        if struck_out {
            // h2 has the ping now and will write its answer. The next write finds the flag set here and acts on it.
            self.farewell = Farewell::Write { frame: goaway(self.last_stream), sent: 0 };
            return bytes.len();
        }
        self.waits = waits;
        scanned
    }

    /// Reads on while a PING waits. It is ready when that waits no more, or the connection has ended.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unstored.as_ref().is_some_and(|unstored| !unstored.is_empty(cx)) {
            while self.held.len() < MAX_HELD {
                let mut space = [0; 4096];
                let mut space = ReadBuf::new(&mut space);
                ready!(Pin::new(&mut self.io).poll_read(cx, &mut space))?;
                if space.filled().is_empty() {
                    // The agent will not hear the answer that it waits for.
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                self.held.extend_from_slice(space.filled());
            }
            return Poll::Pending;
        }
        self.waits = false;
        Poll::Ready(Ok(()))
    }

    /// Passes on what was held.
    fn pass_on(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) {
        let held = std::mem::take(&mut self.held);
        let n = (held.len() - self.handed_on).min(buf.remaining());
        let next = &held[self.handed_on..self.handed_on + n];
        let scanned = self.scan(next, cx);
        buf.put_slice(&next[..scanned]);
        self.handed_on += scanned;
        if self.handed_on < held.len() {
            self.held = held;
        } else {
            self.handed_on = 0;
        }
    }

    /// Closes the connection step by step. It never ends with success.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let done = match &mut self.farewell {
                Farewell::No => unreachable!("nobody says goodbye before the rule is broken"),
                Farewell::Write { frame, sent } => match ready!(Pin::new(&mut self.io).poll_write(cx, &frame[*sent..]))
                {
                    Ok(n) if n > 0 => {
                        *sent += n;
                        if *sent < frame.len() {
                            continue;
                        }
                        Farewell::Shutdown
                    }
                    _ => Farewell::Done,
                },
                Farewell::Shutdown => match ready!(Pin::new(&mut self.io).poll_shutdown(cx)) {
                    Ok(()) => Farewell::Drain(Box::pin(tokio::time::sleep(LINGER))),
                    Err(_) => Farewell::Done,
                },
                Farewell::Drain(linger) => {
                    let mut space = [0; 4096];
                    let mut space = ReadBuf::new(&mut space);
                    match Pin::new(&mut self.io).poll_read(cx, &mut space) {
                        Poll::Ready(Ok(())) if !space.filled().is_empty() => continue,
                        Poll::Ready(_) => Farewell::Done,
                        Poll::Pending => {
                            ready!(linger.as_mut().poll(cx));
                            Farewell::Done
                        }
                    }
                }
                Farewell::Done => return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, TOO_MANY_PINGS)),
            };
            self.farewell = done;
        }
    }
}

fn goaway(last_stream: u32) -> Vec<u8> {
    let len = u8::try_from(8 + TOO_MANY_PINGS.len()).expect("a short frame");
    let mut frame = vec![0, 0, len, GOAWAY, 0, 0, 0, 0, 0];
    frame.extend_from_slice(&last_stream.to_be_bytes());
    frame.extend_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
    frame.extend_from_slice(TOO_MANY_PINGS.as_bytes());
    frame
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for PingWatch<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !matches!(this.farewell, Farewell::No) {
            // The writer, which h2 polls from the same task, is closing the connection and reads what still arrives.
            return Poll::Pending;
        }
        if this.waits {
            ready!(this.poll_waiting(cx))?;
        }
        if !this.held.is_empty() {
            this.pass_on(cx, buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let passed = this.scan(&buf.filled()[before..], cx);
        this.held.extend_from_slice(&buf.filled()[before + passed..]);
        buf.set_filled(before + passed);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for PingWatch<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut buf = buf;
        if !matches!(this.farewell, Farewell::No) {
            if this.outgoing.owed() == 0 {
                return this.poll_farewell(cx).map(Err);
            }
            buf = &buf[..buf.len().min(this.outgoing.owed())];
        } else if this.outgoing.owed() == 0 {
            ready!(this.aside.poll_write(&mut this.io, cx))?;
        }
        let n = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.outgoing.scan(&buf[..n], |frame| {
            if matches!(frame.kind, DATA | HEADERS) {
                this.rule.forgive();
            }
            ControlFlow::Continue(())
        });
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn the_fourth_quick_ping_is_one_too_many() {
        let start = Instant::now();
        let mut rule = PingRule::default();
        assert!(!rule.ping(start));
        assert!(!rule.ping(at(start, 4_999)));
        assert!(!rule.ping(at(start, 9_000)));
        assert!(rule.ping(at(start, 13_000)));
    }

    #[test]
    fn five_seconds_apart_is_well() {
        let start = Instant::now();
        let mut rule = PingRule::default();
        assert!((0..100).all(|n| !rule.ping(at(start, 5_000 * n))));
    }

    #[test]
    fn what_the_server_sends_forgives() {
        let start = Instant::now();
        let mut rule = PingRule::default();
        for n in 0..100 {
            assert!(!rule.ping(at(start, n)), "ping {n}");
            if n % 3 == 2 {
                rule.forgive();
            }
        }
    }

    #[test]
    fn frames_are_found_at_any_split() {
        let mut bytes = vec![b'P'; CLIENT_PREFACE_LEN];
        bytes.extend_from_slice(&[0, 0, 8, PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes.extend_from_slice(&[0, 0, 0, HEADERS, 5, 0, 0, 0, 7]);
        bytes.extend_from_slice(&[0, 0, 8, PING, ACK, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        for len in 1..=bytes.len() {
            let mut scanner = FrameScanner::new(CLIENT_PREFACE_LEN);
            let mut seen = Vec::new();
            for part in bytes.chunks(len) {
                let scanned = scanner.scan(part, |frame| {
                    seen.push((frame.kind, frame.flags, frame.stream));
                    ControlFlow::Continue(())
                });
                assert_eq!(scanned, part.len());
            }
            assert_eq!(seen, [(PING, 0, 0), (HEADERS, 5, 7), (PING, ACK, 0)], "parts of {len}");
            assert_eq!(scanner.owed(), 0);
        }
    }
}
