//! Which authorities are trusted for downloads over https: the system's, and the deployment's own.

use std::env;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::tls::Certificate;

/// Where distributions keep the authorities that they trust, in one PEM file. The first that exists counts.
const BUNDLES: [&str; 5] = [
    // Debian, Ubuntu, Alpine, Arch, Gentoo.
    "/etc/ssl/certs/ca-certificates.crt",
    // Red Hat, CentOS, Rocky, Fedora; older ones have the first.
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    // openSUSE, SLES.
    "/etc/ssl/ca-bundle.pem",
    // OpenWrt, Void.
    "/etc/ssl/cert.pem",
];

/// The system's authorities and those of the PEM file `own`. What cannot be read is logged and left out.
///
/// `SSL_CERT_FILE` takes the place of the system's, as with OpenSSL.
pub(super) fn authorities(own: &Path) -> Vec<Certificate<'static>> {
    let system = match env::var_os("SSL_CERT_FILE") {
        Some(file) if !file.is_empty() => Some(PathBuf::from(file)),
        _ => BUNDLES.iter().map(PathBuf::from).find(|bundle| bundle.exists()),
    };
    let mut found = Vec::new();
    for file in system.as_deref().into_iter().chain(own.exists().then_some(own)) {
        match CertificateDer::pem_file_iter(file) {
            Ok(certificates) => {
                found.extend(certificates.flatten().map(|der| Certificate::from_der(&der).to_owned()));
            }
            Err(error) => log::warn!("{}: no authorities can be read for https downloads: {error}", file.display()),
        }
    }
    found
}
