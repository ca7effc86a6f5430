//! Byte streams in pieces: wherever a read may end, a decoder must not notice.

/// Cuts `stream` into pieces as long as `lengths` say, again from the first when they are used up.
///
/// A length of 0 gives an empty piece; lengths that are all 0, or none, leave the stream whole.
pub fn pieces<'s>(mut stream: &'s [u8], lengths: &'s [u8]) -> impl Iterator<Item = &'s [u8]> {
    let whole = lengths.iter().all(|&length| length == 0);
    let mut lengths = lengths.iter().cycle();
    let mut first = true;
    std::iter::from_fn(move || {
        if stream.is_empty() && !first {
            return None;
        }
        first = false;
        let length = if whole { stream.len() } else { lengths.next().map_or(0, |&length| usize::from(length)) };
        let (piece, rest) = stream.split_at(length.min(stream.len()));
        stream = rest;
        Some(piece)
    })
}
