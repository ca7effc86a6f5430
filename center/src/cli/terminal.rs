//! Asking for a password without showing it.

use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcsetattr};
use std::io::{self, BufRead, Read, Stdin, Write};

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 4096;

/// Returns a password that somebody has typed twice, or that was a line of standard input.
///
/// # Errors
/// There is none, or two different ones were typed.
pub(super) fn new_password(name: &str) -> io::Result<String> {
    let input = io::stdin();
    if !isatty(&input) {
        let mut line = String::new();
        input.lock().take(MAX_LINE).read_line(&mut line)?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    let first = ask(&input, &format!("New password of {name}: "))?;
    let second = ask(&input, "The same again: ")?;
    if first == second { Ok(first) } else { Err(io::Error::other("the two passwords differ")) }
}

/// A terminal that shows nothing of what is typed. Dropping it has the terminal show it again.
struct Silent<'a> {
    input: &'a Stdin,
    before: Termios,
}

impl<'a> Silent<'a> {
    fn new(input: &'a Stdin) -> Result<Self, Errno> {
        let before = tcgetattr(input)?;
        let mut silent = before.clone();
        // Control-C comes as a byte as well, so that the program cannot end with a terminal that stays silent.
        silent.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        silent.special_codes[SpecialCodeIndex::VMIN] = 1;
        silent.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(input, OptionalActions::Flush, &silent)?;
        Ok(Self { input, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // The terminal may be gone.
        _ = tcsetattr(self.input, OptionalActions::Flush, &self.before);
    }
}

fn ask(input: &Stdin, question: &str) -> io::Result<String> {
    // What is typed before the question is thrown away.
    let _silent = Silent::new(input)?;
    let mut out = io::stderr();
    write!(out, "{question}")?;
    let typed = typed(input.lock().take(MAX_LINE).bytes());
    writeln!(out)?;
    typed
}

/// Reads a line as a terminal would let somebody edit it.
fn typed(keys: impl Iterator<Item = io::Result<u8>>) -> io::Result<String> {
    let mut line = Vec::new();
    for key in keys {
        match key? {
            b'\r' | b'\n' => return String::from_utf8(line).map_err(|_| io::Error::other("the password is no UTF-8")),
            // Control-C and Control-D.
            3 | 4 => return Err(io::ErrorKind::Interrupted.into()),
            // Backspace and Delete take one character.
            8 | 127 => while line.pop().is_some_and(|byte| byte & 0xC0 == 0x80) {},
            // Control-U takes all.
            21 => line.clear(),
            byte => line.push(byte),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_edit_the_line() {
        let read = |keys: &str| typed(keys.as_bytes().iter().map(|byte| Ok(*byte)));
        assert_eq!(read("secret\nmore").unwrap(), "secret");
        assert_eq!(read("sé\x7fecrex\x08t\r").unwrap(), "secret");
        assert_eq!(read("\x7fwrong\x15right\n").unwrap(), "right");
        assert_eq!(read("sec\x03ret\n").unwrap_err().kind(), io::ErrorKind::Interrupted);
        assert_eq!(read("sec").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
