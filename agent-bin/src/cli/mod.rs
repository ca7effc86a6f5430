//! The command line: what a program of this binary is asked for, and what it prints and returns then.

pub mod commands;
mod help;
mod parse;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use elklet_core::printable::{Printable, PrintablePage};

use self::commands::{ELKEID_AGENT, ELKEIDCTL, ELKLET, Program};
pub(crate) use self::parse::Words;
use self::parse::{Asked, parse};
use crate::adopt::{self, Adoption};
use crate::agent;
use crate::config::{ELKEID, Environment, Flags, Layout, Settings};
use crate::ctl;
use crate::doctor;
use crate::failure::Failure;
use crate::init;
use crate::logging;
use crate::net::Certificates;
use crate::spool::{self, Look};
use crate::status::{self, Page};
use crate::sys::inherited;
use crate::update;

/// The exit code of `elklet status` when the agent runs and has no stream.
const NOT_CONNECTED: u8 = 3;

/// Runs the program, whose version is `version`.
pub fn main(version: &'static str) -> ExitCode {
    crate::version::set(version);
    let mut words = std::env::args_os();
    let name = words.next();
    let name = name.as_deref().and_then(|name| Path::new(name).file_name()).unwrap_or_default();
    // These are the names of Elkeid's programs, whose directory they stand in.
    let (program, workdir) = match name.to_str() {
        Some("elkeidctl") => (ELKEIDCTL, Some(PathBuf::from(ELKEID))),
        Some("elkeid-agent") => (ELKEID_AGENT, Some(PathBuf::from(ELKEID))),
        _ => (ELKLET, None),
    };
    let asked = match parse(&program, words) {
        Ok(asked) => asked,
        Err(error) => return fail(&wrong(&program, &error)),
    };
    match asked {
        Asked::Version => print(&format!("elklet {version}\n")),
        Asked::Help(path) if path.is_empty() => print(&help::program(&program, version)),
        Asked::Help(path) => print(&help::command(&program, &path)),
        Asked::Command(words) => match words.flags(workdir) {
            Ok(flags) => carry_out(&program, &words, flags),
            Err(error) => fail(&wrong(&program, &error)),
        },
    }
}

fn wrong(program: &Program, error: &lexopt::Error) -> Failure {
    Failure::Settings(format!("{error} ({} --help tells more)", program.name))
}

fn carry_out(program: &Program, words: &Words, flags: Flags) -> ExitCode {
    match *words.names() {
        ["ctl", _] => control(program, words, &flags),
        _ if program.name == ELKEIDCTL.name => control(program, words, &flags),
        ["run"] => {
            inherited::shed();
            let ran = update::run(&Layout::find_at_any_rate(&flags), |is_on_trial| {
                agent::run(flags, Environment::current(), is_on_trial)
            });
            ran.map_or_else(|failure| fail(&failure), |()| ExitCode::SUCCESS)
        }
        ["check"] => match check(&flags) {
            Ok(found) => print(&format!("{found}\n")),
            Err(error) => fail(&Failure::Settings(error)),
        },
        ["init"] => match init::run(&flags) {
            Ok(done) => {
                print(&done);
                let Flags { config, workdir, .. } = flags;
                examine(&Flags { config, workdir, ..Flags::default() }, false)
            }
            Err(failure) => fail(&failure),
        },
        ["adopt"] => {
            let adoption =
                Adoption { from: words.path_of("from"), is_meant: words.has("yes"), is_undone: words.has("undo") };
            match adopt::run(&flags, &adoption) {
                Ok(said) => print(&said),
                Err(failure) => fail(&failure),
            }
        }
        ["version"] => version_page(words.has("json")),
        ["doctor"] => examine(&flags, words.has("json")),
        ["status"] => {
            let page = match (words.has("json"), words.has("metrics")) {
                (false, false) => Page::Text,
                (true, false) => Page::Json,
                (false, true) => Page::Metrics,
                (true, true) => return fail(&Failure::Settings("--json and --metrics exclude each other".to_owned())),
            };
            match Layout::find(&flags) {
                Ok(layout) => ask(&layout.socket, page),
                Err(error) => fail(&Failure::Settings(error.to_string())),
            }
        }
        ["spool", what] => {
            let look = if what == "verify" { Look::Verify } else { Look::List };
            match Layout::find(&flags) {
                Ok(layout) => look_at_spool(&layout.workdir, look),
                Err(error) => fail(&Failure::Settings(error.to_string())),
            }
        }
        _ => fail(&Failure::Settings(format!("no command given ({} --help tells more)", program.name))),
    }
}

fn version_page(json: bool) -> ExitCode {
    let version = crate::version::version();
    if json {
        let said = serde_json::json!({ "name": "elklet", "version": version, "architecture": std::env::consts::ARCH });
        print(&format!("{said}\n"))
    } else {
        print(&format!("elklet {version}\n"))
    }
}

/// Carries out a command of elkeidctl, which is the last of these words.
fn control(program: &Program, words: &Words, flags: &Flags) -> ExitCode {
    let done = match words.command() {
        "set" => ctl::specify(words, flags, true),
        "unset" => ctl::specify(words, flags, false),
        command => ctl::hand_over(command, program.service, flags),
    };
    done.map_or_else(|error| fail(&wrong(program, &error)), |()| ExitCode::SUCCESS)
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(PrintablePage(text).to_string().as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn fail(failure: &Failure) -> ExitCode {
    // This does not wait for a reader of standard error that does not read.
    logging::say(&format!("elklet: {}\n", Printable(failure)));
    match failure {
        Failure::Settings(_) => ExitCode::from(2),
        Failure::System(_) => ExitCode::FAILURE,
    }
}

fn examine(flags: &Flags, json: bool) -> ExitCode {
    match doctor::run(flags, json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&Failure::System(error.to_string())),
    }
}

/// Reads what `run` would read before it starts anything. Returns what was found.
fn check(flags: &Flags) -> Result<String, String> {
    let settings = Settings::load(flags, &Environment::current()).map_err(|error| error.to_string())?;
    let layout = &settings.layout;
    let loaded = Certificates::load(layout.certs.clone(), &settings.server);
    loaded.map_err(|error| settings.blame_certificates(error))?;
    let warnings = settings.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect::<String>();
    let file = if layout.file.exists() { "is in order" } else { "is not there, and need not be" };
    Ok(format!("{warnings}{} {file}; the certificates in {} are usable", layout.file.display(), layout.certs.display()))
}

fn ask(socket: &Path, page: Page) -> ExitCode {
    match status::ask(socket, page) {
        Ok((text, connected)) => match print(&text) {
            // Metrics are of use without a connection as well.
            ExitCode::SUCCESS if !connected && page != Page::Metrics => ExitCode::from(NOT_CONNECTED),
            printed => printed,
        },
        Err((text, why)) => {
            let _ = print(&text);
            fail(&Failure::System(why))
        }
    }
}

fn look_at_spool(workdir: &Path, what: Look) -> ExitCode {
    // Without a work directory there is no spool, but that is not what was asked.
    if !workdir.is_dir() {
        let why = format!("work directory {}: no such directory (--workdir names another)", workdir.display());
        return fail(&Failure::System(why));
    }
    let directory = workdir.join(spool::DIRECTORY);
    match spool::look(&directory, what) {
        Ok((text, false)) => print(&text),
        Ok((text, true)) => {
            let _ = print(&text);
            ExitCode::FAILURE
        }
        Err(error) => fail(&Failure::System(format!("{}: {error}", directory.display()))),
    }
}
