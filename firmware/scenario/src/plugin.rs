//! A plugin that sends without end: its byte stream, as a pipe would give it.

use alloc::format;
use alloc::vec::Vec;

use elklet_core::record::OwnRecord;
use elklet_proto::data_type::AGENT_HEARTBEAT;

/// Data type of an execve, which is what most of a host's records are.
const EXECVE: i32 = 59;

/// The plugin makes a mistake with one frame in so many: by turns it sends a record type that belongs to the agent, and a record that is
/// too long.
const MISTAKE_EVERY: u32 = 1_000;

/// When its first record was made, in seconds since 1970.
const FIRST_AT: i64 = 1_700_000_000;

/// A plugin whose every record has a number, counted from 0.
#[derive(Debug)]
pub(crate) struct Plugin {
    /// Bytes of the longest record that its reader takes.
    limit: usize,
    frames: u32,
    records: u32,
    /// The frame that is being read.
    frame: Vec<u8>,
    read: usize,
}

impl Plugin {
    /// A plugin that has not sent anything. Some of its mistakes are frames longer than `limit`.
    #[must_use]
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, frames: 0, records: 0, frame: Vec::new(), read: 0 }
    }

    /// Fills `out` with the next bytes of its stream.
    pub(crate) fn read(&mut self, out: &mut [u8]) {
        let mut filled = 0;
        while filled < out.len() {
            if self.read == self.frame.len() {
                self.next_frame();
            }
            let n = (out.len() - filled).min(self.frame.len() - self.read);
            out[filled..filled + n].copy_from_slice(&self.frame[self.read..self.read + n]);
            filled += n;
            self.read += n;
        }
    }

    fn next_frame(&mut self) {
        self.frames += 1;
        self.read = 0;
        self.frame.clear();
        match self.frames % (2 * MISTAKE_EVERY) {
            MISTAKE_EVERY => self.record(AGENT_HEARTBEAT),
            0 => {
                let length = u32::try_from(self.limit + 1).expect("a limit far below 4 GiB");
                self.frame.extend_from_slice(&length.to_le_bytes());
                self.frame.resize(4 + self.limit + 1, b'x');
            }
            _ => {
                self.record(EXECVE);
                self.records += 1;
            }
        }
    }

    fn record(&mut self, data_type: i32) {
        let number = format!("{}", self.records);
        // Lengths differ, so that reads end anywhere in a frame.
        let argv =
            &"curl --silent --show-error --location https://example.org/status"[..8 + self.records as usize % 50];
        let fields = [("n", &*number), ("exe", "/usr/bin/curl"), ("argv", argv)];
        let record =
            OwnRecord { data_type, timestamp: FIRST_AT + i64::from(self.records / 100), fields: fields.into_iter() };
        let length = record.encoded_len();
        self.frame.extend_from_slice(&u32::try_from(length).expect("a short record").to_le_bytes());
        self.frame.resize(4 + length, 0);
        record.write(&mut self.frame[4..]);
    }
}
