//! Files that agents may fetch: each lies in a directory under the SHA-256 of its contents, and `center.db` knows the rest.

use crate::store::site::{self, Site, SiteError};
use flate2::read::GzDecoder;
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::sync::Semaphore;

/// The longest file. An agent takes up to 512 MiB.
pub const MAX_FILE: u64 = 256 << 20;

/// The most files, and the most bytes of all together.
const MAX_FILES: usize = 1_000;
const MAX_BYTES: u64 = 8 << 30;

/// Files that are taken at a time.
const INCOMING: usize = 4;

/// The longest name of a file, in bytes.
const MAX_NAME: usize = 256;

/// What the name of a file that is not whole begins with.
const NEW: &str = ".new-";

/// The most bytes and entries of an archive that are looked at to find the program in it. An agent unpacks up to as many.
const MAX_UNPACKED: u64 = 1 << 30;
const MAX_ENTRIES: usize = 10_000;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::made(digest(&SHA256, bytes))
    }

    fn made(digest: ring::digest::Digest) -> Self {
        Self(digest.as_ref().try_into().expect("a SHA-256 has 32 bytes"))
    }
}

impl FromStr for Digest {
    type Err = String;

    /// Reads 64 hexadecimal digits, of either case.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:.80?} is no SHA-256, expected 64 hexadecimal digits");
        let digits: Option<Vec<u32>> = text.chars().take(65).map(|c| c.to_digit(16)).collect();
        let digits = digits.filter(|digits| digits.len() == 64).ok_or_else(wrong)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::try_from(pair[0] << 4 | pair[1]).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    /// Writes 64 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a file is not taken.
#[derive(Debug)]
pub enum FileError {
    /// It is longer than [`MAX_FILE`].
    TooLong,
    /// Its name is empty, too long, or has a control character.
    Name,
    /// There are as many files, or as many bytes, as there may be.
    Full(String),
    /// The directory cannot be written.
    Io(PathBuf, io::Error),
    /// The database cannot be written.
    Site(SiteError),
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "a file of more than {MAX_FILE} bytes, which is the limit"),
            Self::Name => write!(f, "name has to have 1 to {MAX_NAME} bytes, without control characters"),
            Self::Full(what) => f.write_str(what),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Site(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for FileError {}

/// The directory of files.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    next: AtomicU64,
    /// Held while a file is put in its place or removed, so that the database and the directory agree.
    placing: Mutex<()>,
    pub(crate) room: Semaphore,
}

impl Files {
    /// Opens the directory, which is made if it is not there, and removes what a crash left half-written.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
        fs::create_dir_all(&dir).map_err(at)?;
        for entry in fs::read_dir(&dir).map_err(at)? {
            let entry = entry.map_err(at)?;
            if entry.file_name().as_encoded_bytes().starts_with(NEW.as_bytes()) {
                fs::remove_file(entry.path()).map_err(at)?;
            }
        }
        Ok(Self { dir, next: AtomicU64::new(0), placing: Mutex::default(), room: Semaphore::new(INCOMING) })
    }

    /// Returns where a file lies, if there is one.
    pub fn path(&self, sha256: &Digest) -> PathBuf {
        self.dir.join(sha256.to_string())
    }

    /// Begins to take a file. Dropping it before [`Files::finish`] removes what has come.
    ///
    /// # Errors
    /// When its name is none, there are too many files, or the directory cannot be written.
    pub fn begin(&self, name: &str, site: &Site) -> Result<Incoming, FileError> {
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(FileError::Name);
        }
        let there = site.files().list().map_err(FileError::Site)?;
        let bytes = there.iter().map(|file| u64::try_from(file.bytes).unwrap_or(0)).sum::<u64>();
        if there.len() >= MAX_FILES || bytes >= MAX_BYTES {
            return Err(FileError::Full(format!(
                "{} files of {bytes} bytes are here, the limit is {MAX_FILES} files and {MAX_BYTES} bytes: delete some",
                there.len()
            )));
        }
        let path = self.dir.join(format!("{NEW}{}", self.next.fetch_add(1, Ordering::Relaxed)));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| FileError::Io(path.clone(), error))?;
        Ok(Incoming { name: name.to_owned(), path, file, len: 0, hash: Context::new(&SHA256) })
    }

    /// Puts a file in its place, where it survives a loss of power. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// When the directory or the database cannot be written.
    pub fn finish(&self, incoming: &Incoming, site: &Site, by: &str, now_ms: i64) -> Result<site::File, FileError> {
        let sha256 = incoming.sha256();
        let at = |error| FileError::Io(incoming.path.clone(), error);
        incoming.file.sync_all().map_err(at)?;
        let _placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        fs::rename(&incoming.path, self.path(&sha256)).map_err(at)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(at)?;
        let file = site::File {
            sha256: sha256.to_string(),
            name: incoming.name.clone(),
            bytes: i64::try_from(incoming.len).expect("it has MAX_FILE at most"),
            uploaded_ms: now_ms,
            uploaded_by: by.to_owned(),
        };
        site.files().add(&file).map_err(FileError::Site)?;
        Ok(file)
    }

    /// Removes a file. It is not known any more, even if it cannot be removed.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remove(&self, sha256: &Digest, site: &Site) -> Result<bool, SiteError> {
        let _placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = site.files().remove(&sha256.to_string())?;
        if known && let Err(error) = fs::remove_file(self.path(sha256)) {
            log::warn!("{}: {error}", self.path(sha256).display());
        }
        Ok(known)
    }

    /// Returns the SHA-256 of the program that a plugin of this name has in a `tar.gz`. Blocks for as long as unpacking takes.
    ///
    /// # Errors
    /// A text that says why there is none.
    pub fn program_in(&self, sha256: &Digest, name: &str) -> Result<Digest, String> {
        let file = File::open(self.path(sha256)).map_err(|error| format!("file {sha256}: {error}"))?;
        program_in(file, name).map_err(|error| format!("file {sha256} is no tar.gz of plugin {name}: {error}"))
    }
}

/// A file that is being taken.
pub struct Incoming {
    name: String,
    path: PathBuf,
    file: File,
    len: u64,
    hash: Context,
}

impl Incoming {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// When there are too many, or they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.len += bytes.len() as u64;
        if self.len > MAX_FILE {
            return Err(FileError::TooLong);
        }
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(|error| FileError::Io(self.path.clone(), error))
    }

    /// Returns the SHA-256 of what has come.
    pub fn sha256(&self) -> Digest {
        Digest::made(self.hash.clone().finish())
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // If it is finished, it is there no more.
        _ = fs::remove_file(&self.path);
    }
}

fn program_in(archive: impl Read, name: &str) -> io::Result<Digest> {
    let mut archive = tar::Archive::new(GzDecoder::new(archive).take(MAX_UNPACKED));
    for entry in archive.entries()?.take(MAX_ENTRIES) {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let is_program = path.strip_prefix(".").unwrap_or(&path).as_os_str() == OsStr::new(name);
        if is_program && entry.header().entry_type().is_file() {
            let mut hash = Context::new(&SHA256);
            let mut piece = [0; 16 << 10];
            loop {
                match entry.read(&mut piece)? {
                    0 => return Ok(Digest::made(hash.finish())),
                    n => hash.update(&piece[..n]),
                }
            }
        }
    }
    Err(io::Error::other(format!("it has no file {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.to_uppercase().parse(), Ok(Digest::of(b"")));
        let [long, other] = [format!("{empty}0"), empty.replace('e', "g")];
        for wrong in ["", "00", &empty[1..], &long, &other, "../../etc/passwd"] {
            assert!(wrong.parse::<Digest>().unwrap_err().contains("64 hexadecimal digits"), "{wrong}");
        }
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::in_memory().unwrap();
        let files = Files::open(dir.path().join("files")).unwrap();
        let names = || fs::read_dir(dir.path().join("files")).unwrap().count();
        let mut incoming = files.begin("driver", &site).unwrap();
        incoming.write(b"half").unwrap();
        drop(incoming);
        assert_eq!((names(), site.files().list().unwrap().len()), (0, 0));
        let mut incoming = files.begin("driver", &site).unwrap();
        incoming.write(b"who").unwrap();
        incoming.write(b"le").unwrap();
        let taken = files.finish(&incoming, &site, "ann", 7).unwrap();
        drop(incoming);
        let sha256 = Digest::of(b"whole");
        assert_eq!((taken.sha256.as_str(), taken.bytes), (sha256.to_string().as_str(), 5));
        assert_eq!(fs::read(files.path(&sha256)).unwrap(), b"whole");
        // A crash leaves this behind.
        std::mem::forget(files.begin("again", &site).unwrap());
        assert_eq!(names(), 2);
        let files = Files::open(dir.path().join("files")).unwrap();
        assert_eq!(names(), 1);
        assert!(files.remove(&sha256, &site).unwrap() && !files.remove(&sha256, &site).unwrap());
        assert_eq!(names(), 0);
    }

    #[test]
    fn too_much_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::in_memory().unwrap();
        let files = Files::open(dir.path().to_owned()).unwrap();
        for name in ["", "a\nb", &"x".repeat(MAX_NAME + 1)] {
            assert!(matches!(files.begin(name, &site), Err(FileError::Name)), "{name:?}");
        }
        let mut incoming = files.begin("long", &site).unwrap();
        incoming.len = MAX_FILE;
        assert!(matches!(incoming.write(b"x"), Err(FileError::TooLong)));
        let big = site::File {
            sha256: String::new(),
            name: String::new(),
            bytes: i64::try_from(MAX_BYTES).unwrap(),
            uploaded_ms: 0,
            uploaded_by: String::new(),
        };
        site.files().add(&big).unwrap();
        assert!(matches!(files.begin("more", &site), Err(FileError::Full(_))));
    }

    #[test]
    fn the_program_in_an_archive_is_found() {
        let archive = |name: &str| {
            let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
            for (name, contents) in [("conf/x", &b"y"[..]), (name, b"program")] {
                let mut header = tar::Header::new_gnu();
                header.set_size(contents.len() as u64);
                archive.append_data(&mut header, name, contents).unwrap();
            }
            archive.into_inner().unwrap().finish().unwrap()
        };
        for name in ["driver", "./driver"] {
            assert_eq!(program_in(&archive(name)[..], "driver").unwrap(), Digest::of(b"program"));
        }
        assert!(program_in(&archive("bin/driver")[..], "driver").unwrap_err().to_string().contains("no file driver"));
        assert!(program_in(&b"plain"[..], "driver").is_err());
        assert!(program_in(&archive("driver")[..30], "driver").is_err());
    }
}
