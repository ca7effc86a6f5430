//! Parses the plugin's options: the words `key=value` of its detail.

/// The source of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The process connector, or scanning without it.
    #[default]
    Auto,
    /// The process connector or nothing.
    Connector,
    /// Scanning.
    Scan,
}

/// The options. Each that is missing has its default.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// `mode=auto`, `mode=connector` or `mode=scan`.
    pub(crate) mode: Mode,
    /// `exits=on`, the default, or `exits=off`. True if ends of processes are reported.
    pub(crate) exits: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { mode: Mode::default(), exits: true }
    }
}

impl Options {
    /// Parses a detail. Also returns the words that mean nothing.
    pub(crate) fn parse(detail: &str) -> (Self, Vec<&str>) {
        let mut options = Self::default();
        let mut unknown = Vec::new();
        for word in detail.split_whitespace() {
            match word {
                "mode=auto" => options.mode = Mode::Auto,
                "mode=connector" => options.mode = Mode::Connector,
                "mode=scan" => options.mode = Mode::Scan,
                "exits=on" => options.exits = true,
                "exits=off" => options.exits = false,
                _ => unknown.push(word),
            }
        }
        (options, unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_words_count_and_others_come_back() {
        assert_eq!(Options::parse(" \t"), (Options::default(), vec![]));
        assert_eq!(Options::parse("mode=scan"), (Options { mode: Mode::Scan, exits: true }, vec![]));
        assert!(!Options::parse("exits=off").0.exits && Options::parse("exits=off exits=on").0.exits);
        let (options, unknown) = Options::parse("mode=scna colour=blue mode=connector exits=no");
        assert_eq!(options.mode, Mode::Connector);
        assert_eq!(unknown, ["mode=scna", "colour=blue", "exits=no"]);
        assert!(options.exits);
    }
}
