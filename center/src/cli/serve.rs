//! `elklet-center serve`: the server itself.

use super::Failure;
use super::out::note;
use crate::authority::{Authority, own};
use crate::clock::now_s;
use crate::desired;
use crate::http::configs_from_file;
use crate::keep::Keeper;
use crate::logger;
use crate::serve::{Options, Server};
use crate::settings::{self, Settings};
use crate::store::{self, Store};
use lexopt::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::error::Error;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

pub(super) const HELP: &str = "\
elklet-center serve: serve agents, keep their records, and answer on the HTTP port

usage: elklet-center serve [OPTIONS]

  --config FILE          the settings (default /etc/elklet/center.toml). The flags below win over it
  --certs DIR            the directory of ca.crt, server.crt and server.key, and of ca.key if the center is to enrol hosts
                         (certs, /etc/elklet/center). If neither is there, the center makes its own in DATA/authority
  --data DIR             the directory of everything that is kept (data, /var/lib/elklet-center)
  --listen HOST:PORT     the address that agents connect to (listen, [::]:6751; port 0: any)
  --http HOST:PORT       the port for commands, questions and service discovery (http, 127.0.0.1:6752; port 0: any)
  --downloads HOST:PORT  the address at which agents fetch the files of plugins, or off (downloads; port 6753 of the address
                         that agents connect to)
  --download-host HOST   the host that agents are told to fetch them from (download_host; the address at which each
                         agent reaches the center)
  --http-tls             TLS on that port, with the same server certificate (http_tls)
  --access-key AK:SK     take signed requests; without users only those, except for /ping, /healthz, /readyz, /metrics and
                         /registry/detail (access_key)
  --allow-non-loopback   let --http be an address that other hosts can reach, which takes --http-tls or an access key
                         (allow_non_loopback)
  --plugins FILE         what agents should run until /api/v1/plugins says otherwise: [{\"name\",\"type\",\"version\",
                         \"sha256\",\"signature\",\"download_url\":[],\"detail\"}] (plugins)
  --upload-dir DIR       the directory for uploaded files (upload_dir, DATA/uploads)
  --conn-limit N         the most agents at a time (conn_limit, 10000)
  --quiet                print nothing on standard error except the addresses, warnings and errors
  --help                 this text

Only the file has certificate_lifetime = \"90d\", for hosts that the center enrols, max_hosts = 10000, max_uploads = \"1GiB\", in
[store] keep = \"14d\" and max = \"20GiB\", and the tables [[forward]] of where records are passed on to: Kafka, syslog, HTTP, a
file (docs/forwarding.md).

When it is ready it prints `listening grpc=HOST:PORT http=HOST:PORT downloads=HOST:PORT` on standard error, and tells systemd.
SIGINT and SIGTERM end it: its streams end in order, and what it has taken is stored. SIGHUP has it read ca.crt, server.crt and
server.key again.
";

/// How long the streams may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// What a flag changes in the settings.
type Flag = Box<dyn FnOnce(&mut Settings)>;

/// The command `serve`.
pub(super) struct Serve {
    settings: Settings,
    quiet: bool,
}

impl Serve {
    /// Returns `None` when help is wanted.
    pub(super) fn parse(mut parser: lexopt::Parser) -> Result<Option<Self>, Failure> {
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
                    flags.push(Box::new(|settings| settings.certs = Some(certs)));
                }
                Long("data") => {
                    let data = parser.value()?.into();
                    // A directory for uploads counts, whichever of the two comes first.
                    flags.insert(0, Box::new(|settings| settings.set_data(data)));
                }
                Long("listen") => {
                    let listen = parser.value()?.parse_with(settings::address)?;
                    flags.push(Box::new(move |settings| settings.set_listen(listen)));
                }
                Long("downloads") => {
                    let downloads = parser.value()?.parse_with(settings::downloads)?;
                    flags.push(Box::new(move |settings| settings.downloads = downloads));
                }
                Long("download-host") => {
                    let host = parser.value()?.parse_with(settings::download_host)?;
                    flags.push(Box::new(|settings| settings.download_host = Some(host)));
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

    pub(super) fn run(self) -> Result<(), Box<dyn Error>> {
        logger::to_stderr("elklet-center", self.quiet);
        raise_descriptors();
        let settings = self.settings;
        let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // This catches signals before it says that it listens. Whoever reads that may send one at once.
        let (mut interrupt, mut terminate, mut hang_up) = waiting.block_on(async {
            let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            let [interrupt, terminate, hang_up] = signals.map(signal);
            Ok::<_, io::Error>((interrupt?, terminate?, hang_up?))
        })?;
        let keep = store::Settings { keep: settings.keep, max_bytes: settings.max, ..Default::default() };
        let store = Arc::new(Store::open(&settings.data, keep)?);
        desired::take_over(&settings.data, store.site())?;
        let (certs, renews_own) = match settings.certs() {
            Some(certs) => (certs, false),
            None => (own_authority(&settings.data, settings.certificate_lifetime)?, true),
        };
        let options = Options {
            certificate_lifetime: Some(settings.certificate_lifetime),
            renews_own,
            listen: settings.listen,
            http: settings.http,
            http_tls: settings.http_tls,
            access_key: settings.access_key,
            conn_limit: settings.conn_limit,
            max_hosts: settings.max_hosts,
            configs: settings.plugins.as_deref().map(configs_from_file).transpose()?,
            empty_ends_all: true,
            files_dir: Some(settings.data.join("files")),
            downloads: settings.downloads,
            download_host: settings.download_host,
            store: Some(Arc::clone(&store)),
            local_dir: Some(settings.data),
            upload_dir: Some(settings.upload_dir),
            upload_limit: settings.max_uploads.min(1 << 30),
            max_uploads: settings.max_uploads,
            ..Options::new(certs)
        };
        let server = Server::start(options, Arc::new(Keeper::new(Arc::clone(&store))), Arc::new(()))?;
        let Options { listen, http, downloads, .. } = server.options();
        let downloads = downloads.map(|address| format!(" downloads={address}")).unwrap_or_default();
        note(&format!("listening grpc={listen} http={http}{downloads}\n"));
        let forwarding = server.forward(settings.forward)?;
        notify("READY=1");
        waiting.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => break,
                    _ = terminate.recv() => break,
                    _ = hang_up.recv() => match server.reload() {
                        // A warning, as `--quiet` leaves nothing else: whoever sent the signal wants to know.
                        Ok(()) => log::warn!("the certificates were read again"),
                        Err(error) => log::error!("the certificates stay as they are: {error}"),
                    }
                }
            }
            notify("STOPPING=1");
            server.end(END_TIMEOUT).await;
        });
        drop(forwarding);
        drop(server);
        // This writes what is still in its queue.
        drop(store);
        Ok(())
    }
}

/// Returns the directory of the center's own authority, and makes it at the first start.
fn own_authority(data: &Path, lifetime: Duration) -> Result<PathBuf, Box<dyn Error>> {
    let (dir, is_new) = own::ensure(data, now_s().cast_signed())?;
    if is_new {
        let pin = Authority::load(&dir, lifetime)?.pin();
        log::warn!(
            "there were no certificates: this center is its own authority now, in {}, with the pin {pin}",
            dir.display()
        );
    }
    own::renew_server(&dir, now_s().cast_signed())?;
    Ok(dir)
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
