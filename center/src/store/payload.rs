//! Reading the fields of a record's payload in place: a serialized `grpc.Payload`, which is `map<string, string> fields = 1`.

/// The fields of a payload, in the order in which they stand in it.
///
/// A payload comes from a plugin on a host, so it may hold anything. Reading ends at the first byte that is no field of a map;
/// fields of other numbers are passed over. Nothing is copied.
#[must_use]
pub fn fields(payload: &[u8]) -> Fields<'_> {
    Fields { rest: payload }
}

/// What [`fields`] returns: names with their values.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let Some((number, content)) = field(&mut self.rest) else {
                self.rest = &[];
                return None;
            };
            if let (1, Some(mut entry)) = (number, content) {
                let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
                while !entry.is_empty() {
                    match field(&mut entry) {
                        Some((1, Some(text))) => name = text,
                        Some((2, Some(text))) => value = text,
                        Some(_) => {}
                        None => {
                            self.rest = &[];
                            return None;
                        }
                    }
                }
                return Some((name, value));
            }
        }
        None
    }
}

/// Takes one protobuf field from the front: its number, and its bytes if it has a length.
fn field<'a>(input: &mut &'a [u8]) -> Option<(u64, Option<&'a [u8]>)> {
    let key = varint(input)?;
    let content = match key & 7 {
        0 => varint(input).map(|_| None)?,
        1 => input.split_off(..8).map(|_| None)?,
        2 => {
            let len = usize::try_from(varint(input)?).ok()?;
            Some(input.split_off(..len)?)
        }
        5 => input.split_off(..4).map(|_| None)?,
        _ => return None,
    };
    Some((key >> 3, content))
}

/// Takes a base-128 number of at most ten bytes from the front.
pub(super) fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *input.split_off_first()?;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Appends a base-128 number.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A payload of these fields, as a plugin would write it.
    pub(in crate::store) fn payload(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in fields {
            let mut entry = Vec::new();
            for (tag, text) in [(0x0A, name), (0x12, value)] {
                entry.push(tag);
                put_varint(&mut entry, text.len() as u64);
                entry.extend_from_slice(text.as_bytes());
            }
            out.push(0x0A);
            put_varint(&mut out, entry.len() as u64);
            out.extend_from_slice(&entry);
        }
        out
    }

    #[test]
    fn fields_of_other_numbers_are_passed_over() {
        let mut bytes = vec![0x10, 0x07, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 0x25, 1, 2, 3, 4, 0x32, 1, 9];
        bytes.extend(payload(&[("exe", "/bin/true")]));
        assert_eq!(fields(&bytes).collect::<Vec<_>>(), [(&b"exe"[..], &b"/bin/true"[..])]);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(pairs in prop::collection::vec((".{0,9}", ".{0,300}"), 0..9)) {
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let bytes = payload(&pairs);
            let read: Vec<_> = fields(&bytes).collect();
            let expected: Vec<_> = pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_bytes_come_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(fields(&bytes).count() <= bytes.len());
        }

        #[test]
        fn numbers_come_back(value in any::<u64>()) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(varint(&mut &out[..]), Some(value));
        }
    }
}
