//! The certificate that the server shows. It can be replaced while the server runs.

use super::shared::Shared;
use crate::authority::{end_s, own};
use crate::clock::now_s;
use crate::http::LocalKey;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// How often the center looks at the end of the certificate that it made for itself.
const LOOK_INTERVAL: Duration = Duration::from_secs(86_400);

/// The certificate in `server.crt`, with the key in `server.key`.
#[derive(Debug)]
pub(crate) struct Shown {
    dir: PathBuf,
    /// Shown behind it, so that a newcomer that knows the authority's pin alone finds the authority.
    authority: Option<CertificateDer<'static>>,
    /// When the last authority in `ca.crt` ends, whose certificates agents have.
    authorities_end_s: Option<i64>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Shown {
    /// Reads the certificate in a directory.
    ///
    /// # Errors
    /// A file cannot be read, or the key is not the certificate's.
    pub(super) fn load(dir: &Path) -> io::Result<Self> {
        let current = RwLock::new(Arc::new(read(dir, None)?));
        let authorities_end_s = certificates(dir, "ca.crt")?.iter().filter_map(end_s).max();
        Ok(Self { dir: dir.to_owned(), authority: None, authorities_end_s, current })
    }

    /// Shows the authority as well.
    ///
    /// # Errors
    /// As [`Shown::load`].
    pub(super) fn with_authority(mut self, authority: CertificateDer<'static>) -> io::Result<Self> {
        self.authority = Some(authority);
        self.reload()?;
        Ok(self)
    }

    /// Reads it again.
    ///
    /// # Errors
    /// As [`Shown::load`]. The one of before stays then.
    pub(super) fn reload(&self) -> io::Result<()> {
        let new = Arc::new(read(&self.dir, self.authority.as_ref())?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Returns the certificate itself, without what is shown behind it.
    pub(super) fn certificate(&self) -> io::Result<Vec<u8>> {
        let first = self.current().cert.first().map(|certificate| certificate.to_vec());
        first.ok_or_else(|| io::Error::other("server.crt holds no certificate"))
    }

    /// Returns when the server and its agents will no longer trust each other.
    pub(crate) fn ends(&self) -> Ends {
        Ends { server_s: self.current().cert.first().and_then(end_s), authorities_s: self.authorities_end_s }
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// When certificates end, in seconds since 1970, as far as that can be read of them.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Ends {
    /// The one that the server shows.
    pub(crate) server_s: Option<i64>,
    /// The last authority that agents' certificates may come from.
    pub(crate) authorities_s: Option<i64>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

/// Makes the certificate anew before its end, for as long as the server runs. This host's own commands, which know an HTTP port with TLS
/// by its certificate, are told of the new one.
pub(super) async fn keep_renewed(shared: Arc<Shared>, shown: Arc<Shown>, local: Option<LocalKey>) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        match tokio::task::block_in_place(|| renew(&shared, &shown, local.as_ref())) {
            Ok(true) => shared.note("the server has a new certificate".to_owned()),
            Ok(false) => {}
            Err(error) => log::error!("the server's certificate stays as it is: {error}"),
        }
    }
}

fn renew(shared: &Shared, shown: &Shown, local: Option<&LocalKey>) -> io::Result<bool> {
    if !own::renew_server(&shown.dir, now_s().cast_signed())? {
        return Ok(false);
    }
    shown.reload()?;
    if let (Some(local), Some(dir), true) = (local, &shared.options.local_dir, shared.options.http_tls) {
        local.with_certificate(&shown.certificate()?).write(dir)?;
    }
    Ok(true)
}

fn read(dir: &Path, authority: Option<&CertificateDer<'static>>) -> io::Result<CertifiedKey> {
    let key_path = dir.join("server.key");
    let key = PrivateKeyDer::from_pem_file(&key_path)
        .map_err(|error| io::Error::other(format!("{}: {error}", key_path.display())))?;
    let mut chain = certificates(dir, "server.crt")?;
    if let Some(authority) = authority.filter(|authority| !chain.contains(authority)) {
        chain.push(authority.clone());
    }
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(io::Error::other)
}

/// Reads the certificates in a file.
///
/// # Errors
/// It cannot be read, or one of them is damaged.
pub(super) fn certificates(dir: &Path, name: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let path = dir.join(name);
    let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
    read.map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}
