//! What a server says is snappy frames: decompressing gives at most the limit, or an error, and holds memory in proportion
//! to the limit and not to what the frames promise. What was decompressed fits a limit of just its length and no smaller
//! one. Frames that a correct writer made, in any number and with padding between them, read back whole.
#![no_main]

use std::io::Write;

use arbitrary::Arbitrary;
use elklet_agent::{Pieces, decompress};
use elklet_fuzz::heap;
use libfuzzer_sys::fuzz_target;
use snap::write::FrameEncoder;

/// The buffers of one chunk, compressed and not, and some change.
const FIXED: usize = 160 << 10;

/// The same where the compressed one grows as its pieces come.
const FIXED_IN_PIECES: usize = 400 << 10;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Bytes { limit: u32, bytes: &'a [u8] },
    Frames { limit: u32, parts: Vec<Part<'a>>, spoil: Option<(u16, u8)> },
}

#[derive(Arbitrary, Debug)]
enum Part<'a> {
    Content { bytes: &'a [u8], times: u16 },
    Padding(&'a [u8]),
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Bytes { limit, bytes } => drop(check(bytes, limit as usize % (1 << 20))),
        Input::Frames { limit, parts, spoil } => frames(limit as usize % (1 << 20), &parts, spoil),
    }
});

fn check(bytes: &[u8], limit: usize) -> Option<Vec<u8>> {
    let (read, peak) = heap::peak(|| in_pieces(bytes));
    assert!(peak <= FIXED_IN_PIECES + 3 * read.len(), "{peak} bytes were held for pieces of {}", read.len());
    let (result, peak) = heap::peak(|| decompress(bytes, limit));
    assert!(peak <= FIXED + 2 * limit, "{peak} bytes were held under a limit of {limit}");
    let content = result.ok()?;
    assert!(content.len() <= limit);
    assert!(content.starts_with(&read), "pieces read something else");
    assert_eq!(decompress(bytes, content.len()).expect("it fits its own length"), content);
    if let Some(less) = content.len().checked_sub(1) {
        decompress(bytes, less).expect_err("it does not fit less than its own length");
    }
    Some(content)
}

/// What is read of frames whose content is too long, and that come as they may.
fn in_pieces(bytes: &[u8]) -> Vec<u8> {
    let (mut pieces, mut content) = (Pieces::default(), Vec::new());
    bytes.chunks(1000).for_each(|piece| pieces.take(piece, |part| content.extend_from_slice(part)));
    content
}

fn frames(limit: usize, parts: &[Part<'_>], spoil: Option<(u16, u8)>) {
    let (mut bytes, mut content) = (Vec::new(), Vec::new());
    for part in parts {
        match *part {
            Part::Content { bytes: piece, times } => {
                let piece = piece.repeat(usize::from(times).min((1 << 18) / piece.len().max(1)));
                // An encoder of its own for each part: the stream identifier may come again at any time.
                let mut encoder = FrameEncoder::new(&mut bytes);
                encoder.write_all(&piece).expect("writing to memory");
                encoder.flush().expect("writing to memory");
                drop(encoder);
                content.extend_from_slice(&piece);
            }
            // Padding is no beginning of a stream.
            Part::Padding(_) if bytes.is_empty() => {}
            Part::Padding(padding) => {
                let [a, b, c, ..] = padding.len().to_le_bytes();
                bytes.extend_from_slice(&[0xfe, a, b, c]);
                bytes.extend_from_slice(padding);
            }
        }
        if content.len() > 1 << 19 {
            break;
        }
    }
    match spoil {
        None => assert_eq!(check(&bytes, limit), (content.len() <= limit).then_some(content)),
        Some((at, mask)) => {
            if let Some(at) = usize::from(at).checked_rem(bytes.len()) {
                bytes[at] ^= mask;
            }
            drop(check(&bytes, limit));
        }
    }
}
