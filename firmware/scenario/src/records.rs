//! The way of a record, from a plugin's pipe to the message that leaves.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use elklet_core::link::grpc;
use elklet_core::record::buffer::{Full, RecordBuffer};
use elklet_core::record::envelope::{Envelope, Sender};
use elklet_core::record::frame::FrameDecoder;

use crate::crc::Crc32c;
use crate::plugin::Plugin;

/// Bytes of the longest record that is taken. The decoder copies a record that a read cuts in two, so that this is what it allocates
/// at most.
pub const MAX_RECORD_BYTES: usize = 2048;

/// Bytes of one read of the plugin's pipe.
pub const READ_BYTES: usize = 1500;

/// Mistakes of the plugin's that are printed; the tally has them all.
const SHOWN_MISTAKES: usize = 2;

/// Fills `buffer` from a plugin until it refuses a record, sends what it holds, and does both again: the record that was refused is the
/// first of the second batch. `link` is given the bytes that would go to the server.
///
/// # Errors
/// When `out` cannot be written to.
pub fn send_records<B, const N: usize>(
    out: &mut impl Write,
    buffer: &mut RecordBuffer<B, N>,
    link: &mut impl FnMut(&[u8]),
) -> fmt::Result
where
    B: AsRef<[u8]> + AsMut<[u8]>,
{
    writeln!(out, "a buffer of {N} slots and {} bytes", buffer.capacity())?;
    let envelope = Envelope::new(sender());
    let mut pipe = Pipe::new();
    for _ in 0..2 {
        let full = pipe.pump(out, buffer)?;
        writeln!(out, "full: {}", describe(full))?;
        send(out, buffer, &envelope, link)?;
        buffer.clear();
    }
    let tally = pipe.decoder.tally();
    writeln!(
        out,
        "seen of the plugin: {} records, {} of a reserved type, {} too long, {} bytes skipped",
        tally.records, tally.reserved_type, tally.too_long, tally.skipped_bytes
    )
}

/// A plugin's pipe and the bytes that were read from it and are not used up.
struct Pipe {
    plugin: Plugin,
    decoder: FrameDecoder,
    read: Vec<u8>,
    used: usize,
    mistakes: usize,
}

impl Pipe {
    fn new() -> Self {
        Self {
            plugin: Plugin::new(MAX_RECORD_BYTES),
            decoder: FrameDecoder::new(MAX_RECORD_BYTES),
            read: vec![0; READ_BYTES],
            used: READ_BYTES,
            mistakes: 0,
        }
    }

    /// Moves records into `buffer` until that is full. Whatever was read and found no room stays here: this is the backpressure, and
    /// a real pipe would make the plugin wait.
    fn pump<B, const N: usize>(
        &mut self,
        out: &mut impl Write,
        buffer: &mut RecordBuffer<B, N>,
    ) -> Result<Full, fmt::Error>
    where
        B: AsRef<[u8]> + AsMut<[u8]>,
    {
        loop {
            let mut input = &self.read[self.used..];
            while let Some(next) = self.decoder.peek(&mut input) {
                match next.map(|record| buffer.push(record.body())) {
                    Ok(Ok(())) => self.decoder.take(&mut input),
                    Ok(Err(full)) => {
                        self.used = self.read.len() - input.len();
                        return Ok(full);
                    }
                    Err(mistake) => {
                        if self.mistakes < SHOWN_MISTAKES {
                            writeln!(out, "the plugin sent {mistake}")?;
                        }
                        self.mistakes += 1;
                    }
                }
            }
            self.plugin.read(&mut self.read);
            self.used = 0;
        }
    }
}

/// Sends the records as one uncompressed gRPC message. No byte is copied: the buffer's bytes and the envelope's are the message.
fn send<B, const N: usize>(
    out: &mut impl Write,
    buffer: &RecordBuffer<B, N>,
    envelope: &Envelope,
    link: &mut impl FnMut(&[u8]),
) -> fmt::Result
where
    B: AsRef<[u8]>,
{
    let length = buffer.bytes().len() + envelope.bytes().len();
    let prefix = grpc::prefix(false, length);
    let mut crc = Crc32c::new();
    for part in [&prefix[..], buffer.bytes(), envelope.bytes()] {
        crc.update(part);
        link(part);
    }
    writeln!(
        out,
        "sent {} records in a message of {} bytes, CRC-32C {:08x}",
        buffer.len(),
        prefix.len() + length,
        crc.value()
    )
}

fn describe(full: Full) -> &'static str {
    match full {
        Full::Slots => "every slot is taken",
        Full::Bytes => "the next record has more bytes than are left",
    }
}

fn sender() -> Sender {
    Sender {
        agent_id: String::from("6f1c1f9e-3c0b-4a7e-9b0e-0d1c5a4e8f21"),
        intranet_ipv4: vec![String::from("192.0.2.17")],
        hostname: String::from("mps2"),
        version: String::from("1.7.0.24"),
        product: String::from(elklet_core::command::AGENT_NAME),
        ..Sender::default()
    }
}
