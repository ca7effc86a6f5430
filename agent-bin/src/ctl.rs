//! The part of the reference's `elkeidctl` that an agent needs whose service manager starts it: `elklet ctl`, or the
//! program called by the name `elkeidctl`.

use std::ffi::OsString;

use lexopt::prelude::*;

use crate::config::{Flags, Layout};
use crate::specified::{self, Key};

pub(crate) const HELP: &str = "Usage:
  elkeidctl [--workdir DIR] set [--id ID] [--idc IDC] [--region REGION] [--service_type systemd|sysvinit]
  elkeidctl [--workdir DIR] unset [--id] [--idc] [--region] [--service_type]

It writes specified_env in the work directory: /etc/elkeid for elkeidctl, and for `elklet ctl`, which takes --config FILE too,
that of every command. The agent reads the file at its start and on SIGHUP.
";

/// The reference's other commands. Here the service manager does what they do.
const OTHERS: [&str; 9] =
    ["start", "stop", "restart", "status", "enable", "disable", "check", "service-reload", "cleanup"];

/// Carries out the command in `words`, of which `flags` are those that nobody has to give. Returns the text for standard output.
///
/// # Errors
/// Returns what is wrong with the words, or what could not be done.
pub(crate) fn run(words: impl IntoIterator<Item = OsString>, flags: Flags) -> Result<String, lexopt::Error> {
    parse(&mut lexopt::Parser::from_args(words), flags)
}

fn parse(parser: &mut lexopt::Parser, mut flags: Flags) -> Result<String, lexopt::Error> {
    let mut sets = None;
    let mut changes: Vec<(Key, Option<String>)> = Vec::new();
    while let Some(argument) = parser.next()? {
        let key = match argument {
            Long(name) => Key::ALL.into_iter().find(|key| key.word() == name),
            _ => None,
        };
        match argument {
            Short('h') | Long("help") => return Ok(HELP.to_owned()),
            Long("workdir") => flags.workdir = Some(parser.value()?.into()),
            Long("config") => flags.config = Some(parser.value()?.into()),
            Value(word) if sets.is_none() => match word.to_str() {
                Some("set") => sets = Some(true),
                Some("unset") => sets = Some(false),
                Some(word) if OTHERS.contains(&word) => {
                    return Err(format!(
                        "{word} is the service manager's business here, as in systemctl {word} elkeid-agent; \
                         how the agent is, elklet status says"
                    )
                    .into());
                }
                _ => return Err(format!("unknown command {word:?}, expected set or unset").into()),
            },
            other => match (key, sets) {
                (Some(key), Some(true)) => changes.push((key, Some(parser.value()?.string()?))),
                (Some(key), Some(false)) => changes.push((key, None)),
                _ => return Err(other.unexpected()),
            },
        }
    }
    if sets.is_none() || changes.is_empty() {
        return Err("nothing to do, expected set or unset, and what (elkeidctl --help tells more)".into());
    }
    let changes: Vec<_> = changes.iter().map(|(key, value)| (*key, value.as_deref())).collect();
    let workdir = Layout::find(&flags).map_err(|why| why.to_string())?.workdir;
    specified::change(&workdir, &changes).map_err(|why| why.to_string())?;
    Ok(String::new())
}
