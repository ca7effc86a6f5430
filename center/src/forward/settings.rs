//! The settings of outputs: the tables `[[forward]]` of `center.toml`.

mod keys;

use keys::{file, http_output, kafka, syslog};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Outputs of a center. Each has a page of records and its batches in memory.
const MAX_OUTPUTS: usize = 16;
/// Data types that an output may choose.
const MAX_TYPES: usize = 1000;

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

#[cfg(test)]
mod tests;
