//! One pipe with a plugin's records.

use std::fmt;
use std::io::{self, Read};
use std::mem;
use std::os::fd::OwnedFd;

use elklet_core::limits::MAX_RECORD_BYTES;
use elklet_core::record::frame::{BadFrame, FrameDecoder, Tally};
use elklet_core::record::intake::{Lane, Origin, Wake};
use elklet_core::time::Millis;
use mio::unix::pipe::Receiver;

use crate::pump::intake::SharedIntake;

/// Shortest time between two logged mistakes of a plugin, in milliseconds. Each log line says how many were not logged.
const COMPLAINT_INTERVAL_MS: u64 = 10_000;

/// Capacity of a pipe that was not made larger, in bytes.
const SMALL_PIPE_BYTES: usize = 64 << 10;

/// Most mistakes of one read that are logged. The counters have them all.
const ODDITIES_KEPT: usize = 4;

#[derive(Debug)]
pub(super) struct PipeReader {
    pipe: Receiver,
    /// Capacity of the pipe in bytes.
    capacity: usize,
    lane: Lane,
    origin: Origin,
    decoder: FrameDecoder,
    /// Bytes that were read and found no room yet. The decoder may hold a record besides.
    backlog: Vec<u8>,
    stalled: bool,
    /// True when nobody writes any more, so that the pipe has to be read to its end.
    hung_up: bool,
    oddities: Vec<Oddity>,
}

/// How far a read got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There may be more to read at once.
    More,
    /// The pipe is empty for now. mio says when it is not.
    Drained,
    /// The intake is full. Read again once it was swapped.
    Stalled,
    /// The pipe has ended.
    Ended,
}

impl PipeReader {
    pub(super) fn new(pipe: OwnedFd, lane: Lane, origin: Origin) -> Self {
        let capacity = rustix::pipe::fcntl_getpipe_size(&pipe).unwrap_or(SMALL_PIPE_BYTES);
        Self {
            pipe: Receiver::from(pipe),
            capacity,
            lane,
            origin,
            decoder: FrameDecoder::new(MAX_RECORD_BYTES),
            backlog: Vec::new(),
            stalled: false,
            hung_up: false,
            oddities: Vec::new(),
        }
    }

    pub(super) fn pipe(&mut self) -> &mut Receiver {
        &mut self.pipe
    }

    /// Capacity of the pipe in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Nobody writes any more.
    pub(super) fn handle_hangup(&mut self) {
        self.hung_up = true;
    }

    /// Reads once and moves what was read into the intake. Also returns how to wake the net thread.
    pub(super) fn read(&mut self, buffer: &mut [u8], intake: &SharedIntake) -> (Progress, Wake) {
        let mut wake = Wake::Unneeded;
        (self.advance(buffer, intake, &mut wake), wake)
    }

    fn advance(&mut self, buffer: &mut [u8], intake: &SharedIntake, wake: &mut Wake) -> Progress {
        if !self.origin.may_drop && intake.is_held() {
            return Progress::Stalled;
        }
        if self.stalled {
            let backlog = mem::take(&mut self.backlog);
            let left = self.feed(&backlog, intake, wake);
            self.backlog = backlog;
            self.backlog.drain(..self.backlog.len() - left);
            return if self.stalled { Progress::Stalled } else { Progress::More };
        }
        match self.pipe.read(buffer) {
            Ok(0) => Progress::Ended,
            Ok(n) => {
                let left = self.feed(&buffer[..n], intake, wake);
                self.backlog.extend_from_slice(&buffer[n - left..n]);
                if self.stalled {
                    Progress::Stalled
                } else if n < buffer.len() && !self.hung_up {
                    // A short read means that the pipe is empty. mio says when it has more.
                    Progress::Drained
                } else {
                    Progress::More
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Progress::Drained,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Progress::More,
            Err(error) => {
                log::error!("a plugin's pipe cannot be read: {error}");
                Progress::Ended
            }
        }
    }

    /// Moves records from `input` into the intake until one finds no room. Returns the number of bytes left.
    fn feed(&mut self, mut input: &[u8], intake: &SharedIntake, wake: &mut Wake) -> usize {
        self.stalled = false;
        let before = self.decoder.tally();
        let mut filling = intake.lock();
        while let Some(next) = self.decoder.peek(&mut input) {
            match next {
                Ok(record) => match filling.push(self.lane, self.origin, &record) {
                    Ok(appended) => {
                        *wake = appended.max(*wake);
                        self.decoder.take(&mut input);
                    }
                    Err(_) => {
                        self.stalled = true;
                        break;
                    }
                },
                Err(bad) if self.oddities.len() < ODDITIES_KEPT => self.oddities.push(Oddity::BadFrame(bad)),
                Err(_) => {}
            }
        }
        drop(filling);
        let after = self.decoder.tally();
        if before.without_payload == 0 && after.without_payload > 0 {
            self.oddities.push(Oddity::WithoutPayload);
        }
        if before.without_timestamp == 0 && after.without_timestamp > 0 {
            self.oddities.push(Oddity::WithoutTimestamp);
        }
        input.len()
    }

    /// The stream has ended. Half a frame will never be completed.
    pub(super) fn end(&mut self) {
        if let Err(bad) = self.decoder.finish() {
            self.oddities.push(Oddity::BadFrame(bad));
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.decoder.tally()
    }

    pub(super) fn take_oddities(&mut self) -> Vec<Oddity> {
        mem::take(&mut self.oddities)
    }
}

/// What was strange about a plugin's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Oddity {
    /// Bytes that are no record. The decoder has skipped them.
    BadFrame(BadFrame),
    /// The first record without a payload. It and later ones are passed on.
    WithoutPayload,
    /// The first record whose timestamp is 0. It and later ones are passed on.
    WithoutTimestamp,
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadFrame(bad) => write!(f, "{bad}; it is skipped"),
            Self::WithoutPayload => f.write_str("a record without a payload; such records are passed on and counted"),
            Self::WithoutTimestamp => f.write_str("a record with timestamp 0; such records are passed on and counted"),
        }
    }
}

/// Keeps a plugin's mistakes from filling the log.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    next: Millis,
    suppressed: u64,
}

impl Complaints {
    /// Returns how many complaints were suppressed since the last one if another may be logged now.
    pub(super) fn admit(&mut self, now: Millis) -> Option<u64> {
        if now < self.next {
            self.suppressed += 1;
            return None;
        }
        self.next = now + COMPLAINT_INTERVAL_MS;
        Some(mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use elklet_core::record::OwnRecord;
    use elklet_core::record::intake::{Buffers, Due};

    use super::*;
    use crate::pump::intake::empty_buffers;
    use crate::testing::allocations;

    const ORIGIN: Origin = Origin { source: elklet_core::record::manifest::Source::OTHER, may_drop: true };

    fn frame(timestamp: i64) -> Vec<u8> {
        let value = "x".repeat(800);
        let record = OwnRecord { data_type: 59, timestamp, fields: [("argv", &*value)].into_iter() };
        let mut frame = vec![0; 4 + record.encoded_len()];
        frame[..4].copy_from_slice(&u32::try_from(record.encoded_len()).expect("short").to_le_bytes());
        record.write(&mut frame[4..]);
        frame
    }

    fn pipe() -> (PipeReader, io::PipeWriter) {
        let (reader, writer) = io::pipe().expect("a pipe");
        let source = PipeReader::new(reader.into(), Lane::Bulk, ORIGIN);
        source.pipe.set_nonblocking(true).expect("a pipe can be non-blocking");
        (source, writer)
    }

    #[test]
    fn no_record_costs_an_allocation_between_pipe_and_compressor() {
        let (mut source, mut writer) = pipe();
        let intake = SharedIntake::new(2 << 20);
        let mut spare = empty_buffers(2 << 20);
        let mut buffer = vec![0; 64 << 10];
        let frames = frame(7).repeat(70);
        let mut pass = || {
            writer.write_all(&frames).expect("the pipe takes 64 KiB");
            while source.read(&mut buffer, &intake).0 == Progress::More {}
            let _ = intake.lock().swap(&mut spare);
            let bytes: usize = spare.parts().iter().map(|part| part.len()).sum();
            spare.clear();
            bytes
        };
        // The first passes allocate the memory for cut frames.
        assert!(pass() + pass() > 100_000);
        let before = allocations();
        let moved: usize = (0..100).map(|_| pass()).sum();
        assert_eq!(allocations() - before, 0, "{moved} bytes of 7,000 records were moved");
        assert!(moved > 5_000_000);
    }

    #[test]
    fn a_full_intake_stalls_the_source_and_nothing_is_lost() {
        let (mut source, mut writer) = pipe();
        let intake = SharedIntake::new(8_000);
        let mut spare: Box<Buffers<_>> = empty_buffers(8_000);
        let mut buffer = vec![0; 10_000];
        let frames: Vec<u8> = (1..=60).flat_map(frame).collect();
        writer.write_all(&frames).expect("the pipe takes 64 KiB");
        drop(writer);
        let mut records = 0;
        loop {
            match source.read(&mut buffer, &intake).0 {
                Progress::Ended => break,
                Progress::Stalled => {
                    assert_eq!(intake.lock().due(), Due::Now);
                    assert_eq!(
                        source.read(&mut buffer, &intake).0,
                        Progress::Stalled,
                        "it stays stalled until there is room"
                    );
                    assert!(intake.lock().swap(&mut spare), "somebody waits");
                    records += spare.len();
                    spare.clear();
                }
                Progress::More | Progress::Drained => {}
            }
        }
        assert_eq!(records + intake.lock().len(), 60);
        assert_eq!(source.tally().records, 60);
    }

    #[test]
    fn oddities_are_told_once_and_counted_always() {
        let (mut source, mut writer) = pipe();
        let intake = SharedIntake::new(100_000);
        let mut buffer = vec![0; 10_000];
        writer
            .write_all(&[frame(0), frame(0), vec![0; 4], vec![2, 0, 0, 0, 0xff, 0xff], vec![9, 0]].concat())
            .expect("room");
        drop(writer);
        while source.read(&mut buffer, &intake).0 != Progress::Ended {}
        source.end();
        let told: Vec<String> = source.take_oddities().iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        let tally = source.tally();
        assert_eq!((tally.records, tally.without_timestamp, tally.without_payload), (3, 3, 1));
        assert_eq!((tally.invalid, tally.truncated, tally.skipped_bytes), (1, 1, 4));
    }
}
