//! The command line.

use lexopt::prelude::*;
use std::time::Duration;

pub(crate) const HELP: &str = "\
cargo demo: watch Elklet at work on this machine

usage: cargo demo [-- OPTIONS]

  --seconds N     end after N seconds (1 to 86400); without it, Ctrl-C ends the demo
  --filter TEXT   show only programs with this text in their path or arguments
  --lines         print each start and each end as a line, in place of a summary
  -h, --help      this text

The demo builds the agent `elklet` and the plugin `procwatch`. It makes a temporary directory with fresh certificates,
and uses free ports of the loopback interface. It starts a server (elklet-center, inside the demo) and the agent, which
connects to the server over mutual TLS. The server tells the agent to start the plugin. The demo then shows what this
host executes, as the server receives it: which programs start most, and the newest processes below what started them.
The server's page, at the address that the demo prints first, shows the same and everything else. So that a quiet host
shows something, the demo starts about three short processes a second itself.

It needs no root, but sees more with it. Once it is built:
  sudo ELKLET_BIN=target/release/elklet PROCWATCH_BIN=target/release/elklet-procwatch target/release/demo

At the end the demo stops everything that it has started, and deletes the directory. If something went wrong, it keeps and
names the directory, and shows the end of the agent's log.

Exit codes: 0 when nothing was lost; 1 otherwise, with the reason in one line; 2 for a wrong flag.

Environment: ELKLET_BIN and PROCWATCH_BIN name programs to use instead of building them. NO_COLOR turns colours off.
COLUMNS is the width of lines if standard output is no terminal.
";

#[derive(Debug)]
pub(crate) struct Arguments {
    /// How long to watch. Without it, the demo runs until somebody ends it.
    pub(crate) watch: Option<Duration>,
    /// Shows only programs with this text in their path or arguments.
    pub(crate) filter: Option<String>,
    /// Prints each event as a line.
    pub(crate) lines: bool,
}

impl Arguments {
    /// Returns `None` when help is wanted.
    pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Option<Self>, lexopt::Error> {
        let mut parsed = Self { watch: None, filter: None, lines: false };
        while let Some(argument) = parser.next()? {
            match argument {
                Short('h') | Long("help") => return Ok(None),
                Long("filter") => parsed.filter = Some(parser.value()?.string()?),
                Long("lines") => parsed.lines = true,
                Long("seconds") => parsed.watch = Some(parser.value()?.parse_with(seconds)?),
                other => return Err(other.unexpected()),
            }
        }
        Ok(Some(parsed))
    }
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("expected a whole number of seconds from 1 to 86400"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_whole_and_bounded() {
        let parse = |arguments: &[&str]| Arguments::parse(lexopt::Parser::from_args(arguments));
        assert_eq!(parse(&[]).unwrap().unwrap().watch, None);
        assert_eq!(parse(&["--seconds", "20"]).unwrap().unwrap().watch, Some(Duration::from_secs(20)));
        let filtered = parse(&["--filter", "curl", "--lines"]).unwrap().unwrap();
        assert_eq!((filtered.filter.as_deref(), filtered.lines), (Some("curl"), true));
        assert!(parse(&["--help"]).unwrap().is_none());
        for wrong in [&["--seconds", "0"][..], &["--seconds", "x"], &["--seconds"], &["--second", "1"], &["run"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
