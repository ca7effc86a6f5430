//! CRC-32C, bit by bit: a table would be 1 KiB of flash, and nobody waits for this one.

/// The checksum of what it was given so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crc32c(u32);

impl Crc32c {
    /// The checksum of nothing.
    pub(crate) fn new() -> Self {
        Self(!0)
    }

    /// Goes on with `bytes`.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        /// The Castagnoli polynomial, lowest bit first.
        const POLYNOMIAL: u32 = 0x82f6_3b78;
        for &byte in bytes {
            self.0 ^= u32::from(byte);
            for _ in 0..8 {
                let carry = self.0 & 1;
                self.0 >>= 1;
                self.0 ^= POLYNOMIAL * carry;
            }
        }
    }

    /// Its value.
    pub(crate) fn value(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_what_another_implementation_computes() {
        let bytes: alloc::vec::Vec<u8> = (0..=255).collect();
        for length in 0..bytes.len() {
            let mut crc = Crc32c::new();
            crc.update(&bytes[..length / 2]);
            crc.update(&bytes[length / 2..length]);
            assert_eq!(crc.value(), crc32c::crc32c(&bytes[..length]));
        }
    }
}
