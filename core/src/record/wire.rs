//! The part of the protobuf wire format that passing records on needs.
//!
//! Reading takes checked steps over a slice; writing goes into the caller's slice. Source: the protobuf encoding guide
//! (varints have at most ten bytes, a field's key is its number and wire type, groups are obsolete and refused).

/// Why bytes are not a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes end inside a field.
    Ends,
    /// A varint of more than ten bytes, or of more than 64 bits.
    Varint,
    /// A field's key has number 0, a number over 2^29-1, or an unknown or obsolete wire type.
    Key,
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Ends => "it ends inside a field",
            Self::Varint => "it has a varint of more than 64 bits",
            Self::Key => "it has an impossible field key",
        })
    }
}

impl core::error::Error for Malformed {}

/// A field's value, by its wire type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire types 1 and 5, which no message of this protocol uses.
    Fixed,
}

/// Takes one field off the front of `input`: its number and its value.
///
/// # Errors
/// When `input` does not start with a whole, well-formed field.
pub fn take_field<'a>(input: &mut &'a [u8]) -> Result<(u32, Value<'a>), Malformed> {
    take_field_here(input)
}

/// The same as a part of its caller, for what every record passes through.
#[inline(always)]
pub(super) fn take_field_here<'a>(input: &mut &'a [u8]) -> Result<(u32, Value<'a>), Malformed> {
    let key = take_varint(input)?;
    let number = u32::try_from(key >> 3).map_err(|_| Malformed::Key)?;
    if number == 0 || number >= 1 << 29 {
        return Err(Malformed::Key);
    }
    let value = match key & 7 {
        0 => Value::Varint(take_varint(input)?),
        1 => take_bytes(input, 8).map(|_| Value::Fixed)?,
        2 => {
            let length = take_varint(input)?;
            Value::Bytes(take_bytes(input, usize::try_from(length).map_err(|_| Malformed::Ends)?)?)
        }
        5 => take_bytes(input, 4).map(|_| Value::Fixed)?,
        _ => return Err(Malformed::Key),
    };
    Ok((number, value))
}

/// Takes a varint off the front of `input`.
///
/// # Errors
/// When `input` ends before the varint does, or the varint has more than 64 bits.
#[inline(always)]
pub fn take_varint(input: &mut &[u8]) -> Result<u64, Malformed> {
    // Keys, lengths below 128 and most small numbers are one byte.
    match *input {
        [first, rest @ ..] if *first < 0x80 => {
            *input = rest;
            Ok(u64::from(*first))
        }
        _ => take_long_varint(input),
    }
}

fn take_long_varint(input: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for (i, &byte) in input.iter().enumerate().take(10) {
        if i == 9 && byte > 1 {
            return Err(Malformed::Varint);
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            *input = &input[i + 1..];
            return Ok(value);
        }
    }
    // The tenth byte, if there is one, has ended the varint or has been refused.
    Err(Malformed::Ends)
}

fn take_bytes<'a>(input: &mut &'a [u8], n: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = input.split_at_checked(n).ok_or(Malformed::Ends)?;
    *input = rest;
    Ok(taken)
}

/// Length of `value` as a varint, in bytes: 1 to 10.
#[must_use]
#[inline]
pub const fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    // A seventh, rounded up, without a division: exact for up to 64 bits.
    (bits * 9 + 64) / 64
}

/// Length of a length-delimited field of `length` bytes with a one-byte key.
#[must_use]
pub const fn bytes_field_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}

/// Writes into a slice that is long enough.
///
/// The caller computes the length with [`varint_len`] and [`bytes_field_len`]. A slice that is too short is the
/// caller's mistake and panics.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    /// A writer at the start of `out`.
    #[must_use]
    pub fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0 }
    }

    /// Bytes written so far.
    #[must_use]
    pub fn written(&self) -> usize {
        self.at
    }

    /// Appends `value` as a varint.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.byte((value & 0x7f) as u8);
    }

    /// Appends the bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// Appends the key and the length of a length-delimited field. The caller appends its `length` bytes next.
    pub fn bytes_head(&mut self, number: u8, length: usize) {
        self.byte(number << 3 | 2);
        self.varint(length as u64);
    }

    /// Appends a length-delimited field.
    pub fn bytes_field(&mut self, number: u8, bytes: &[u8]) {
        self.bytes_head(number, bytes.len());
        self.raw(bytes);
    }

    /// Appends a varint field.
    pub fn varint_field(&mut self, number: u8, value: u64) {
        self.byte(number << 3);
        self.varint(value);
    }

    fn byte(&mut self, byte: u8) {
        self.out[self.at] = byte;
        self.at += 1;
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;
    use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

    use super::*;

    proptest! {
        #[test]
        fn a_varint_is_written_as_prost_writes_it(value in prop_oneof![any::<u64>(), 0..1u64 << 21, (0..64u32).prop_map(|b| 1 << b)]) {
            let mut theirs = Vec::new();
            encode_varint(value, &mut theirs);
            let mut ours = vec![0; varint_len(value)];
            let mut writer = Writer::new(&mut ours);
            writer.varint(value);
            prop_assert_eq!(writer.written(), encoded_len_varint(value));
            prop_assert_eq!(&ours, &theirs);
            let mut rest = &ours[..];
            prop_assert_eq!(take_varint(&mut rest), Ok(value));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn a_varint_is_read_as_prost_reads_it(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xff), Just(0x80)], 0..14)) {
            let (mut theirs, mut ours) = (&bytes[..], &bytes[..]);
            match decode_varint(&mut theirs) {
                Ok(value) => {
                    prop_assert_eq!(take_varint(&mut ours), Ok(value));
                    prop_assert_eq!(ours, theirs);
                }
                Err(_) => prop_assert!(take_varint(&mut ours).is_err()),
            }
        }
    }

    #[test]
    fn obsolete_and_impossible_keys_are_refused() {
        for bytes in
            [&[0x03u8][..], &[0x0c], &[0x0e], &[0x0f], &[0x00, 0x00], &[0xf8, 0xff, 0xff, 0xff, 0xff, 0x01, 0x00]]
        {
            let mut input = bytes;
            assert_eq!(take_field(&mut input), Err(Malformed::Key), "{bytes:x?}");
        }
    }

    #[test]
    fn the_highest_field_number_is_read_and_the_next_one_is_refused() {
        for (number, expected) in [
            (1, Ok((1, Value::Varint(5)))),
            ((1 << 29) - 1, Ok(((1 << 29) - 1, Value::Varint(5)))),
            (1 << 29, Err(Malformed::Key)),
        ] {
            let mut bytes = Vec::new();
            encode_varint(number << 3, &mut bytes);
            bytes.push(5);
            assert_eq!(take_field(&mut &bytes[..]), expected, "{number}");
        }
    }

    #[test]
    fn fields_of_fixed_size_are_passed_over() {
        for (wire_type, size) in [(1, 8), (5, 4)] {
            let field = [&[7 << 3 | wire_type][..], &[0xff; 8][..size], b"next"].concat();
            let mut input = &field[..];
            assert_eq!(take_field(&mut input), Ok((7, Value::Fixed)));
            assert_eq!(input, b"next");
            assert_eq!(take_field(&mut &field[..size]), Err(Malformed::Ends));
        }
    }

    #[test]
    fn a_varint_that_goes_on_is_told_from_one_that_is_too_long() {
        let varint = |mut bytes: &[u8]| take_varint(&mut bytes);
        assert_eq!(varint(&[0x80; 9]), Err(Malformed::Ends));
        assert_eq!(varint(&[0x80; 10]), Err(Malformed::Varint));
        let tenth = |byte: u8| [&[0xff; 9][..], &[byte]].concat();
        assert_eq!(varint(&tenth(1)), Ok(u64::MAX));
        assert_eq!(varint(&tenth(2)), Err(Malformed::Varint));
        assert_eq!(varint(&tenth(0x81)), Err(Malformed::Varint));
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        assert_eq!(Malformed::Ends.to_string(), "it ends inside a field");
        assert_eq!(Malformed::Varint.to_string(), "it has a varint of more than 64 bits");
        assert_eq!(Malformed::Key.to_string(), "it has an impossible field key");
    }
}
