//! Prints lines that scroll by, and on a terminal a status line that stays at the bottom.
//!
//! Texts come from other people's processes. Whatever a terminal might obey is therefore replaced before it is printed.

use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Stdout, Write};

/// The width of lines if the terminal does not tell its own.
const USUAL_WIDTH: usize = 120;

/// The least width. Below this nothing would be left of a line.
const MIN_WIDTH: usize = 40;

/// What a line is about. It decides the colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    /// A process has started.
    Exec,
    /// A process has ended.
    Exit,
    /// A heartbeat.
    Beat,
    /// A message of the demo about its actors.
    Note,
    Title,
    Faint,
    Good,
    Bad,
}

impl Style {
    /// The colours of the whole line and of its word.
    fn codes(self) -> (&'static str, &'static str) {
        match self {
            Self::Plain => ("", ""),
            Self::Exec => ("", "\x1b[32m"),
            Self::Exit | Self::Faint => ("\x1b[2m", ""),
            Self::Beat => ("", "\x1b[36m"),
            Self::Note => ("", "\x1b[33m"),
            Self::Title => ("\x1b[1m", ""),
            Self::Good => ("\x1b[1;32m", ""),
            Self::Bad => ("\x1b[1;31m", ""),
        }
    }
}

const END: &str = "\x1b[0m";
const ERASE_LINE: &str = "\r\x1b[2K";

/// A line about something that happened.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) style: Style,
    /// `hh:mm:ss`
    pub(crate) time: String,
    /// A word of four letters.
    pub(crate) word: &'static str,
    pub(crate) text: String,
}

/// Collects text, which [`Screen::flush`] prints in one piece.
#[derive(Debug)]
pub(crate) struct Screen {
    out: Stdout,
    colour: bool,
    /// True if the status line stays at the bottom.
    in_place: bool,
    width: usize,
    waiting: String,
    status: String,
    status_is_shown: bool,
    is_closed: bool,
}

impl Screen {
    pub(crate) fn stdout() -> Self {
        let out = io::stdout();
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let in_place = out.is_terminal() && env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        let mut screen = Self {
            out,
            colour: in_place && !is_set("NO_COLOR"),
            in_place,
            width: 0,
            waiting: String::new(),
            status: String::new(),
            status_is_shown: false,
            is_closed: false,
        };
        screen.measure();
        screen
    }

    /// Returns true if the status line stays at the bottom instead of scrolling by with the others.
    pub(crate) fn is_in_place(&self) -> bool {
        self.in_place
    }

    /// Returns true once nobody reads any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Adds text as it is, with its line breaks.
    pub(crate) fn text(&mut self, text: &str) {
        self.waiting.push_str(text);
    }

    /// Adds a line in one colour, at its full length.
    pub(crate) fn styled(&mut self, style: Style, text: &str) {
        let (whole, _) = style.codes();
        self.painted(whole, text);
        self.waiting.push('\n');
    }

    /// Adds a line about something that happened, cut to the width.
    pub(crate) fn line(&mut self, line: &Line) {
        let Line { style, time, word, text } = line;
        let (whole, on_word) = style.codes();
        let room = self.width.saturating_sub(time.len() + word.len() + 2);
        let text = cut(text, room);
        if whole.is_empty() {
            let _ = write!(self.waiting, "{time} ");
            self.painted(on_word, word);
            let _ = writeln!(self.waiting, " {text}");
        } else {
            self.painted(whole, &format!("{time} {word} {text}"));
            self.waiting.push('\n');
        }
    }

    /// Replaces the status line, or prints it if lines only scroll by.
    pub(crate) fn status(&mut self, status: &str) {
        if self.in_place {
            self.measure();
            self.status = status.to_owned();
        } else {
            let _ = writeln!(self.waiting, "-- {status}");
        }
    }

    pub(crate) fn clear_status(&mut self) {
        self.status.clear();
    }

    /// Prints what has been collected. If that fails nobody reads any more, and the screen drops everything that
    /// follows.
    pub(crate) fn flush(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        if self.status_is_shown {
            waiting.insert_str(0, ERASE_LINE);
        }
        if !self.status.is_empty() {
            // Some terminals wrap a line that fills the last column.
            let status = cut(&self.status, self.width - 1);
            self.painted("\x1b[7m", &status);
            waiting.push_str(&std::mem::take(&mut self.waiting));
        }
        self.status_is_shown = !self.status.is_empty();
        if !self.is_closed && self.out.write_all(waiting.as_bytes()).and_then(|()| self.out.flush()).is_err() {
            self.is_closed = true;
        }
    }

    fn painted(&mut self, code: &str, text: &str) {
        if self.colour && !code.is_empty() {
            let _ = write!(self.waiting, "{code}{text}{END}");
        } else {
            self.waiting.push_str(text);
        }
    }

    /// Reads the width again, because windows change their size while the demo runs.
    fn measure(&mut self) {
        let of_terminal = || rustix::termios::tcgetwinsize(&self.out).ok().map(|size| usize::from(size.ws_col));
        let of_environment = || env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let width = of_terminal().filter(|width| *width > 0).or_else(of_environment).unwrap_or(USUAL_WIDTH);
        self.width = width.max(MIN_WIDTH);
    }
}

impl Drop for Screen {
    /// Clears the status line, so that the shell's prompt begins on a line of its own.
    fn drop(&mut self) {
        self.clear_status();
        self.flush();
    }
}

/// Returns the start of a text that fits into `room` columns, with a mark where it is cut.
pub(crate) fn cut(text: &str, room: usize) -> String {
    let mut used = 0;
    let mut end_with_mark = 0;
    for (at, char) in text.char_indices() {
        // The mark takes a column as well.
        if used < room {
            end_with_mark = at;
        }
        used += columns(char);
        if used > room {
            return format!("{}…", &text[..end_with_mark]);
        }
    }
    text.to_owned()
}

/// Returns the end of a text that fits into `room` columns. The end of a path says more than its start.
pub(crate) fn cut_front(text: &str, room: usize) -> String {
    let mut used = 0;
    let mut start = text.len();
    for (at, char) in text.char_indices().rev() {
        used += columns(char);
        if used > room {
            return format!("…{}", &text[start..]);
        }
        if used < room {
            start = at;
        }
    }
    text.to_owned()
}

/// Guesses a character's columns, on the safe side: many characters beyond ASCII take two.
fn columns(char: char) -> usize {
    if char.is_ascii() { 1 } else { 2 }
}

/// Replaces what a terminal might obey: control characters, and those that change the direction of writing.
pub(crate) fn harmless(text: &str) -> String {
    text.chars()
        .map(|char| match char {
            '\t' | '\n' => ' ',
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '?',
            char if char.is_control() => '?',
            char => char,
        })
        .collect()
}

/// Formats a number of bytes in a suitable unit.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_to_the_column() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 5), "abcd…");
        assert_eq!(cut("aéb", 4), "aéb");
        assert_eq!(cut("aéb", 3), "a…");
        assert_eq!(cut("abc", 0), "…");
        assert_eq!(cut_front("/usr/bin/ls", 11), "/usr/bin/ls");
        assert_eq!(cut_front("/usr/bin/ls", 7), "…bin/ls");
        assert_eq!(cut_front("ééé", 5), "…éé");
    }

    #[test]
    fn nothing_that_a_terminal_obeys_passes() {
        assert_eq!(harmless("a\x1b[2Jb\u{9b}c\u{202e}d\ne\u{7f}ü"), "a?[2Jb?c?d e?ü");
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!([999, 1_000, 1_500_000, 2_000_000_000].map(bytes), ["999 B", "1.0 kB", "1.5 MB", "2.0 GB"]);
    }
}
