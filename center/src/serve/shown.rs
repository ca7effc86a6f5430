//! The certificate that the server shows. It can be replaced while the server runs.

use super::Options;
use super::connection::AgentTls;
use super::shared::Shared;
use crate::authority::{end_s, own};
use crate::clock::now_s;
use crate::given::{certificates, private_key};
use crate::http::LocalKey;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
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
    current: RwLock<Current>,
}

/// What the files hold.
#[derive(Debug, Clone)]
pub(super) struct Current {
    key: Arc<CertifiedKey>,
    /// Agents have certificates of these, in `ca.crt`.
    pub(super) authorities: Vec<CertificateDer<'static>>,
}

impl Shown {
    /// Reads the certificate in a directory.
    ///
    /// # Errors
    /// A file cannot be read, or the key is not the certificate's.
    pub(super) fn load(dir: &Path) -> io::Result<Self> {
        Ok(Self { dir: dir.to_owned(), authority: None, current: RwLock::new(read(dir, None)?) })
    }

    /// Shows the authority as well.
    ///
    /// # Errors
    /// As [`Shown::load`].
    pub(super) fn with_authority(mut self, authority: CertificateDer<'static>) -> io::Result<Self> {
        self.authority = Some(authority);
        self.show(self.read()?);
        Ok(self)
    }

    /// Reads the files again, and changes nothing yet.
    ///
    /// # Errors
    /// As [`Shown::load`]; or `ca.crt` lacks the authority that hosts are enrolled with, so that none of them would get in.
    pub(super) fn read(&self) -> io::Result<Current> {
        let new = read(&self.dir, self.authority.as_ref())?;
        match &self.authority {
            Some(authority) if !new.authorities.contains(authority) => {
                Err(io::Error::other("ca.crt lacks the certificate of the authority that hosts are enrolled with"))
            }
            _ => Ok(new),
        }
    }

    /// Shows this from now on.
    pub(super) fn show(&self, new: Current) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// Returns the certificate itself, without what is shown behind it.
    pub(super) fn certificate(&self) -> io::Result<Vec<u8>> {
        let first = self.current().key.cert.first().map(|certificate| certificate.to_vec());
        first.ok_or_else(|| io::Error::other("server.crt holds no certificate"))
    }

    /// Returns when the server and its agents will no longer trust each other.
    pub(crate) fn ends(&self) -> Ends {
        let Current { key, authorities } = self.current();
        Ends { server_s: key.cert.first().and_then(end_s), authorities_s: authorities.iter().filter_map(end_s).max() }
    }

    pub(super) fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
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
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

/// The certificates that agents and the server know each other by. They can be read again while the server runs.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) shown: Arc<Shown>,
    pub(super) agents: AgentTls,
    /// This host's own commands, which know an HTTP port with TLS by its certificate, are told of another one.
    pub(super) local: Option<LocalKey>,
}

impl Certificates {
    /// Reads the files again. Connections that are there stay as they are.
    ///
    /// # Errors
    /// What is wrong with the files. All certificates of before stay then. Or this host's commands cannot be told.
    pub(super) fn reload(&self, options: &Options) -> io::Result<()> {
        let new = self.shown.read()?;
        self.agents.set_authorities(&new.authorities)?;
        self.shown.show(new);
        if let (Some(local), Some(dir), true) = (&self.local, &options.local_dir, options.http_tls) {
            local.with_certificate(&self.shown.certificate()?).write(dir)?;
        }
        Ok(())
    }

    fn renew(&self, options: &Options) -> io::Result<bool> {
        let is_new = own::renew_server(&self.shown.dir, now_s().cast_signed())?;
        if is_new {
            self.reload(options)?;
        }
        Ok(is_new)
    }
}

/// Makes the server's certificate anew before its end, for as long as the server runs.
pub(super) async fn keep_renewed(shared: Arc<Shared>, certificates: Arc<Certificates>) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        match tokio::task::block_in_place(|| certificates.renew(&shared.options)) {
            Ok(true) => shared.note("the server has a new certificate".to_owned()),
            Ok(false) => {}
            Err(error) => log::error!("the server's certificate stays as it is: {error}"),
        }
    }
}

fn read(dir: &Path, authority: Option<&CertificateDer<'static>>) -> io::Result<Current> {
    let key = private_key(&dir.join("server.key"))?;
    let mut chain = certificates(&dir.join("server.crt"))?;
    if let Some(authority) = authority.filter(|authority| !chain.contains(authority)) {
        chain.push(authority.clone());
    }
    let key = CertifiedKey::from_der(chain, key, &default_provider())
        .map_err(|error| io::Error::other(format!("server.crt and server.key: {error}")))?;
    Ok(Current { key: Arc::new(key), authorities: certificates(&dir.join("ca.crt"))? })
}
