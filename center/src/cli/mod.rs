//! The commands of the program `elklet-center`.

mod check;
mod client;
mod hosts;
mod link;
mod out;
mod push;
mod records;
mod serve;
mod status;
mod task;
mod terminal;
mod text;
mod token;
mod user;

use crate::settings::{Settings, Wrong};
use lexopt::prelude::*;
use out::{note, print};
use serve::Serve;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
elklet-center: a server for small sites, which agents of the Elkeid host security system connect to

usage: elklet-center COMMAND [OPTIONS]

  serve        serve agents, keep their records, and answer on the HTTP port
  check        read the settings, and say what is wrong with them
  token        print the line that enrols a host; list and revoke tokens
  revoke       revoke the certificates of an agent
  status       say how the center is, and what somebody should look into
  hosts        list hosts, also those that are gone
  records      search what hosts have sent, or follow it
  push         bring a plugin to hosts, a few first
  task         have agents do something once, and print what they answer
  user         add, list and remove those who may sign in
  link         print a link that opens the page once without a password
  --help       this text; after a command, what it takes
  --version    the version

All but serve and check talk to the center that runs on this host, with the key that it keeps in its data. Root may read that, and the user
that the center runs as. From elsewhere, call them by ssh, or use the HTTP interface: GET /api/v1/openapi.json describes it.
";

/// Returns what `--help` says: of the program, and of each command, by its name. The manual and the completions are made of it.
pub fn helps() -> (&'static str, Vec<(&'static str, String)>) {
    let commands = vec![
        ("serve", serve::HELP.to_owned()),
        ("check", check::help()),
        ("token", token::help()),
        ("revoke", token::revoke_help()),
        ("status", status::help()),
        ("hosts", hosts::help()),
        ("records", records::help()),
        ("push", push::help()),
        ("task", task::help()),
        ("user", user::help()),
        ("link", link::help()),
    ];
    (HELP, commands)
}

/// Runs the command that the program was called with.
pub fn main() -> ExitCode {
    match run(lexopt::Parser::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Words(error)) => {
            note(&format!("elklet-center: {error}; --help tells more\n"));
            ExitCode::from(2)
        }
        Err(Failure::Work(error)) => {
            note(&format!("elklet-center: {error}\n"));
            ExitCode::FAILURE
        }
        Err(Failure::Outcome(error)) => {
            note(&format!("elklet-center: {error}\n"));
            ExitCode::from(BAD_OUTCOME)
        }
    }
}

/// The code of a command that has worked, and found something that is not as it should be.
const BAD_OUTCOME: u8 = 3;

/// Who is to blame.
#[derive(Debug)]
enum Failure {
    /// What the program was called with, or its settings.
    Words(String),
    /// The system that it runs on, or the center.
    Work(Box<dyn Error>),
    /// What was asked for went wrong elsewhere: the center is unwell, or hosts have failed.
    Outcome(String),
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self::Words(error.to_string())
    }
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Self {
        Self::Words(wrong.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Work(error.into())
    }
}

fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    match parser.next()? {
        Some(Long("help") | Short('h')) => print(HELP)?,
        Some(Long("version") | Short('V')) => print(concat!("elklet-center ", env!("CARGO_PKG_VERSION"), "\n"))?,
        Some(Value(command)) if command == "serve" => match Serve::parse(parser)? {
            Some(serve) => serve.run().map_err(Failure::Work)?,
            None => print(serve::HELP)?,
        },
        Some(Value(command)) if command == "check" => check::run(parser)?,
        Some(Value(command)) if command == "status" => status::run(parser)?,
        Some(Value(command)) if command == "hosts" => hosts::run(parser)?,
        Some(Value(command)) if command == "records" => records::run(parser)?,
        Some(Value(command)) if command == "push" => push::run(parser)?,
        Some(Value(command)) if command == "task" => task::run(parser)?,
        Some(Value(command)) if command == "user" => user::run(parser)?,
        Some(Value(command)) if command == "token" => token::run(parser)?,
        Some(Value(command)) if command == "revoke" => token::revoke(parser)?,
        Some(Value(command)) if command == "link" => link::run(parser)?,
        Some(Value(command)) => return Err(Failure::Words(format!("there is no command {command:?}"))),
        Some(argument) => return Err(argument.unexpected().into()),
        None => return Err(Failure::Words("a command is missing".to_owned())),
    }
    Ok(())
}

/// Where a command finds the center of this host.
#[derive(Debug, Default)]
struct Where {
    config: Option<PathBuf>,
    data: Option<PathBuf>,
}

impl Where {
    /// What a command that talks to the center says about these flags.
    const HELP: &str =
        "  --config FILE    the center's settings (default /etc/elklet/center.toml), which say where its data lies
  --data DIR       where its data lies; wins over the settings
";

    /// Takes a flag, if it is one of these. Returns false if it is not.
    fn take(&mut self, flag: &str, parser: &mut lexopt::Parser) -> Result<bool, Failure> {
        match flag {
            "config" => self.config = Some(parser.value()?.into()),
            "data" => self.data = Some(parser.value()?.into()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Takes a flag that has to be one of these.
    fn must_take(&mut self, flag: String, parser: &mut lexopt::Parser) -> Result<(), Failure> {
        if self.take(&flag, parser)? { Ok(()) } else { Err(Failure::Words(format!("there is no flag --{flag}"))) }
    }

    /// Returns the center, if it runs and whoever asks may read its data.
    fn center(self) -> Result<client::Client, Failure> {
        let data = match self.data {
            Some(data) if data.as_os_str().is_empty() => {
                return Err(Failure::Words("--data is empty, expected a directory".to_owned()));
            }
            Some(data) => data,
            None => Settings::read(self.config.as_deref())?.data,
        };
        Ok(client::Client::of(&data)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_command_and_each_begins_with_what_it_does() {
        let (program, commands) = helps();
        let named = |line: &str| line.strip_prefix("  ").and_then(|line| line.split(' ').next()).map(str::to_owned);
        let listed: Vec<_> = program.lines().filter_map(named).filter(|name| !name.starts_with('-')).collect();
        assert_eq!(listed, commands.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for (name, help) in commands {
            assert!(help.starts_with(&format!("elklet-center {name}: ")), "{help}");
        }
    }
}
