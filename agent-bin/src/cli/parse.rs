//! Finds out what the words of a command line ask for, by the tables of [`commands`](super::commands).

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use elklet_core::similar::closest;
use lexopt::prelude::*;

use super::commands::{Command, Flag, Program};
use crate::config::Flags;

/// What a command line asks for.
#[derive(Debug)]
pub(super) enum Asked {
    /// To carry a command out.
    Command(Words),
    /// What the program, or the command that these lead to, is good for.
    Help(Vec<&'static Command>),
    /// The version.
    Version,
}

/// A command and its options.
#[derive(Debug)]
pub(crate) struct Words {
    /// The command, after those that lead to it.
    path: Vec<&'static Command>,
    values: Vec<(&'static str, OsString)>,
}

/// Parses the words after a program's name.
///
/// # Errors
/// Which word is wrong, and what was expected.
pub(super) fn parse(program: &Program, words: impl IntoIterator<Item = OsString>) -> Result<Asked, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(words);
    let mut path: Vec<&'static Command> = Vec::new();
    let mut values = Vec::new();
    let mut asks_for_help = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => asks_for_help = true,
            Short('V') => return Ok(Asked::Version),
            Long(name) => {
                let flags = path.last().copied().or(program.default).map_or(program.flags, |command| command.flags);
                let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
                    // `sign` has an option of this name.
                    if name == "version" {
                        return Ok(Asked::Version);
                    }
                    return Err(unknown_flag(name, flags));
                };
                values.push((flag.name, if flag.value.is_some() { parser.value()? } else { OsString::new() }));
            }
            Value(word) => {
                let commands = path.last().map_or(program.commands, |command| command.commands);
                match commands.iter().find(|command| *command.name == *word) {
                    Some(command) if command.name == "help" => asks_for_help = true,
                    Some(command) => path.push(command),
                    None => match operand_wanted(&path, &values) {
                        Some(operand) => values.push((operand, word)),
                        None if commands.is_empty() => return Err(Value(word).unexpected()),
                        None => return Err(unknown_command(&word, commands)),
                    },
                }
            }
            other => return Err(other.unexpected()),
        }
    }
    if asks_for_help {
        return Ok(Asked::Help(path));
    }
    if path.is_empty() {
        path.extend(program.default);
    }
    match path.last() {
        None => Err(format!("no command given, expected {}", one_of(program.commands)).into()),
        Some(command) if !command.commands.is_empty() => {
            Err(format!("{} what? expected {}", command.name, one_of(command.commands)).into())
        }
        Some(command) => {
            if let Some(operand) = operand_wanted(&path, &values) {
                return Err(format!("{} what? expected {operand}", command.name).into());
            }
            // An option of the default command may stand before another one.
            if let Some((name, _)) = values
                .iter()
                .find(|(name, _)| command.operand != Some(name) && !command.flags.iter().any(|flag| flag.name == *name))
            {
                return Err(unknown_flag(name, command.flags));
            }
            Ok(Asked::Command(Words { path, values }))
        }
    }
}

/// What has to follow the last command, and was not given yet.
fn operand_wanted(path: &[&'static Command], values: &[(&'static str, OsString)]) -> Option<&'static str> {
    path.last()?.operand.filter(|operand| !values.iter().any(|(name, _)| name == operand))
}

fn unknown_flag(name: &str, flags: &[Flag]) -> lexopt::Error {
    let meant = closest(name, flags.iter().map(|flag| flag.name));
    let meant = meant.map(|meant| format!(", did you mean --{meant}?")).unwrap_or_default();
    format!("invalid option '--{name}'{meant}").into()
}

fn unknown_command(word: &OsStr, commands: &[Command]) -> lexopt::Error {
    match closest(&word.to_string_lossy(), commands.iter().map(|command| command.name)) {
        Some(meant) => format!("unknown command {word:?}, did you mean {meant}?").into(),
        None => format!("unknown command {word:?}, expected {}", one_of(commands)).into(),
    }
}

/// The names of commands, as "ls or verify".
fn one_of(commands: &[Command]) -> String {
    let names: Vec<_> = commands.iter().map(|command| command.name).collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

impl Words {
    /// The command's name, after those of the commands that lead to it.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.path.iter().map(|command| command.name).collect()
    }

    /// True if the option was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(given, _)| *given == name)
    }

    /// The option's value; if it was given twice, the later one.
    pub(crate) fn path_of(&self, name: &str) -> Option<PathBuf> {
        self.values.iter().rfind(|(given, _)| *given == name).map(|(_, value)| PathBuf::from(value))
    }

    /// The texts that were given with an option.
    ///
    /// # Errors
    /// When one is no UTF-8.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<String>, lexopt::Error> {
        self.values.iter().filter(|(given, _)| *given == name).map(|(_, value)| value.clone().string()).collect()
    }

    /// The flags that these options and the program's name give. `workdir` is the latter's.
    ///
    /// # Errors
    /// When an address is no UTF-8.
    pub(super) fn flags(&self, workdir: Option<PathBuf>) -> Result<Flags, lexopt::Error> {
        Ok(Flags {
            makes_config: false,
            config: self.path_of("config"),
            workdir: self.path_of("workdir").or(workdir),
            servers: self.texts("server")?,
            discovery: self.texts("discovery")?,
            public: self.texts("public")?,
            certs: self.path_of("certs"),
            log_stderr: self.has("log-stderr"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::commands::{ELKEID_AGENT, ELKEIDCTL, ELKLET, all};
    use super::*;

    fn parsed(program: &Program, words: &[&str]) -> Result<Asked, String> {
        parse(program, words.iter().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_command_takes_the_options_that_its_help_names_and_no_others() {
        for program in [ELKLET, ELKEIDCTL] {
            for (words, command) in all(program.commands) {
                let with = |flag: &str| parsed(&program, &[&words[..], &[flag, "value", "--help"]].concat());
                let without = |flag: &str| parsed(&program, &[&words[..], &[flag, "--help"]].concat());
                for flag in command.flags {
                    let name = format!("--{}", flag.name);
                    let taken = if flag.value.is_some() { with(&name) } else { without(&name) };
                    assert!(taken.is_ok(), "{words:?} {name}: {taken:?}");
                }
                assert!(without("--nonsense").is_err(), "{words:?}");
            }
        }
    }

    #[test]
    fn a_slip_is_told_with_the_word_that_was_meant() {
        for (words, says) in [
            (&["stauts"][..], "unknown command \"stauts\", did you mean status?"),
            (&["run", "--sever", "a:1"], "invalid option '--sever', did you mean --server?"),
            (&["spool", "lss"], "unknown command \"lss\", did you mean ls?"),
            (&["spool"], "spool what? expected ls or verify"),
            (&["ctl", "--id", "x", "set"], "invalid option '--id'"),
            (&["enroll", "--token", "t"], "enroll what? expected HOST:PORT"),
            (&["enroll", "a:1", "b:1"], "unexpected argument \"b:1\""),
        ] {
            assert_eq!(parsed(&ELKLET, words).expect_err("they are wrong"), says);
        }
    }

    #[test]
    fn elkeids_own_agent_runs_without_a_word_and_takes_one() {
        let names = |words: &[&str]| match parsed(&ELKEID_AGENT, words) {
            Ok(Asked::Command(words)) => Ok(words.names()),
            Ok(asked) => panic!("{asked:?}"),
            Err(error) => Err(error),
        };
        assert_eq!(names(&[]), Ok(vec!["run"]));
        assert_eq!(names(&["--server", "a:1"]), Ok(vec!["run"]));
        assert_eq!(names(&["--workdir", "/w", "spool", "ls"]), Ok(vec!["spool", "ls"]));
        assert!(names(&["--server", "a:1", "status"]).is_err(), "it asks no server");
    }
}
