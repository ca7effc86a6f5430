//! The credit that is read off a connection's bytes, in any pieces, is that of a reader who has the bytes as a whole; and of
//! frames that were made well it is what was put into them.
#![no_main]

use arbitrary::Arbitrary;
use elklet_core::delivery::CreditObserver;
use elklet_fuzz::stream::pieces;
use libfuzzer_sys::fuzz_target;

const WINDOW_UPDATE: u8 = 8;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    stream: u8,
    lengths: &'a [u8],
    content: Content<'a>,
}

#[derive(Arbitrary, Debug)]
enum Content<'a> {
    Bytes(&'a [u8]),
    Frames(Vec<Frame<'a>>),
}

#[derive(Arbitrary, Debug)]
enum Frame<'a> {
    Update { stream: u8, is_reserved: bool, increment: u32 },
    Other { kind: u8, flags: u8, stream: u8, payload: &'a [u8], times: u8 },
}

fuzz_target!(|input: Input<'_>| {
    let stream = u32::from(input.stream);
    match input.content {
        Content::Bytes(bytes) => drop(check(stream, bytes, input.lengths)),
        Content::Frames(frames) => {
            let (mut bytes, mut credit) = (Vec::new(), 0);
            for frame in &frames {
                frame.write(stream, &mut bytes, &mut credit);
            }
            assert_eq!(check(stream, &bytes, input.lengths), credit);
        }
    }
});

fn check(stream: u32, bytes: &[u8], lengths: &[u8]) -> u64 {
    let mut observer = CreditObserver::new(stream);
    let credit = pieces(bytes, lengths).map(|piece| observer.observe(piece)).sum();
    assert_eq!(credit, model(stream, bytes));
    credit
}

/// RFC 9113, sections 4.1 and 6.9, on bytes that are all there.
fn model(stream: u32, mut bytes: &[u8]) -> u64 {
    let mut credit = 0;
    while let Some((&[l1, l2, l3, kind, _, s1, s2, s3, s4], rest)) = bytes.split_first_chunk() {
        let length = u32::from_be_bytes([0, l1, l2, l3]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        let is_ours = u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]) == stream;
        if let (WINDOW_UPDATE, true, &[i1, i2, i3, i4]) = (kind, is_ours, payload) {
            credit += u64::from(u32::from_be_bytes([i1 & 0x7f, i2, i3, i4]));
        }
        bytes = rest;
    }
    credit
}

impl Frame<'_> {
    fn write(&self, observed: u32, bytes: &mut Vec<u8>, credit: &mut u64) {
        match *self {
            Frame::Update { stream, is_reserved, increment } => {
                let stream = u32::from(stream);
                bytes.extend_from_slice(&[0, 0, 4, WINDOW_UPDATE, 0]);
                bytes.extend_from_slice(&(stream | u32::from(is_reserved) << 31).to_be_bytes());
                bytes.extend_from_slice(&increment.to_be_bytes());
                *credit += if stream == observed { u64::from(increment & 0x7fff_ffff) } else { 0 };
            }
            Frame::Other { kind, flags, stream, payload, times } => {
                let kind = if kind == WINDOW_UPDATE { 0 } else { kind };
                let payload = payload.repeat(usize::from(times));
                let [_, l1, l2, l3] = u32::try_from(payload.len() & 0x00ff_ffff).expect("24 bits").to_be_bytes();
                bytes.extend_from_slice(&[l1, l2, l3, kind, flags, 0, 0, 0, stream]);
                bytes.extend_from_slice(&payload[..payload.len() & 0x00ff_ffff]);
            }
        }
    }
}
