//! The keys of each kind of output, and what they may say.

use super::{
    Compress, FileOutput, HttpFormat, HttpOutput, KafkaOutput, Mechanism, Sasl, Secret, SyslogOutput, Tls, Url,
};
use crate::given::text_of;
use crate::settings::size;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// Longest password or token.
const MAX_SECRET: usize = 64 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileKeys {
    path: PathBuf,
    max_size: Option<String>,
    keep: Option<usize>,
}

pub(super) fn file(keys: FileKeys) -> Result<FileOutput, String> {
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
pub(super) struct HttpKeys {
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

pub(super) fn http_output(keys: HttpKeys) -> Result<HttpOutput, String> {
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
pub(super) struct KafkaKeys {
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

pub(super) fn kafka(keys: KafkaKeys) -> Result<KafkaOutput, String> {
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
pub(super) struct SyslogKeys {
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

pub(super) fn syslog(keys: SyslogKeys) -> Result<SyslogOutput, String> {
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
            let value = text_of(&file).map_err(|error| format!("{key}_file: {}: {error}", file.display()))?;
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
