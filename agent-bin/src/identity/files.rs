//! Writes key and certificate so that there is a whole pair at every moment, whatever kills the agent.
//!
//! Two files cannot be replaced at once. What is new is therefore written whole into a third one, [`NEXT`], first. As long as that is
//! there, it is what counts: whoever reads the certificates reads it, and the next start of the agent puts its parts where they belong.

use std::fs;
use std::io;
use std::path::Path;

use zeroize::Zeroizing;

use super::Identity;
use crate::files::{FileError, read_regular, replace};
use crate::pem::{self, section};

/// The file of an identity that is not in its place yet, beside `client.crt` and `client.key`.
pub(crate) const NEXT: &str = "client.next";

/// The largest of these files, in bytes. A key and two certificates have a tenth of it.
const MAX_BYTES: u64 = 64 << 10;

/// What [`NEXT`] holds, as the files will have it.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) key: Zeroizing<Vec<u8>>,
    pub(crate) certificate: Zeroizing<Vec<u8>>,
    /// The authorities, if they change.
    pub(crate) authorities: Option<Zeroizing<Vec<u8>>>,
}

impl Identity {
    /// Writes it into a directory in place of the one that is there.
    ///
    /// # Errors
    /// A file cannot be written. Either nothing has changed then, or the new identity counts and is put in its place later.
    pub(crate) fn install(&self, directory: &Path) -> Result<(), FileError> {
        let authority = self.authority.iter().map(|authority| section("CERTIFICATE", authority));
        let own = [section("PRIVATE KEY", &self.pkcs8), section("CERTIFICATE", &self.certificate)];
        let parts: Vec<_> = own.into_iter().chain(authority).collect();
        let text = Zeroizing::new(parts.iter().map(|part| &***part).collect::<Vec<_>>().concat());
        let path = directory.join(NEXT);
        replace(&path, &text, 0o600).map_err(FileError::at(&path))?;
        settle(directory).map(drop)
    }
}

/// Reads what is in a directory and not in its place yet, if there is anything.
pub(crate) fn pending(directory: &Path) -> Option<Pending> {
    let text = Zeroizing::new(read_regular(&directory.join(NEXT), MAX_BYTES).ok()?);
    let sections = pem::sections(&text).ok()?;
    let mut sections = sections.into_iter().filter_map(|section| Some((section.label, section.der?)));
    let mut next = |label: &str| {
        let (found, der) = sections.next()?;
        let der = Zeroizing::new(der);
        (found == label).then(|| section(label, &der))
    };
    Some(Pending { key: next("PRIVATE KEY")?, certificate: next("CERTIFICATE")?, authorities: next("CERTIFICATE") })
}

/// Puts what is pending in a directory in its place. Returns true if there was anything.
///
/// # Errors
/// A file cannot be written. What is pending goes on to count.
pub(crate) fn settle(directory: &Path) -> Result<bool, FileError> {
    let Some(Pending { key, certificate, authorities }) = pending(directory) else { return Ok(false) };
    let files = [
        ("ca.crt", authorities.as_ref(), 0o644),
        ("client.key", Some(&key), 0o600),
        ("client.crt", Some(&certificate), 0o644),
    ];
    for (name, content, mode) in files {
        if let Some(content) = content {
            let path = directory.join(name);
            replace(&path, content, mode).map_err(FileError::at(&path))?;
        }
    }
    let path = directory.join(NEXT);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::at(&path)(error)),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn identity(byte: u8, authority: Option<u8>) -> Identity {
        let der = |byte: u8| vec![byte; 100];
        Identity { pkcs8: der(byte).into(), certificate: der(byte + 1), authority: authority.map(der) }
    }

    #[test]
    fn key_and_certificate_are_written_where_they_belong_and_only_the_owner_reads_the_key() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        identity(1, Some(9)).install(directory.path()).expect("writable");
        let der = |name: &str| {
            let sections = pem::sections(&fs::read(at(name)).expect("readable")).expect("PEM");
            sections.into_iter().map(|section| section.der.expect("sound")).collect::<Vec<_>>()
        };
        assert_eq!(
            (der("client.key"), der("client.crt"), der("ca.crt")),
            (vec![vec![1; 100]], vec![vec![2; 100]], vec![vec![9; 100]])
        );
        let mode = |name: &str| fs::metadata(at(name)).expect("it exists").permissions().mode() & 0o777;
        assert_eq!((mode("client.key"), mode("client.crt")), (0o600, 0o644));
        identity(3, None).install(directory.path()).expect("writable");
        assert_eq!((der("client.key"), der("ca.crt")), (vec![vec![3; 100]], vec![vec![9; 100]]));
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 3);
    }

    #[test]
    fn what_was_begun_is_finished_wherever_it_was_killed() {
        let (old, new) = (identity(1, Some(9)), identity(3, Some(8)));
        let whole = tempfile::tempdir().expect("a directory");
        new.install(whole.path()).expect("writable");
        let of_new = |name: &str| fs::read(whole.path().join(name)).expect("readable");
        let names = ["ca.crt", "client.key", "client.crt"];
        for done in 0..=names.len() {
            let directory = tempfile::tempdir().expect("a directory");
            old.install(directory.path()).expect("writable");
            let next = [of_new("client.key"), of_new("client.crt"), of_new("ca.crt")].concat();
            fs::write(directory.path().join(NEXT), next).expect("writable");
            names[..done]
                .iter()
                .for_each(|name| fs::write(directory.path().join(name), of_new(name)).expect("writable"));
            let pending = pending(directory.path()).expect("something is");
            assert_eq!((&*pending.key, &*pending.certificate), (&of_new("client.key"), &of_new("client.crt")));
            assert!(settle(directory.path()).expect("writable"));
            assert!(
                names.iter().all(|name| fs::read(directory.path().join(name)).expect("readable") == of_new(name)),
                "{done}"
            );
            assert!(!settle(directory.path()).expect("writable"), "once");
        }
    }

    #[test]
    fn what_is_no_identity_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        for text in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n"] {
            fs::write(directory.path().join(NEXT), text).expect("writable");
            assert!(!settle(directory.path()).expect("readable"));
            assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1, "{text}");
        }
    }
}
