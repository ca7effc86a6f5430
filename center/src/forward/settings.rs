//! The settings of outputs: the tables `[[forward]]` of `center.toml`.

use crate::settings::size;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Outputs of a center. Each has a page of records and its batches in memory.
const MAX_OUTPUTS: usize = 16;
/// Data types that an output may choose.
const MAX_TYPES: usize = 1000;
/// Longest password or token.
const MAX_SECRET: usize = 64 << 10;

/// One place that records are passed on to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// What the position, the metrics and the log call it.
    pub name: String,
    /// The data types that it wants, or all if there are none.
    pub types: Vec<i32>,
    /// Where it begins, if it is new.
    pub from: From,
    /// What it is.
    pub kind: Kind,
}

/// Where a new output begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// With the next record.
    Now,
    /// With the oldest record that is kept.
    Start,
}

/// The kinds of outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// NDJSON in a file.
    File(FileOutput),
    /// Requests to a server.
    Http(HttpOutput),
    /// Messages to a receiver of syslog.
    Syslog(SyslogOutput),
    /// Messages to a topic of Kafka.
    Kafka(KafkaOutput),
}

impl Kind {
    /// Its word in the settings.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Http(_) => "http",
            Self::Syslog(_) => "syslog",
            Self::Kafka(_) => "kafka",
        }
    }
}

/// NDJSON in a file that is rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOutput {
    /// The file.
    pub path: PathBuf,
    /// Bytes at which it is rotated.
    pub max_size: u64,
    /// Rotated files that are kept beside it: `PATH.1` is the newest.
    pub keep: usize,
}

/// Requests to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpOutput {
    /// Where they go.
    pub url: Url,
    /// What their bodies are.
    pub format: HttpFormat,
    /// True if bodies are compressed.
    pub gzip: bool,
    /// The header `Authorization`.
    pub authorization: Option<Secret>,
    /// Whom to trust.
    pub tls: Tls,
    /// How long a request may take.
    pub timeout: Duration,
    /// Requests at a time.
    pub in_flight: usize,
}

/// Messages of RFC 5424.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyslogOutput {
    /// A name or an address of the receiver.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whom to trust, or nothing for plain TCP.
    pub tls: Option<Tls>,
    /// The facility, 0 to 23.
    pub facility: u8,
    /// The severity, 0 to 7.
    pub severity: u8,
    /// The name of the structured data: `NAME@NUMBER`, where the number is an enterprise's.
    pub sd_id: String,
    /// Bytes of the longest message.
    pub max_length: usize,
}

/// What the body of a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpFormat {
    /// A line of JSON for each record.
    Ndjson,
    /// Requests to the bulk API of Elasticsearch or OpenSearch, into an index for each day.
    Elasticsearch {
        /// What the names of the indices begin with.
        index: String,
    },
    /// Requests to the push API of Loki.
    Loki {
        /// The label `job`.
        job: String,
        /// True if the host's name is a label.
        host: bool,
    },
}

/// A topic of a Kafka cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaOutput {
    /// Brokers to ask for the others, each with its port.
    pub brokers: Vec<String>,
    /// The topic.
    pub topic: String,
    /// Whom to trust, or nothing for plain TCP.
    pub tls: Option<Tls>,
    /// Who the center says that it is.
    pub sasl: Option<Sasl>,
    /// How batches are compressed.
    pub compression: Compress,
}

/// A user of a Kafka cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sasl {
    /// How the password is shown.
    pub mechanism: Mechanism,
    /// The user's name.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// How a password is shown to a Kafka cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Mechanism {
    /// As it is (RFC 4616).
    #[serde(rename = "plain")]
    Plain,
    /// By SCRAM (RFC 7677).
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// By SCRAM with the longer hash.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
}

/// How batches for Kafka are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// Not at all, as AgentCenter does.
    #[default]
    None,
    /// With gzip.
    Gzip,
    /// With snappy.
    Snappy,
    /// With zstd.
    Zstd,
}

/// An address of `http` or `https`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// True for `https`.
    pub tls: bool,
    /// A name or an address, of IPv6 without brackets.
    pub host: String,
    /// The port, 80 or 443 unless it says another.
    pub port: u16,
    /// The path with the query.
    pub path: String,
    /// What the header `Host` says.
    pub authority: String,
}

impl Url {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}, expected an address as in https://siem.example:8080/path");
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        Ok(Self {
            tls,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            path: uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned(),
            authority: authority.to_string(),
        })
    }
}

/// Whom an output trusts, and what it shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// A file of the authorities, in place of the system's.
    pub ca: Option<PathBuf>,
    /// The files of a certificate and of its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Reads the tables.
///
/// # Errors
/// What makes no sense, with the name of its output.
pub(crate) fn parse(tables: Vec<toml::Table>) -> Result<Vec<Output>, String> {
    if tables.len() > MAX_OUTPUTS {
        return Err(format!("there are {} outputs, expected at most {MAX_OUTPUTS}", tables.len()));
    }
    let mut outputs: Vec<Output> = Vec::new();
    for (at, table) in tables.into_iter().enumerate() {
        let name = table.get("name").and_then(toml::Value::as_str).unwrap_or_default().to_owned();
        let of = if name.is_empty() { format!("number {}", at + 1) } else { name.clone() };
        let output = output(table).map_err(|error| format!("{of}: {}", error.trim_end()))?;
        if outputs.iter().any(|other| other.name == name) {
            return Err(format!("{name}: two outputs have this name"));
        }
        outputs.push(output);
    }
    Ok(outputs)
}

/// The keys that every kind has. What is left of the table are the kind's own.
#[derive(Deserialize)]
struct Common {
    name: String,
    kind: String,
    #[serde(default)]
    types: Vec<i32>,
    from: Option<From>,
}

fn output(mut table: toml::Table) -> Result<Output, String> {
    let mut common = toml::Table::new();
    for key in ["name", "kind", "types", "from"] {
        common.extend(table.remove_entry(key));
    }
    let Common { name, kind, types, from } = own(common)?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(format!("name: {name:?}, expected up to 64 of a-z, 0-9, - and _"));
    }
    if types.len() > MAX_TYPES {
        return Err(format!("types: there are {}, expected at most {MAX_TYPES}", types.len()));
    }
    let kind = match kind.as_str() {
        "file" => Kind::File(file(own(table)?)?),
        "http" => Kind::Http(http_output(own(table)?)?),
        "syslog" => Kind::Syslog(syslog(own(table)?)?),
        "kafka" => Kind::Kafka(kafka(own(table)?)?),
        _ => return Err(format!("kind: {kind:?}, expected file, http, kafka or syslog")),
    };
    Ok(Output { name, types, from: from.unwrap_or(From::Now), kind })
}

fn own<T: DeserializeOwned>(table: toml::Table) -> Result<T, String> {
    table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKeys {
    path: PathBuf,
    max_size: Option<String>,
    keep: Option<usize>,
}

fn file(keys: FileKeys) -> Result<FileOutput, String> {
    if !keys.path.is_absolute() {
        return Err(format!("path: {:?}, expected an absolute path", keys.path));
    }
    let max_size = bytes("max_size", keys.max_size, 100 << 20, 1 << 10..=1 << 40)?;
    let keep = keys.keep.unwrap_or(5);
    if keep > 1000 {
        return Err(format!("keep: {keep}, expected at most 1000"));
    }
    Ok(FileOutput { path: keys.path, max_size, keep })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpKeys {
    url: String,
    format: Option<String>,
    index: Option<String>,
    job: Option<String>,
    labels: Option<Vec<String>>,
    gzip: Option<bool>,
    user: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    timeout: Option<String>,
    in_flight: Option<usize>,
}

fn http_output(keys: HttpKeys) -> Result<HttpOutput, String> {
    let password = secret("password", keys.password, keys.password_file)?;
    let token = secret("token", keys.token, keys.token_file)?;
    let authorization = match (keys.user, password, token) {
        (None, None, None) => None,
        (None, None, Some(token)) => Some(Secret(format!("Bearer {}", token.0))),
        (Some(user), Some(password), None) => Some(basic(&user, &password)),
        _ => return Err("expected a token, or a user and a password, or none of them".to_owned()),
    };
    if let Some(Secret(value)) = &authorization
        && http::HeaderValue::from_str(value).is_err()
    {
        return Err("token: it cannot stand in a header".to_owned());
    }
    let format = format(keys.format.as_deref(), keys.index, keys.job, keys.labels)?;
    let in_flight = keys.in_flight.unwrap_or(1);
    if !(1..=8).contains(&in_flight) {
        return Err(format!("in_flight: {in_flight}, expected 1 to 8"));
    }
    if format != HttpFormat::Ndjson && keys.url.contains('?') {
        return Err("url: the address of this format has no query".to_owned());
    }
    let url = Url::parse(&keys.url).map_err(|error| format!("url: {error}"))?;
    let tls = tls(keys.ca, keys.cert, keys.key)?;
    if !url.tls && tls != Tls::default() {
        return Err("ca, cert and key are for https".to_owned());
    }
    Ok(HttpOutput {
        url,
        format,
        gzip: keys.gzip.unwrap_or(false),
        authorization,
        tls,
        timeout: timeout(keys.timeout)?,
        in_flight,
    })
}

fn format(
    format: Option<&str>,
    index: Option<String>,
    job: Option<String>,
    labels: Option<Vec<String>>,
) -> Result<HttpFormat, String> {
    match format.unwrap_or("ndjson") {
        "elasticsearch" if job.is_none() && labels.is_none() => {
            let index = index.unwrap_or_else(|| "elkeid".to_owned());
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
            if index.len() > 200 || !index.starts_with(|c: char| c.is_ascii_lowercase()) || !index.chars().all(plain) {
                return Err(format!(
                    "index: {index:?}, expected up to 200 of a-z, 0-9, -, _ and . with a letter first"
                ));
            }
            Ok(HttpFormat::Elasticsearch { index })
        }
        "loki" if index.is_none() => {
            let labels = labels.unwrap_or_default();
            if labels.iter().any(|label| label != "host") {
                return Err(format!(
                    "labels: {labels:?}, expected [\"host\"] or none; data_type and job are always there"
                ));
            }
            Ok(HttpFormat::Loki { job: job.unwrap_or_else(|| "elkeid".to_owned()), host: !labels.is_empty() })
        }
        "ndjson" if index.is_none() && job.is_none() && labels.is_none() => Ok(HttpFormat::Ndjson),
        "ndjson" | "elasticsearch" | "loki" => {
            Err("index is for the format elasticsearch, and job and labels are for loki".to_owned())
        }
        other => Err(format!("format: {other:?}, expected ndjson, elasticsearch or loki")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KafkaKeys {
    brokers: Vec<String>,
    topic: Option<String>,
    tls: Option<bool>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    mechanism: Option<Mechanism>,
    user: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    #[serde(default)]
    compression: Compress,
}

fn kafka(keys: KafkaKeys) -> Result<KafkaOutput, String> {
    let wrong = keys.brokers.iter().find(|broker| host_port(broker, 0).is_none_or(|(_, port)| port == 0));
    if let Some(broker) = wrong {
        return Err(format!("brokers: {broker:?}, expected a host with a port, as in kafka1.example:9092"));
    }
    if keys.brokers.is_empty() || keys.brokers.len() > 100 {
        return Err(format!("brokers: there are {}, expected 1 to 100", keys.brokers.len()));
    }
    // AgentCenter's.
    let topic = keys.topic.unwrap_or_else(|| "hids_svr".to_owned());
    if topic.is_empty() || topic.len() > 249 || !topic.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        return Err(format!("topic: {topic:?}, expected up to 249 of a-z, A-Z, 0-9, ., _ and -"));
    }
    let trust = tls(keys.ca, keys.cert, keys.key)?;
    let tls = match keys.tls.unwrap_or(false) {
        true => Some(trust),
        false if trust == Tls::default() => None,
        false => return Err("ca, cert and key are for tls = true".to_owned()),
    };
    let sasl = match (keys.user, secret("password", keys.password, keys.password_file)?) {
        (None, None) if keys.mechanism.is_none() => None,
        (Some(user), Some(password)) => {
            Some(Sasl { mechanism: keys.mechanism.unwrap_or(Mechanism::Plain), user, password })
        }
        _ => return Err("user and password go together, and mechanism with them".to_owned()),
    };
    Ok(KafkaOutput { brokers: keys.brokers, topic, tls, sasl, compression: keys.compression })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SyslogKeys {
    address: String,
    transport: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    facility: Option<u8>,
    severity: Option<u8>,
    sd_id: Option<String>,
    max_length: Option<String>,
}

fn syslog(keys: SyslogKeys) -> Result<SyslogOutput, String> {
    let tls = tls(keys.ca, keys.cert, keys.key)?;
    let tls = match keys.transport.as_deref() {
        None | Some("tls") => Some(tls),
        Some("tcp") if tls == Tls::default() => None,
        Some("tcp") => return Err("ca, cert and key are for transport = \"tls\"".to_owned()),
        Some(other) => return Err(format!("transport: {other:?}, expected tls or tcp")),
    };
    let (host, port) = host_port(&keys.address, if tls.is_some() { 6514 } else { 514 })
        .ok_or_else(|| format!("address: {:?}, expected a host with a port, as in siem.example:6514", keys.address))?;
    let within = |key: &str, value: Option<u8>, default: u8, most: u8| {
        let value = value.unwrap_or(default);
        if value <= most { Ok(value) } else { Err(format!("{key}: {value}, expected 0 to {most}")) }
    };
    // The number is the one for examples (RFC 5612).
    let sd_id = keys.sd_id.unwrap_or_else(|| "elkeid@32473".to_owned());
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let parts = sd_id.split_once('@').filter(|(name, number)| {
        !name.is_empty()
            && name.chars().all(plain)
            && number.starts_with(|c: char| c.is_ascii_digit())
            && number.chars().all(|c| c.is_ascii_digit() || c == '.')
    });
    // The fields' element is called `NAME-fields@NUMBER`, and a name has 32 characters at most.
    if parts.is_none() || sd_id.len() > 25 {
        return Err(format!("sd_id: {sd_id:?}, expected up to 25 characters as in elkeid@32473"));
    }
    let max_length = bytes("max_length", keys.max_length, 8 << 10, 480..=1 << 20)?;
    Ok(SyslogOutput {
        host,
        port,
        tls,
        facility: within("facility", keys.facility, 13, 23)?,
        severity: within("severity", keys.severity, 6, 7)?,
        sd_id,
        max_length: usize::try_from(max_length).map_err(|error| error.to_string())?,
    })
}

/// Splits `host:port`, `[address]:port`, or one of them without the port.
fn host_port(text: &str, default: u16) -> Option<(String, u16)> {
    let authority: http::uri::Authority = text.parse().ok().filter(|_| !text.contains('@'))?;
    let port = match authority.port() {
        Some(port) => port.as_str().parse().ok()?,
        None => default,
    };
    Some((authority.host().trim_matches(['[', ']']).to_owned(), port))
}

fn basic(user: &str, password: &Secret) -> Secret {
    use base64::Engine;
    let pair = format!("{user}:{}", password.0);
    Secret(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
}

fn timeout(text: Option<String>) -> Result<Duration, String> {
    let Some(text) = text else { return Ok(Duration::from_secs(30)) };
    let timeout = humantime::parse_duration(&text).map_err(|error| format!("timeout: {error}"))?;
    let bounds = Duration::from_secs(1)..=Duration::from_secs(600);
    if bounds.contains(&timeout) { Ok(timeout) } else { Err(format!("timeout: {text}, expected 1s to 10m")) }
}

fn bytes(key: &str, text: Option<String>, default: u64, bounds: std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    let Some(text) = text else { return Ok(default) };
    let bytes = size(&text).map_err(|error| format!("{key}: {error}"))?;
    if bounds.contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!("{key}: {bytes} bytes, expected {} to {}", bounds.start(), bounds.end()))
}

fn tls(ca: Option<PathBuf>, cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Tls, String> {
    let identity = match (cert, key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((cert, key)),
        _ => return Err("cert and key go together".to_owned()),
    };
    Ok(Tls { ca, identity })
}

/// Returns a secret that stands in the settings or in a file, without the end of its line.
fn secret(key: &str, value: Option<String>, file: Option<PathBuf>) -> Result<Option<Secret>, String> {
    match (value, file) {
        (None, None) => Ok(None),
        (Some(value), None) => Ok(Some(Secret(value))),
        (None, Some(file)) => {
            let value =
                std::fs::read_to_string(&file).map_err(|error| format!("{key}_file: {}: {error}", file.display()))?;
            if value.len() > MAX_SECRET {
                return Err(format!(
                    "{key}_file: {} has {} bytes, expected at most {MAX_SECRET}",
                    file.display(),
                    value.len()
                ));
            }
            Ok(Some(Secret(value.trim_end_matches(['\r', '\n']).to_owned())))
        }
        _ => Err(format!("expected {key} or {key}_file")),
    }
}

#[cfg(test)]
mod tests;
