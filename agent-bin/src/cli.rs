//! The command line.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use elklet_core::printable::{Printable, PrintablePage};
use lexopt::prelude::*;

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

/// The help after the program's name and version.
const HELP: &str = " - a small agent for the Elkeid host security system

Usage:
  elklet run [--config FILE] [--workdir DIR] [--server HOST:PORT]... [--discovery HOST:PORT]...
             [--public HOST:PORT]... [--certs DIR] [--log-stderr]
  elklet status [--config FILE] [--workdir DIR] [--json | --metrics]
  elklet doctor [--json] [the flags of run]
  elklet init --server HOST:PORT [--certs DIR] [the flags of run]
  elklet check [the flags of run]
  elklet spool ls|verify [--config FILE] [--workdir DIR]
  elklet adopt [--from DIR] [--yes] [--undo] [--config FILE] [--workdir DIR]
  elklet version [--json]
  elklet ctl COMMAND         what Elkeid's elkeidctl does, also by that name: set, unset, start, stop, ... (elklet ctl --help)

`status` asks the running agent how it is, and prints the answer as text, as JSON or as Prometheus metrics. Its socket serves the
same as /status.txt, /status and /metrics.
`init` writes the settings' file of a host that has none, with these servers and every other key as a comment, copies the
certificates from DIR to where they belong, and then does what `doctor` does. It changes nothing that is there.
`check` reads the settings and the certificates as `run` would, starts nothing, and prints what is wrong.
`doctor` goes the way to every configured server (file, DNS, TCP, proxy, TLS, ALPN, gRPC, AgentCenter). It names the hop at
which the way ends, and says what to do about it.
`adopt` copies what an agent with everything in one directory (--from, or /etc/elkeid) has kept to where things lie now: id, idc
and region, plugins, spool, settings and certificates, as far as they are there and not here. Without --yes it says what it
would do. --undo removes what it has copied.
`spool` lists what lies on the disk for the server, or reads all of it and says what is damaged.

Options:
  --config FILE           settings as TOML (default: /etc/elklet/elklet.toml, if there is one)
  --workdir DIR           one directory for everything, as Elkeid's agent has it; see below
  --server HOST:PORT      an AgentCenter; may be repeated, and the agent tries them in order
  --discovery HOST:PORT   a service discovery host, which the agent asks before it tries any --server; may be repeated
  --public HOST:PORT      an AgentCenter, which the agent tries after every --server; may be repeated
  --certs DIR             where ca.crt, client.crt and client.key are
  --log-stderr            log to standard error too, beside the log file
  -h, --help              this text
  -V, --version           the version

Where things lie, for every command:
                          by default                  with --workdir DIR          key of the file
  settings                /etc/elklet/elklet.toml     DIR/elklet.toml             (--config FILE)
  certificates            /etc/elklet/certs           DIR/certs                   certs
  state, plugins, spool   /var/lib/elklet             DIR                         workdir (as the flag)
  log, audit              /var/log/elklet             DIR/log                     directory in [log]
  status socket           /run/elklet/elklet.sock     DIR/elklet.sock             socket
Called by the name elkeid-agent or elkeidctl, the program has everything in /etc/elkeid, and needs no command to run.

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
  check   0 when `run` would start, 2 with a line that says what is wrong when not
  adopt   2 when an agent runs or there is nothing to adopt, 1 when something cannot be copied
  init    2 when there is a file, or servers or certificates are of no use, else as doctor
  doctor  0 when all is well here and a server takes this agent, 1 when not, 2 for a wrong flag
  spool   1 when something is damaged
";

/// The commands, for messages. `ctl` has a parser of its own.
const COMMANDS: &str = "run, status, doctor, check, init, adopt, spool, version or ctl";

/// The exit code of `elklet status` when the agent runs and has no stream.
const NOT_CONNECTED: u8 = 3;

enum Invocation {
    Run(Flags),
    Check(Flags),
    Init(Flags),
    Adopt(Flags, Adoption),
    Status(Flags, Page),
    Doctor(Flags, bool),
    Spool(Flags, Look),
    Help,
    Version { json: bool },
}

/// Runs the program, whose version is `version`.
pub fn main(version: &'static str) -> ExitCode {
    crate::version::set(version);
    let mut words = std::env::args_os().peekable();
    let name = words.next();
    // These are the names of Elkeid's programs, whose directory they stand in.
    let name = name.as_deref().and_then(|name| Path::new(name).file_name()).unwrap_or_default();
    let (is_ctl, is_elkeids) = (name == "elkeidctl", name == "elkeidctl" || name == "elkeid-agent");
    let flags = Flags { workdir: is_elkeids.then(|| PathBuf::from(ELKEID)), ..Flags::default() };
    if is_ctl || words.next_if(|word| word == "ctl").is_some() {
        let service = ctl::Service { name: if is_ctl { "elkeid-agent" } else { "elklet" } };
        return match ctl::run(words, flags, service) {
            Ok(text) => print(text),
            Err(error) => fail(&Failure::Settings(error.to_string())),
        };
    }
    let default = is_elkeids.then_some(Word::Run);
    match parse(words, flags, default) {
        Ok(Invocation::Help) => print(&format!("elklet {version}{HELP}")),
        Ok(Invocation::Version { json: false }) => print(&format!("elklet {version}\n")),
        Ok(Invocation::Version { json: true }) => {
            let said =
                serde_json::json!({ "name": "elklet", "version": version, "architecture": std::env::consts::ARCH });
            print(&format!("{said}\n"))
        }
        Ok(Invocation::Init(flags)) => match init::run(&flags) {
            Ok(done) => {
                print(&done);
                let Flags { config, workdir, .. } = flags;
                examine(&Flags { config, workdir, ..Flags::default() }, false)
            }
            Err(failure) => fail(&failure),
        },
        Ok(Invocation::Adopt(flags, adoption)) => match adopt::run(&flags, &adoption) {
            Ok(said) => print(&said),
            Err(failure) => fail(&failure),
        },
        Ok(Invocation::Check(flags)) => match check(&flags) {
            Ok(found) => print(&format!("{found}\n")),
            Err(error) => fail(&Failure::Settings(error)),
        },
        Ok(Invocation::Run(flags)) => {
            inherited::shed();
            let ran = update::run(&Layout::find_at_any_rate(&flags), |is_on_trial| {
                agent::run(flags, Environment::current(), is_on_trial)
            });
            ran.map_or_else(|failure| fail(&failure), |()| ExitCode::SUCCESS)
        }
        Ok(Invocation::Status(flags, page)) => match Layout::find(&flags) {
            Ok(layout) => ask(&layout.socket, page),
            Err(error) => fail(&Failure::Settings(error.to_string())),
        },
        Ok(Invocation::Doctor(flags, json)) => examine(&flags, json),
        Ok(Invocation::Spool(flags, what)) => match Layout::find(&flags) {
            Ok(layout) => look(&layout.workdir, what),
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
    Check,
    Init,
    Adopt,
    Version,
    Status,
    Doctor,
    Spool,
}

/// Parses the arguments of a program that has these flags already, and this command if it is given none.
fn parse(
    arguments: impl Iterator<Item = OsString>,
    mut flags: Flags,
    default: Option<Word>,
) -> Result<Invocation, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut page = Page::default();
    let mut command = None;
    let mut what = None;
    let mut adoption = Adoption::default();
    while let Some(argument) = parser.next()? {
        // Whoever looks at what the agent would do has its flags.
        let runs = matches!(command.or(default), Some(Word::Run | Word::Check | Word::Init | Word::Doctor));
        let asks = command == Some(Word::Status);
        let adopts = command == Some(Word::Adopt);
        let looks = command == Some(Word::Spool);
        match argument {
            Short('h') | Long("help") => return Ok(Invocation::Help),
            Short('V') | Long("version") => return Ok(Invocation::Version { json: false }),
            Value(word) if command.is_none() => {
                command = Some(match word.to_str() {
                    Some("run") => Word::Run,
                    Some("check") => Word::Check,
                    Some("init") => Word::Init,
                    Some("adopt") => Word::Adopt,
                    Some("version") => Word::Version,
                    Some("status") => Word::Status,
                    Some("doctor") => Word::Doctor,
                    Some("spool") => Word::Spool,
                    _ => return Err(format!("unknown command {word:?}, expected {COMMANDS}").into()),
                });
            }
            Value(word) if looks && what.is_none() => {
                what = Some(match word.to_str() {
                    Some("ls") => Look::List,
                    Some("verify") => Look::Verify,
                    _ => return Err(format!("unknown word {word:?}, expected ls or verify").into()),
                });
            }
            Long("config") if runs || asks || looks || adopts => flags.config = Some(path(&mut parser)?),
            Long("workdir") if runs || asks || looks || adopts => flags.workdir = Some(path(&mut parser)?),
            Long("from") if adopts => adoption.from = Some(path(&mut parser)?),
            Long("yes") if adopts => adoption.is_meant = true,
            Long("undo") if adopts => adoption.is_undone = true,
            Long("certs") if runs => flags.certs = Some(path(&mut parser)?),
            Long("server") if runs => flags.servers.push(parser.value()?.string()?),
            Long("public") if runs => flags.public.push(parser.value()?.string()?),
            Long("discovery") if runs => flags.discovery.push(parser.value()?.string()?),
            Long("log-stderr") if runs => flags.log_stderr = true,
            Long("json") if matches!(command, Some(Word::Doctor | Word::Version)) => page = Page::Json,
            Long("json") if asks && page == Page::Text => page = Page::Json,
            Long("metrics") if asks && page == Page::Text => page = Page::Metrics,
            other => return Err(other.unexpected()),
        }
    }
    match command.or(default) {
        Some(Word::Run) => Ok(Invocation::Run(flags)),
        Some(Word::Check) => Ok(Invocation::Check(flags)),
        Some(Word::Init) => Ok(Invocation::Init(flags)),
        Some(Word::Adopt) => Ok(Invocation::Adopt(flags, adoption)),
        Some(Word::Version) => Ok(Invocation::Version { json: page == Page::Json }),
        Some(Word::Status) => Ok(Invocation::Status(flags, page)),
        Some(Word::Doctor) => Ok(Invocation::Doctor(flags, page == Page::Json)),
        Some(Word::Spool) => match what {
            Some(what) => Ok(Invocation::Spool(flags, what)),
            None => Err("spool what? expected ls or verify".into()),
        },
        None => Err(format!("no command given, expected {COMMANDS}").into()),
    }
}

fn path(parser: &mut lexopt::Parser) -> Result<PathBuf, lexopt::Error> {
    Ok(PathBuf::from(parser.value()?))
}
