//! A terminal's name from its device number, as the kernel calls it: `pts0`, `tty1`, `ttyS0`.

use crate::procfs::PATH_BYTES;
use crate::row::Lossy;
use rustix::fs::{CWD, readlinkat_raw};
use std::fmt::{Display, Write};

/// Returns the device's name, or `None` if it has no known name.
pub(crate) fn name(device: u32) -> Option<impl Display> {
    let (major, minor) = numbers(device);
    let mut name = heapless::String::<64>::new();
    match major {
        // linux/Documentation/admin-guide/devices.txt
        UNIX98_FIRST..=UNIX98_LAST => write!(name, "pts{}", (major - UNIX98_FIRST) * 256 + minor).ok()?,
        CONSOLES if minor < 64 => write!(name, "tty{minor}").ok()?,
        CONSOLES => write!(name, "ttyS{}", minor - 64).ok()?,
        _ => {
            let mut path = heapless::String::<48>::new();
            write!(path, "/sys/dev/char/{major}:{minor}").ok()?;
            let mut link = [0; PATH_BYTES];
            let len = readlinkat_raw(CWD, path.as_str(), &mut link[..]).ok()?;
            let last = link.get(..len)?.rsplit(|byte| *byte == b'/').next()?;
            write!(name, "{}", Lossy(last)).ok()?;
        }
    }
    Some(name)
}

const CONSOLES: u32 = 4;
const UNIX98_FIRST: u32 = 136;
const UNIX98_LAST: u32 = 143;

/// Major and minor number, as proc_pid_stat(5) packs them.
fn numbers(device: u32) -> (u32, u32) {
    ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_have_their_names() {
        let named = |device| name(device).map(|name| name.to_string());
        assert_eq!(named(34816).as_deref(), Some("pts0"));
        assert_eq!(named((137 << 8) | 3).as_deref(), Some("pts259"));
        assert_eq!(named((4 << 8) | 1).as_deref(), Some("tty1"));
        assert_eq!(named((4 << 8) | 64).as_deref(), Some("ttyS0"));
        assert_eq!(named(4094 << 8), None);
    }

    #[test]
    fn a_large_minor_number_is_put_together() {
        assert_eq!(numbers(0x1234_56ab), (0x456, 0x1_23ab & 0xf_ff00 | 0xab));
    }
}
