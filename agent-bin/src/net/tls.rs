//! The agent's side of mutual TLS: who it is, and whom it trusts.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use elklet_core::x509;
use ring::digest;
use rustls::client::Resumption;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::files::read_bounded;

/// The name that every AgentCenter's certificate carries, whatever address was dialled (the reference's SNI and its
/// certificate check).
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from("elkeid.com").expect("it is a valid DNS name")
}

/// The files of a directory of certificates.
const FILES: [&str; 3] = ["ca.crt", "client.crt", "client.key"];

/// Bytes of one of them at most: the system's own list of authorities has a quarter.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// What the agent shows to servers and holds against them, as it lies in a directory.
#[derive(Debug)]
pub(crate) struct Certificates {
    directory: PathBuf,
    config: Arc<ClientConfig>,
    /// The files as they were when they were looked at last, good or not.
    seen: [u8; 32],
    client_until: Option<i64>,
    authority_until: Option<i64>,
}

impl Certificates {
    /// Reads `ca.crt`, `client.crt` and `client.key` in `directory`.
    ///
    /// A directory without `client.crt` and `client.key` gives a client without a certificate. AgentCenter refuses such
    /// clients, but a proxy in front of it may not; the log says that there is none.
    ///
    /// # Errors
    /// When a file cannot be read or does not hold what its name promises.
    pub(crate) fn load(directory: PathBuf) -> Result<Self, CertificateError> {
        let files = Files::read(directory);
        files.parse()
    }

    /// Reads `directory`, which may be another by now: nothing when the files are as they were at the last look.
    ///
    /// # Errors
    /// When they have changed and cannot be used, or have expired while what was read before has not; then that stays.
    pub(crate) fn reread(&mut self, directory: &Path, unix_seconds: i64) -> Option<Result<(), CertificateError>> {
        let files = Files::read(directory.to_owned());
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

    /// Where they lie.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What connections are made with.
    pub(crate) fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }

    /// Whole days that the client's certificate, and then the authorities', are good for; negative once they are not.
    pub(crate) fn days_left(&self, unix_seconds: i64) -> [Option<i64>; 2] {
        [self.client_until, self.authority_until].map(|until| Some((until? - unix_seconds).div_euclid(DAY)))
    }

    /// What is to be said of certificates that are near their end or beyond it.
    pub(crate) fn warnings(&self, unix_seconds: i64) -> Vec<String> {
        let ends = [self.client_until, self.authority_until];
        let named = ["client.crt", "ca.crt"].into_iter().zip(ends).zip(self.days_left(unix_seconds));
        let warning = |((name, until), days): ((&str, Option<i64>), Option<i64>)| {
            let (path, until, days) = (self.directory.join(name), until?, days?);
            let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(until).unwrap_or(0));
            let at = humantime::format_rfc3339_seconds(at);
            (days < WARNED_DAYS).then(|| match until < unix_seconds {
                true => format!("{}: the certificate expired at {at}", path.display()),
                false => format!("{}: the certificate expires in {days} days, at {at}", path.display()),
            })
        };
        named.filter_map(warning).collect()
    }
}

const DAY: i64 = 24 * 60 * 60;

/// The log says so of a certificate whose end is nearer than this.
const WARNED_DAYS: i64 = 30;

/// The contents of [`FILES`].
struct Files {
    directory: PathBuf,
    contents: [io::Result<Vec<u8>>; 3],
}

impl Files {
    fn read(directory: PathBuf) -> Self {
        let contents = FILES.map(|name| read(&directory.join(name)));
        Self { directory, contents }
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
        context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn parse(self) -> Result<Certificates, CertificateError> {
        let seen = self.digest();
        let Self { directory, contents: [ca, certificate, key] } = self;
        let [ca_path, certificate_path, key_path] = FILES.map(|name| directory.join(name));
        let authorities = certificates(&ca_path, ca)?;
        let authority_until = authorities.iter().filter_map(|authority| x509::not_after(authority)).max();
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            // `add` takes a certificate for what it is, a trust anchor; Elkeid's CA is X.509 v1.
            roots.add(authority).map_err(|error| CertificateError::new(&ca_path, error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| CertificateError::new(&directory, error))?
            .with_root_certificates(roots);
        let is_missing =
            |content: &io::Result<_>| matches!(content, Err(error) if error.kind() == io::ErrorKind::NotFound);
        let mut client_until = None;
        let mut config = if is_missing(&certificate) && is_missing(&key) {
            log::warn!(
                "no client certificate: neither {} nor {} exists; AgentCenter refuses such clients",
                certificate_path.display(),
                key_path.display()
            );
            builder.with_no_client_auth()
        } else {
            let chain = certificates(&certificate_path, certificate)?;
            client_until = chain.iter().filter_map(|certificate| x509::not_after(certificate)).min();
            let private = key
                .map_err(pem::Error::Io)
                .and_then(|bytes| PrivateKeyDer::from_pem_slice(&bytes))
                .map_err(|error| CertificateError::from_pem(&key_path, error, "private key"))?;
            builder.with_client_auth_cert(chain, private).map_err(|error| match error {
                rustls::Error::InvalidCertificate(_) => CertificateError::new(&certificate_path, error),
                error => CertificateError::new(&key_path, error),
            })?
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // One handshake a connection, and connections last: remembered sessions would only take memory.
        config.resumption = Resumption::disabled();
        Ok(Certificates { directory, config: Arc::new(config), seen, client_until, authority_until })
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = read_bounded(path, MAX_PEM_BYTES + 1)?;
    match bytes.len() as u64 > MAX_PEM_BYTES {
        true => Err(io::Error::other(format!("longer than {MAX_PEM_BYTES} bytes"))),
        false => Ok(bytes),
    }
}

fn certificates(path: &Path, content: io::Result<Vec<u8>>) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let read = content
        .map_err(pem::Error::Io)
        .and_then(|bytes| CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>());
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(CertificateError::from_pem(path, pem::Error::NoItemsFound, "certificate"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(CertificateError::from_pem(path, error, "certificate")),
    }
}

/// A certificate or key that cannot be used: the host's configuration is at fault.
#[derive(Debug)]
pub(crate) struct CertificateError {
    path: PathBuf,
    why: String,
}

impl CertificateError {
    fn new(path: &Path, why: impl fmt::Display) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }

    fn from_pem(path: &Path, error: pem::Error, expected: &str) -> Self {
        match error {
            pem::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => Self::new(path, "no such file"),
            pem::Error::Io(error) => Self::new(path, error),
            pem::Error::NoItemsFound => {
                Self::new(path, format_args!("expected a PEM file with a {expected}, found none"))
            }
            error => Self::new(path, format_args!("expected a PEM file with a {expected}: {error:?}")),
        }
    }
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for CertificateError {}
