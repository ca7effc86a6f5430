//! The record in the making: names and values in buffers that the next record reuses.

use std::fmt::{self, Display, Write};
use std::ops::Range;

/// The reference's word for a value that does not exist, or that only the kernel could know.
pub(crate) const ABSENT: &str = "-1";
/// The reference's word for a value that could not be read, or that does not apply.
pub(crate) const FAILED: &str = "-3";
/// The reference's word for a value that was not looked up, because too many were wanted at once.
pub(crate) const LIMITED: &str = "-4";

/// An exec has 33 fields, an exit fewer.
const MAX_FIELDS: usize = 40;

/// A record's fields, in the order in which they were added.
#[derive(Default)]
pub(crate) struct Row {
    text: String,
    fields: heapless::Vec<(&'static str, Range<usize>), MAX_FIELDS>,
}

/// A row in the SDK's form.
pub(crate) type Pairs<'r> = heapless::Vec<(&'r str, &'r str), MAX_FIELDS>;

impl Row {
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
    }

    pub(crate) fn put(&mut self, name: &'static str, value: impl Display) {
        self.put_with(name, |text| write!(text, "{value}"));
    }

    pub(crate) fn put_known(&mut self, name: &'static str, value: Option<impl Display>) {
        match value {
            Some(value) => self.put(name, value),
            None => self.put(name, FAILED),
        }
    }

    /// Adds bytes as text. What is not UTF-8 becomes replacement characters.
    pub(crate) fn put_bytes(&mut self, name: &'static str, value: &[u8]) {
        self.put(name, Lossy(value));
    }

    /// Adds what `write` appends.
    pub(crate) fn put_with(&mut self, name: &'static str, write: impl FnOnce(&mut String) -> fmt::Result) {
        let start = self.text.len();
        write(&mut self.text).expect("writing to a String does not fail");
        let field = (name, start..self.text.len());
        self.fields.push(field).expect("MAX_FIELDS counts every field of the longest record");
    }

    pub(crate) fn pairs(&self) -> Pairs<'_> {
        self.fields.iter().map(|(name, range)| (*name, self.text.get(range.clone()).unwrap_or_default())).collect()
    }
}

/// Bytes of any kind, displayed as UTF-8 with a replacement character for each invalid sequence. A character that is
/// cut off at the end is left out.
#[derive(Clone, Copy)]
pub(crate) struct Lossy<'b>(pub(crate) &'b [u8]);

impl Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chunks = self.0.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            f.write_str(chunk.valid())?;
            let is_cut = chunks.peek().is_none() && is_cut_character(chunk.invalid());
            if !chunk.invalid().is_empty() && !is_cut {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

fn is_cut_character(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_order() {
        let mut row = Row::default();
        row.put("left", "over");
        row.clear();
        row.put("pid", 5);
        row.put_bytes("exe", b"/b\xffin");
        row.put_known("uid", None::<u32>);
        row.put_with("empty", |_| Ok(()));
        assert_eq!(row.pairs().as_slice(), [("pid", "5"), ("exe", "/b\u{fffd}in"), ("uid", "-3"), ("empty", "")]);
    }

    #[test]
    fn bytes_become_text() {
        let cases: [(&[u8], &str); 6] = [
            (b"", ""),
            ("größe".as_bytes(), "größe"),
            (b"\xff\xfeab\x80c", "\u{fffd}\u{fffd}ab\u{fffd}c"),
            (b"ab\xc3", "ab"),
            (b"ab\xe2\x82", "ab"),
            (b"\xc3a", "\u{fffd}a"),
        ];
        for (bytes, text) in cases {
            assert_eq!(Lossy(bytes).to_string(), text);
        }
    }
}
