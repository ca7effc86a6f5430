//! The settings of the program: the file `center.toml`, and the flags that win over it.

use crate::forward::settings::Output;
use crate::given::text_of;
use crate::http::AccessKey;
use serde::Deserialize;
use std::fmt;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Where the file is unless a flag says otherwise.
pub const DEFAULT_FILE: &str = "/etc/elklet/center.toml";

/// Where certificates are looked for, unless the settings say otherwise.
const DEFAULT_CERTS: &str = "/etc/elklet/center";

/// The shortest and the longest life of a host's certificate. An agent renews it in its last third.
const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(3653 * 86_400);

/// The port at which agents fetch files, unless the settings say otherwise.
const DOWNLOADS_PORT: u16 = 6753;

/// The longest name of a host, as the domain name system has it.
const MAX_HOST: usize = 253;

/// The most agents at a time that a file may ask for. Each has a descriptor.
const MAX_CONN_LIMIT: usize = 100_000;

/// The settings of the center.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The address that agents connect to.
    pub listen: SocketAddr,
    /// The address of the HTTP port.
    pub http: SocketAddr,
    /// True if the HTTP port speaks TLS.
    pub http_tls: bool,
    /// The directory of `ca.crt`, `server.crt` and `server.key`, if it was named.
    pub certs: Option<PathBuf>,
    /// How long the certificates of hosts are valid that the center enrols.
    pub certificate_lifetime: Duration,
    /// The directory of everything that is kept.
    pub data: PathBuf,
    /// The directory for uploads.
    pub upload_dir: PathBuf,
    /// Bytes of all uploaded files together.
    pub max_uploads: u64,
    /// The address at which agents fetch the files of plugins. Without one, they fetch none from here.
    pub downloads: Option<SocketAddr>,
    /// The host that agents are told to fetch them from. Without one, it is the address at which an agent reaches the center.
    pub download_host: Option<String>,
    /// The key that requests to the HTTP port have to be signed with.
    pub access_key: Option<AccessKey>,
    /// True if the HTTP port may have an address that other hosts can reach.
    pub allow_non_loopback: bool,
    /// The most agents at a time.
    pub conn_limit: usize,
    /// The most hosts that are known.
    pub max_hosts: usize,
    /// The file of what agents should run, until the HTTP port says otherwise.
    pub plugins: Option<PathBuf>,
    /// How long records are kept.
    pub keep: Duration,
    /// Bytes that records may take on the disk.
    pub max: u64,
    /// Where records are passed on to.
    pub forward: Vec<Output>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // Agents are on other hosts, and get in with a certificate only.
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 6751)),
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 6752)),
            http_tls: false,
            certs: None,
            certificate_lifetime: Duration::from_secs(90 * 86_400),
            data: "/var/lib/elklet-center".into(),
            upload_dir: "/var/lib/elklet-center/uploads".into(),
            max_uploads: 1 << 30,
            downloads: Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, DOWNLOADS_PORT))),
            download_host: None,
            access_key: None,
            allow_non_loopback: false,
            conn_limit: 10_000,
            max_hosts: 10_000,
            plugins: None,
            keep: Duration::from_secs(14 * 86_400),
            max: 20 << 30,
            forward: Vec::new(),
        }
    }
}

/// What is wrong with the settings. The text names the file or the flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong(pub String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct FileSettings {
    listen: Option<String>,
    http: Option<String>,
    http_tls: Option<bool>,
    certs: Option<PathBuf>,
    certificate_lifetime: Option<String>,
    data: Option<PathBuf>,
    upload_dir: Option<PathBuf>,
    max_uploads: Option<String>,
    downloads: Option<String>,
    download_host: Option<String>,
    access_key: Option<String>,
    allow_non_loopback: Option<bool>,
    conn_limit: Option<usize>,
    max_hosts: Option<usize>,
    plugins: Option<PathBuf>,
    store: StoreSettings,
    forward: Vec<toml::Table>,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct StoreSettings {
    keep: Option<String>,
    max: Option<String>,
}

impl Settings {
    /// Reads the file. If there is none where it is looked for by default, everything has its default.
    ///
    /// # Errors
    /// When it cannot be read, or says something that makes no sense.
    pub fn read(path: Option<&Path>) -> Result<Self, Wrong> {
        let at = path.unwrap_or(Path::new(DEFAULT_FILE));
        match text_of(at) {
            Ok(text) => Self::parse(&text).map_err(|wrong| Wrong(format!("{}: {wrong}", at.display()))),
            Err(error) if path.is_none() && error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Wrong(format!("{}: {error}", at.display()))),
        }
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let file: FileSettings =
            toml::from_str(text).map_err(|error| Wrong(error.to_string().trim_end().to_owned()))?;
        let mut settings = Self::default();
        let key = |key: &'static str| move |error: String| Wrong(format!("{key}: {error}"));
        if let Some(listen) = file.listen {
            settings.set_listen(address(&listen).map_err(key("listen"))?);
        }
        if let Some(text) = file.downloads {
            settings.downloads = downloads(&text).map_err(key("downloads"))?;
        }
        if let Some(host) = file.download_host {
            settings.download_host = Some(download_host(&host).map_err(key("download_host"))?);
        }
        if let Some(http) = file.http {
            settings.http = address(&http).map_err(key("http"))?;
        }
        if let Some(data) = file.data {
            settings.set_data(data);
        }
        if let Some(pair) = file.access_key {
            settings.access_key = Some(access_key(&pair).map_err(key("access_key"))?);
        }
        if let Some(keep) = file.store.keep {
            settings.keep = humantime::parse_duration(&keep).map_err(|error| key("store.keep")(error.to_string()))?;
        }
        if let Some(lifetime) = file.certificate_lifetime {
            settings.certificate_lifetime =
                humantime::parse_duration(&lifetime).map_err(|error| key("certificate_lifetime")(error.to_string()))?;
        }
        if let Some(max) = file.max_uploads {
            settings.max_uploads = size(&max).map_err(key("max_uploads"))?;
        }
        if let Some(max) = file.store.max {
            settings.max = size(&max).map_err(key("store.max"))?;
        }
        settings.http_tls = file.http_tls.unwrap_or(settings.http_tls);
        settings.certs = file.certs;
        settings.upload_dir = file.upload_dir.unwrap_or(settings.upload_dir);
        settings.allow_non_loopback = file.allow_non_loopback.unwrap_or(settings.allow_non_loopback);
        settings.conn_limit = file.conn_limit.unwrap_or(settings.conn_limit);
        settings.max_hosts = file.max_hosts.unwrap_or(settings.max_hosts);
        settings.plugins = file.plugins;
        settings.forward = crate::forward::settings::parse(file.forward).map_err(key("forward"))?;
        Ok(settings)
    }

    /// Sets the address that agents connect to. Unless that was set, the one at which they fetch files goes along: it is the same with
    /// another port.
    pub fn set_listen(&mut self, listen: SocketAddr) {
        if self.downloads == Some(beside(self.listen)) {
            self.downloads = Some(beside(listen));
        }
        self.listen = listen;
    }

    /// Returns the directory of certificates: the one that was named, or the default one if it has any. Where there is neither, the center
    /// is its own authority.
    pub fn certs(&self) -> Option<PathBuf> {
        let default = PathBuf::from(DEFAULT_CERTS);
        self.certs.clone().or_else(|| default.join("ca.crt").exists().then_some(default))
    }

    /// Sets the directory of everything that is kept, and that for uploads in it.
    pub fn set_data(&mut self, data: PathBuf) {
        self.upload_dir = data.join("uploads");
        self.data = data;
    }

    /// Looks whether the settings fit together.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), Wrong> {
        let wrong = |text: String| Err(Wrong(text));
        let named =
            [("data", Some(&self.data)), ("upload_dir", Some(&self.upload_dir)), ("certs", self.certs.as_ref())];
        for (key, path) in named {
            if path.is_some_and(|path| path.as_os_str().is_empty()) {
                return wrong(format!("{key} is empty, expected a directory"));
            }
        }
        if !self.http.ip().is_loopback() {
            if !self.allow_non_loopback {
                return wrong(format!(
                    "http {} is not a loopback address; say --allow-non-loopback (allow_non_loopback = true) if you mean it",
                    self.http
                ));
            }
            if self.access_key.is_none() && !self.http_tls {
                return wrong(format!(
                    "http {} can be reached from elsewhere, which takes an access key, or users and TLS (http_tls = true)",
                    self.http
                ));
            }
        }
        if !(1..=MAX_CONN_LIMIT).contains(&self.conn_limit) {
            return wrong(format!("a connection limit of {}, expected 1 to {MAX_CONN_LIMIT}", self.conn_limit));
        }
        if self.max_hosts < self.conn_limit {
            return wrong(format!(
                "max_hosts is {} and conn_limit {}, expected at least as many hosts as connections",
                self.max_hosts, self.conn_limit
            ));
        }
        if !LIFETIMES.contains(&self.certificate_lifetime) {
            let lifetime = self.certificate_lifetime.as_secs();
            return wrong(format!("certificate_lifetime is {lifetime} s, expected 10 s to 10 years"));
        }
        if self.keep < Duration::from_secs(3600) {
            return wrong(format!("store.keep is {} s, expected an hour or more", self.keep.as_secs()));
        }
        if self.max_uploads < 1 << 20 {
            return wrong(format!("max_uploads is {} bytes, expected 1 MiB or more", self.max_uploads));
        }
        if self.max < 16 << 20 {
            return wrong(format!("store.max is {} bytes, expected 16 MiB or more", self.max));
        }
        Ok(())
    }
}

/// Reads an address and a port.
///
/// # Errors
/// When it is none.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let text = text.replace("localhost:", "127.0.0.1:");
    SocketAddr::from_str(&text)
        .map_err(|_| format!("{text:?}, expected an IP address and a port, as in 127.0.0.1:6751"))
}

/// Returns the address at which agents fetch files that connect to this one.
fn beside(listen: SocketAddr) -> SocketAddr {
    SocketAddr::new(listen.ip(), if listen.port() == 0 { 0 } else { DOWNLOADS_PORT })
}

/// Reads the address at which agents fetch files: an address and a port, or `off`.
///
/// # Errors
/// When it is neither.
pub fn downloads(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" { Ok(None) } else { address(text).map(Some).map_err(|error| format!("{error}, or off")) }
}

/// Reads a host as it stands in an address: a name, an IPv4 address, or an IPv6 address with or without brackets.
///
/// # Errors
/// When it is none.
pub fn download_host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<Ipv6Addr>().is_ok() {
        return Ok(format!("[{bare}]"));
    }
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.is_empty() || text.len() > MAX_HOST || !text.chars().all(safe) {
        return Err(format!("{text:?}, expected a name or an address without a port"));
    }
    Ok(text.to_owned())
}

/// Reads the two halves of a key.
///
/// # Errors
/// When there are not two.
pub fn access_key(text: &str) -> Result<AccessKey, String> {
    let halves = text.split_once(':').filter(|(access, secret)| !access.is_empty() && !secret.is_empty());
    let (access_key, secret_key) = halves.ok_or("expected two keys with a colon between them")?;
    Ok(AccessKey { access_key: access_key.to_owned(), secret_key: secret_key.to_owned() })
}

/// Reads a number of bytes: `20GiB`, `512 MiB`, `1000000`.
///
/// # Errors
/// When it is none.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?}, expected a number of bytes, as in 20GiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_differs_from_the_defaults() {
        let settings = Settings::parse(
            "listen = \"10.0.0.1:1\"\ndata = \"/srv/center\"\nconn_limit = 20\nmax_uploads = \"2GiB\"\naccess_key = \"a:s\"\n[store]\nkeep = \"2d\"\nmax = \"512 MiB\"\n",
        )
        .unwrap();
        assert_eq!(settings.listen, SocketAddr::from(([10, 0, 0, 1], 1)));
        assert_eq!(settings.upload_dir, Path::new("/srv/center/uploads"));
        assert_eq!(settings.max_uploads, 2 << 30);
        assert_eq!((settings.keep, settings.max), (Duration::from_secs(2 * 86_400), 512 << 20));
        assert_eq!(settings.http, Settings::default().http);
        assert_eq!(settings.check(), Ok(()));
        assert_eq!(Settings::parse("").unwrap(), Settings::default());
    }

    /// The example that packages bring.
    const EXAMPLE: &str = include_str!("../center.example.toml");

    #[test]
    fn the_example_has_every_key_with_its_default() {
        assert_eq!(Settings::parse(EXAMPLE).unwrap(), Settings::default(), "nothing in it is set");
        // With `#` alone before it, a line is a key or a section.
        let set: String = EXAMPLE
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')))
            .fold(String::new(), |text, line| text + line + "\n");
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let known = serde_json::to_value(FileSettings::default()).unwrap();
        let shown: serde_json::Value = toml::from_str(&set).unwrap();
        assert_eq!(keys(&shown), keys(&known));
        assert_eq!(keys(&shown["store"]), keys(&known["store"]));
        // These have no default that a file could say.
        let free = ["access_key", "certs", "download_host", "forward", "plugins"];
        let mut defaults = Settings::parse(&set).unwrap();
        let given = (defaults.access_key.take(), defaults.download_host.take(), defaults.plugins.take());
        assert!(given.0.is_some() && given.1.is_some() && given.2.is_some(), "{free:?}");
        assert_eq!(std::mem::take(&mut defaults.forward).len(), 1);
        assert_eq!(defaults.certs.take().as_deref(), Some(Path::new(DEFAULT_CERTS)));
        assert_eq!(defaults, Settings::default());
    }

    #[test]
    fn files_are_fetched_where_agents_connect() {
        let downloads = |text: &str| Settings::parse(text).unwrap().downloads.map(|address| address.to_string());
        assert_eq!(downloads("").as_deref(), Some("[::]:6753"));
        assert_eq!(downloads("listen = \"10.0.0.1:6751\"").as_deref(), Some("10.0.0.1:6753"));
        assert_eq!(downloads("listen = \"127.0.0.1:0\"").as_deref(), Some("127.0.0.1:0"));
        assert_eq!(downloads("listen = \"10.0.0.1:1\"\ndownloads = \"10.0.0.2:80\"").as_deref(), Some("10.0.0.2:80"));
        assert_eq!(downloads("downloads = \"off\""), None);
        let host = |text: &str| download_host(text);
        assert_eq!(host("fe::1"), Ok("[fe::1]".to_owned()));
        assert_eq!(host("[fe::1]"), Ok("[fe::1]".to_owned()));
        assert_eq!(host("center.example"), Ok("center.example".to_owned()));
    }

    #[test]
    fn a_mistake_is_told_with_its_key() {
        for (text, told) in [
            ("lisen = 1", "lisen"),
            ("listen = \"here\"", "listen: \"here\", expected an IP address"),
            ("[store]\nmax = \"20GB\"", "store.max: \"20GB\""),
            ("[store]\nmax = \"99999999999TiB\"", "store.max"),
            ("[store]\nkeep = \"long\"", "store.keep"),
            ("certificate_lifetime = \"90\"", "certificate_lifetime"),
            ("access_key = \"a\"", "access_key: expected two keys"),
            ("conn_limit = -1", "conn_limit"),
            ("downloads = \"on\"", "or off"),
            ("[[forward]]\nname = \"siem\"\nkind = \"file\"\npaht = \"/x\"", "forward: siem: unknown field `paht`"),
            ("download_host = \"a:1\"", "download_host: \"a:1\""),
        ] {
            let wrong = Settings::parse(text).unwrap_err().to_string();
            assert!(wrong.contains(told), "{text}: {wrong}");
        }
    }

    #[test]
    fn only_a_regular_file_of_a_sensible_length_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let wrong = |path: &Path| Settings::read(Some(path)).unwrap_err().to_string();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), rustix::fs::Mode::RUSR).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
        for path in [at("fifo"), at("zero"), dir.path().to_owned()] {
            assert!(wrong(&path).contains("it is no regular file"), "{}", wrong(&path));
        }
        let long = |len: usize| std::fs::write(at("long"), "#".repeat(len)).unwrap();
        long(1 << 20);
        assert_eq!(Settings::read(Some(&at("long"))), Ok(Settings::default()));
        long((1 << 20) + 1);
        assert!(wrong(&at("long")).contains("it is longer than 1 MiB"), "{}", wrong(&at("long")));
        std::fs::write(at("long"), b"\xff").unwrap();
        assert!(wrong(&at("long")).contains("UTF-8"), "{}", wrong(&at("long")));
    }

    #[test]
    fn what_does_not_fit_together_is_told() {
        let check = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert!(check(|settings| settings.http = address("0.0.0.0:1").unwrap()).contains("not a loopback address"));
        let open = |settings: &mut Settings| {
            settings.http = address("0.0.0.0:1").unwrap();
            settings.allow_non_loopback = true;
        };
        assert!(check(open).contains("takes an access key"));
        let mut users = Settings { http_tls: true, ..Settings::default() };
        open(&mut users);
        assert_eq!(users.check(), Ok(()));
        assert!(check(|settings| settings.conn_limit = 0).contains("connection limit of 0"));
        assert!(check(|settings| settings.max_hosts = 5).contains("max_hosts is 5"));
        assert!(check(|settings| settings.keep = Duration::ZERO).contains("store.keep"));
        assert!(check(|settings| settings.certificate_lifetime = Duration::ZERO).contains("certificate_lifetime"));
        assert!(check(|settings| settings.max_uploads = 1).contains("max_uploads"));
        assert!(check(|settings| settings.max = 1).contains("store.max"));
        assert!(check(|settings| settings.set_data(PathBuf::new())).contains("data is empty"));
        assert!(check(|settings| settings.upload_dir = PathBuf::new()).contains("upload_dir is empty"));
        assert!(check(|settings| settings.certs = Some(PathBuf::new())).contains("certs is empty"));
        assert_eq!(Settings::default().check(), Ok(()));
    }
}
