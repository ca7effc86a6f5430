//! Reading the credit that a server returns off its connection's bytes.
//!
//! Source: RFC 9113. A frame is a head of nine bytes (length in 24 bits, type, flags, stream in 31 bits) and its payload; a
//! WINDOW_UPDATE (type 8) carries an increment in 31 bits. A server's side of a connection is frames from its first byte on.

const HEAD: usize = 9;

const WINDOW_UPDATE: u8 = 8;

const INCREMENT: usize = 4;

/// Watches what a server sends and adds up the credit that it returns on one stream.
///
/// It is fed the bytes as they come, in pieces of any size, and changes nothing about them.
#[derive(Debug, Clone)]
pub struct CreditObserver {
    stream: u32,
    state: State,
    /// What has arrived of a head or an increment.
    partial: [u8; HEAD],
    partial_len: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    /// The increment of a WINDOW_UPDATE of the stream.
    Increment,
    /// This many bytes of another frame are still to come.
    Skip(usize),
}

impl CreditObserver {
    /// An observer at the start of a connection, for the stream of this number.
    #[must_use]
    pub fn new(stream: u32) -> Self {
        Self { stream, state: State::Head, partial: [0; HEAD], partial_len: 0 }
    }

    /// Takes the next bytes of the connection and returns the credit in them.
    #[must_use]
    pub fn observe(&mut self, mut bytes: &[u8]) -> u64 {
        let mut credit = 0;
        while !bytes.is_empty() {
            match self.state {
                State::Head => {
                    if let Some([l1, l2, l3, kind, _, s1, s2, s3, s4, ..]) = self.gather(&mut bytes, HEAD) {
                        let length = u32::from_be_bytes([0, l1, l2, l3]) as usize;
                        let stream = u32::from_be_bytes([s1, s2, s3, s4]) & 0x7fff_ffff;
                        self.state = match length {
                            0 => State::Head,
                            INCREMENT if kind == WINDOW_UPDATE && stream == self.stream => State::Increment,
                            _ => State::Skip(length),
                        };
                    }
                }
                State::Increment => {
                    if let Some([i1, i2, i3, i4, ..]) = self.gather(&mut bytes, INCREMENT) {
                        credit += u64::from(u32::from_be_bytes([i1, i2, i3, i4]) & 0x7fff_ffff);
                        self.state = State::Head;
                    }
                }
                State::Skip(left) => {
                    let skipped = left.min(bytes.len());
                    bytes = &bytes[skipped..];
                    self.state = if skipped == left { State::Head } else { State::Skip(left - skipped) };
                }
            }
        }
        credit
    }

    /// Moves bytes until there are `wanted`; gives them then.
    fn gather(&mut self, bytes: &mut &[u8], wanted: usize) -> Option<[u8; HEAD]> {
        let taken = (wanted - self.partial_len).min(bytes.len());
        let (now, later) = bytes.split_at(taken);
        self.partial[self.partial_len..self.partial_len + taken].copy_from_slice(now);
        self.partial_len += taken;
        *bytes = later;
        if self.partial_len < wanted {
            return None;
        }
        self.partial_len = 0;
        Some(self.partial)
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

    proptest! {
        #[test]
        fn credit_of_the_stream_is_added_up_whatever_the_split(
            frames in prop::collection::vec((0..10u8, 0..3u32, prop::collection::vec(any::<u8>(), 0..40), any::<u32>()), 0..20),
            splits in prop::collection::vec(1..60usize, 1..20),
        ) {
            let (mut bytes, mut expected) = (Vec::new(), 0);
            for (kind, stream, payload, increment) in frames {
                if kind == WINDOW_UPDATE {
                    bytes.extend(frame(kind, stream, &increment.to_be_bytes()));
                    expected += if stream == 1 { u64::from(increment & 0x7fff_ffff) } else { 0 };
                } else {
                    bytes.extend(frame(kind, stream, &payload));
                }
            }
            let mut observer = CreditObserver::new(1);
            let (mut credit, mut rest, mut splits) = (0, &bytes[..], splits.iter().cycle());
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at((*splits.next().expect("a cycle")).min(rest.len()));
                credit += observer.observe(piece);
                rest = tail;
            }
            prop_assert_eq!(credit, expected);
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
