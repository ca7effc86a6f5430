//! Makes text from plugins, servers and files safe to show.
//!
//! A name or a message from outside may hold escape sequences that retitle or rewrite a terminal, line breaks that
//! forge a line of the log, or bidirectional controls that make a path read as another one. Everything that people read
//! therefore goes through this module: log lines, `elklet status`, `elklet doctor`, metrics, and reports to the server.

use alloc::string::{String, ToString};
use core::fmt::{self, Write};

/// Displays its content as one line of printable text. White space becomes a blank, and every other character that a
/// terminal may act on becomes U+FFFD. One character stays one character, so that columns keep their widths.
#[derive(Debug, Clone, Copy)]
pub struct Printable<T>(pub T);

/// Displays its content as [`Printable`] does but keeps line feeds. It is for whole pages.
#[derive(Debug, Clone, Copy)]
pub struct PrintablePage<T>(pub T);

/// Displays JSON with a `\u` escape for every character that a terminal may act on. The content has to be valid JSON,
/// in which such characters stand only within strings.
#[derive(Debug, Clone, Copy)]
pub struct PrintableJson<T>(pub T);

/// The first `chars` characters of a text as one printable line.
#[must_use]
pub fn cut(text: &str, chars: usize) -> String {
    Printable(text).to_string().chars().take(chars).collect()
}

/// Returns true for a character that a terminal may act on, or that reorders or hides the text around it.
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    matches!(c,
        // C0 with tabs and line breaks, DEL and C1.
        '\0'..='\x1f' | '\x7f'..='\u{9f}'
        // Marks, embeddings, overrides and isolates of the bidirectional algorithm.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        // Line and paragraph separators.
        | '\u{2028}' | '\u{2029}'
        // Deprecated format characters, the byte order mark, interlinear annotations and tags, all of them invisible.
        | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn replace(c: char, to: &mut dyn Write) -> fmt::Result {
    to.write_char(if c.is_whitespace() { ' ' } else { char::REPLACEMENT_CHARACTER })
}

fn escape(c: char, to: &mut dyn Write) -> fmt::Result {
    c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(to, "\\u{unit:04x}"))
}

/// Forwards text in the longest pieces possible, and each unprintable character through `instead`.
struct Filter<'a> {
    to: &'a mut dyn Write,
    keeps_line_feeds: bool,
    instead: fn(char, &mut dyn Write) -> fmt::Result,
}

impl Write for Filter<'_> {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        let keeps_line_feeds = self.keeps_line_feeds;
        while let Some((at, c)) =
            text.char_indices().find(|&(_, c)| is_unprintable(c) && !(keeps_line_feeds && c == '\n'))
        {
            let (before, rest) = text.split_at(at);
            self.to.write_str(before)?;
            (self.instead)(c, self.to)?;
            text = rest.get(c.len_utf8()..).unwrap_or_default();
        }
        self.to.write_str(text)
    }
}

impl<T: fmt::Display> fmt::Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Filter { to: f, keeps_line_feeds: false, instead: replace }, "{}", self.0)
    }
}

impl<T: fmt::Display> fmt::Display for PrintablePage<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Filter { to: f, keeps_line_feeds: true, instead: replace }, "{}", self.0)
    }
}

impl<T: fmt::Display> fmt::Display for PrintableJson<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Filter { to: f, keeps_line_feeds: true, instead: escape }, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn terminals_are_not_spoken_to_and_texts_of_people_stay() {
        let evil = "\x1b]0;owned\x07\u{9b}31m\tred\r\n\u{202e}cod.exe\u{2028}\u{feff}\u{e0041}";
        assert_eq!(
            Printable(evil).to_string(),
            "\u{fffd}]0;owned\u{fffd}\u{fffd}31m red  \u{fffd}cod.exe \u{fffd}\u{fffd}"
        );
        for kept in ["/var/log/x y", "Grüße, 世界, שלום, مرحبا, 👩\u{200d}🔬", "\u{fffd}", ""] {
            assert_eq!(Printable(kept).to_string(), kept);
        }
        assert_eq!(PrintablePage("a\nb\x1bc\n").to_string(), "a\nb\u{fffd}c\n");
        assert_eq!(
            PrintableJson("\"\x7f\u{9b}\u{202e}\u{e0041}\"\n").to_string(),
            "\"\\u007f\\u009b\\u202e\\udb40\\udc41\"\n"
        );
    }

    proptest! {
        #[test]
        fn nothing_unprintable_comes_out_however_text_goes_in(parts in prop::collection::vec(any::<String>(), 0..5)) {
            struct Parts<'a>(&'a [String]);
            impl fmt::Display for Parts<'_> {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.iter().try_for_each(|part| f.write_str(part))
                }
            }
            let whole = parts.concat();
            let shown = Printable(Parts(&parts)).to_string();
            prop_assert!(!shown.contains(is_unprintable));
            prop_assert_eq!(shown.chars().count(), whole.chars().count());
            prop_assert!(!PrintablePage(&whole).to_string().replace('\n', "").contains(is_unprintable));
        }

        #[test]
        fn json_stays_what_it_says(text in any::<String>(), at in 0..4usize) {
            let hostile = ["\u{7f}", "\u{9b}", "\u{202e}", "\u{e0041}"];
            let text = text + hostile.get(at).copied().unwrap_or_default();
            let json = PrintableJson(serde_json::to_string(&text).expect("a text")).to_string();
            prop_assert!(!json.contains(is_unprintable));
            prop_assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), text);
        }
    }

    #[test]
    fn a_cut_text_has_as_many_characters_as_asked_for() {
        assert_eq!(cut("gr\u{fc}n\x1b[0m", 5), "gr\u{fc}n\u{fffd}");
        assert_eq!((cut("abc", 0).as_str(), cut("abc", 9).as_str()), ("", "abc"));
    }
}
