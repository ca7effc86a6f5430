//! The program `elklet-center`.
#![forbid(unsafe_code)]
// Help and version go to standard output: that is what the program was asked for.
#![allow(clippy::print_stdout)]

use elklet_center::http::configs_from_file;
use elklet_center::keep::Keeper;
use elklet_center::serve::{Options, Server};
use elklet_center::settings::{self, Settings};
use elklet_center::store::{self, Store};
use lexopt::prelude::*;
use log::{LevelFilter, Log, Metadata, Record};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::error::Error;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
elklet-center: a server for small sites, which agents of the Elkeid host security system connect to

usage: elklet-center COMMAND [OPTIONS]

  serve        serve agents, keep their records, and answer on the HTTP port
  --help       this text; after a command, what it takes
  --version    the version
";

const SERVE_HELP: &str = "\
elklet-center serve: serve agents, keep their records, and answer on the HTTP port

usage: elklet-center serve [OPTIONS]

  --config FILE          the settings (default /etc/elklet/center.toml). The flags below win over it
  --certs DIR            the directory of ca.crt, server.crt and server.key (certs, /etc/elklet/center)
  --data DIR             the directory of everything that is kept (data, /var/lib/elklet-center)
  --listen HOST:PORT     the address that agents connect to (listen, [::]:6751; port 0: any)
  --http HOST:PORT       the port for commands, questions and service discovery (http, 127.0.0.1:6752; port 0: any)
  --http-tls             TLS on that port, with the same server certificate (http_tls)
  --access-key AK:SK     accept only signed requests, except for /ping, /healthz, /readyz, /metrics and
                         /registry/detail (access_key)
  --allow-non-loopback   let --http be an address that other hosts can reach, which takes an access key
                         (allow_non_loopback)
  --plugins FILE         what agents should run until /api/v1/plugins says otherwise: [{\"name\",\"type\",\"version\",
                         \"sha256\",\"signature\",\"download_url\":[],\"detail\"}] (plugins)
  --upload-dir DIR       the directory for uploaded files (upload_dir, DATA/uploads)
  --conn-limit N         the most agents at a time (conn_limit, 10000)
  --quiet                print nothing on standard error except the addresses, warnings and errors
  --help                 this text

Only the file has max_hosts = 10000, and in [store] keep = \"14d\" and max = \"20GiB\".

When it is ready it prints `listening grpc=HOST:PORT http=HOST:PORT` on standard error, and tells systemd. SIGINT and SIGTERM end
it: its streams end in order, and what it has taken is stored.
";

/// How long the streams may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run(lexopt::Parser::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Words(error)) => {
            eprintln!("elklet-center: {error}; --help tells more");
            ExitCode::from(2)
        }
        Err(Failure::Work(error)) => {
            eprintln!("elklet-center: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Who is to blame.
enum Failure {
    /// What the program was called with, or its settings.
    Words(String),
    /// The system that it runs on.
    Work(Box<dyn Error>),
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self::Words(error.to_string())
    }
}

impl From<settings::Wrong> for Failure {
    fn from(wrong: settings::Wrong) -> Self {
        Self::Words(wrong.to_string())
    }
}

fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    match parser.next()? {
        Some(Long("help") | Short('h')) => print!("{HELP}"),
        Some(Long("version") | Short('V')) => println!("elklet-center {}", env!("CARGO_PKG_VERSION")),
        Some(Value(command)) if command == "serve" => match Serve::parse(parser)? {
            Some(serve) => serve.run().map_err(Failure::Work)?,
            None => print!("{SERVE_HELP}"),
        },
        Some(Value(command)) => return Err(Failure::Words(format!("there is no command {command:?}"))),
        Some(argument) => return Err(argument.unexpected().into()),
        None => return Err(Failure::Words("a command is missing".to_owned())),
    }
    Ok(())
}

/// What a flag changes in the settings.
type Flag = Box<dyn FnOnce(&mut Settings)>;

/// The command `serve`.
struct Serve {
    settings: Settings,
    quiet: bool,
}

impl Serve {
    /// Returns `None` when help is wanted.
    fn parse(mut parser: lexopt::Parser) -> Result<Option<Self>, Failure> {
        let (mut file, mut quiet) = (None, false);
        let mut flags: Vec<Flag> = Vec::new();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("help") | Short('h') => return Ok(None),
                Long("config") => file = Some(PathBuf::from(parser.value()?)),
                Long("quiet") => quiet = true,
                Long("http-tls") => flags.push(Box::new(|settings| settings.http_tls = true)),
                Long("allow-non-loopback") => flags.push(Box::new(|settings| settings.allow_non_loopback = true)),
                Long("certs") => {
                    let certs = parser.value()?.into();
                    flags.push(Box::new(|settings| settings.certs = certs));
                }
                Long("data") => {
                    let data = parser.value()?.into();
                    // A directory for uploads counts, whichever of the two comes first.
                    flags.insert(0, Box::new(|settings| settings.set_data(data)));
                }
                Long("listen") => {
                    let listen = parser.value()?.parse_with(settings::address)?;
                    flags.push(Box::new(move |settings| settings.listen = listen));
                }
                Long("http") => {
                    let http = parser.value()?.parse_with(settings::address)?;
                    flags.push(Box::new(move |settings| settings.http = http));
                }
                Long("access-key") => {
                    let key = parser.value()?.parse_with(settings::access_key)?;
                    flags.push(Box::new(|settings| settings.access_key = Some(key)));
                }
                Long("plugins") => {
                    let plugins = parser.value()?.into();
                    flags.push(Box::new(|settings| settings.plugins = Some(plugins)));
                }
                Long("upload-dir") => {
                    let dir = parser.value()?.into();
                    flags.push(Box::new(|settings| settings.upload_dir = dir));
                }
                Long("conn-limit") => {
                    let limit = parser.value()?.parse()?;
                    flags.push(Box::new(move |settings| {
                        settings.conn_limit = limit;
                        settings.max_hosts = settings.max_hosts.max(limit);
                    }));
                }
                _ => return Err(argument.unexpected().into()),
            }
        }
        let mut settings = Settings::read(file.as_deref())?;
        flags.into_iter().for_each(|set| set(&mut settings));
        settings.check()?;
        Ok(Some(Self { settings, quiet }))
    }

    fn run(self) -> Result<(), Box<dyn Error>> {
        log::set_logger(&Stderr).expect("no other logger has been set");
        log::set_max_level(if self.quiet { LevelFilter::Warn } else { LevelFilter::Info });
        raise_descriptors();
        let settings = self.settings;
        let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // This catches signals before it says that it listens. Whoever reads that may send one at once.
        let (mut interrupt, mut terminate) = waiting.block_on(async {
            Ok::<_, io::Error>((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
        })?;
        let keep = store::Settings { keep: settings.keep, max_bytes: settings.max, ..Default::default() };
        let store = Arc::new(Store::open(&settings.data, keep)?);
        let options = Options {
            listen: settings.listen,
            http: settings.http,
            http_tls: settings.http_tls,
            access_key: settings.access_key,
            conn_limit: settings.conn_limit,
            max_hosts: settings.max_hosts,
            configs: settings.plugins.as_deref().map(configs_from_file).transpose()?,
            desired_file: Some(settings.data.join("desired.json")),
            store: Some(Arc::clone(&store)),
            upload_dir: Some(settings.upload_dir),
            ..Options::new(settings.certs)
        };
        let server = Server::start(options, Arc::new(Keeper::new(Arc::clone(&store))), Arc::new(()))?;
        eprintln!("listening grpc={} http={}", server.options().listen, server.options().http);
        notify("READY=1");
        waiting.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            notify("STOPPING=1");
            server.end(END_TIMEOUT).await;
        });
        drop(server);
        // This writes what is still in its queue.
        drop(store);
        Ok(())
    }
}

/// Asks for as many descriptors as there may be: each agent has one.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        log::warn!("there are {:?} descriptors: {error}", limit.current);
    }
}

/// Tells the service manager, if there is one.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = UnixDatagram::unbound().and_then(|socket| {
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = told {
        log::warn!("the service manager hears nothing: {error}");
    }
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("elklet") || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("elklet-center: {}", record.args());
        }
    }

    fn flush(&self) {}
}
