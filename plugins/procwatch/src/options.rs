//! What the plugin's configuration asks for: the words `key=value` of its detail.

/// Where events are to come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// From the process connector, and from scanning when that is not to be had.
    #[default]
    Auto,
    /// From the process connector or not at all.
    Connector,
    /// From scanning.
    Scan,
}

/// The configuration; what is not said has its default.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// `mode=auto`, `mode=connector` or `mode=scan`.
    pub(crate) mode: Mode,
}

impl Options {
    /// Reads a detail and returns with the options the words that mean nothing.
    pub(crate) fn parse(detail: &str) -> (Self, Vec<&str>) {
        let mut options = Self::default();
        let mut unknown = Vec::new();
        for word in detail.split_whitespace() {
            match word {
                "mode=auto" => options.mode = Mode::Auto,
                "mode=connector" => options.mode = Mode::Connector,
                "mode=scan" => options.mode = Mode::Scan,
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
        assert_eq!(Options::parse("mode=scan"), (Options { mode: Mode::Scan }, vec![]));
        let (options, unknown) = Options::parse("mode=scna colour=blue mode=connector verbose");
        assert_eq!(options.mode, Mode::Connector);
        assert_eq!(unknown, ["mode=scna", "colour=blue", "verbose"]);
    }
}
