//! The command line.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use elklet_core::printable::{Printable, PrintablePage};
use lexopt::prelude::*;

use crate::agent;
use crate::config::{Environment, Flags, Settings};
use crate::ctl;
use crate::doctor;
use crate::failure::Failure;
use crate::logging;
use crate::spool::{self, Look};
use crate::status::{self, Page};
use crate::sys::inherited;
use crate::update;

/// The help after the program's name and version.
const HELP: &str = " - a small agent for the Elkeid host security system

Usage:
  elklet run [--config FILE] [--workdir DIR] [--server HOST:PORT]... [--discovery HOST:PORT]...
             [--public HOST:PORT]... [--certs DIR] [--log-stderr]
  elklet status [--config FILE] [--workdir DIR] [--json | --metrics]
  elklet doctor [--json] [the flags of run]
  elklet spool ls|verify [--config FILE] [--workdir DIR]
  elklet ctl [--workdir DIR] set|unset [--id ...] [--idc ...] [--region ...]     also by the name elkeidctl

`status` asks the agent that runs in the work directory how it is, and prints the answer as text, as JSON or as Prometheus
metrics. The socket elklet.sock in that directory serves the same as /status.txt, /status and /metrics.
`doctor` goes the way to every configured server (file, DNS, TCP, proxy, TLS, ALPN, gRPC, AgentCenter). It names the hop at
which the way ends, and says what to do about it.
`spool` lists what lies on the disk for the server, or reads all of it and says what is damaged.

Options:
  --config FILE           settings as TOML (default: elklet.toml in the work directory, if there is one)
  --workdir DIR           where machine-id, log/, plugin/ and tmp/ are (default of every command: /etc/elklet)
  --server HOST:PORT      an AgentCenter; may be repeated, and the agent tries them in order
  --discovery HOST:PORT   a service discovery host, which the agent asks before it tries any --server; may be repeated
  --public HOST:PORT      an AgentCenter, which the agent tries after every --server; may be repeated
  --certs DIR             where ca.crt, client.crt and client.key are (default: certs in the work directory)
  --log-stderr            log to standard error too, beside log/elklet.log
  -h, --help              this text
  -V, --version           the version

A flag takes precedence over the file's key. elklet.example.toml describes every key of the file's sections:
  [server] [regions.NAME] [proxy] [buffer] [spool] [plugins] [plugin.NAME] [upload] [update] [log]

Environment:
  SPECIFIED_AGENT_ID      the agent's id, verbatim. Without it the agent takes the id that elkeidctl has set. Without that
                          it derives one from the hardware, or makes one and keeps it in machine-id
  specified_idc, specified_region
                          the host's idc and region, which the heartbeat reports. What elkeidctl has set takes precedence
                          over these, and these over the file. A region's servers may stand in [regions.NAME]
  RUNTIME_MODE=DEBUG      logs more, as [log] debug does
  HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY
                          proxies, in upper or lower case, if [proxy] in the file names none
  SSL_CERT_FILE           the authorities for https downloads, beside ca.crt and instead of the system's

On SIGHUP the agent reads file and certificates again. A mistake in them changes nothing.

Exit codes:
  run     0 after SIGTERM, SIGINT or the server's shutdown task, 1 when the system refuses what the agent needs,
          2 for a wrong flag, file or certificate
  status  0 when the agent is connected (with --metrics: when it answers), 1 when none runs, 2 for a wrong flag or file,
          3 when it runs but is not connected
  doctor  0 when all is well here and a server takes this agent, 1 when not, 2 for a wrong flag
  spool   1 when something is damaged
";

/// The exit code of `elklet status` when the agent runs and has no stream.
const NOT_CONNECTED: u8 = 3;

enum Invocation {
    Run(Flags),
    Status(Flags, Page),
    Doctor(Flags, bool),
    Spool(Flags, Look),
    Help,
    Version,
}

/// Runs the program, whose version is `version`.
pub fn main(version: &'static str) -> ExitCode {
    crate::version::set(version);
    let mut words = std::env::args_os().peekable();
    let name = words.next();
    // The reference's control program has this name. `ctl` does the same.
    let is_ctl = name.is_some_and(|name| Path::new(&name).file_name() == Some("elkeidctl".as_ref()));
    if is_ctl || words.next_if(|word| word == "ctl").is_some() {
        return match ctl::run(words) {
            Ok(text) => print(&text),
            Err(error) => fail(&Failure::Settings(error.to_string())),
        };
    }
    match parse(words) {
        Ok(Invocation::Help) => print(&format!("elklet {version}{HELP}")),
        Ok(Invocation::Version) => print(&format!("elklet {version}\n")),
        Ok(Invocation::Run(flags)) => {
            inherited::shed();
            let ran = update::run(Settings::workdir_at_any_rate(&flags), |is_on_trial| {
                agent::run(flags, Environment::current(), is_on_trial)
            });
            ran.map_or_else(|failure| fail(&failure), |()| ExitCode::SUCCESS)
        }
        Ok(Invocation::Status(flags, page)) => match Settings::workdir(&flags) {
            Ok(workdir) => ask(&workdir, page),
            Err(error) => fail(&Failure::Settings(error.to_string())),
        },
        Ok(Invocation::Doctor(flags, json)) => match doctor::run(&flags, json) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => fail(&Failure::System(error.to_string())),
        },
        Ok(Invocation::Spool(flags, what)) => match Settings::workdir(&flags) {
            Ok(workdir) => look(&workdir, what),
            Err(error) => fail(&Failure::Settings(error.to_string())),
        },
        Err(error) => fail(&Failure::Settings(format!("{error} (elklet --help tells more)"))),
    }
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

fn ask(workdir: &Path, page: Page) -> ExitCode {
    match status::ask(workdir, page) {
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

fn look(workdir: &Path, what: Look) -> ExitCode {
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Run,
    Status,
    Doctor,
    Spool,
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Invocation, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut flags = Flags::default();
    let mut page = Page::default();
    let mut command = None;
    let mut what = None;
    while let Some(argument) = parser.next()? {
        // The doctor has the flags of the agent.
        let runs = matches!(command, Some(Word::Run | Word::Doctor));
        let asks = command == Some(Word::Status);
        let looks = command == Some(Word::Spool);
        match argument {
            Short('h') | Long("help") => return Ok(Invocation::Help),
            Short('V') | Long("version") => return Ok(Invocation::Version),
            Value(word) if command.is_none() => {
                command = Some(match word.to_str() {
                    Some("run") => Word::Run,
                    Some("status") => Word::Status,
                    Some("doctor") => Word::Doctor,
                    Some("spool") => Word::Spool,
                    _ => return Err(format!("unknown command {word:?}, expected run, status, doctor or spool").into()),
                });
            }
            Value(word) if looks && what.is_none() => {
                what = Some(match word.to_str() {
                    Some("ls") => Look::List,
                    Some("verify") => Look::Verify,
                    _ => return Err(format!("unknown word {word:?}, expected ls or verify").into()),
                });
            }
            Long("config") if runs || asks || looks => flags.config = Some(path(&mut parser)?),
            Long("workdir") if runs || asks || looks => flags.workdir = Some(path(&mut parser)?),
            Long("certs") if runs => flags.certs = Some(path(&mut parser)?),
            Long("server") if runs => flags.servers.push(parser.value()?.string()?),
            Long("public") if runs => flags.public.push(parser.value()?.string()?),
            Long("discovery") if runs => flags.discovery.push(parser.value()?.string()?),
            Long("log-stderr") if runs => flags.log_stderr = true,
            Long("json") if command == Some(Word::Doctor) => page = Page::Json,
            Long("json") if asks && page == Page::Text => page = Page::Json,
            Long("metrics") if asks && page == Page::Text => page = Page::Metrics,
            other => return Err(other.unexpected()),
        }
    }
    match command {
        Some(Word::Run) => Ok(Invocation::Run(flags)),
        Some(Word::Status) => Ok(Invocation::Status(flags, page)),
        Some(Word::Doctor) => Ok(Invocation::Doctor(flags, page == Page::Json)),
        Some(Word::Spool) => match what {
            Some(what) => Ok(Invocation::Spool(flags, what)),
            None => Err("spool what? expected ls or verify".into()),
        },
        None => Err("no command given, expected run, status, doctor or spool".into()),
    }
}

fn path(parser: &mut lexopt::Parser) -> Result<PathBuf, lexopt::Error> {
    Ok(PathBuf::from(parser.value()?))
}
