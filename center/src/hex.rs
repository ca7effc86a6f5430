//! Bytes as hexadecimal digits, which is how hashes, keys and serial numbers are written everywhere.

/// Returns two lower-case digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
