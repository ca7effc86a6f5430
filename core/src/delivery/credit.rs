//! Observers of a connection's bytes. They read from them the credit that a server returns, whether it resets the stream, and the
//! data that a client sends.
//!
//! Source: RFC 9113. A frame is a head of nine bytes (length in 24 bits, type, flags, stream in 31 bits) and its
//! payload. WINDOW_UPDATE (type 8) carries an increment in 31 bits; DATA (type 0) carries what flow control counts;
//! RST_STREAM (type 3) carries a reason. A server's side of a connection begins with frames, a client's with 24 bytes of preface.

const HEAD: usize = 9;

const DATA: u8 = 0;

const RST_STREAM: u8 = 3;

const WINDOW_UPDATE: u8 = 8;

const INCREMENT: usize = 4;

/// Length of the preface that a client sends first (RFC 9113, section 3.4), in bytes.
const PREFACE: usize = 24;

/// Watches one side of a connection for one kind of frame on one stream.
///
/// It is fed the bytes as they pass, in pieces of any size, and does not change them.
#[derive(Debug, Clone)]
struct FrameObserver {
    kind: u8,
    stream: u32,
    state: State,
    /// The bytes of a head that have passed.
    head: [u8; HEAD],
    head_len: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    /// This many bytes of a frame are still to come. The second field is the frame's length if it is watched.
    Payload(usize, Option<usize>),
}

impl FrameObserver {
    /// An observer that skips `before` bytes first.
    fn new(kind: u8, stream: u32, before: usize) -> Self {
        Self { kind, stream, state: State::Payload(before, None), head: [0; HEAD], head_len: 0 }
    }

    /// Takes the next bytes of the connection and hands over pieces of the watched payloads: each piece, how many bytes
    /// follow it, and the length of the whole payload.
    fn observe(&mut self, mut bytes: &[u8], mut watched: impl FnMut(&[u8], usize, usize)) {
        while !bytes.is_empty() {
            match self.state {
                State::Payload(0, _) => self.state = State::Head,
                State::Payload(left, length) => {
                    let (now, later) = bytes.split_at(left.min(bytes.len()));
                    let left = left - now.len();
                    if let Some(length) = length {
                        watched(now, left, length);
                    }
                    self.state = State::Payload(left, length);
                    bytes = later;
                }
                State::Head => {
                    let (now, later) = bytes.split_at((HEAD - self.head_len).min(bytes.len()));
                    self.head[self.head_len..self.head_len + now.len()].copy_from_slice(now);
                    self.head_len += now.len();
                    bytes = later;
                    if self.head_len == HEAD {
                        let [l1, l2, l3, kind, _, s1, s2, s3, s4] = self.head;
                        let length = u32::from_be_bytes([0, l1, l2, l3]) as usize;
                        let stream = u32::from_be_bytes([s1, s2, s3, s4]) & 0x7fff_ffff;
                        self.head_len = 0;
                        self.state =
                            State::Payload(length, (kind == self.kind && stream == self.stream).then_some(length));
                    }
                }
            }
        }
    }
}

/// Watches what a server sends: adds up the credit that it returns on one stream, and notices a reset of that stream.
#[derive(Debug, Clone)]
pub struct CreditObserver {
    updates: FrameObserver,
    /// The part of an increment that has arrived.
    increment: u32,
    resets: FrameObserver,
    is_reset: bool,
}

impl CreditObserver {
    /// An observer at the start of a connection, for the stream of this number.
    #[must_use]
    pub fn new(stream: u32) -> Self {
        let [updates, resets] = [WINDOW_UPDATE, RST_STREAM].map(|kind| FrameObserver::new(kind, stream, 0));
        Self { updates, increment: 0, resets, is_reset: false }
    }

    /// Takes the next bytes that the server has sent and returns the credit in them.
    #[must_use]
    pub fn observe(&mut self, bytes: &[u8]) -> u64 {
        self.resets.observe(bytes, |_, _, _| self.is_reset = true);
        let mut credit = 0;
        self.updates.observe(bytes, |piece, left, length| {
            if length == INCREMENT {
                self.increment = piece.iter().fold(self.increment, |sum, byte| sum << 8 | u32::from(*byte));
                if left == 0 {
                    // The highest bit is reserved.
                    credit += u64::from(self.increment & 0x7fff_ffff);
                    self.increment = 0;
                }
            }
        });
        credit
    }

    /// Returns true once the server has reset the stream, for whatever reason.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        self.is_reset
    }
}

/// Watches what a client sends, and counts the bytes of data on one stream.
#[derive(Debug, Clone)]
pub struct DataObserver {
    data: FrameObserver,
}

impl DataObserver {
    /// An observer at the start of a connection, for the stream of this number.
    #[must_use]
    pub fn new(stream: u32) -> Self {
        Self { data: FrameObserver::new(DATA, stream, PREFACE) }
    }

    /// Takes the next bytes that the client has sent and returns how many of them are data.
    #[must_use]
    pub fn observe(&mut self, bytes: &[u8]) -> u64 {
        let mut sent = 0;
        self.data.observe(bytes, |piece, _, _| sent += piece.len() as u64);
        sent
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, 0], &stream.to_be_bytes(), payload].concat()
    }

    fn in_pieces(mut bytes: &[u8], splits: &[usize], mut observe: impl FnMut(&[u8]) -> u64) -> u64 {
        let (mut sum, mut splits) = (0, splits.iter().cycle());
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at((*splits.next().expect("a cycle")).min(bytes.len()));
            sum += observe(piece);
            bytes = rest;
        }
        sum
    }

    proptest! {
        #[test]
        fn credit_of_the_stream_is_added_up_and_its_reset_noticed_whatever_the_split(
            frames in prop::collection::vec((0..10u8, 0..3u32, prop::collection::vec(any::<u8>(), 0..40), any::<u32>()), 0..20),
            splits in prop::collection::vec(1..60usize, 1..20),
        ) {
            let (mut bytes, mut expected, mut is_reset) = (Vec::new(), 0, false);
            for (kind, stream, payload, increment) in frames {
                is_reset |= kind == RST_STREAM && stream == 1 && !payload.is_empty();
                if kind == WINDOW_UPDATE {
                    bytes.extend(frame(kind, stream, &increment.to_be_bytes()));
                    expected += if stream == 1 { u64::from(increment & 0x7fff_ffff) } else { 0 };
                } else {
                    bytes.extend(frame(kind, stream, &payload));
                }
            }
            let mut observer = CreditObserver::new(1);
            prop_assert_eq!(in_pieces(&bytes, &splits, |piece| observer.observe(piece)), expected);
            prop_assert_eq!(observer.is_reset(), is_reset);
        }

        #[test]
        fn data_of_the_stream_is_counted_whatever_the_split(
            frames in prop::collection::vec((0..3u8, 0..3u32, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
            splits in prop::collection::vec(1..60usize, 1..20),
        ) {
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            frames.iter().for_each(|(kind, stream, payload)| bytes.extend(frame(*kind, *stream, payload)));
            let expected = frames.iter().filter(|(kind, stream, _)| (*kind, *stream) == (DATA, 1));
            let expected = expected.map(|(.., payload)| payload.len() as u64).sum::<u64>();
            let mut observer = DataObserver::new(1);
            prop_assert_eq!(in_pieces(&bytes, &splits, |piece| observer.observe(piece)), expected);
        }

        #[test]
        fn any_bytes_are_watched(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = CreditObserver::new(1).observe(&bytes);
        }
    }

    #[test]
    fn a_window_update_of_a_wrong_length_gives_nothing() {
        let bytes = [frame(8, 1, &[0, 0, 1]), frame(8, 1, &[0, 0, 0, 7]), frame(8, 0, &[0, 0, 0, 9])].concat();
        assert_eq!(CreditObserver::new(1).observe(&bytes), 7);
    }
}
