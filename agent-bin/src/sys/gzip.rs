//! The gzip format (RFC 1952) around the deflate of `miniz_oxide`: archives of plugins are read, and old logs written.
//!
//! `flate2` does the same for 24 KB more of the agent, most of it tables of a fast checksum. An archive is unpacked once, so that
//! one of 64 bytes is fast enough.

use std::io::{self, BufRead, BufReader, Read, Write};

use miniz_oxide::deflate::core::{CompressorOxide, create_comp_flags_from_zip_params};
use miniz_oxide::deflate::stream::deflate;
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

/// Bytes that are read and written at once.
const PIECE_BYTES: usize = 16 << 10;

/// A member begins with these: the magic number, and deflate.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// Flags of optional parts of a header, and those that nobody has defined.
const HAS_CHECKSUM: u8 = 1 << 1;
const HAS_EXTRA: u8 = 1 << 2;
const HAS_NAME: u8 = 1 << 3;
const HAS_COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// Bytes of a header's texts. Longer ones are no names.
const MAX_TEXT_BYTES: u64 = 64 << 10;

/// Reads what was compressed, over all members.
pub(crate) struct Decoder<R> {
    input: BufReader<R>,
    state: Box<InflateState>,
    checksum: Checksum,
    /// Between members, the next one begins or the input ends.
    in_member: bool,
    is_first: bool,
}

impl<R: Read> Decoder<R> {
    /// A decoder at the beginning of a file.
    pub(crate) fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(PIECE_BYTES, input),
            state: InflateState::new_boxed(DataFormat::Raw),
            checksum: Checksum::default(),
            in_member: false,
            is_first: true,
        }
    }

    /// Reads a member's header.
    fn begin(&mut self) -> io::Result<()> {
        let mut header = [0; 10];
        self.input.read_exact(&mut header)?;
        let flags = header[3];
        if header[..3] != MAGIC || flags & RESERVED != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no gzip"));
        }
        if flags & HAS_EXTRA != 0 {
            let mut length = [0; 2];
            self.input.read_exact(&mut length)?;
            self.skip(u64::from(u16::from_le_bytes(length)))?;
        }
        for text in [HAS_NAME, HAS_COMMENT] {
            if flags & text != 0 {
                let end = self.input.by_ref().take(MAX_TEXT_BYTES).skip_until(0)?;
                if end as u64 == MAX_TEXT_BYTES {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "its name is too long"));
                }
            }
        }
        if flags & HAS_CHECKSUM != 0 {
            self.skip(2)?;
        }
        self.state.reset(DataFormat::Raw);
        self.checksum = Checksum::default();
        (self.in_member, self.is_first) = (true, false);
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.input.by_ref().take(bytes), &mut io::sink())?;
        if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Compares a member's end with what was read.
    fn end(&mut self) -> io::Result<()> {
        let mut trailer = [0; 8];
        self.input.read_exact(&mut trailer)?;
        self.in_member = false;
        if trailer != self.checksum.trailer() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum does not match"));
        }
        Ok(())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            let input = self.input.fill_buf()?;
            let is_end = input.is_empty();
            if !self.in_member {
                if is_end && !self.is_first {
                    return Ok(0);
                }
                self.begin()?;
                continue;
            }
            let result = inflate(&mut self.state, input, out, MZFlush::None);
            self.input.consume(result.bytes_consumed);
            let written = result.bytes_written;
            self.checksum.add(out.get(..written).unwrap_or_default());
            match result.status {
                Ok(MZStatus::StreamEnd) => self.end()?,
                Ok(_) | Err(MZError::Buf) if written == 0 && is_end => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(MZError::Buf) => {}
                Err(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no deflate")),
            }
            if written > 0 {
                return Ok(written);
            }
        }
    }
}

/// Compresses all of `from` into `to`, as one member.
///
/// # Errors
/// Those of reading and writing.
pub(crate) fn compress(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    /// The usual one of zlib.
    const LEVEL: i32 = 6;
    /// The system that a header names: none in particular.
    const UNKNOWN: u8 = 255;

    let mut compressor = Box::new(CompressorOxide::new(create_comp_flags_from_zip_params(LEVEL, -15, 0)));
    let (mut checksum, mut input, mut output) = (Checksum::default(), vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let [a, b, c] = MAGIC;
    to.write_all(&[a, b, c, 0, 0, 0, 0, 0, 0, UNKNOWN])?;
    loop {
        let read = match from.read(&mut input) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let mut piece = input.get(..read).unwrap_or_default();
        checksum.add(piece);
        let flush = if read == 0 { MZFlush::Finish } else { MZFlush::None };
        loop {
            let result = deflate(&mut compressor, piece, &mut output, flush);
            to.write_all(output.get(..result.bytes_written).unwrap_or_default())?;
            piece = piece.get(result.bytes_consumed..).unwrap_or_default();
            match result.status {
                Ok(MZStatus::StreamEnd) => return to.write_all(&checksum.trailer()),
                Ok(_) | Err(MZError::Buf) if read > 0 && piece.is_empty() => break,
                Ok(_) => {}
                Err(error) => return Err(io::Error::other(format!("it cannot be compressed: {error:?}"))),
            }
        }
    }
}

/// CRC-32 and length of what passes by.
#[derive(Default)]
struct Checksum {
    crc: u32,
    bytes: u32,
}

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        /// The remainders of all half bytes, for the polynomial 0xedb88320.
        const TABLE: [u32; 16] = {
            let mut table = [0_u32; 16];
            let (mut n, mut first) = (0, 0);
            while n < table.len() {
                let mut remainder = first;
                let mut bit = 0;
                while bit < 4 {
                    remainder = remainder >> 1 ^ if remainder & 1 != 0 { 0xedb8_8320 } else { 0 };
                    bit += 1;
                }
                table[n] = remainder;
                (n, first) = (n + 1, first + 1);
            }
            table
        };
        let mut crc = !self.crc;
        for byte in bytes {
            crc ^= u32::from(*byte);
            crc = TABLE[(crc & 15) as usize] ^ crc >> 4;
            crc = TABLE[(crc & 15) as usize] ^ crc >> 4;
        }
        self.crc = !crc;
        // The format has the length modulo 2^32.
        #[allow(clippy::cast_possible_truncation, reason = "the format says so")]
        let length = bytes.len() as u32;
        self.bytes = self.bytes.wrapping_add(length);
    }

    fn trailer(&self) -> [u8; 8] {
        let [[a, b, c, d], [e, f, g, h]] = [self.crc, self.bytes].map(u32::to_le_bytes);
        [a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::read::GzDecoder;
    use flate2::{GzBuilder, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    fn decoded(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut found = Vec::new();
        Decoder::new(bytes).read_to_end(&mut found).map(|_| found)
    }

    fn encoded(builder: GzBuilder, text: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = builder.write(Vec::new(), Compression::new(level));
        encoder.write_all(text).expect("memory");
        encoder.finish().expect("memory")
    }

    proptest! {
        #[test]
        fn what_others_have_compressed_is_read_and_the_other_way_round(
            text in proptest::collection::vec(0_u8..8, 0..100_000),
            level in 0_u32..10,
        ) {
            prop_assert_eq!(decoded(&encoded(GzBuilder::new(), &text, level)).expect("gzip"), &text[..]);
            let mut own = Vec::new();
            compress(&mut &text[..], &mut own).expect("memory");
            let mut found = Vec::new();
            GzDecoder::new(&own[..]).read_to_end(&mut found).expect("gzip");
            prop_assert!(found == text);
            prop_assert!(decoded(&own).expect("gzip") == text);
        }

        #[test]
        fn no_bytes_are_more_than_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decoded(&bytes);
            let _ = decoded(&[&[0x1f, 0x8b, 8, 0x1e][..], &bytes].concat());
        }
    }

    #[test]
    fn optional_parts_and_several_members_are_read() {
        let builder = GzBuilder::new().filename("a").comment("b").extra([1, 2, 3]);
        let mut bytes = encoded(builder, b"one ", 6);
        bytes.extend(encoded(GzBuilder::new(), b"", 6));
        bytes.extend(encoded(GzBuilder::new(), b"two", 6));
        assert_eq!(decoded(&bytes).expect("gzip"), b"one two");
    }

    #[test]
    fn what_ends_early_or_was_changed_is_refused() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&[7; 5000]).expect("memory");
        let whole = encoder.finish().expect("memory");
        for end in 0..whole.len() {
            let error = decoded(&whole[..end]).expect_err("it ends early");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}");
        }
        for at in whole.len() - 8..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert_eq!(decoded(&changed).expect_err("it was changed").to_string(), "its checksum does not match");
        }
        assert!(decoded(&[whole, vec![0; 20]].concat()).is_err(), "nothing else may follow");
    }
}
