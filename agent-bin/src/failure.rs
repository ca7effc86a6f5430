//! Why the program cannot run, sorted by who has to fix it.

use std::fmt;

/// Why the program cannot run.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Its settings are wrong: exit code 2.
    Settings(String),
    /// The system refuses what it needs: exit code 1.
    System(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Settings(text) | Self::System(text)) = self;
        f.write_str(text)
    }
}
