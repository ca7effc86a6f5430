//! The fields of a record that the agent itself writes.

use std::fmt::{self, Write};

/// Keys and string values in order, for a `Payload`'s map (`grpc.proto`, field 1). [`clear`](Self::clear) keeps the
/// strings' memory for the next record.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    entries: Vec<(&'static str, String)>,
    /// How many of `entries` are in use. The rest keep their memory.
    used: usize,
}

impl Fields {
    /// No fields.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Removes all fields.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }

    /// Adds a field. Add each key once, because the peer keeps only the last of two.
    pub(crate) fn put(&mut self, key: &'static str, value: impl fmt::Display) {
        debug_assert!(self.value(key).is_none(), "the field {key} is there already");
        if self.used == self.entries.len() {
            self.entries.push((key, String::new()));
        }
        let entry = &mut self.entries[self.used];
        entry.0 = key;
        entry.1.clear();
        write!(entry.1, "{value}").expect("writing to a string fails only where Display does, and no value here does");
        self.used += 1;
    }

    /// Adds a number with eight decimals, as the reference prints all fractions. A number that is not finite becomes 0,
    /// because the server could not parse it.
    pub(crate) fn put_fraction(&mut self, key: &'static str, value: f64) {
        let value = if value.is_finite() { value } else { 0.0 };
        self.put(key, format_args!("{value:.8}"));
    }

    /// The fields in the order in which they were added.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone {
        self.entries[..self.used].iter().map(|(key, value)| (*key, value.as_str()))
    }

    /// The value of a field.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_their_memory() {
        let mut fields = Fields::new();
        fields.put("name", "a long value that needs memory");
        fields.put("count", 7u64);
        assert_eq!(fields.iter().collect::<Vec<_>>(), [("name", "a long value that needs memory"), ("count", "7")]);
        let memory = fields.entries[0].1.as_ptr();
        fields.clear();
        assert_eq!(fields.iter().len(), 0);
        assert_eq!(fields.value("count"), None);
        fields.put("other", "short");
        assert_eq!(fields.entries[0].1.as_ptr(), memory);
        assert_eq!(fields.iter().collect::<Vec<_>>(), [("other", "short")]);
    }

    #[test]
    fn fractions_have_eight_decimals_and_are_finite() {
        let mut fields = Fields::new();
        fields.put_fraction("third", 1.0 / 3.0);
        fields.put_fraction("whole", 1234.0);
        fields.put_fraction("nan", f64::NAN);
        fields.put_fraction("inf", f64::INFINITY);
        let values: Vec<_> = fields.iter().map(|(_, value)| value).collect();
        assert_eq!(values, ["0.33333333", "1234.00000000", "0.00000000", "0.00000000"]);
    }
}
