//! An AgentCenter to run by hand: agents connect to it, their records are printed, commands come in over HTTP.
#![forbid(unsafe_code)]
// Help goes to standard output: that is what the program was asked for.
#![allow(clippy::print_stdout)]

use elklet_tests::center::{AccessKey, Center, Options, RecordsTo, configs_from_file};
use elklet_tests::harness::Journal;
use elklet_tests::pki;
use lexopt::prelude::*;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
center: an AgentCenter for agents of the Elkeid host security system, to try them and to test them

usage: center --certs DIR [OPTIONS]

  --certs DIR            the directory of ca.crt, server.crt and server.key. Agents need ca.crt, client.crt and client.key
  --make-certs           make all five files there first, unless there is a ca.crt already
  --listen HOST:PORT     the address that agents connect to (default 127.0.0.1:6751; port 0: any)
  --http HOST:PORT       the port for commands, questions and service discovery (default 127.0.0.1:6752; port 0: any)
  --http-tls             TLS on that port, with the same server certificate
  --access-key AK:SK     accept only signed requests, except for /ping, /metrics and /registry/detail
  --config FILE          what agents should run. The center pushes it to them: [{\"name\",\"type\",\"version\",\"sha256\",
                         \"signature\",\"download_url\":[],\"detail\"}]
  --records FILE|-       write every record as a line of JSON to a file, or to standard output
  --journal FILE         note which records of test plugins have arrived, message by message; this survives kill -9
  --upload-dir DIR       the directory for uploaded files; without it uploads fail
  --conn-limit N         the most agents at a time (default 1500)
  --allow-non-loopback   let --listen and --http be addresses that other hosts can reach
  --quiet                print nothing on standard error except the addresses and errors
  --help                 this text

When it is ready it prints `listening grpc=HOST:PORT http=HOST:PORT` on standard error. SIGINT and SIGTERM end it.

A center with fresh certificates that prints what it gets:
  center --certs certs --make-certs --records -

To see who is connected, and how they are:
  curl http://127.0.0.1:6752/conn/list
  curl http://127.0.0.1:6752/conn/stat

To send an agent a task, here to end itself, and to end its stream:
  curl http://127.0.0.1:6752/command/ -d '{\"agent_id\":\"ID\",\"command\":{\"task\":{\"data_type\":1060,
    \"name\":\"elkeid-agent\",\"data\":\"{}\",\"token\":\"t1\"}}}'
  curl http://127.0.0.1:6752/conn/reset -d '{\"type\":\"strict\",\"id_list\":[\"ID\"]}'
";

fn main() -> ExitCode {
    let arguments = match Arguments::parse(lexopt::Parser::from_env()) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("center: {error}; --help tells more");
            return ExitCode::from(2);
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("center: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> io::Result<()> {
    elklet_center::logger::to_stderr("center", arguments.quiet);
    if arguments.make_certs && !arguments.options.certs.join("ca.crt").exists() {
        pki::Set::new().write(&arguments.options.certs)?;
    }
    let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // This catches signals before it says that it listens. Whoever reads that may send one at once.
    let (mut interrupt, mut terminate) = waiting
        .block_on(async { Ok::<_, io::Error>((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)) })?;
    let mut journal = arguments.journal.as_deref().map(Journal::append_to).transpose()?;
    let center = Center::start_observed(arguments.options, move |batch| {
        if let Some(Err(error)) = journal.as_mut().map(|journal| journal.note(batch)) {
            log::error!("the journal: {error}");
            std::process::abort();
        }
    })?;
    eprintln!("listening grpc={} http={}", center.grpc_addr(), center.http_addr());
    waiting.block_on(async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    center.stop();
    Ok(())
}

struct Arguments {
    options: Options,
    journal: Option<PathBuf>,
    make_certs: bool,
    quiet: bool,
}

impl Arguments {
    /// Returns `None` when help is wanted.
    fn parse(mut parser: lexopt::Parser) -> Result<Option<Self>, lexopt::Error> {
        let mut options = Options::new("");
        options.listen = SocketAddr::from(([127, 0, 0, 1], 6751));
        options.http = SocketAddr::from(([127, 0, 0, 1], 6752));
        let (mut certs, mut make_certs, mut quiet, mut anywhere) = (None, false, false, false);
        let mut journal = None;
        while let Some(argument) = parser.next()? {
            match argument {
                Long("help") | Short('h') => return Ok(None),
                Long("certs") => certs = Some(PathBuf::from(parser.value()?)),
                Long("make-certs") => make_certs = true,
                Long("listen") => options.listen = parser.value()?.parse_with(address)?,
                Long("http") => options.http = parser.value()?.parse_with(address)?,
                Long("http-tls") => options.http_tls = true,
                Long("access-key") => options.access_key = Some(parser.value()?.parse_with(access_key)?),
                Long("config") => {
                    let configs = configs_from_file(&PathBuf::from(parser.value()?));
                    options.configs = Some(configs.map_err(|error| format!("--config {error}"))?);
                }
                Long("records") => {
                    let to = parser.value()?;
                    options.records = Some(if to == "-" { RecordsTo::Stdout } else { RecordsTo::File(to.into()) });
                }
                Long("journal") => journal = Some(PathBuf::from(parser.value()?)),
                Long("upload-dir") => options.upload_dir = Some(parser.value()?.into()),
                Long("conn-limit") => options.conn_limit = parser.value()?.parse()?,
                Long("allow-non-loopback") => anywhere = true,
                Long("quiet") => quiet = true,
                _ => return Err(argument.unexpected()),
            }
        }
        options.certs = certs.ok_or("--certs DIR is missing")?;
        for (flag, address) in [("--listen", options.listen), ("--http", options.http)] {
            if !anywhere && !address.ip().is_loopback() {
                return Err(format!(
                    "{flag} {address} is not a loopback address; say --allow-non-loopback if you mean it"
                )
                .into());
            }
        }
        Ok(Some(Self { options, journal, make_certs, quiet }))
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let text = text.replace("localhost:", "127.0.0.1:");
    SocketAddr::from_str(&text).map_err(|_| "expected an IP address and a port, as in 127.0.0.1:6751".to_owned())
}

fn access_key(text: &str) -> Result<AccessKey, &'static str> {
    let (access_key, secret_key) = text.split_once(':').ok_or("expected two keys with a colon between them")?;
    Ok(AccessKey { access_key: access_key.to_owned(), secret_key: secret_key.to_owned() })
}
