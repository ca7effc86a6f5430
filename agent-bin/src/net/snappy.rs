//! Snappy's framing format, which is what grpc-go means by `grpc-encoding: snappy`: a stream identifier, then chunks of
//! at most 64 KiB with a masked CRC-32C each.
//!
//! Source: framing_format.txt of google/snappy. Frames are written by hand over `snap`'s block encoder, so that a batch
//! is compressed in place, in parts, without another copy. Reading commands is rare and left to `snap`.

use std::hint::black_box;
use std::io::{self, Read};

use elklet_core::link::grpc::{self, PREFIX};

const STREAM_IDENTIFIER: &[u8; 10] = b"\xff\x06\x00\x00sNaPpY";

/// Most bytes of content in a chunk.
const CHUNK: usize = 1 << 16;

/// Type, length and checksum in front of a chunk's data.
const CHUNK_HEAD: usize = 8;

const COMPRESSED: u8 = 0;
const UNCOMPRESSED: u8 = 1;

/// Compresses batches one after another and reuses its tables.
pub(crate) struct Compressor {
    encoder: snap::raw::Encoder,
}

/// Calls `snap` through a pointer. `snap` is built for speed and this crate for size. A direct call would be inlined
/// and built for size too, which makes it half as fast.
type Compress = fn(&mut snap::raw::Encoder, &[u8], &mut [u8]) -> Result<usize, snap::Error>;

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    pub(crate) fn new() -> Self {
        Self { encoder: snap::raw::Encoder::new() }
    }

    /// Returns a gRPC message, prefix included, whose content is the compressed concatenation of `parts`.
    pub(crate) fn message(&mut self, parts: &[&[u8]]) -> Vec<u8> {
        let chunks = || parts.iter().flat_map(|part| part.chunks(CHUNK));
        let most = |chunk: &[u8]| CHUNK_HEAD + snap::raw::max_compress_len(chunk.len());
        let mut end = PREFIX + STREAM_IDENTIFIER.len();
        // Fresh zeroed pages. Those that stay untouched cost nothing and are given back below.
        let mut message = vec![0; end + chunks().map(most).sum::<usize>()];
        message[PREFIX..end].copy_from_slice(STREAM_IDENTIFIER);
        for chunk in chunks() {
            end += self.chunk(chunk, &mut message[end..]);
        }
        message[..PREFIX].copy_from_slice(&grpc::prefix(true, end - PREFIX));
        message.truncate(end);
        message.shrink_to_fit();
        message
    }

    /// Writes a chunk to the front of `out` and returns its length.
    fn chunk(&mut self, content: &[u8], out: &mut [u8]) -> usize {
        let (head, data) = out.split_at_mut(CHUNK_HEAD);
        let compress: Compress = black_box(snap::raw::Encoder::compress);
        // Other writers, too, store a chunk uncompressed if compressing saves less than an eighth.
        let (kind, length) = match compress(&mut self.encoder, content, data) {
            Ok(length) if length < content.len() - content.len() / 8 => (COMPRESSED, length),
            _ => {
                data[..content.len()].copy_from_slice(content);
                (UNCOMPRESSED, content.len())
            }
        };
        // A chunk has at most 64 KiB, so its length and checksum fit three bytes.
        let [a, b, c, ..] = (length + 4).to_le_bytes();
        head[..4].copy_from_slice(&[kind, a, b, c]);
        head[4..].copy_from_slice(&masked_checksum(content).to_le_bytes());
        CHUNK_HEAD + length
    }
}

fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Decompresses a message that must not exceed `limit` bytes.
///
/// # Errors
/// When the bytes are no snappy frames, a checksum is wrong, or the content is longer than `limit`.
pub fn decompress(bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    snap::read::FrameDecoder::new(bytes).take(one_more).read_to_end(&mut content)?;
    match content.len() {
        length if length > limit => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("it decompresses to more than {limit} bytes")))
        }
        _ => Ok(content),
    }
}

/// The longest chunk, in bytes, checksum included.
const MAX_CHUNK: usize = 4 + (32 + CHUNK + CHUNK / 6);

/// Decompresses frames that come in pieces, chunk by chunk. It keeps nothing longer than a chunk and ignores checksums.
#[derive(Debug, Default)]
pub struct Pieces {
    /// The part of a chunk that has arrived, head included.
    chunk: Vec<u8>,
    failed: bool,
}

impl Pieces {
    /// Takes the next bytes and passes their content to `each`. Bytes that are no frames end it.
    pub fn take(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        const HEAD: usize = 4;
        while !bytes.is_empty() && !self.failed {
            let length = match *self.chunk {
                [_, a, b, c, ..] => u32::from_le_bytes([a, b, c, 0]) as usize,
                _ => 0,
            };
            self.failed = length > MAX_CHUNK;
            let missing = (HEAD + length).saturating_sub(self.chunk.len()).min(bytes.len());
            let (piece, rest) = bytes.split_at(missing);
            self.chunk.extend_from_slice(piece);
            bytes = rest;
            let [kind, a, b, c, content @ ..] = &*self.chunk else { continue };
            if content.len() < u32::from_le_bytes([*a, *b, *c, 0]) as usize {
                continue;
            }
            match (*kind, content.get(4..)) {
                (COMPRESSED, Some(data)) => match decompress_chunk(data) {
                    Ok(content) => each(&content),
                    Err(_) => self.failed = true,
                },
                (UNCOMPRESSED, Some(data)) => each(data),
                // A stream identifier or padding.
                _ => {}
            }
            self.chunk.clear();
        }
    }
}

/// Decompresses the data of a chunk. A few bytes of it can promise 4 GiB, so their promise is looked at before it gets memory.
fn decompress_chunk(data: &[u8]) -> Result<Vec<u8>, snap::Error> {
    match snap::raw::decompress_len(data)? {
        ..=CHUNK => snap::raw::Decoder::new().decompress_vec(data),
        given => Err(snap::Error::TooBig { given: given as u64, max: CHUNK as u64 }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_compressed_reads_back(
            parts in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..400), 0..600usize).prop_map(|(seed, times)| seed.repeat(times)), 0..4),
        ) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let message = Compressor::new().message(&parts);
            let (prefix, body) = message.split_at(PREFIX);
            prop_assert_eq!(prefix, &grpc::prefix(true, body.len())[..]);
            prop_assert_eq!(decompress(body, usize::MAX).expect("valid frames"), parts.concat());
            let (mut pieces, mut content) = (Pieces::default(), Vec::new());
            body.chunks(1000).for_each(|piece| pieces.take(piece, |part| content.extend_from_slice(part)));
            prop_assert_eq!(content, parts.concat());
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decompress(&bytes, 1000);
            let _ = decompress(&[STREAM_IDENTIFIER, &bytes[..]].concat(), 1000);
            bytes.chunks(7).fold(Pieces::default(), |mut pieces, piece| {
                pieces.take(piece, |part| assert!(part.len() <= MAX_CHUNK));
                pieces
            });
        }
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let message = Compressor::new().message(&[&vec![0; 50 << 20]]);
        let error = decompress(&message[PREFIX..], 4 << 20).expect_err("50 MiB");
        assert_eq!(error.to_string(), "it decompresses to more than 4194304 bytes");
        assert_eq!(decompress(&message[PREFIX..], 50 << 20).expect("at the limit").len(), 50 << 20);
    }

    #[test]
    fn a_spoilt_checksum_is_noticed() {
        let mut message = Compressor::new().message(&[b"some text"]);
        let last = message.len() - 1;
        message[last] ^= 1;
        assert!(decompress(&message[PREFIX..], 100).is_err());
    }
}
