//! The agent's side of mutual TLS: its identity, and whom it trusts.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use elklet_core::agent::Lifetime;
use elklet_core::link::x509;
use elklet_proto::agent_uri;
use ring::digest;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring::sign;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};

use zeroize::Zeroizing;

use super::key;
use super::provider::provider;
use super::trust::{KeyHash, Verifier, key_hash};
use crate::clock::WallClock;
use crate::config::Server;
use crate::files::read_regular;
use crate::identity::{self, Pending};
use crate::pem;

/// The settings of every connection.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) config: Arc<ClientConfig>,
    /// The name that the server's certificate must have, whatever address was dialled.
    pub(crate) name: ServerName<'static>,
}

/// The files of a directory of certificates.
const FILES: [&str; 3] = ["ca.crt", "client.crt", "client.key"];

/// The largest of these files, in bytes. The system's own list of authorities has a quarter of it.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// The agent's certificate and what it demands of servers, as read from a directory.
#[derive(Debug)]
pub(crate) struct Certificates {
    directory: PathBuf,
    tls: Tls,
    /// A hash of the files and of what is demanded of servers, as they were at the last look, good or not.
    seen: [u8; 32],
    client_until: Option<i64>,
    /// The URI in the client's certificate that says for which agent a center has given it, and how long it is valid.
    given: Option<(String, Lifetime)>,
    authority_until: Option<i64>,
    /// Useless sections of the authorities' file.
    passed_over: Vec<String>,
    /// Expiry and name of each authority but the last to expire.
    other_ends: Vec<(i64, String)>,
}

impl Certificates {
    /// Reads `ca.crt`, `client.crt` and `client.key` in `directory`.
    ///
    /// Without `client.crt` and `client.key` in the directory, the client has no certificate. AgentCenter refuses such
    /// clients, but a proxy in front of it may not. The log says that there is none.
    ///
    /// # Errors
    /// When a file cannot be read or does not hold what its name promises.
    pub(crate) fn load(directory: PathBuf, server: &Server) -> Result<Self, CertificateError> {
        let files = Files::read(directory, server);
        files.parse()
    }

    /// Reads `directory` again, which may be another one by now. Returns `None` when neither the files nor what
    /// `server` says about trust have changed since the last look.
    ///
    /// # Errors
    /// When they have changed and cannot be used, or have expired while those in use have not. Those in use then stay.
    pub(crate) fn reread(
        &mut self,
        directory: &Path,
        server: &Server,
        unix_seconds: i64,
    ) -> Option<Result<(), CertificateError>> {
        let files = Files::read(directory.to_owned(), server);
        let seen = files.digest();
        if seen == self.seen {
            return None;
        }
        self.seen = seen;
        let has_expired = |until: Option<i64>| until.is_some_and(|until| until < unix_seconds);
        Some(files.parse().and_then(|new| {
            if has_expired(new.client_until) && !has_expired(self.client_until) {
                return Err(CertificateError::new(&directory.join("client.crt"), "the certificate has expired"));
            }
            *self = new;
            Ok(())
        }))
    }

    /// The directory of the files.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The settings of every connection.
    pub(crate) fn tls(&self) -> &Tls {
        &self.tls
    }

    /// How long the client's certificate is valid, if a center has given it to this agent.
    pub(crate) fn given_to(&self, agent_id: &str) -> Option<Lifetime> {
        self.given.as_ref().filter(|(uri, _)| *uri == agent_uri::of(agent_id)).map(|(_, lifetime)| *lifetime)
    }

    /// Expiry of the client's certificate and of the authorities, in seconds since 1970.
    pub(crate) fn ends(&self) -> [Option<i64>; 2] {
        [self.client_until, self.authority_until]
    }

    /// Whole days until the client's certificate and the authorities expire, negative after that.
    pub(crate) fn days_left(&self, unix_seconds: i64) -> [Option<i64>; 2] {
        [self.client_until, self.authority_until].map(|until| Some((until? - unix_seconds).div_euclid(DAY)))
    }

    /// Warnings about certificates that expire soon, have expired or are of no use.
    pub(crate) fn warnings(&self, unix_seconds: i64) -> Vec<String> {
        let ends = [self.client_until, self.authority_until];
        let named = ["client.crt", "ca.crt"].into_iter().zip(ends).zip(self.days_left(unix_seconds));
        let warning = |((name, until), days): ((&str, Option<i64>), Option<i64>)| {
            let (path, until, days) = (self.directory.join(name), until?, days?);
            let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(until).unwrap_or(0));
            let at = humantime::format_rfc3339_seconds(at);
            // What is renewed in its last third is no reason for a warning while there is time.
            let is_to_be_renewed = name == "client.crt"
                && self
                    .given
                    .as_ref()
                    .is_some_and(|(_, Lifetime { from, until })| until - unix_seconds > (until - from) / 6);
            (days < WARNED_DAYS && !is_to_be_renewed).then(|| {
                if until < unix_seconds {
                    format!("{}: the certificate expired at {at}", path.display())
                } else {
                    format!("{}: the certificate expires in {days} days, at {at}", path.display())
                }
            })
        };
        let path = self.directory.join("ca.crt");
        let is_over = |(until, _): &&(i64, String)| *until < unix_seconds;
        let others = self.other_ends.iter().filter(is_over).map(|(_, which)| format!("{which} has expired"));
        let odd = self.passed_over.iter().cloned().chain(others).map(|what| format!("{}: {what}", path.display()));
        named.filter_map(warning).chain(odd).collect()
    }
}

const DAY: i64 = 24 * 60 * 60;

/// The log warns of a certificate that expires within this many days.
pub(crate) const WARNED_DAYS: i64 = 30;

/// What may be a key, and is wiped when it is dropped.
type Secret = Zeroizing<Vec<u8>>;

/// The contents of [`FILES`].
struct Files {
    directory: PathBuf,
    contents: [io::Result<Secret>; 3],
    name: ServerName<'static>,
    pins: Vec<KeyHash>,
}

impl Files {
    fn read(directory: PathBuf, server: &Server) -> Self {
        let mut contents = FILES.map(|name| read(&directory.join(name)));
        // A new identity that is not in its place yet counts all the same.
        if let Some(Pending { key, certificate, authorities }) = identity::pending(&directory) {
            contents[1] = Ok(certificate);
            contents[2] = Ok(key);
            if let Some(authorities) = authorities {
                contents[0] = Ok(authorities);
            }
        }
        Self { directory, contents, name: server.name(), pins: server.pins() }
    }

    fn digest(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        for content in &self.contents {
            match content {
                Ok(bytes) => {
                    context.update(&bytes.len().to_le_bytes());
                    context.update(bytes);
                }
                Err(error) => context.update(error.to_string().as_bytes()),
            }
        }
        context.update(self.name.to_str().as_bytes());
        self.pins.iter().for_each(|pin| context.update(pin));
        context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn parse(self) -> Result<Certificates, CertificateError> {
        let seen = self.digest();
        let Self { directory, contents: [ca, certificate, private], name, pins } = self;
        let [ca_path, certificate_path, key_path] = FILES.map(|name| directory.join(name));
        let Authorities { roots, ends, passed_over } = authorities(&ca_path, ca)?;
        let authority_until = ends.iter().map(|(until, _)| *until).max();
        let other_ends = ends.into_iter().filter(|(until, _)| Some(*until) != authority_until).collect();

        let is_missing =
            |content: &io::Result<_>| matches!(content, Err(error) if error.kind() == io::ErrorKind::NotFound);
        let client = if is_missing(&certificate) && is_missing(&private) {
            log::warn!(
                "no client certificate: neither {} nor {} exists; AgentCenter refuses such clients",
                certificate_path.display(),
                key_path.display()
            );
            None
        } else {
            let chain = chain(&certificate_path, certificate)?;
            let private = key::private_key(private).map_err(|why| CertificateError::new(&key_path, why))?;
            if sign::any_supported_type(&private).is_err() {
                return Err(CertificateError::new(&key_path, key::fault(&private)));
            }
            Some((chain, private))
        };

        let provider = Arc::new(provider());
        let own = client.as_ref().and_then(|(chain, _)| key_hash(chain.first()?));
        let web = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        let web = web.map_err(|error| CertificateError::new(&ca_path, error))?;
        let builder = ClientConfig::builder_with_details(provider, Arc::new(WallClock))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| CertificateError::new(&directory, error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { web, own, pins }));
        let (mut client_until, mut given) = (None, None);
        let mut config = match client {
            None => builder.with_no_client_auth(),
            Some((chain, private)) => {
                client_until = chain.iter().filter_map(|certificate| x509::not_after(certificate)).min();
                given = chain.first().and_then(|own| {
                    let uri = x509::uri(own).filter(|uri| agent_uri::agent(uri).is_some())?;
                    let (from, until) = x509::times(own)?;
                    Some((uri.to_owned(), Lifetime { from, until }))
                });
                builder.with_client_auth_cert(chain, private).map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => {
                        let why =
                            format!("the key does not belong to the certificate in {}", certificate_path.display());
                        CertificateError::new(&key_path, why)
                    }
                    rustls::Error::InvalidCertificate(_) => CertificateError::new(&certificate_path, described(&error)),
                    error => CertificateError::new(&key_path, error),
                })?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Connections last and need one handshake each, so remembered sessions would only take memory.
        config.resumption = Resumption::disabled();
        let tls = Tls { config: Arc::new(config), name };
        Ok(Certificates { directory, tls, seen, client_until, given, authority_until, passed_over, other_ends })
    }
}

/// The usable authorities in a file.
struct Authorities {
    roots: RootCertStore,
    /// Expiry and name of each.
    ends: Vec<(i64, String)>,
    /// What is of no use, and why.
    passed_over: Vec<String>,
}

fn authorities(path: &Path, content: io::Result<Secret>) -> Result<Authorities, CertificateError> {
    let mut found = Authorities { roots: RootCertStore::empty(), ends: Vec::new(), passed_over: Vec::new() };
    for (number, section) in sections(path, content)?.into_iter().enumerate() {
        let which = format!("section {} ({:.40}, line {})", number + 1, section.label, section.line);
        let why = if !is_certificate(&section.label) {
            "is no certificate".to_owned()
        } else if let Some(der) = section.der {
            let der = CertificateDer::from(der);
            let until = x509::not_after(&der);
            // `add` accepts any certificate as a trust anchor. Elkeid's CA is X.509 v1.
            match found.roots.add(der) {
                Ok(()) => {
                    found.ends.extend(until.map(|until| (until, which)));
                    continue;
                }
                Err(error) => described(&error),
            }
        } else {
            DAMAGED.to_owned()
        };
        found.passed_over.push(format!("{which} {why}; it is passed over"));
    }
    if found.roots.is_empty() {
        let passed_over = found.passed_over.first().map(|first| format!(": {first}")).unwrap_or_default();
        let why = format!("expected a PEM file with a certificate, found none{passed_over}");
        return Err(CertificateError::new(path, why));
    }
    Ok(found)
}

/// Reads the certificates in a file. Each of them has to be good. A key or anything else may stand beside them.
fn chain(path: &Path, content: io::Result<Secret>) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let sections = sections(path, content)?;
    let first = sections.first().map(|section| section.label.clone());
    let certificates = sections.into_iter().filter(|section| is_certificate(&section.label)).map(|section| {
        let line = section.line;
        let damaged = || CertificateError::new(path, format!("the certificate at line {line} {DAMAGED}"));
        section.der.map(CertificateDer::from).ok_or_else(damaged)
    });
    let certificates = certificates.collect::<Result<Vec<_>, _>>()?;
    match (certificates.is_empty(), first) {
        (false, _) => Ok(certificates),
        (true, None) => Err(CertificateError::new(path, "expected a PEM file with a certificate, found none")),
        (true, Some(label)) => {
            Err(CertificateError::new(path, format!("holds a section {label:?}, expected a certificate")))
        }
    }
}

fn sections(path: &Path, content: io::Result<Secret>) -> Result<Vec<pem::Section>, CertificateError> {
    let bytes = content.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => CertificateError::new(path, "no such file"),
        _ => CertificateError::new(path, error),
    })?;
    let wrong = |what| CertificateError::new(path, format!("{what}, expected a PEM file with a certificate"));
    pem::sections(&bytes).map_err(wrong)
}

fn is_certificate(label: &str) -> bool {
    label == "CERTIFICATE" || label == "X509 CERTIFICATE"
}

const DAMAGED: &str = "is damaged: it holds no X.509 certificate";

/// Says what is wrong with one of the agent's own certificates.
fn described(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding) => DAMAGED.to_owned(),
        rustls::Error::InvalidCertificate(why) => format!("cannot be used: {why}"),
        error => format!("cannot be used: {error}"),
    }
}

fn read(path: &Path) -> io::Result<Secret> {
    read_regular(path, MAX_PEM_BYTES).map(Zeroizing::new)
}

/// Says why there is no session. Replaces rustls's words where they are numbers or an introduction.
pub(crate) fn reason(error: &io::Error) -> String {
    use rustls::CertificateError::{ExpiredContext, NotValidYetContext};
    let moment = |time: UnixTime| humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time.as_secs()));
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::Other(reason)) => reason.0.to_string(),
        Some(rustls::Error::InvalidCertificate(ExpiredContext { time, not_after })) => {
            let (now, end) = (moment(*time), moment(*not_after));
            format!("invalid peer certificate: certificate expired at {end}, and this host's clock says {now}")
        }
        Some(rustls::Error::InvalidCertificate(NotValidYetContext { time, not_before })) => {
            let (now, begin) = (moment(*time), moment(*not_before));
            format!(
                "invalid peer certificate: certificate not valid yet, only from {begin}, and this host's clock says {now}"
            )
        }
        _ => error.to_string(),
    }
}

/// A certificate or key that cannot be used, by the fault of the host's configuration.
#[derive(Debug)]
pub(crate) struct CertificateError {
    path: PathBuf,
    why: String,
}

impl CertificateError {
    fn new(path: &Path, why: impl fmt::Display) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for CertificateError {}
