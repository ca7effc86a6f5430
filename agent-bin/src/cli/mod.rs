//! The command line: what a program of this binary is asked for, and what it prints and returns then.

pub mod commands;
mod help;
mod parse;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use elklet_core::printable::{Printable, PrintablePage};

use self::commands::{CENTER, ELKEID_AGENT, ELKEIDCTL, ELKLET, Program};
pub(crate) use self::parse::Words;
use self::parse::{Asked, parse};
use crate::adopt::{self, Adoption};
use crate::agent;
use crate::config::{ELKEID, Environment, Flags, Layout, Settings};
use crate::ctl;
use crate::doctor;
use crate::enroll::{self, Enrolment};
use crate::failure::Failure;
use crate::host::{HostRoot, find_id};
use crate::init;
use crate::logging;
use crate::net::Certificates;
use crate::signer;
use crate::spool::{self, Look};
use crate::status::{self, Page};
use crate::sys::inherited;
use crate::update;
use crate::version::{self, version};

/// The exit code of `elklet status` when the agent runs and has no stream.
const NOT_CONNECTED: u8 = 3;

/// Runs the program, whose version is `version`.
pub fn main(version: &'static str) -> ExitCode {
    version::set(version);
    let mut words = std::env::args_os();
    let name = words.next();
    let name = name.as_deref().and_then(|name| Path::new(name).file_name()).unwrap_or_default();
    // These are the names of Elkeid's programs, whose directory they stand in.
    let (program, workdir) = match name.to_str() {
        Some("elkeidctl") => (ELKEIDCTL, Some(PathBuf::from(ELKEID))),
        Some("elkeid-agent") => (ELKEID_AGENT, Some(PathBuf::from(ELKEID))),
        _ => (ELKLET, None),
    };
    match answer(&program, words, workdir) {
        Ok(code) => code,
        Err(failure) => {
            // This does not wait for a reader of standard error that does not read.
            logging::say(&format!("elklet: {}\n", Printable(&failure)));
            match failure {
                Failure::Settings(_) => ExitCode::from(2),
                Failure::System(_) => ExitCode::FAILURE,
            }
        }
    }
}

fn answer(
    program: &Program,
    words: impl IntoIterator<Item = OsString>,
    workdir: Option<PathBuf>,
) -> Result<ExitCode, Failure> {
    let wrong = |error: lexopt::Error| settings(format!("{error} ({} --help tells more)", program.name));
    let version = version();
    match parse(program, words).map_err(wrong)? {
        Asked::Version => Ok(print(&format!("elklet {version}\n"))),
        Asked::Help(path) if path.is_empty() => Ok(print(&help::program(program, version))),
        Asked::Help(path) => Ok(print(&help::command(program, &path))),
        Asked::Command(words) => {
            let flags = words.flags(workdir).map_err(wrong)?;
            match *words.names() {
                // elkeidctl's commands are those of `elklet ctl`.
                ["ctl", command] => control(command, program, &words, &flags).map_err(wrong),
                [command] if program.name == ELKEIDCTL.name => control(command, program, &words, &flags).map_err(wrong),
                _ => carry_out(&words, flags),
            }
        }
    }
}

fn settings(error: impl fmt::Display) -> Failure {
    Failure::Settings(error.to_string())
}

fn control(command: &str, program: &Program, words: &Words, flags: &Flags) -> Result<ExitCode, lexopt::Error> {
    match command {
        "set" => ctl::specify(words, flags, true)?,
        "unset" => ctl::specify(words, flags, false)?,
        command => ctl::hand_over(command, program.service, flags)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn carry_out(words: &Words, flags: Flags) -> Result<ExitCode, Failure> {
    match *words.names() {
        ["check"] => Ok(print(&check(&flags)?)),
        ["init"] => {
            print(&init::run(&flags)?);
            let Flags { config, workdir, .. } = flags;
            examine(&Flags { config, workdir, ..Flags::default() }, false)
        }
        ["enroll"] => {
            print(&enroll::run(&enrolment(words)?, &flags)?);
            examine(&flags, false)
        }
        ["adopt"] => {
            let (is_meant, is_undone) = (words.has("yes"), words.has("undo"));
            Ok(print(&adopt::run(&flags, &Adoption { from: words.path_of("from"), is_meant, is_undone })?))
        }
        ["doctor"] => examine(&flags, words.has("json")),
        ["status"] => {
            let page = match (words.has("json"), words.has("metrics")) {
                (false, false) => Page::Text,
                (true, false) => Page::Json,
                (false, true) => Page::Metrics,
                (true, true) => return Err(settings("--json and --metrics exclude each other")),
            };
            ask(&Layout::find(&flags).map_err(settings)?.socket, page)
        }
        ["spool", what] => {
            let what = if what == "verify" { Look::Verify } else { Look::List };
            look(&Layout::find(&flags).map_err(settings)?.workdir, what)
        }
        ["keygen"] => Ok(print(&signer::keygen(words)?)),
        ["sign"] => Ok(print(&signer::sign(words)?)),
        ["verify"] => Ok(print(&signer::verify(words, &flags)?)),
        ["version"] => Ok(print(&version_page(words.has("json")))),
        ["run"] => {
            inherited::shed();
            update::run(&Layout::find_at_any_rate(&flags), |is_on_trial| {
                agent::run(flags, Environment::current(), is_on_trial)
            })?;
            Ok(ExitCode::SUCCESS)
        }
        ref others => Err(settings(format!("{} is not a command of this version", others.join(" ")))),
    }
}

fn enrolment(words: &Words) -> Result<Enrolment, Failure> {
    let given = |name: &str, shown: &str| {
        let last = words.texts(name).map_err(settings)?.pop();
        last.ok_or_else(|| settings(format!("{shown} is missing; `elklet-center token` prints the whole line")))
    };
    Ok(Enrolment {
        address: given(CENTER, CENTER)?,
        token: given("token", "--token")?,
        pin: given("ca-pin", "--ca-pin")?,
        is_forced: words.has("force"),
    })
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(PrintablePage(text).to_string().as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn version_page(json: bool) -> String {
    let version = version();
    if json {
        let page = serde_json::json!({ "name": "elklet", "version": version, "architecture": std::env::consts::ARCH });
        format!("{page}\n")
    } else {
        format!("elklet {version}\n")
    }
}

fn examine(flags: &Flags, json: bool) -> Result<ExitCode, Failure> {
    match doctor::run(flags, json) {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) => Err(Failure::System(error.to_string())),
    }
}

/// Reads what `run` would read before it starts anything. Returns what was found.
fn check(flags: &Flags) -> Result<String, Failure> {
    let found = Settings::load(flags, &Environment::current()).map_err(settings)?;
    let layout = &found.layout;
    find_id(&HostRoot::live(), &layout.workdir, found.agent_id.as_deref()).map_err(settings)?;
    let loaded = Certificates::load(layout.certs.clone(), &found.server);
    loaded.map_err(|error| settings(found.blame_certificates(error)))?;
    let warnings = found.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect::<String>();
    let (file, certs) = (layout.file.display(), layout.certs.display());
    let state = if found.has_file { "is in order" } else { "is not there, and need not be" };
    Ok(format!("{warnings}{file} {state}; the certificates in {certs} are usable\n"))
}

fn ask(socket: &Path, page: Page) -> Result<ExitCode, Failure> {
    match status::ask(socket, page) {
        Ok((text, connected)) => Ok(match print(&text) {
            // Metrics are of use without a connection as well.
            ExitCode::SUCCESS if !connected && page != Page::Metrics => ExitCode::from(NOT_CONNECTED),
            printed => printed,
        }),
        Err((text, why)) => {
            print(&text);
            Err(Failure::System(why))
        }
    }
}

fn look(workdir: &Path, what: Look) -> Result<ExitCode, Failure> {
    // Without a work directory there is no spool, but that is not what was asked.
    if !workdir.is_dir() {
        let why = format!("work directory {}: no such directory (--workdir names another)", workdir.display());
        return Err(Failure::System(why));
    }
    let directory = workdir.join(spool::DIRECTORY);
    let looked = spool::look(&directory, what);
    let (text, is_damaged) = looked.map_err(|error| Failure::System(format!("{}: {error}", directory.display())))?;
    let printed = print(&text);
    Ok(if is_damaged { ExitCode::FAILURE } else { printed })
}
