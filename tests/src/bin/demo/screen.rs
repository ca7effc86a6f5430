//! Prints lines that scroll by, and on a terminal a board that stays at the bottom.
//!
//! Texts come from other people's processes. Whatever a terminal might obey is therefore replaced before it is printed.

use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Stdout, Write};

/// The width of lines if the terminal does not tell its own.
const USUAL_WIDTH: usize = 80;

/// The height of a terminal that does not tell its own.
const USUAL_HEIGHT: usize = 24;

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
const UP: &str = "\x1b[1A";
const ERASE_BELOW: &str = "\r\x1b[J";

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
    /// True if the board stays at the bottom.
    in_place: bool,
    width: usize,
    height: usize,
    waiting: String,
    /// What stays at the bottom: figures first.
    board: Vec<String>,
    /// Lines of it that are on the terminal.
    shown: usize,
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
            height: 0,
            waiting: String::new(),
            board: Vec::new(),
            shown: 0,
            is_closed: false,
        };
        screen.measure();
        screen
    }

    /// Returns true if the board stays at the bottom instead of scrolling by with the other lines.
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

    /// Adds a paragraph with a name beside it, wrapped at the width.
    pub(crate) fn named(&mut self, name: &str, text: &str) {
        const INDENT: usize = 13;
        let mut line = format!("  {name:<10} ");
        for word in text.split(' ') {
            let len = line.chars().count();
            if len > INDENT && len + 1 + word.chars().count() > self.width() {
                self.waiting.push_str(line.trim_end());
                self.waiting.push('\n');
                line = " ".repeat(INDENT);
            } else if len > INDENT {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.waiting.push_str(&line);
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

    /// Returns how many columns a line may have.
    pub(crate) fn width(&self) -> usize {
        // Some terminals wrap a line that fills the last column.
        self.width - 1
    }

    /// Replaces the board, or prints it if lines only scroll by. Its first line are figures.
    pub(crate) fn board(&mut self, lines: Vec<String>) {
        if self.in_place {
            self.measure();
            self.board = lines;
        } else {
            for (at, line) in lines.iter().enumerate() {
                let _ = writeln!(self.waiting, "{}{line}", if at == 0 { "-- " } else { "" });
            }
        }
    }

    pub(crate) fn clear_board(&mut self) {
        self.board.clear();
    }

    /// Prints what has been collected. If that fails nobody reads any more, and the screen drops everything that
    /// follows.
    pub(crate) fn flush(&mut self) {
        let lines = std::mem::take(&mut self.waiting);
        if self.shown > 0 {
            (1..self.shown).for_each(|_| self.waiting.push_str(UP));
            self.waiting.push_str(ERASE_BELOW);
        }
        self.waiting.push_str(&lines);
        // A board that is higher than the terminal could not be erased again.
        let board: Vec<String> = self.board.iter().take(self.height - 1).map(|line| cut(line, self.width())).collect();
        for (at, line) in board.iter().enumerate() {
            match at {
                0 => self.painted("\x1b[7m", line),
                _ => {
                    self.waiting.push('\n');
                    // Titles begin at the edge.
                    self.painted(if line.starts_with(' ') { "" } else { "\x1b[2m" }, line);
                }
            }
        }
        self.shown = board.len();
        let waiting = std::mem::take(&mut self.waiting);
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

    /// Reads the size again, because windows change theirs while the demo runs.
    fn measure(&mut self) {
        let of_terminal = rustix::termios::tcgetwinsize(&self.out).ok();
        let of_environment = || env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let known = |size: u16| Some(usize::from(size)).filter(|size| *size > 0);
        let width = of_terminal.and_then(|size| known(size.ws_col)).or_else(of_environment).unwrap_or(USUAL_WIDTH);
        let height = of_terminal.and_then(|size| known(size.ws_row)).unwrap_or(USUAL_HEIGHT);
        (self.width, self.height) = (width.max(MIN_WIDTH), height.max(2));
    }
}

impl Drop for Screen {
    /// Clears the board, so that the shell's prompt begins on a line of its own.
    fn drop(&mut self) {
        self.clear_board();
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
    fn paragraphs_are_wrapped_between_words() {
        let mut screen = Screen::stdout();
        screen.width = 31;
        screen.named("agent", "one two three four a-word-that-is-too-long five");
        let lines: Vec<_> = std::mem::take(&mut screen.waiting).lines().map(str::to_owned).collect();
        let indent = "             ";
        let rest = ["four", "a-word-that-is-too-long", "five"].map(|word| format!("{indent}{word}"));
        assert_eq!(lines[0], "  agent      one two three");
        assert_eq!(lines[1..], rest);
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
