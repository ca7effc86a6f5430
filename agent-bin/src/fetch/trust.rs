//! The authorities that downloads over https trust: the system's, and the deployment's own.

use std::env;
use std::path::{Path, PathBuf};

use ureq::tls::Certificate;

use crate::files::read_regular;
use crate::pem;

/// The longest file of authorities, in bytes. A distribution's has a quarter of a million.
const MAX_BYTES: u64 = 8 << 20;

/// Where distributions keep their trusted authorities, in one PEM file. The first that exists counts.
const BUNDLES: [&str; 5] = [
    // Debian, Ubuntu, Alpine, Arch, Gentoo.
    "/etc/ssl/certs/ca-certificates.crt",
    // Red Hat, CentOS, Rocky, Fedora. Older versions have only the first.
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    // openSUSE, SLES.
    "/etc/ssl/ca-bundle.pem",
    // OpenWrt, Void.
    "/etc/ssl/cert.pem",
];

/// Reads the system's authorities and those of the PEM file `own`. Logs and leaves out what cannot be read.
///
/// `SSL_CERT_FILE` replaces the system's, as with OpenSSL.
pub(super) fn authorities(own: &Path) -> Vec<Certificate<'static>> {
    let system = match env::var_os("SSL_CERT_FILE") {
        Some(file) if !file.is_empty() => Some(PathBuf::from(file)),
        _ => BUNDLES.iter().map(PathBuf::from).find(|bundle| bundle.exists()),
    };
    let mut found = Vec::new();
    for file in system.as_deref().into_iter().chain(own.exists().then_some(own)) {
        let sections = read_regular(file, MAX_BYTES).map_err(|error| error.to_string());
        let sections = sections.and_then(|bytes| pem::sections(&bytes).map_err(str::to_owned));
        match sections {
            // The client skips what is no certificate, or no good one.
            Ok(sections) => {
                let ders = sections.iter().filter_map(|section| section.der.as_ref());
                found.extend(ders.map(|der| Certificate::from_der(der).to_owned()));
            }
            Err(why) => log::warn!("{}: no authorities can be read for https downloads: {why}", file.display()),
        }
    }
    found
}
